"""Schedules that are cut into several runs: a run that goes on where an earlier one of the same MODEL stopped.

Samplers that rescale the latent on the way, step-by-step samplers and KSamplerAdvanced's stages sample this way. The
cache starts anew with each run, but steps that were done before count as warm-up. Known by noise level, latent, noise,
conditionings and patches; of all these only numbers are kept.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..easycache_core.samples import can_be_sampled, checksums
from .steps import Schedule

MAX_RUNS = 16
_VALUES = 256  # of each stream of a latent, enough to tell one from another
_ALIKE = 0.95  # correlation: latents may be scaled, shifted and rounded in between
_BELOW = 0.999  # of a model's highest noise level, which schedulers round


class Latent(NamedTuple):
    """streams: some evenly spread values of each of them (video, sound)."""

    shape: torch.Size
    streams: tuple[tuple[float, ...], ...]

    @property
    def is_zero(self) -> bool:
        return not any(map(any, self.streams))

    def likeness(self, other: "Latent | None") -> float:
        """1 where each stream is the other's but for its scale and offset; less, down to -1, where it is not."""
        if other is None or self.shape != other.shape:
            return -1.0
        return min(map(_correlation, self.streams, other.streams))


def latent_of(tensor: torch.Tensor, streams: Sequence[int]) -> Latent:
    """streams: elements per sample of each, [] for a single one. Waits for the tensor's device."""
    rows = tensor.detach().reshape(len(tensor), -1)
    parts = rows.split(list(streams), 1) if streams else [rows]
    picked = [part.reshape(-1)[:: max(part.numel() // _VALUES, 1)].float().cpu() for part in parts]
    return Latent(tensor.shape, tuple(tuple(part.tolist()) for part in picked))


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    if a == b:
        return 1.0
    value = float(torch.corrcoef(torch.tensor([a, b], dtype=torch.float64))[0, 1])
    return 0.0 if math.isnan(value) else value


class Asked(NamedTuple):
    """What a run asks of which weights: id of the model's patches, and sums of the conditionings' tensors by name."""

    patches: object
    conds: tuple


def asked_by(guider) -> Asked:
    """guider: before its conditionings are prepared for sampling."""
    conds = getattr(guider, "conds", {})
    sums = tuple((name, tuple(map(_sums, entries or ()))) for name, entries in sorted(conds.items()))
    return Asked(getattr(guider.model_patcher, "patches_uuid", None), sums)


def _sums(cond: dict) -> tuple:
    tensors = [(key, value) for key, value in sorted(cond.items()) if isinstance(value, torch.Tensor)]
    return tuple((key, *_sums_of(value)) for key, value in tensors)


def _sums_of(tensor: torch.Tensor) -> tuple:
    return (tuple(tensor.shape), *checksums(tensor).tolist()) if can_be_sampled(tensor) else (id(tensor),)


class UnfinishedRun(NamedTuple):
    """sigma: where it stopped. steps: of the schedule up to there. result: the noisy latent that it returned. denoised:
    the picture in it, where its sampler told; None else.
    """

    sigma: float
    steps: int
    asked: Asked
    noise: Latent
    result: Latent
    denoised: Latent | None

    def leads_to(self, noise: Latent, latent: Latent) -> bool:
        """Whether a run with this noise and this initial latent begins where this one stopped: with its result and no
        noise of its own, or with its picture and the same noise anew.
        """
        to_result, to_denoised = latent.likeness(self.result), latent.likeness(self.denoised)
        if noise.is_zero:
            return to_result > max(_ALIKE, to_denoised)
        return noise == self.noise and to_denoised > max(_ALIKE, to_result)


class UnfinishedRuns:
    """The last MAX_RUNS runs of a MODEL that stopped before noise level 0."""

    def __init__(self):
        self._runs: deque[UnfinishedRun] = deque(maxlen=MAX_RUNS)

    def add(self, run: UnfinishedRun) -> None:
        if run in self._runs:
            self._runs.remove(run)
        self._runs.append(run)

    def stopped_at(self, sigma: float) -> list[UnfinishedRun]:
        """The newest first."""
        return [run for run in reversed(self._runs) if math.isclose(run.sigma, sigma, rel_tol=1e-5)]


class Piece:
    """One run as a piece of a schedule.

    steps_before: in the runs that it continues, 0 if it continues none. given_noise: whether it samples on from a noisy
    latent that any run left: no noise is added, and it begins below the model's highest level. Most runs do neither,
    and finish their schedule: of those nothing is looked at, so nothing waits for the device.
    """

    def __init__(self, others: UnfinishedRuns, schedule: Schedule, guider, noise, latent, streams: Sequence[int] = ()):
        self._others, self._schedule, self._guider, self._streams = others, schedule, guider, streams
        self.steps_before = 0
        highest = float(guider.model_patcher.get_model_object("model_sampling").sigma_max)
        begins_below = 0 < schedule.first_sigma < _BELOW * highest
        candidates = others.stopped_at(schedule.first_sigma)
        if schedule.unfinished or candidates or begins_below:
            self._noise = latent_of(noise, streams)
        self.given_noise = begins_below and self._noise.is_zero
        if schedule.unfinished or candidates:
            self._asked, latent = asked_by(guider), latent_of(latent, streams)
            found = (run for run in candidates if run.asked == self._asked and run.leads_to(self._noise, latent))
            self.steps_before = next((run.steps for run in found), 0)

    def finish(self, result: torch.Tensor, denoised: torch.Tensor | None) -> None:
        """The run has returned this latent. denoised: the sampler's, at its last step, where it told."""
        if not self._schedule.unfinished:
            return
        picture = None
        if denoised is not None and denoised.shape == result.shape:
            process_out = self._guider.model_patcher.model.process_latent_out
            picture = latent_of(process_out(denoised.float()), self._streams)
        steps = self.steps_before + self._schedule.steps
        self._others.add(
            UnfinishedRun(
                self._schedule.end_sigma, steps, self._asked, self._noise, latent_of(result, self._streams), picture
            )
        )

    def close(self) -> None:
        self._guider = None
