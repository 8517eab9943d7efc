"""Where to spend a fixed number of network evaluations (`target_speedup`)."""

import math

WARMUP = 5  # one in so many evaluations of the budget, but two: a forecast goes on from two


class Budget:
    """At most ceil(N / target_speedup) of a run's N evaluations, spread evenly after a short warm-up.

    N is not known beforehand where a sampler evaluates several times a step. It is at least what has been seen and one
    for each step to come, and as this bound grows, so does what may be spent. total_steps: 0 if nobody knows.
    """

    def __init__(self, target_speedup: float, warmup_steps: int, total_steps: int):
        self._target_speedup, self._total_steps = target_speedup, total_steps
        affordable = math.ceil(total_steps / target_speedup)
        self._warmup = min(warmup_steps, max(2, affordable // WARMUP))
        self._evaluations = self._spent = 0
        self._latest = 0  # evaluation at which the network ran last

    def wants(self, step: int, urgent: bool = False) -> bool:
        """Whether to run the network at the next evaluation, which belongs to that step (from 0).

        urgent: it should run if it can be afforded at all.
        """
        now = self._evaluations
        self._evaluations += 1
        at_least = now + max(1, self._total_steps - step)
        left = math.ceil(at_least / self._target_speedup - 1e-9) - self._spent
        if left < 1:
            return False
        if urgent or self._spent == 0 or step >= self._total_steps - 1:
            return True
        if step < self._warmup and left > 1:
            return True
        # Rounded down, as early gaps cost more than late ones.
        return now - self._latest >= (at_least - 1 - self._latest) // left

    def spend(self) -> None:
        """The network runs at the evaluation that was asked about."""
        self._spent += 1
        self._latest = self._evaluations - 1
