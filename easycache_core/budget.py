"""Where to spend a fixed number of network evaluations (`target_speedup`)."""

import math

# How much denser than even evaluations lie at both ends of a run: 0 is even, 1 as the extrema of a Chebyshev
# polynomial. A forecast has little to go on at the start, and the end draws the detail.
CROWDING = 0.5


def affordable(evaluations: int, target_speedup: float) -> int:
    """How many of so many evaluations may be computed; what rounding adds to a whole number is no evaluation."""
    return math.ceil(evaluations / target_speedup - 1e-9)


class Budget:
    """At most ceil(N / target_speedup) of a run's N evaluations, the first and the last of them included.

    N is not known beforehand where a sampler evaluates several times a step. It is at least what has been seen and one
    for each step to come, and as this bound grows, so does what may be spent. total_steps: 0 if nobody knows.
    """

    def __init__(self, target_speedup: float, total_steps: int):
        self._target_speedup, self._total_steps = target_speedup, total_steps
        self._evaluations = self._spent = 0

    def wants(self, step: int, urgent: bool = False) -> bool:
        """Whether to run the network at the next evaluation, which belongs to that step (from 0).

        urgent: it should run if it can be afforded at all.
        """
        now = self._evaluations
        self._evaluations += 1
        to_come = max(1, self._total_steps - step)  # this one included
        at_least = now + to_come
        budget = affordable(at_least, self._target_speedup)
        left = budget - self._spent
        if left < 1:
            return False
        if urgent or self._spent == 0 or left >= to_come:
            return True
        return now >= round(_place(self._spent / (budget - 1)) * (at_least - 1))

    def spend(self) -> None:
        """The network runs at the evaluation that was asked about."""
        self._spent += 1


def _place(part: float) -> float:
    """Where in the run, 0 to 1, that part of the budget is to be spent."""
    return (1 - CROWDING) * part + CROWDING * (1 - math.cos(math.pi * part)) / 2
