"""How many network evaluations may be computed (`target_speedup`), and that no more are."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from .placement import Plan
from .response import Response
from .spread import Spread
from .window import Window

# How far off a forecast usually is, as a part of the network's output and in the time of a whole run. More than that
# makes the evaluations that follow worth more, the less the further they are, in parts of the run.
USUAL_MISS, MEMORY = 0.65, 0.15
# Less than the part CALM of it, at the start of the run, makes them worth less, by the square of how much less, of
# LEAST or more: D hardly moves there. Later on it only says that forecasts are good, there and in what is left.
CALM, LEAST, START = 0.4, 0.1, 0.34
# What changes may take so much of a budget, and noise that is added on the way as much: the rest of the run needs its
# share.
FOR_CHANGES = 0.5
# Of what a speed-up has beyond 1, where an answer is kept for two steps: 4 to 20 dB closer than with all of it.
EASED = 0.45
# So many may be computed beyond a budget as each of them may be the last one, until it has made up for them.
MAX_BEYOND = 2


def budget_of(evaluations: int, target_speedup: float) -> int:
    """How many of so many evaluations may be computed."""
    # 1e-9 absorbs float rounding.
    return math.ceil(evaluations / target_speedup - 1e-9)


class Budget:
    """At most ceil(N / target_speedup) of a run's N evaluations, the first and the last of them included.

    With the sampler's response, they lie where skips cost least (placement.py), as long as the sampler does as the
    response says (`forget_plan`). Otherwise N is not known beforehand: it is at least what has been seen and one for
    each step to come, and as this bound grows, so does what may be spent (spread.py).

    What lies outside of a window is computed, and the rest of the budget is spent inside. Where that would leave less
    there than the largest speed-up has, the window has no effect: such gaps cost more than it is for.
    """

    def __init__(
        self, target_speedup: float, step_lengths: Sequence[float], response: Response | None = None,
        window: Window | None = None,
    ):  # fmt: skip
        """step_lengths: 0 or more, in any unit; empty if nobody knows how many steps there will be."""
        self._target_speedup = self._full_speedup = target_speedup
        self._window = window
        self._spread, self._plan = Spread(step_lengths, window), None
        self._evaluations = self._spent = self._changes = self._noises = self._before = 0
        self._beyond = 0  # evaluations in a row that were taken for the last one, though it was spent
        self._change_waits = False  # for the network to run
        self._began_anew = False  # whether the network ran as nothing was known any more, beside the first time
        # Where noise is added, every forecast misses by much, which says nothing of the next one.
        self.adapts = response is not None and not response.adds_noise
        if response is not None:
            self.follow(response)

    def follow(self, response: Response, before: int = 0) -> None:
        """What is left is placed by this response from here on. before: evaluations of others, with which these share
        a budget.
        """
        self._before, self._plan = before, Plan(response, self._window)
        self._place()

    def foresee(self, changes: Collection[int]) -> None:
        """Something else is asked from these evaluations of the response on. No effect where there are many."""
        if self._plan is not None and 0 < len(changes) <= self._for_changes_of(self._plan.size):
            self._plan.foresee(changes)
            self._place()

    def forget_plan(self) -> None:
        """The sampler does not do what its response says."""
        self._plan = None

    def should_compute(self, step: int, urgent: bool = False) -> bool:
        """Whether to run the network at the next evaluation, which belongs to that step (from 0). urgent: it should run
        if it can be afforded at all.
        """
        now, plan, spread = self._evaluations, self._plan, self._spread
        self._evaluations += 1
        spread.begin(step)
        to_come = spread.to_come if plan is None else plan.size - now
        left = self._allowed(now + to_come) - self._spent
        if plan is None:
            spread.check_window(left)
        if left < 1:  # what could not be predicted may have taken the last one's
            if plan is not None:
                return to_come == 1
            return spread.is_last and (urgent or self._began_anew) and self._may_go_beyond()
        self._beyond = 0
        kept = spread.kept if plan is None else to_come > 1
        if left <= kept and self._spent:
            return False
        if urgent or not self._spent or left >= to_come:
            return True
        return spread.due(left) if plan is None else plan.has(now)

    def _may_go_beyond(self) -> bool:
        """Whether one more may be taken for the last one that was not."""
        self._beyond += 1
        return self._beyond <= MAX_BEYOND

    @property
    def exceeded(self) -> bool:
        """Whether more was computed than it allows for as many evaluations as there will be, as far as is known; more
        than the first one and the last.
        """
        expected = self._evaluations - 1 + self._spread.to_come if self._plan is None else self._plan.size
        return self._spent > max(2, self._allowed(expected))

    @property
    def places_window(self) -> bool:
        """Whether it knows which evaluations to come are outside of the window."""
        return (self._spread if self._plan is None else self._plan).knows_window

    def change_is_urgent(self) -> bool:
        """Something is another one at the next evaluation than where the network ran last. Whether that is urgent: not
        where there are many changes.
        """
        self._changes += not self._change_waits
        self._change_waits = True
        return self._changes <= self._for_changes_of(self._evaluations + 1)

    def noise_is_urgent(self) -> bool:
        """Noise was added before the next evaluation. Whether that is urgent: not where it is at most steps."""
        self._noises += 1
        return self._noises <= self._for_changes_of(self._evaluations + 1)

    def _for_changes_of(self, evaluations: int) -> float:
        return 1 + FOR_CHANGES * budget_of(evaluations, self._target_speedup)

    def ease(self) -> None:
        """Much hangs on each answer: from here on it is as large as for the part EASED of the speed-up."""
        self._target_speedup = 1 + EASED * (self._full_speedup - 1)
        if self._plan is not None:
            self._place()

    def spend(self, anew: bool = False) -> None:
        """The network runs at the evaluation that was asked about. anew: as nothing is known to predict from."""
        self._began_anew = self._began_anew or (anew and self._spent > 0)
        self._spent += 1
        self._spread.spend()
        self._change_waits = False
        if self._plan is not None and not self._plan.has(self._evaluations - 1):
            self._place()

    def adapt(self, miss: float) -> None:
        """Place what is left anew. miss: by how much a forecast at the evaluation that was asked about last would have
        missed the network's output, per evaluation since the one before, as a part of the output.
        """
        if self._plan is None or not self._spent or not self.adapts:
            return
        now, size = self._evaluations - 1, self._plan.size
        surprise = miss * size / USUAL_MISS
        if surprise < CALM and now <= START * size:
            surprise = max(surprise / CALM, LEAST) ** 2
        elif surprise < 1:
            return
        ahead = np.arange(-1, size - now - 1) / (MEMORY * size)
        self._place(surprise ** np.exp(-ahead))

    def _place(self, factors: np.ndarray | float = 1.0) -> None:
        """Place what is left after the evaluation that was asked about last. factors: on the costs from there on."""
        left = self._allowed(self._plan.size) - self._spent
        self._plan.place(max(0, self._evaluations - 1), left, self._spent > 0, factors)

    def _allowed(self, evaluations: int) -> int:
        """How many of so many may be computed."""
        before = budget_of(self._before, self._target_speedup)
        return max(1, budget_of(self._before + evaluations, self._target_speedup) - before)
