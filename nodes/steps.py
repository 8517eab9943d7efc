"""The schedule of a run: its noise levels, and the steps between them."""

import numpy as np
import torch

from ..easycache_core.response import ROUNDED, evaluated_levels
from ..easycache_core.window import Window

# These take another number of steps than their schedule has: one combines up to three evaluations in a step, the other
# one chooses its steps by the answers.
COMBINING, CHOOSING = "dpm_fast_function", "dpm_adaptive_function"
UNKNOWN = 10_000  # steps
# Where another run goes on, nothing makes up for the last gap of this one. In shorter ones that would leave no gap.
SHORT_PIECE = 5  # steps
# Times the step before. Over last steps like that the estimate of closeness was 10 to 15 dB too good (docs/method.md).
LEAP = 2.0
ROUNDED_UP = 1 + ROUNDED
MAX_CHURN = 1.02 * 2**0.5  # times the level of the schedule, as in k-diffusion, but for rounding


def step_count_known(sampler) -> bool:
    """Whether one of ComfyUI's samplers evaluates at least once for each step of its schedule."""
    return _name_of(sampler) not in (COMBINING, CHOOSING)


def chooses_steps(sampler) -> bool:
    """Whether its noise levels depend on the network's answers."""
    return _name_of(sampler) == CHOOSING


def _name_of(sampler) -> str:
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def step_lengths(model_sampling, sigmas: torch.Tensor) -> list[float] | None:
    """The length of each step in the model's own time, 0 to 1, in which the scheduler "simple" takes equal steps.

    sigmas: (steps + 1,), the noise levels that steps lead from and to. Waits for their device. None where the model has
    no ascending table of noise levels.
    """
    return _step_lengths(_table(model_sampling), sigmas)


def _step_lengths(levels: np.ndarray | None, sigmas: torch.Tensor) -> list[float] | None:
    """The same. levels: as from `_table`."""
    if levels is None or len(sigmas) < 2:
        return None
    return np.abs(np.diff(_times(levels, sigmas.detach().float().cpu()))).tolist()


def _table(model_sampling) -> np.ndarray | None:
    """The model's noise levels, ascending, at equal distances in its own time."""
    levels = getattr(model_sampling, "sigmas", None)
    if levels is None or len(levels) < 2:
        return None
    return levels.detach().float().cpu().numpy()  # numpy has no bf16


def _times(levels: np.ndarray, sigmas) -> np.ndarray:
    """Where noise levels are in the model's own time, 0 to 1. levels: as from `_table`."""
    return np.interp(sigmas, levels, np.linspace(0, 1, len(levels)))


class Schedule:
    """The noise levels of a run.

    steps: how many there are. Where levels rise within a descending schedule, noise is added and nothing is evaluated:
    a rise is no step. steps_known: whether the sampler takes these steps. steps_chosen: whether it chooses its own by
    the answers. step_lengths: as from `step_lengths`. unfinished: whether they stop, after a descent, where the model
    still sees noise: another run goes on from there.
    rises: whether they lead back to noise somewhere. leaps: whether the last step is much longer than the one before,
    as where a sampler is told to end earlier. first_sigma, end_sigma: where they begin, and where they stop.
    lowest_sigma: of the last step, with room for rounding; evaluations at it or below are the last ones. last_sigma:
    the same where these are computed; -1 in short pieces of a schedule. levels: of each step; () where the sampler has
    others. window: the noise levels between which evaluations may be skipped, None if that is everywhere.

    sigmas: (steps + 1,), as the sampler gets them. Waits for their device.
    """

    def __init__(self, sigmas: torch.Tensor, model_sampling, sampler, settings):
        values = sigmas.detach().float().cpu()
        self.rises = bool((values[1:] > values[:-1]).any())
        flipped = self.rises and not bool((values[1:] < values[:-1]).any())
        taken = evaluated_levels(values.tolist())
        self._table = _table(model_sampling)
        lengths = _step_lengths(self._table, sigmas)
        self.steps = sum(taken)
        self.step_lengths = lengths and [length for length, take in zip(lengths, taken, strict=True) if take]
        *_, before, last = 0.0, 0.0, *(self.step_lengths or ())
        self.leaps = last > LEAP * before > 0
        self.steps_known, self.steps_chosen = step_count_known(sampler), chooses_steps(sampler)
        self._max, self._min = (float(values.max()), float(values.min())) if len(values) else (0.0, 0.0)
        self.first_sigma, self.end_sigma = (float(values[0]), float(values[-1])) if len(values) else (0.0, 0.0)
        lowest = 1.01 * float(getattr(model_sampling, "sigma_min", 0.0))  # where some schedules end
        self.unfinished = self.steps_known and self.first_sigma > self.end_sigma > lowest
        left = [float(sigma) for sigma, take in zip(values[:-1], taken, strict=True) if take] if len(values) else []
        no_last = flipped or not left or (self.unfinished and self.steps <= SHORT_PIECE)
        self.lowest_sigma = left[-1] * ROUNDED_UP if left else -1.0
        self.last_sigma = -1.0 if no_last else self.lowest_sigma
        self.levels, self.window = tuple(left), None
        if settings.start_percent > 0 or settings.end_percent < 1:
            ends = map(model_sampling.percent_to_sigma, (settings.start_percent, settings.end_percent))
            self.window = Window(*map(float, ends), self.levels)
        self._levels = None if self.rises or not left else values.tolist()

    def position(self, sigma: float) -> float | None:
        """Where in the schedule this noise level is, in steps; None where that does not only descend."""
        if self._levels is None:
            return None
        return float(np.interp(-sigma, [-level for level in self._levels], range(len(self._levels))))

    def time(self, sigma: float) -> float:
        """How far this noise level is along the model's own time, in which most schedulers take equal steps; along the
        noise levels themselves where the model has no time.
        """
        return -sigma if self._table is None else -float(_times(self._table, sigma))

    def ends_at(self, sigma: float) -> None:
        """The lowest noise level that the sampler evaluates at, where its steps are not those of the schedule."""
        if not self.steps_known and self.last_sigma >= 0:
            self.last_sigma = sigma * ROUNDED_UP

    def follow(self, sigma: float, model_sampling) -> bool:
        """Take note of the first noise level that is evaluated; whether it belongs to this schedule.

        Some samplers are given [0, 0] or the like and follow a schedule of their own, of which nothing is known. Those
        that churn add noise before they evaluate.
        """
        if self._max > 0 and self._min - 0.02 * self._max <= sigma <= MAX_CHURN * self._max:
            return True
        self.steps, self.step_lengths, self.steps_known, self.unfinished = UNKNOWN, None, False, False
        self._levels, self.levels = None, ()
        self.last_sigma = float(getattr(model_sampling, "sigma_min", 0.0)) * ROUNDED_UP
        return False
