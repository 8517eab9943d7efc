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
"""

from .steps import StepHistory, clip, ratio

# Larger ones would be for samplers in which the answer at n hardly counts for the next latent, and they swing to and
# fro. What is left is paid at the evaluations after.
MAX_PAYMENT = 1.0
NEGLIGIBLE = 1e-3
# Gaps that are remembered: what is still owed for earlier ones is next to nothing.
GAPS = 2


class Correction:
    """At each evaluation call `skip`, or `close_gap` before `steps` counts it as computed; then `pay` if the answer is
    corrected. What belongs to a gap comes in the order of gaps, the last one first.
    """

    def __init__(self, steps: StepHistory):
        self._steps = steps
        self._gap: dict[int, float] = {}  # r_k of the evaluations since the network ran, by index
        self._off: list[dict[int, float]] = []  # a_k, payments among them, by index; per gap
        self.stopped = False  # whether no answer is to be corrected any more

    def forget(self) -> None:
        """Nothing is owed any more: x is another one."""
        self._gap, self._off = {}, []

    def skip(self) -> None:
        """Evaluation n is skipped."""
        self._gap[self._n] = self._steps.ratios.step_ratio

    def close_gap(self) -> float | None:
        """The network runs at b. Returns r of the gap that ends there, None if there is none."""
        if not self._gap:
            return None
        off = {k: ratio(self._steps.offset(k), self._steps.offset()) for k in self._gap}
        weights = [abs(w) for w in self._steps.weights(list(off))]
        extrapolated = sum(w * r for w, r in zip(weights, self._gap.values(), strict=True))
        step_ratio = ratio(extrapolated, sum(w * a for w, a in zip(weights, off.values(), strict=True)))
        self._off.insert(0, off)
        self._gap = {}
        return step_ratio

    def pay(self) -> list[float]:
        """c_n per gap, once they are added to the answer; the same if it is asked again."""
        for off in self._off[:GAPS]:
            if self._n not in off:
                off[self._n] = 0.0 if self.stopped else self._owed(off)
        return [off[self._n] for off in self._off[:GAPS]]

    @property
    def gaps(self) -> list[dict[int, float]] | None:
        """a_k of all gaps, payments among them; None while one is open."""
        return None if self._gap else self._off

    @property
    def _n(self) -> int:
        return len(self._steps.sigmas) - 1

    def _owed(self, off: dict[int, float]) -> float:
        """c_n for one gap."""
        if self._steps.last:
            return 0.0
        weights = self._steps.weights(list(off))
        owed = -sum(w * a for w, a in zip(weights, off.values(), strict=True))
        return clip(owed, -MAX_PAYMENT, MAX_PAYMENT) if abs(owed) > NEGLIGIBLE else 0.0
