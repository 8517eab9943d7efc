"""Deferred correction: forecasts after a gap make up for the error that the sampler accumulated over it.

The computed evaluation b that ends a gap shows what would have been right for the skipped evaluations k in it: values
on the line from D_i to D_b. Over the gap, x / sigma has accumulated the defect

    d = sum over k of w_k (D_i + (t_k - t_i) / (t_b - t_i) (D_b - D_i) - (D_i + g r_k (D_i - D_j))) + remaining d_before

with w_k, the change of u that the sampler weighs evaluation k by. Forecasts from b on add c_n d to D, until what was
added, weighed likewise, is d: as with the corrector of a multistep solver. No evaluation is spent on it, and what the
network answers is never changed. Errors of forecasts add up along the run without it. The theta term of a forecast is
not counted in the defect, as it uses the actual x.
"""

import math
from typing import NamedTuple

from .steps import clip, ratio


class Skipped(NamedTuple):
    """A skipped evaluation k: t_k - t_i, r_k, and the change of u within which its correction would be complete."""

    offset: float
    step_ratio: float
    interval: float


class DefectWeights(NamedTuple):
    """The parts of D_b - D_i, of D_i - D_j and of the defect before that add up to the defect at b."""

    change: float
    previous_change: float
    carry_over: float


class Correction:
    """Weights of the correction. Call `advance` at each evaluation, then `skip` or `close_gap`."""

    def __init__(self):
        self._skipped: Skipped | None = None  # at the evaluation before, its weight not known yet
        self._gap: list[tuple[Skipped, float]] = []  # since the network ran, each with its weight
        self._max_weight_before = 0.0  # largest |w| of the gap before
        self._remaining = 1.0  # part of the defect that is not corrected yet

    def advance(self, weight: float) -> None:
        """weight: of the evaluation before, as in StepHistory."""
        if self._skipped is not None:
            self._gap.append((self._skipped, weight))
            self._remaining = clip(self._remaining * (1 - ratio(weight, self._skipped.interval)), 0, 1)
            self._skipped = None

    def skip(self, offset: float, step_ratio: float, expected_du: float) -> float:
        """Evaluation n is skipped; returns c_n, the part of the defect that is added to D_n.

        The correction is spread over the longest step of the gap before, at least: no faster than the defect arose.
        """
        interval = math.copysign(max(abs(expected_du), self._max_weight_before), expected_du) if expected_du else 0.0
        self._skipped = Skipped(offset, step_ratio, interval)
        return ratio(self._remaining, interval)

    def close_gap(self, offset: float, gain: float) -> DefectWeights:
        """The network runs at b. offset: t_b - t_i. gain: g of the forecasts in the gap."""
        interpolated = sum(weight * k.offset for k, weight in self._gap)
        extrapolated = sum(weight * k.step_ratio for k, weight in self._gap)
        defect = DefectWeights(ratio(interpolated, offset), -gain * extrapolated, self._remaining)
        self._max_weight_before = max((abs(weight) for _, weight in self._gap), default=0.0)
        self._gap, self._remaining = [], 1.0
        return defect
