"""Whether an evaluation may be the sampler's last one, by how far it goes from one to the next."""

import math

from .steps import ROUNDED_UP, Schedule

STRIDE_MARGIN = 1e-2  # steps
LOOKS_AHEAD = 4  # evaluations that may lie between a level and the next one that is no further along
# Times the one before: so long at most the next step is taken to be. Steps that end at the power 1.5 of their number
# (tests/host/test_schedules.py) grow by less from the fourth on.
GROWS = 1.25
UNEVEN = 0.02  # as the logarithm of how many times a stride is as long as the one before, in the mean


class Progress:
    """How far a sampler has come along a measure that grows from one evaluation to the next, up to an end.

    unevenness: by how much its strides differed from those before them, in all.
    """

    def __init__(self, end: float):
        self._end, self.unevenness = end, 0.0
        self._positions: list[float] = []  # of its last evaluations
        self._last_stride, self._count = 0.0, 0  # strides that led further along

    def is_behind(self, position: float) -> bool:
        """Whether it comes back from a look ahead there."""
        return bool(self._positions) and position < self._positions[-1]

    def advance(self, position: float) -> float:
        """The stride to there from the nearest position that is no further along."""
        stride = position - max((one for one in self._positions if one <= position), default=position)
        self._positions = [*self._positions[1 - LOOKS_AHEAD :], position]
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
        return self._positions[-1] + GROWS * self._last_stride >= self._end


class Strides:
    """How far a sampler goes along its schedule from one evaluation to the next, as noise levels tell.

    Some leave levels out, go on between two of them, or take steps of their own between the ends. Others tell the
    network a level that is not theirs, now further ahead and now less: they take no fewer steps. And where one looks
    ahead and comes back, the way there is no stride.

    own_steps: whether it takes steps of its own beyond the schedule's last level: no level tells then which evaluation
    is the last one.
    """

    def __init__(self, schedule: Schedule):
        self._schedule, self.own_steps = schedule, False
        self._in_steps, self._in_time = Progress(schedule.steps), Progress(schedule.time(schedule.end_sigma))
        self._longest = 0.0  # of its strides, in steps
        self._stride = 0.0  # to the last evaluation; it counts once the sampler goes on from there
        self._comes_back = False  # whether it was seen to look ahead
        # (noise level, step, whether it looks ahead), where it first was in the last step
        self._lowest: tuple[float, int, bool] | None = None

    def may_end(self, sigma: float, step: int, ambiguous: bool = False) -> bool:
        """Go on to an evaluation at this noise level; whether it may be the last one. step, ambiguous: as from
        StepCounter.
        """
        position = self._schedule.position(sigma)
        if position is None:
            return False
        if not ambiguous and sigma <= self._schedule.lowest_sigma:
            self._look_for_own_steps(sigma, step)
        self._advance(sigma, position)
        if self.own_steps:  # nearly even along noise levels or the model's time; the last stride alone tells
            return min(self._in_steps, self._in_time, key=lambda progress: progress.unevenness).may_end
        if self._in_time.is_even and not self._in_steps.is_even:  # those of a shifted schedule
            return self._in_time.may_end
        return self._schedule.last_sigma >= 0 and self._longest_leads_to_end(position, step)

    def _look_for_own_steps(self, sigma: float, step: int) -> None:
        """In the last step. All that it evaluates there belongs to that step, unless it calls back in between."""
        # One that looked ahead in the steps before does so here.
        first, at, looks_ahead = self._lowest = self._lowest or (sigma, step, self._comes_back)
        self.own_steps = self.own_steps or (not looks_ahead and step > at and sigma * ROUNDED_UP < first)

    def _advance(self, sigma: float, position: float) -> None:
        if self._in_steps.is_behind(position):
            self._comes_back, self._stride = True, 0.0
        self._longest = max(self._longest, self._stride)
        self._stride = self._in_steps.advance(position)
        self._in_time.advance(self._schedule.time(sigma))

    def _longest_leads_to_end(self, position: float, step: int) -> bool:
        """Whether as long a stride as the longest so far leads from here to the end; where some were longer than a
        step, to the last step.
        """
        longest = self._longest if self._comes_back else max(self._longest, self._stride)
        if self._stride > longest + STRIDE_MARGIN:  # it looks ahead once more
            return False
        if longest < 1 + STRIDE_MARGIN:
            return position + longest > self._schedule.steps - STRIDE_MARGIN
        return self._leaves_out_levels(position, step) and position + longest > self._schedule.steps - 1

    def _leaves_out_levels(self, position: float, step: int) -> bool:
        """Whether it is further along than its steps. One that evaluates above its levels, after it added noise, is
        behind them, and takes longer strides later.
        """
        ahead = position - step
        return ahead >= 1 or min(self._stride - 1, ahead) > STRIDE_MARGIN
