"""How far the final latent is from that of the same run without skips: an estimate from what the run has shown.

What is left of a gap once it is made up for (correction.py) is seen at the computed evaluations around it, in three
numbers: D is no line between i and b, but curved, by D''/2 as the second difference there has it; the defect d is paid
late, so that the answers in between are off; and D does not follow any curve exactly, by a part of its change.

    E^2 = sum over gaps of (D''/2 sum T_k (t_k - t_i)(t_b - t_k))^2 + (DEFECT d sum T_k a_k)^2 + (ROUGH q sum |T_k|)^2

with a_k the parts of d that each answer was off by, payments among them, q = D_b - D_i, and T_k what an error of the
answer at k does to the final latent. Of the latter the answers after k have most: hardly anything would be left of E if
the network took no notice of x. How much it does is not seen in a run, and makes most of the estimate's own error.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .reading import Products
from .response import Response
from .steps import ratio

# Weights of the defect's and the change's share, above. Half or twice as much makes little difference on any model.
DEFECT, ROUGH = 0.5, 0.1
# Of the data, as far as answers follow x: so large that an error of x stays one, nearly to the start of the run.
VARIANCE = 300.0
# Least squares on two models, see benchmarks/closeness.py.
SCALE = 0.63
# Evaluations. In shorter runs nothing shows how D bends: with 4 to 8 estimates were 7 to 18 dB too good.
SHORTEST = 12
# Where a step uses more than MEMORY earlier answers again, with weights of both signs (UniPC, DEIS, iPNDM), small
# errors are amplified at the end, which nothing in a run shows: up to 33 dB in 12 to 24 evaluations, 4 dB from 30 on.
MEMORY, SHORTEST_WITH_MEMORY, AMPLIFIED = 2, 30, 1.6
# The tracked branch is seen, but the sampler follows uncond + cfg (cond - uncond). From STRONG on, a third of the runs
# of fewer than SHORTEST_GUIDED steps was more than 8 dB further off than estimated.
MAX_GUIDANCE, STRONG, SHORTEST_GUIDED = 7.0, 5.0, 16
GUIDANCE = 0.5


class Observed(NamedTuple):
    """At a computed evaluation b, squared and as means over the latent: D_b - D_i, d, and D''/2, None if unknown."""

    change: float
    defect: float
    curvature: float | None


def observe(products: Products, gain: float, ratios: tuple[float, float], times: Sequence[float]) -> Observed:
    """products: as of Measurements. ratios: r there, and that of the gap which it ends. times: t_j, t_i, t_b."""
    pq, pp = products.pq, products.pp
    change = max(products.yy + 2 * gain * pq - gain**2 * pp, 0.0)
    (step_ratio, gap_ratio), (j, i, b) = ratios, times

    def of_difference(r: float) -> float:
        """||q - r (D_i - D_j)||^2"""
        part = ratio(r, step_ratio)
        return max(change - 2 * part * pq + part**2 * pp, 0.0)

    curvature = None
    if step_ratio and b not in (i, j):
        curvature = of_difference((b - i) / (i - j)) / ((b - i) * (b - j)) ** 2
    return Observed(change, of_difference(gain * gap_ratio), curvature)


def estimate_final_error(
    response: Response, times: Sequence[float], computed: Sequence[int], gaps: Sequence[Mapping[int, float]],
    observed: Mapping[int, Observed],
) -> float | None:  # fmt: skip
    """Root of the mean squared error of the final latent, up to guidance. None where too little was seen.

    times: t of each evaluation. computed: indices. gaps: a_k of each, payments among them. observed: by index.
    """
    amplifies = response.both_signs and response.memory > MEMORY
    if len(times) < (SHORTEST_WITH_MEMORY if amplifies else SHORTEST):
        return None
    influence, squares = response.influence(VARIANCE), 0.0
    curved = [k for k in computed if k in observed and observed[k].curvature is not None]
    for gap in gaps:
        i = min(gap) - 1
        b = next((k for k in computed if k > i), None)
        if b not in observed:
            return None
        after = next((k for k in computed if k > b), b)
        near = [k for k in {b, after} if k in curved] or sorted(curved, key=lambda k: abs(k - b))[:1]
        curvature = sum(observed[k].curvature for k in near) / max(len(near), 1)
        skipped = range(i + 1, b)
        bend = sum(influence[k] * (times[k] - times[i]) * (times[b] - times[k]) for k in skipped)
        off = sum(influence[k] * part for k, part in gap.items())
        rough = sum(abs(influence[k]) for k in skipped)
        here = observed[b]
        squares += bend**2 * curvature + (DEFECT * off) ** 2 * here.defect + (ROUGH * rough) ** 2 * here.change
    return SCALE * (AMPLIFIED if amplifies else 1.0) * math.sqrt(squares)


def decibels(error: float | None, extent: float, guidance: float = 1.0, steps: float = math.inf) -> float | None:
    """PSNR of the final latent against the uncached run's, with the latent's own peak-to-peak. error: as from
    estimate_final_error. extent: that peak-to-peak. guidance: cfg. steps: of the sampler. None where the estimate would
    be far too good.
    """
    if guidance >= STRONG and steps < SHORTEST_GUIDED:
        return None
    if not error or not math.isfinite(error) or not 0 < extent < math.inf or guidance >= MAX_GUIDANCE:
        return None
    return 20 * math.log10(extent / error) - 20 * GUIDANCE * math.log10(max(guidance, 1.0))
