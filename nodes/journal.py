"""What the sampling runs of a patched MODEL did: numbers only, kept for reports and sent to the browser."""

from collections import deque
from typing import NamedTuple

import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context

KEY = "easycache_adaptive"  # of the pack's wrappers
KEPT = 16  # runs


class Ended(NamedTuple):
    """A run that ended. mark: of the latent it left. job: the queued prompt that it was part of, None without one."""

    report: dict
    mark: tuple[int, int]
    job: str | None


class Journal:
    """Of one EasyCache (Adaptive) node's MODEL; clones of it (LoRAs put behind the node) share it.

    Several samplers may share the MODEL, and ComfyUI may hand out what one of them made earlier without running it
    again. So a report is found by the latent that its run left. Runs that were interrupted or failed leave none, and
    are not kept.

    node: the node's id in the graph that is executed ("5", in a subgraph "12:5"), None outside of one.
    """

    def __init__(self, node: str | None = None):
        self.node = node
        self._runs: deque[Ended] = deque(maxlen=KEPT)

    @property
    def last(self) -> dict | None:
        """The report of the run that ended last, None before."""
        return self._runs[-1].report if self._runs else None

    def add(self, latent: torch.Tensor, report: dict) -> None:
        """A run has ended with this latent; waits for its device."""
        self._runs.append(Ended(report, _mark(latent), _job()))

    def find(self, latent: torch.Tensor) -> dict | None:
        """The report of the run that left this latent.

        If it was changed since (enlarged, put together), that of the last run, provided it was part of the job being
        executed. None if there is neither.
        """
        mark, job = _mark(latent), _job()
        for run in reversed(self._runs):
            if run.mark == mark:
                return run.report
        return self.last if self._runs and self._runs[-1].job == job else None


def _job() -> str | None:
    context = get_executing_context()
    return context.prompt_id if context else None


def _mark(latent: torch.Tensor) -> tuple[int, int]:
    """Of a latent's values: their number and the sum of their bits. Waits for the device.

    The same wherever the latent was moved to, and whether streams (video, sound) are packed or side by side.
    """
    streams = latent.unbind() if getattr(latent, "is_nested", False) else [latent]
    bits = [stream.cpu().contiguous().flatten().view(torch.int16) for stream in streams]
    return sum(len(stream) for stream in bits), sum(int(stream.sum(dtype=torch.int64)) for stream in bits)


def journal_of(model) -> Journal | None:
    """The journal of a MODEL (a ModelPatcher), None if it has not been through an EasyCache (Adaptive) node."""
    wrappers = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return wrappers[-1].journal if wrappers else None
