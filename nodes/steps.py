"""The steps of a sampler: its schedule, and which step an evaluation belongs to."""

import math

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
STRIDE_MARGIN = 1e-2  # steps
LOOKS_AHEAD = 4  # evaluations that may lie between a level and the next one that is no further along
GROWS = 1.25  # times; by so much at most a step of a sampler's own is taken to be longer than the one before
LEAP = 2.0  # times the step before
UNEVEN = 0.02  # as the logarithm of how many times a stride is as long as the one before
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
    a rise is no step. steps_known: whether the sampler takes these steps. step_lengths: as from `step_lengths`.
    unfinished: whether they stop, after a descent, where the model still sees noise: another run goes on from there.
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
        self.steps_known = step_count_known(sampler)
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


class Way:
    """Of a sampler, along some measure that grows with it, to an end. unevenness: by how much its strides differed from
    those before them, in all.
    """

    def __init__(self, end: float):
        self._end, self.unevenness = end, 0.0
        self._places: list[float] = []  # of its last evaluations
        self._last_stride, self._count = 0.0, 0  # strides that led further along

    def is_behind(self, place: float) -> bool:
        """Whether it comes back from a look ahead there."""
        return bool(self._places) and place < self._places[-1]

    def go_on(self, place: float) -> float:
        """The stride to there from the nearest place that is no further along."""
        stride = place - max((one for one in self._places if one <= place), default=place)
        self._places = [*self._places[1 - LOOKS_AHEAD :], place]
        if stride and self._last_stride:
            self.unevenness += abs(math.log(stride / self._last_stride))
            self._count += 1
        self._last_stride = stride or self._last_stride
        return stride

    @property
    def is_even(self) -> bool:
        """Whether all of its strides were as long as one another."""
        return self._count > 2 and self.unevenness < UNEVEN * self._count

    @property
    def may_end(self) -> bool:
        """Whether one more stride leads to the end."""
        return self._places[-1] + GROWS * self._last_stride >= self._end


class Strides:
    """How far a sampler goes along its schedule from one evaluation to the next, as noise levels tell: some leave
    levels out, go on between two of them, or take steps of their own between the ends. Others tell the network a level
    that is not theirs, now further ahead and now less: they take no fewer steps. And where one looks ahead and comes
    back, the way there is no stride.
    """

    def __init__(self, schedule: Schedule):
        self._schedule, self._longest = schedule, 0.0
        self._way, self._way_in_time = Way(schedule.steps), Way(schedule.time(schedule.end_sigma))
        self._stride = 0.0  # to the last one; it is one once the sampler goes on from there
        self._comes_back = False  # whether it was seen to look ahead
        # (noise level, step, whether it looks ahead), where it first was in the last step
        self._lowest: tuple[float, int, bool] | None = None
        # Whether it goes on from there in steps of its own: no level tells then which evaluation is the last one.
        self.own_steps = False

    def may_end(self, sigma: float, step: int, ambiguous: bool = False) -> bool:
        """Whether as long a stride as the longest so far leads from this noise level to the end; where some were longer
        than a step, to the last step. Where it takes steps of its own, the last stride counts alone: some become much
        shorter. Those of a shifted schedule are even along the model's time, and become longer along noise levels.
        step, ambiguous: as from StepCounter.
        """
        position = self._schedule.position(sigma)
        if position is None:
            return False
        if not ambiguous and sigma <= self._schedule.lowest_sigma:
            self._look_for_own_steps(sigma, step)
        if self._way.is_behind(position):
            self._comes_back, self._stride = True, 0.0
        self._longest = max(self._longest, self._stride)
        self._stride = stride = self._way.go_on(position)
        self._way_in_time.go_on(self._schedule.time(sigma))
        if self.own_steps:  # evenly along noise levels or along the model's time, or nearly so
            return min(self._way, self._way_in_time, key=lambda way: way.unevenness).may_end
        if self._way_in_time.is_even and not self._way.is_even:
            return self._way_in_time.may_end
        if self._schedule.last_sigma < 0:
            return False
        longest = self._longest if self._comes_back else max(self._longest, stride)
        if stride > longest + STRIDE_MARGIN:  # it looks ahead once more
            return False
        if longest < 1 + STRIDE_MARGIN:
            return position + longest > self._schedule.steps - STRIDE_MARGIN
        # One that evaluates above its levels, after it added noise, is behind them, and takes longer strides later.
        leaves_out = position - step >= 1 or min(stride - 1, position - step) > STRIDE_MARGIN
        return leaves_out and position + longest > self._schedule.steps - 1

    def _look_for_own_steps(self, sigma: float, step: int) -> None:
        """In the last step. All that it evaluates there belongs to that step, unless it calls back in between."""
        # One that looked ahead in the steps before does so here.
        first, at, looks_ahead = self._lowest = self._lowest or (sigma, step, self._comes_back)
        self.own_steps = self.own_steps or (not looks_ahead and step > at and sigma * ROUNDED_UP < first)


class StepCounter:
    """Finds the step of each evaluation from the sampler's callbacks, so that no device tensor has to be read.

    Samplers call back once per step, after the step's first evaluation (k-diffusion), its only one (UniPC) or its last
    one (DPM adaptive, of three). Several evaluations before the first callback show that it comes last; a step then
    ends with it, however many evaluations it has. Else, with m evaluations per step, the m - 1 after a callback still
    belong to its step. m is known from the second callback on; between the first two, the step is `ambiguous`. A
    sampler that has not called back within _LATEST_CALLBACK evaluations is taken to evaluate once per step.
    """

    _LATEST_CALLBACK = 4  # evaluations

    def __init__(self, callbacks: int = 0):
        """callbacks: how many there have been."""
        self._evaluations = 0
        self.last = 0  # step of the last evaluation
        self._callback_step: int | None = callbacks - 1 if callbacks else None  # step of the last callback
        self.since_callback = 0  # evaluations, since the last one
        self._per_step: int | None = None  # m, once known
        self._callback_last = False  # whether a callback follows the last evaluation of its step

    def next_evaluation(self) -> int:
        """Count one evaluation and return its step, from 0."""
        if self._callback_step is None:
            step = self._evaluations if self._evaluations >= self._LATEST_CALLBACK else 0
        elif not self._callback_last and self.since_callback < (self._per_step or 1) - 1:
            step = self._callback_step
        else:
            step = self._callback_step + 1
        self._evaluations += 1
        self.since_callback += 1
        self.last = step
        return step

    @property
    def called_back(self) -> bool:
        """Whether the sampler has called back since the last evaluation."""
        return self._callback_step is not None and not self.since_callback

    @property
    def ambiguous(self) -> bool:
        """Whether the evaluation just counted may belong to the first step or to the second."""
        return self._callback_step is not None and self._per_step is None

    @property
    def evaluations_per_step(self) -> int:
        """As far as they were seen."""
        if self._callback_step is None and self._evaluations > self._LATEST_CALLBACK:
            return 1
        return self._per_step or max(1, self.since_callback)

    @property
    def one_per_step(self) -> bool:
        """Whether the sampler has been seen to evaluate once per step."""
        return self._per_step == 1

    def on_callback(self) -> None:
        """The sampler has called back. Callbacks are counted: some samplers number them otherwise."""
        if self._callback_step is None:
            self._callback_last = self.since_callback > 1
        elif self.since_callback:
            self._per_step = self.since_callback
        self._callback_step = 0 if self._callback_step is None else self._callback_step + 1
        self.since_callback = 0
