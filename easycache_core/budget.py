"""Where to spend a fixed number of network evaluations (`target_speedup`)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .config import MAX_SPEEDUP
from .placement import costs_of_skips, place, positions
from .response import Response
from .steps import ROUNDING

# How much denser than even evaluations lie at both ends of a run: 0 is even, 1 as the extrema of a Chebyshev
# polynomial. A forecast has little to go on at the start, and the end draws the detail.
END_CLUSTERING = 0.5
# How far off a forecast usually is, as a part of the network's output and in the time of a whole run. More than that
# makes the evaluations that follow worth more, and the less the further they are, in parts of the run.
USUAL_MISS = 0.65
MEMORY = 0.15
# So many times as much a skip outside of the window costs as it would inside: none is placed there.
OUTSIDE = 1e4


class Window(NamedTuple):
    """The noise levels between which evaluations may be skipped. levels: of each step, () where they are not known."""

    highest: float
    lowest: float
    levels: Sequence[float] = ()

    def has(self, sigma: float) -> bool:
        return self.lowest * (1 - ROUNDING) <= sigma <= self.highest * (1 + ROUNDING)


def budget_of(evaluations: int, target_speedup: float) -> int:
    """How many of so many evaluations may be computed."""
    # 1e-9 absorbs float rounding.
    return math.ceil(evaluations / target_speedup - 1e-9)


class Budget:
    """At most ceil(N / target_speedup) of a run's N evaluations, the first and the last of them included.

    With the sampler's response, they lie where skips cost most (placement.py), as long as the sampler does as the
    response says (`forget_plan`).

    Otherwise N is not known beforehand: a sampler may evaluate several times per step. It is at least what has been
    seen and one for each step to come, and as this bound grows, so does what may be spent. The density of computed
    evaluations is then the square root of the step length, END_CLUSTERING aside: half way between evenly over steps and
    evenly over their length. Evenly over steps, the long ones that some schedulers have (beta, linear_quadratic) get
    too few.

    What lies outside of a window is computed, and the rest of the budget is spent inside. Where that would leave less
    there than the largest speed-up has, the window has no effect: such gaps cost more than it is for.
    """

    def __init__(
        self, target_speedup: float, step_lengths: Sequence[float], response: Response | None = None,
        window: Window | None = None,
    ):  # fmt: skip
        """step_lengths: 0 or more, in any unit; empty if nobody knows how many steps there will be."""
        self._target_speedup = target_speedup
        self._weights = [math.sqrt(length) for length in step_lengths]
        if not any(self._weights):
            self._weights = [1.0] * len(step_lengths)
        self._window = window
        known = window is not None and len(window.levels) == len(step_lengths)
        self._outside_steps = [not window.has(level) for level in window.levels] if known else []
        self._outside = self._outside_steps  # of the response's evaluations
        self._evaluations = self._spent = self._changes = self._before = 0
        self._spent_inside, self._is_outside = 0, False  # of the window; the evaluation that was asked about
        self._change_waits = False  # for the network to run
        self._step, self._in_step, self._per_step = 0, 0, 1  # evaluations of this step so far, and of the one before
        self._position = 0.0  # weights of the evaluations before
        self._costs = None
        # Where noise is added, every forecast misses by much, which says nothing of the next one.
        self.looks = response is not None and not response.adds_noise
        self._plan: set[int] = set()  # indices of evaluations to compute
        if response is not None:
            self.follow(response)

    def follow(self, response: Response, before: int = 0) -> None:
        """What is left is placed by this response from here on. before: evaluations of others, with which these share
        a budget.
        """
        self._before = before
        self._costs = costs_of_skips(response.influence(), response.both_signs)
        if self._window is not None:
            self._outside = [not self._window.has(sigma) for sigma in response.sigmas]
        self._positions = positions(response.distances)
        self._replan(max(0, self._evaluations - 1))

    def should_compute(self, step: int, urgent: bool = False) -> bool:
        """Whether to run the network at the next evaluation, which belongs to that step (from 0). urgent: it should run
        if it can be afforded at all.
        """
        now = self._evaluations
        self._evaluations += 1
        if step != self._step:
            self._step, self._in_step, self._per_step = step, 0, self._in_step
        self._in_step += 1
        # Within this step, if it is like the one before.
        rest = max(0, self._per_step - self._in_step) if self._costs is None else 0
        # This one included.
        to_come = max(1, len(self._weights) - step) if self._costs is None else len(self._costs) - now
        budget = self._allowed(now + to_come)
        left = budget - self._spent
        outside = self._outside_steps[step:] if self._costs is None else []
        if not any(outside) or not self._fits(left, outside):
            outside = [False] * to_come
        self._is_outside = outside[:1] == [True]
        weights = [weight * (not out) for weight, out in zip(self._weights[step:], outside, strict=False)] or [1.0]
        here = self._position
        self._position += weights[0]
        if left < 1:  # what could not be predicted may have taken the last one's
            return (urgent or self._costs is not None) and to_come + rest == 1
        # Kept for the last one; where a step has several, for the first one of the last step, too.
        several = self._costs is None and self._per_step > 1
        kept = 1 + several if to_come > 1 else int(rest > 0 and self._in_step > 1)
        if left <= kept and self._spent:
            return False
        if urgent or self._spent == 0 or left >= to_come or self._is_outside:
            return True
        if self._costs is not None:
            return now in self._plan
        whole = here + sum(weights[:-1])  # from the first evaluation to the last
        # Of those to compute inside the window, and the one on either side of it: how many there are, and were.
        before = self._spent > self._spent_inside
        count = left - sum(outside) + self._spent_inside + before + outside[-1]
        return here + weights[0] / 2 >= _position((self._spent_inside + before) / (count - 1)) * whole

    @property
    def places_window(self) -> bool:
        """Whether it knows which evaluations to come are outside of the window."""
        return bool(self._outside_steps if self._costs is None else self._outside)

    def change_is_urgent(self) -> bool:
        """Something is another one at the next evaluation than where the network ran last. Whether that is urgent: not
        where there are many changes, as the rest of the run needs its share as well.
        """
        self._changes += not self._change_waits
        self._change_waits = True
        return self._changes <= 1 + budget_of(self._evaluations + 1, self._target_speedup) / 2

    def spend(self) -> None:
        """The network runs at the evaluation that was asked about."""
        self._spent += 1
        self._spent_inside += not self._is_outside
        self._change_waits = False
        now = self._evaluations - 1
        if self._costs is not None and now not in self._plan:
            self._replan(now)

    def look(self, miss: float) -> None:
        """What was seen at the evaluation that was asked about last: by how much a forecast would have missed the
        network's output per evaluation since the one before, as a part of the output.
        """
        if self._costs is None or not self._spent or not self.looks:
            return
        now, size = self._evaluations - 1, len(self._costs)
        surprise = miss * size / USUAL_MISS
        if surprise > 1:
            ahead = np.arange(-1, size - now - 1) / (MEMORY * size)
            self._replan(now, surprise ** np.exp(-ahead))

    def _allowed(self, evaluations: int) -> int:
        """How many of so many may be computed."""
        before = budget_of(self._before, self._target_speedup)
        return max(1, budget_of(self._before + evaluations, self._target_speedup) - before)

    def _fits(self, left: int, outside: Sequence[bool]) -> bool:
        """Whether so many suffice for the window; once they do not, it has no effect any more. outside: of it, per
        evaluation to come.
        """
        if not any(outside) or self._window is None:
            return not any(outside)
        inside = len(outside) - sum(outside)
        computed = left - sum(outside)
        gaps = computed + 1 - (not outside[-1]) - (not outside[0] and not self._spent)
        if computed < 0 or inside - computed > (MAX_SPEEDUP - 1) * max(gaps, 0):
            self._window = None
        return self._window is not None

    def forget_plan(self) -> None:
        """The sampler does not do what its response says."""
        self._costs = None

    def _replan(self, now: int, factors: np.ndarray | float = 1.0) -> None:
        """Place what is left after the evaluation now, which is computed. factors: on the costs from there on."""
        costs, where = self._costs[now:] * factors, self._positions[now:]
        left = self._allowed(len(self._costs)) - self._spent
        outside = self._outside[now:]
        if self._fits(left, outside[self._spent > 0 :]):
            costs = costs * np.where(outside or [False], OUTSIDE, 1)
        count = min(left if now == 0 and not self._spent else left + 1, len(where))
        if len(where) > 1:
            self._plan = {now + k for k in place(costs, where, max(2, count))}


def _position(part: float) -> float:
    """Where in the run, 0 to 1, that part of the budget is to be spent."""
    return (1 - END_CLUSTERING) * part + END_CLUSTERING * (1 - math.cos(math.pi * part)) / 2
