"""What happened, one record an evaluation."""

import math
from collections.abc import Sequence
from typing import TypedDict

import torch

from .decision import as_floats


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
    """Collects records whose values may still be on the device, and takes them to the host many at a time."""

    def __init__(self):
        self._records: list[dict] = []
        self.settled = 0  # how many of the first records are plain numbers

    def __len__(self) -> int:
        return len(self._records)

    def open(self, **values) -> None:
        self._records.append(values)

    def update(self, **values) -> None:
        """Add to the newest record."""
        self._records[-1].update(values)
        self.settled = min(self.settled, len(self._records) - 1)

    def count(self, *, computed: bool) -> int:
        return sum(record["computed"] is computed for record in self._records)

    @property
    def pending(self) -> list[torch.Tensor]:
        """Values of finished evaluations that nobody has read yet, each of one element."""
        return [record[name] for record, name in self._pending()]

    def _pending(self) -> list[tuple[dict, str]]:
        return [
            (record, name)
            for record in self._records[self.settled :]
            for name, value in record.items()
            if isinstance(value, torch.Tensor)
        ]

    def deliver(self, numbers: Sequence[float]) -> None:
        """The values of `pending`, in its order."""
        for (record, name), number in zip(self._pending(), numbers, strict=True):
            record[name] = number
        self.settled = len(self._records)

    def resolve(self) -> list[Record]:
        """All records with plain numbers; waits for the device once for all that is new."""
        pending = self.pending
        if pending:
            self.deliver(as_floats(pending, pending[-1].device).tolist())
        return self.read()

    def read(self) -> list[Record]:
        """All records, with None in place of what nobody has read yet; waits for nothing."""
        return [{name: _plain(value) for name, value in record.items()} for record in self._records]


def _plain(value):
    if isinstance(value, torch.Tensor) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
