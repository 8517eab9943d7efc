"""Where to spend a fixed number of network evaluations (`target_speedup`)."""

import math
from collections.abc import Sequence

# How much denser than even evaluations lie at both ends of a run: 0 is even, 1 as the extrema of a Chebyshev
# polynomial. A forecast has little to go on at the start, and the end draws the detail.
END_CLUSTERING = 0.5


def budget_of(evaluations: int, target_speedup: float) -> int:
    """How many of so many evaluations may be computed."""
    # 1e-9 absorbs float rounding.
    return math.ceil(evaluations / target_speedup - 1e-9)


class Budget:
    """At most ceil(N / target_speedup) of a run's N evaluations, the first and the last of them included.

    N is not known beforehand where a sampler evaluates several times per step. It is at least what has been seen and
    one for each step to come, and as this bound grows, so does what may be spent.

    The density of computed evaluations is the square root of the step length, END_CLUSTERING aside: half way between
    evenly over steps and evenly over their length. Evenly over steps, the long ones that some schedulers have (beta,
    linear_quadratic) get too few.
    """

    def __init__(self, target_speedup: float, step_lengths: Sequence[float]):
        """step_lengths: 0 or more, in any unit; empty if nobody knows how many steps there will be."""
        self._target_speedup = target_speedup
        self._weights = [math.sqrt(length) for length in step_lengths]
        if not any(self._weights):
            self._weights = [1.0] * len(step_lengths)
        self._evaluations = self._spent = 0
        self._position = 0.0  # weights of the evaluations before

    def should_compute(self, step: int, urgent: bool = False) -> bool:
        """Whether to run the network at the next evaluation, which belongs to that step (from 0). urgent: it should run
        if it can be afforded at all.
        """
        now, here = self._evaluations, self._position
        weight = self._weights[step] if step < len(self._weights) else 1.0
        self._evaluations += 1
        self._position += weight
        to_come = max(1, len(self._weights) - step)  # this one included
        budget = budget_of(now + to_come, self._target_speedup)
        left = budget - self._spent
        if left < 1:
            return False
        if left == 1 and to_come > 1 and self._spent:  # kept for the last one
            return False
        if urgent or self._spent == 0 or left >= to_come:
            return True
        whole = here + sum(self._weights[step:-1])  # from the first evaluation to the last
        return here + weight / 2 >= _position(self._spent / (budget - 1)) * whole

    def spend(self) -> None:
        """The network runs at the evaluation that was asked about."""
        self._spent += 1


def _position(part: float) -> float:
    """Where in the run, 0 to 1, that part of the budget is to be spent."""
    return (1 - END_CLUSTERING) * part + END_CLUSTERING * (1 - math.cos(math.pi * part)) / 2
