"""What happened, one record an evaluation."""

import math
from typing import TypedDict

import torch


class Record(TypedDict):
    """One evaluation.

    step: sampler step, from 0. sigma: noise level. computed: whether the network ran.
    input_change: ||x_n - x_(n-1)||. rate: k after the evaluation. error: E after it (0 where computed).
    output_norm: ||v_i|| of the last computed output. Of several streams, the values of the one whose E was largest
    when last asked for. None where a value is not known (or not finite).
    """

    step: int
    sigma: float | None
    computed: bool
    input_change: float | None
    rate: float | None
    error: float | None
    output_norm: float | None


class Trace:
    """Collects records whose values may still be on the device, and fetches them in one go when read."""

    def __init__(self):
        self._records: list[dict] = []

    def __len__(self) -> int:
        return len(self._records)

    def open(self, **values) -> None:
        self._records.append(values)

    def update(self, **values) -> None:
        """Add to the newest record."""
        self._records[-1].update(values)

    def count(self, *, computed: bool) -> int:
        return sum(record["computed"] is computed for record in self._records)

    def resolve(self) -> list[Record]:
        """All records with plain numbers; waits for the device once for all that is new."""
        pending = [
            (record, name, value)
            for record in self._records
            for name, value in record.items()
            if isinstance(value, torch.Tensor)
        ]
        if pending:
            device = pending[-1][2].device
            fetched = torch.stack([value.detach().to(device, torch.float32).reshape(()) for _, _, value in pending])
            for (record, name, _), number in zip(pending, fetched.tolist(), strict=True):
                record[name] = number
        for record in self._records:
            for name, value in record.items():
                if isinstance(value, float) and not math.isfinite(value):
                    record[name] = None
        return [dict(record) for record in self._records]
