"""Reports of the finished runs of a patched MODEL, found by the latent that a run returned. They hold numbers only."""

import weakref
from collections import deque
from typing import NamedTuple

import comfy.model_management
import torch
from comfy_execution.utils import get_executing_context

from .continuation import UnfinishedRuns
from .own_wrappers import own_wrappers

MAX_RUNS = 16
_histories: deque[weakref.ref] = deque(maxlen=256)  # the newest ones; each is alive as long as its MODEL is


class FinishedRun(NamedTuple):
    """fingerprints: of the latent that the run returned, in each type that it may be handed on in. prompt_id: of the
    queued prompt; sampler: of the node in it that sampled. Both are None outside of one.
    """

    report: dict
    fingerprints: set[tuple[int, int]]
    prompt_id: str | None
    sampler: str | None


class RunHistory:
    """The last MAX_RUNS runs of one EasyCache (Adaptive) node's MODEL and of its clones (LoRAs behind the node).

    Several samplers may share the MODEL, and ComfyUI may return an earlier latent from its own cache. So the last run
    is not always the one that is asked for. Interrupted and failed runs return no latent and are not kept.

    node: the node's id in the executed graph ("5", in a subgraph "12:5"), None outside of one. unfinished: runs that
    another may continue.
    """

    def __init__(self, node: str | None = None):
        self.node, self.unfinished = node, UnfinishedRuns()
        self._runs: deque[FinishedRun] = deque(maxlen=MAX_RUNS)
        _histories.append(weakref.ref(self))

    @property
    def last(self) -> dict | None:
        """The report of the run that finished last, None if there is none."""
        return self._runs[-1].report if self._runs else None

    def add(self, latent: torch.Tensor, report: dict) -> None:
        """Add a run that returned this latent; waits for the latent's device."""
        # Newer ComfyUI casts what a sampler returns (--fp16-intermediates), some of its nodes do not.
        handed_on = getattr(comfy.model_management, "intermediate_dtype", lambda: latent.dtype)()
        fingerprints = {_fingerprint(latent.to(dtype)) for dtype in {latent.dtype, handed_on}}
        self._runs.append(FinishedRun(report, fingerprints, *_executing()))

    def find(self, latent: torch.Tensor) -> dict | None:
        """The report of the run that returned this latent; waits for the latent's device. None if none did."""
        fingerprint = _fingerprint(latent)
        return next((run.report for run in reversed(self._runs) if fingerprint in run.fingerprints), None)

    @property
    def last_of_job(self) -> dict | None:
        """The report of the last run, if that was part of the prompt being executed."""
        return self.last if self._runs and self._runs[-1].prompt_id == _executing()[0] else None


def finished_runs(node: str) -> list[FinishedRun]:
    """The runs in queued prompts of the node of that id, in any workflow, whose MODEL ComfyUI still has."""
    alive = [history for reference in tuple(_histories) if (history := reference()) and history.node == node]
    return [run for history in alive for run in tuple(history._runs) if run.prompt_id]


def history_of(model) -> RunHistory | None:
    """The history of a MODEL (a ModelPatcher), None if it has not been through an EasyCache (Adaptive) node."""
    wrappers = own_wrappers(model)
    return wrappers[-1].history if wrappers else None


def _executing() -> tuple[str | None, str | None]:
    """Ids of the prompt and of the node that ComfyUI executes."""
    context = get_executing_context()
    return (context.prompt_id, context.node_id) if context else (None, None)


def _fingerprint(latent: torch.Tensor) -> tuple[int, int]:
    """(count, sum) of a latent's values, read as 16-bit integers. Waits for the latent's device.

    Independent of the device, and of whether streams (video, sound) are packed into one tensor or nested.
    """
    streams = latent.unbind() if getattr(latent, "is_nested", False) else [latent]
    bits = [stream.cpu().contiguous().flatten().view(torch.int16) for stream in streams]
    return sum(len(stream) for stream in bits), sum(int(stream.sum(dtype=torch.int64)) for stream in bits)
