"""Correction: answers after a gap make up for what the forecasts in it got wrong.

The computed evaluation b that ends a gap shows what would have been right for the skipped evaluations k in it: values
on the line from D_i to D_b. Forecasts lie on a line, too, so that they were off by a part of one tensor, the gap's
defect d, which is by how much a forecast at b would have been off (theta aside, which uses the actual x):

    off_k = a_k d      a_k = (t_k - t_i) / (t_b - t_i)      d = D_i + g r (D_i - D_j) - D_b

with r = sum |w_k| r_k / sum |w_k| a_k and w_k = W[b+1][k]: so what the gap did to x at b + 1 is right even where the
r_k are limited.

Samplers are linear in D. With W their impulse response (response.py), x at evaluation n + 1 is right if c_n d is added
to the answer at n, where

    c_n = - sum over k < n of W[n+1][k] a_k / W[n+1][n]

and a payment is itself off from then on: a_n = c_n. So samplers that use earlier answers again (multistep ones) are
paid over several evaluations. The network's own output stays in the cache as it is.

What is right for x at n + 1 need not be so for the final latent: where the answer at n hardly counts for the next one
(UniPC in short runs), payments are large, swing to and fro, and end before they are made up for. All of them are known
as soon as the gap ends, and with the influence T_k (response.py) what they leave of the gap in the final latent,

    sum over all k of T_k a_k

Each gap limits |c_n| to one of LIMITS, the first one unless a smaller one leaves clearly less.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .response import Response
from .steps import StepHistory, clip, ratio

# Of payments, in defects. What is left of one is paid at the evaluations after.
LIMITS = (1.0, 0.5, 0.25, 0.0)
# Of what is left with a larger limit.
CLEARLY_LESS = 0.7
NEGLIGIBLE = 1e-3  # in defects, too; smaller ones are not paid
# Gaps that are remembered: what is still owed for earlier ones is next to nothing.
GAPS = 2


class Gap(NamedTuple):
    """One that has ended. off: a_k by index, payments among them. limit: of these."""

    off: dict[int, float]
    limit: float


class Correction:
    """At each evaluation call `skip`, or `close_gap` before `steps` counts it as computed; then `pay` if the answer is
    corrected. Gaps are kept with the last one first.
    """

    def __init__(self, steps: StepHistory):
        self._steps = steps
        self._skipped: dict[int, float] = {}  # r_k of the evaluations since the network ran, by index
        self._gaps: list[Gap] = []
        self.stopped = False  # whether no answer is to be corrected any more

    def forget(self) -> None:
        """Nothing is owed any more: x is another one."""
        self._skipped, self._gaps = {}, []

    def skip(self) -> None:
        """Evaluation n is skipped."""
        self._skipped[self._n] = self._steps.ratios.step_ratio

    def close_gap(self) -> float | None:
        """The network runs at b. Returns r of the gap that ends there, None if there is none."""
        if not self._skipped:
            return None
        off = {k: ratio(self._steps.offset(k), self._steps.offset()) for k in self._skipped}
        weights = [abs(w) for w in self._steps.weights(list(off))]
        extrapolated = sum(w * r for w, r in zip(weights, self._skipped.values(), strict=True))
        step_ratio = ratio(extrapolated, sum(w * a for w, a in zip(weights, off.values(), strict=True)))
        response = self._steps.response
        limit = LIMITS[0] if response is None else limit_of_payments(response, off, self._n)
        self._gaps.insert(0, Gap(off, limit))
        self._skipped = {}
        return step_ratio

    def pay(self) -> list[float]:
        """c_n per gap, once they are added to the answer; the same if it is asked again."""
        for gap in self._gaps[:GAPS]:
            if self._n not in gap.off:
                gap.off[self._n] = 0.0 if self.stopped else self._owed(gap)
        return [gap.off[self._n] for gap in self._gaps[:GAPS]]

    @property
    def gaps(self) -> list[dict[int, float]] | None:
        """a_k of all gaps, payments among them; None while one is open."""
        return None if self._skipped else [gap.off for gap in self._gaps]

    @property
    def _n(self) -> int:
        return len(self._steps.sigmas) - 1

    def _owed(self, gap: Gap) -> float:
        """c_n for it."""
        if self._steps.last:
            return 0.0
        weights = self._steps.weights(list(gap.off))
        owed = -sum(w * a for w, a in zip(weights, gap.off.values(), strict=True))
        return clip(owed, -gap.limit, gap.limit) if abs(owed) > NEGLIGIBLE else 0.0


def limit_of_payments(response: Response, off: Mapping[int, float], b: int) -> float:
    """The one of LIMITS with which payments for a gap are best for the final latent. off: a_k of the gap that the
    computed evaluation b ends, by index.
    """
    weights, count, limits = response.weights, len(response.sigmas), np.array(LIMITS)
    parts = np.zeros((len(limits), count))  # a_k with each limit
    parts[:, list(off)] = list(off.values())
    for n in range(b, count - 1):
        if weights[n + 1, n]:
            owed = -parts[:, :n] @ weights[n + 1, :n] / weights[n + 1, n]
            parts[:, n] = np.clip(owed, -limits, limits)
    left = np.abs(parts @ response.influence())
    best = 0
    for other in range(1, len(limits)):
        if left[other] < CLEARLY_LESS * left[best]:
            best = other
    return LIMITS[best]
