"""Deferred correction: forecasts after a gap make up for the error that the sampler accumulated over it.

The computed evaluation b that ends a gap shows what would have been right for the skipped evaluations k in it: values
on the line from D_i to D_b. Over the gap, x / sigma has accumulated the defect

    d = sum over k of w_k (D_i + (t_k - t_i) / (t_b - t_i) (D_b - D_i) - (D_i + g r_k (D_i - D_j))) + remaining d_before

where the sampler weighs evaluation k by w_k. Each forecast n from b on adds c_n d to D, until what was added, weighed
likewise, is d: as with the corrector of a multistep solver. What the network answers is never changed. The theta term
of a forecast is not counted in the defect, as it uses the actual x.
"""

import math
from typing import NamedTuple

from .steps import StepHistory, clip, ratio


class Skipped(NamedTuple):
    """A skipped evaluation k: its index, r_k, and the change of u within which c_k corrects all that remains."""

    index: int
    step_ratio: float
    interval: float


class DefectWeights(NamedTuple):
    """The parts of D_b - D_i, of D_i - D_j and of the defect before that add up to the defect at b."""

    change: float
    previous_change: float
    carry_over: float


class Correction:
    """Call `skip` at each skipped evaluation, and `close_gap` at each computed one before `steps` counts it as such."""

    def __init__(self, steps: StepHistory):
        self._steps = steps
        self._gap: list[Skipped] = []  # since the network ran
        self._max_weight_before = 0.0  # largest |w| of the gap before

    def skip(self) -> float:
        """c_n. The correction is spread over the longest step of the gap before, at least: no faster than d arose."""
        du = self._steps.expected_du
        interval = math.copysign(max(abs(du), self._max_weight_before), du) if du else 0.0
        c = ratio(self._remaining(), interval)
        self._gap.append(Skipped(len(self._steps.sigmas) - 1, self._steps.ratios.step_ratio, interval))
        return c

    def _remaining(self) -> float:
        """Part of d that is not corrected yet."""
        part = 1.0
        for k in self._gap:
            part = clip(part * (1 - ratio(self._steps.weight(k.index), k.interval)), 0, 1)
        return part

    def close_gap(self, gain: float) -> DefectWeights:
        """The network runs at b. gain: g of the forecasts in the gap."""
        weighed = [(self._steps.weight(k.index), k) for k in self._gap]
        interpolated = sum(w * self._steps.offset(k.index) for w, k in weighed)
        extrapolated = sum(w * k.step_ratio for w, k in weighed)
        weights = DefectWeights(ratio(interpolated, self._steps.offset()), -gain * extrapolated, self._remaining())
        self._gap, self._max_weight_before = [], max((abs(w) for w, _ in weighed), default=0.0)
        return weights
