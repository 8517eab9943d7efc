"""How far off forecasts are expected to be, from what they were seen to miss where the network ran."""

import math
from collections.abc import Sequence

from .reading import Measurements
from .steps import StepHistory, ratio

# What a forecast is taken to miss of how D changed last, where none was made yet that extrapolates: so many times the
# part of the run's evaluations that the change took, and all of it at most.
FIRST_MISS = 13.0


class ErrorEstimate:
    """At each evaluation set `windows_moved`, whether the network is asked in other windows than where it ran last.
    Then `mark_computed` where it runs, and `update` once that is measured; `expected` where it may be skipped.

    An error of D grows with the distance in t, and where x moves at one noise level, with how far it moves: as was seen
    there, or else as in the paper's rule. Where windows have moved, D leaps as it did where they had before.
    """

    def __init__(self, steps: StepHistory):
        self._steps = steps
        self.windows_moved = self._windows_moved_at_i = False
        self._moved: list[float] | None = None  # by how much x moved at repeated noise levels, since i
        # ||error of a forecast of D|| per part of the latent: per t, per ||change of x|| at a repeated noise level, and
        # where windows had moved; None until it was seen.
        self._per_t: list[float] | None = None
        self._per_move: list[float] | None = None
        self._of_windows: list[float] | None = None
        self._missed_part = 1.0  # of that per t: what nothing was extrapolated to is not missed as a whole

    @property
    def known(self) -> bool:
        """Whether `expected` can say anything at n."""
        return self._per_t is not None and not (self.windows_moved and self._of_windows is None)

    def forget(self) -> None:
        """The last computed evaluation could not be compared with the one before."""
        self._per_t = None

    def mark_computed(self) -> None:
        """The network runs at n."""
        self._windows_moved_at_i, self._moved = self.windows_moved, None

    def update(self, measured: Measurements, offset: float, evaluations: int) -> None:
        """Learn from what a forecast would have missed at the last computed evaluation. offset, evaluations: how far it
        was from the one before, in t and in evaluations.
        """
        self._missed_part = 1.0 if measured.products.guided_pp else self._first_miss(evaluations)
        if not offset:
            pairs = zip(measured.miss, measured.input_change, strict=True)
            self._per_move = [ratio(miss, moved) for miss, moved in pairs]
        elif not self._windows_moved_at_i or self._per_t is None:
            self._per_t = [miss / abs(offset) for miss in measured.miss]
        if self._windows_moved_at_i:
            self._of_windows = list(measured.miss)

    def _first_miss(self, evaluations: int) -> float:
        """Of a change over so many evaluations, the part that a forecast is taken to miss."""
        response = self._steps.response
        return 1.0 if response is None else min(1.0, FIRST_MISS * evaluations / len(response.sigmas))

    def expected(
        self, input_change: Sequence[float], rate: Sequence[float], output_norm: Sequence[float]
    ) -> list[float]:
        """The relative error that is expected of a forecast at n, eps_n, per part. input_change: ||x_n - x_(n-1)||.
        rate, output_norm: k and ||v_i||.
        """
        distance, sigma = abs(self._steps.offset()), self._steps.sigmas[-1]
        moved = self._moved or [0.0] * len(input_change)
        if sigma == self._steps.sigmas[-2]:
            moved = self._moved = [sum(pair) for pair in zip(moved, input_change, strict=True)]
        per_move = self._per_move or [k * sigma for k in rate]
        leaps = self._of_windows if self.windows_moved else [0.0] * len(input_change)
        terms = zip(self._per_t, per_move, moved, leaps, output_norm, strict=True)
        change = [
            (per_t * self._missed_part * distance + (per * by if by else 0.0) + leap, sigma * norm)
            for per_t, per, by, leap, norm in terms
        ]
        return [error / norm if norm > 0 else math.inf for error, norm in change]
