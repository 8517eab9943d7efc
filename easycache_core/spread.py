"""Where a budget is spent in a run of which the steps are known at most, and no evaluation beforehand."""

import math
from collections.abc import Sequence

from .window import Window, suffices

# How much denser than even evaluations lie at both ends of a run: 0 is even, 1 as the extrema of a Chebyshev
# polynomial. A forecast has little to go on at the start, and the end draws the detail.
END_CLUSTERING = 0.5


class Spread:
    """A sampler may evaluate several times per step, as is seen on the way.

    The density of computed evaluations is the square root of the step length, END_CLUSTERING aside: half way between
    evenly over steps and evenly over their length. Evenly over steps, the long ones that some schedulers have (beta,
    linear_quadratic) get too few. Steps outside of a window are computed and have no length.
    """

    def __init__(self, step_lengths: Sequence[float], window: Window | None = None):
        """step_lengths: 0 or more, in any unit; empty if nobody knows how many steps there will be."""
        self._weights = [math.sqrt(length) for length in step_lengths]
        if not any(self._weights):
            self._weights = [1.0] * len(step_lengths)
        levels = () if window is None else window.levels
        self._outside = [not window.has(level) for level in levels]
        if len(levels) != len(step_lengths):
            self._outside = []
        self.knows_window = bool(self._outside)
        self._seen: list[int] = []  # the step of each evaluation
        self._computed: list[int] = []  # and of each computed one
        self._in_step, self._per_step = 0, 1  # evaluations of this step so far, and of the one before

    def begin(self, step: int) -> None:
        """The next evaluation belongs to this step, from 0."""
        if self._seen and step != self._seen[-1]:
            self._in_step, self._per_step = 0, self._in_step
        self._in_step += 1
        self._seen.append(step)

    def check_window(self, left: int) -> None:
        """From here on it has no effect, if so many computed evaluations, with this one, do not suffice for it."""
        step = self._seen[-1]
        if not suffices(left, self._outside[step:], follows=bool(self._computed)):
            self._outside[step:] = [False] * len(self._outside[step:])

    def spend(self) -> None:
        """The network runs at this evaluation."""
        self._computed.append(self._seen[-1])

    @property
    def to_come(self) -> int:
        """At least so many evaluations are left, this one included: one for each step to come."""
        return max(1, len(self._weights) - self._seen[-1])

    @property
    def is_last(self) -> bool:
        return self.to_come + self._left_in_step == 1

    @property
    def kept(self) -> int:
        """So many of a budget are kept for the last evaluation; where a step has several, for the first one of the last
        step, too.
        """
        if self.to_come > 1:
            return 1 + (self._per_step > 1)
        return int(self._left_in_step > 0 and self._in_step > 1)

    def due(self, left: int) -> bool:
        """Whether this evaluation is one to compute, of so many that may still be; there was a computed one."""
        step = self._seen[-1]
        if self._is_outside(step):
            return True
        ahead = range(step + 1, len(self._weights))
        here = sum(map(self._weight, self._seen[:-1]))
        # From the first evaluation to the last.
        whole = here + sum(map(self._weight, [step, *ahead][:-1]))
        # Of those to compute inside the window, and the one on either side of it: how many there are, and were.
        inside = sum(not self._is_outside(one) for one in self._computed)
        were = inside + (inside < len(self._computed))
        outside = self._outside[step:]
        count = left - sum(outside) + were + outside[-1:].count(True)
        return here + self._weight(step) / 2 >= _position(were / (count - 1)) * whole

    @property
    def _left_in_step(self) -> int:
        """Evaluations, if this step is like the one before."""
        return max(0, self._per_step - self._in_step)

    def _is_outside(self, step: int) -> bool:
        return self._outside[step : step + 1] == [True]

    def _weight(self, step: int) -> float:
        if step >= len(self._weights):
            return 1.0
        return 0.0 if self._is_outside(step) else self._weights[step]


def _position(part: float) -> float:
    """Where in the run, 0 to 1, that part of the budget is to be spent."""
    return (1 - END_CLUSTERING) * part + END_CLUSTERING * (1 - math.cos(math.pi * part)) / 2
