"""The noise levels of a run, in the terms of forecasts.

t = log(1 + sigma) is the time along which D is extrapolated. u = 1 / sigma is the time along which samplers integrate:
d(x / sigma) / du = D, so an error of D at evaluation k counts as much as u changes there.
"""

import math
from typing import NamedTuple

# The largest step ratio. Where steps grow (the beta scheduler), forecasts would otherwise extrapolate a long step from
# a short one.
MAX_STEP_RATIO = 0.75


class StepRatios(NamedTuple):
    """An evaluation n seen from the computed evaluations j < i before it.

    step_ratio: r = (t_n - t_i) / (t_i - t_j), MAX_STEP_RATIO at most; 0 without j. sigma_ratio: s = sigma_n / sigma_i.
    """

    step_ratio: float
    sigma_ratio: float


class StepHistory:
    """Call `advance` at each evaluation n, then `mark_computed` if the network runs there.

    sigma: sigma_n; None before the first evaluation. sigma_i: where the network ran last; 0 before it did.
    weight: of evaluation n - 1 in the sampler's sum, the change of u that its D stands for. Samplers that evaluate
    twice per step stay at a level, or come back to it; then both evaluations share the step. 0 at the first evaluation.
    """

    def __init__(self):
        self.sigma: float | None = None
        self.sigma_i = self.weight = 0.0
        self._t = 0.0  # t_n
        self._t_i: float | None = None
        self._t_j: float | None = None
        self._du: float | None = None  # from evaluation n - 1 to n
        self._descent = 0.0  # the last change of sigma in the direction of the run

    def advance(self, sigma: float) -> None:
        """Go on to the next evaluation."""
        if self.sigma is not None:
            du = _change_of_u(sigma, self.sigma)
            if du == 0:
                self.weight = (self._du or 0.0) / 2
            else:
                self.weight = du / 2 if self._du == 0 else du
            self._du = du
            # Ignore increases (injected noise) and repeats (second evaluation at a level).
            change = sigma - self.sigma
            if change * self._descent > 0 or self._descent == 0:
                self._descent = change
        self.sigma, self._t = sigma, math.log1p(sigma)

    def mark_computed(self) -> None:
        """The network runs at n, which is i from now on."""
        self._t_j, self._t_i, self.sigma_i = self._t_i, self._t, self.sigma

    @property
    def offset(self) -> float:
        """t_n - t_i; 0 where nothing was computed yet."""
        return 0.0 if self._t_i is None else self._t - self._t_i

    @property
    def ratios(self) -> StepRatios:
        """Of evaluation n, before `mark_computed`."""
        step_ratio = 0.0 if self._t_j is None else ratio(self.offset, self._t_i - self._t_j)
        return StepRatios(clip(step_ratio, -MAX_STEP_RATIO, MAX_STEP_RATIO), ratio(self.sigma, self.sigma_i))

    @property
    def expected_du(self) -> float:
        """The change of u up to the next evaluation, were the last step size to repeat; mostly an overestimate."""
        return _change_of_u(max(self.sigma + self._descent, self.sigma / 4), self.sigma)


def ratio(part: float, whole: float) -> float:
    """part / whole, 0 where whole is 0: a noise level that repeats shows nothing new."""
    value = part / whole if whole else 0.0
    return value if math.isfinite(value) else 0.0


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _change_of_u(sigma: float, before: float) -> float:
    """1 / sigma - 1 / before; at noise level 0 nothing is left to integrate."""
    return (before - sigma) / (sigma * before) if sigma > 0 and before > 0 else 0.0
