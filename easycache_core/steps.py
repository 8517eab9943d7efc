"""The noise levels of a run, in the terms of forecasts.

t = log(1 + sigma) is the time along which D is extrapolated. u = 1 / sigma is the time along which Euler's method
integrates: d(x / sigma) / du = D, so an error of D at evaluation k counts as much as u changes there.
"""

import math
from itertools import pairwise
from typing import NamedTuple

from .response import SAME_LEVEL, Response

# Where steps grow (the beta scheduler), forecasts would otherwise extrapolate a long step from a short one.
MAX_STEP_RATIO = 0.75
# By so small a part levels differ that are computed in two ways.
ROUNDING = 1e-5


class StepRatios(NamedTuple):
    """r = (t_n - t_i) / (t_i - t_j), MAX_STEP_RATIO at most, 0 without j; and s = sigma_n / sigma_i."""

    step_ratio: float
    sigma_ratio: float


class StepHistory:
    """sigmas: the noise level of each evaluation so far, the last of them n. computed: where the network ran, the last
    of them i, as indices; append n after what is asked about it.

    response: the sampler's, if it is known.
    """

    def __init__(self, response: Response | None):
        self.sigmas: list[float] = []
        self.computed: list[int] = []
        self.response = response
        self._stays = False  # whether it was seen to evaluate more than twice at one level

    def advance(self, sigma: float) -> None:
        """Go on to evaluation n. A level that is the last one but for rounding is the last one: nothing can be said per
        so small a change.
        """
        last = self.sigmas[-1] if self.sigmas else sigma
        self.sigmas.append(last if abs(sigma - last) <= ROUNDING * abs(last) else sigma)
        self._stays = self._stays or len(self.sigmas) > 2 and len(set(self.sigmas[-3:])) == 1

    def offset(self, k: int = -1) -> float:
        """t_k - t_i; 0 where nothing was computed yet."""
        return self._t(k) - self._t(self.computed[-1]) if self.computed else 0.0

    @property
    def times(self) -> list[float]:
        """t of each evaluation so far."""
        return [self._t(k) for k in range(len(self.sigmas))]

    @property
    def ratios(self) -> StepRatios:
        """Of evaluation n, before it is computed."""
        if not self.computed:
            return StepRatios(0.0, 0.0)
        j, i = self.computed[-2:] if len(self.computed) > 1 else self.computed * 2
        step_ratio = clip(ratio(self.offset(), self._t(i) - self._t(j)), -MAX_STEP_RATIO, MAX_STEP_RATIO)
        return StepRatios(step_ratio, ratio(self.sigmas[-1], self.sigmas[i]))

    @property
    def last(self) -> bool:
        """Whether n is known to be the run's last evaluation."""
        return self.response is not None and len(self.sigmas) == len(self.response.sigmas)

    @property
    def rise(self) -> float:
        """By how much the noise level went up against the run's direction; 0 if it did not."""
        if len(self.sigmas) < 3 or self.sigmas[-1] <= self.sigmas[-2] * (1 + SAME_LEVEL):
            return 0.0
        first = next((after - level for level, after in pairwise(self.sigmas[:-1]) if after != level), 0.0)
        return self.sigmas[-1] - self.sigmas[-2] if first < 0 else 0.0

    @property
    def risen(self) -> bool:
        """Whether it went up beyond where it just was: noise was added, and x is another one."""
        return bool(self.rise) and self.sigmas[-1] > max(self.sigmas[-4:-1]) * (1 + SAME_LEVEL)

    def weights(self, indices: list[int]) -> list[float]:
        """By how much D at each of these evaluations k < n changes x at n + 1, relative to D at n.

        Without a response, as Euler's method has it: by w_k / w_n, the changes of u. Of two evaluations at one level
        each counts in full (Heun's rule has half of it, which was 0.3 to 1.9 dB worse), of more the last alone: those
        before it moved x at that level (Langevin steps).
        """
        if self.response is not None:
            row = self.response.weights[len(self.sigmas)]
            return [ratio(float(row[k]), float(row[len(self.sigmas) - 1])) for k in indices]
        du = self._expected_du
        return [ratio(self._du(k), du) for k in indices]

    def _du(self, k: int) -> float:
        """The change of u that D_k stands for in Euler's sum; k > 0."""
        onward = _change_of_u(*self.sigmas[k : k + 2])
        return onward if onward or self._stays else _change_of_u(*self.sigmas[k - 1 : k + 1])

    @property
    def _expected_du(self) -> float:
        """The change of u up to the next evaluation, were the last step size to repeat; mostly an overestimate."""
        changes = [after - before for before, after in pairwise(self.sigmas)]
        # Changes against the direction of the run are injected noise.
        direction = next(filter(None, changes), 0.0)
        last = next((change for change in reversed(changes) if change * direction > 0), 0.0)
        sigma = self.sigmas[-1]
        return _change_of_u(sigma, max(sigma + last, sigma / 4))

    def _t(self, k: int) -> float:
        return math.log1p(max(self.sigmas[k], 0.0))


def ratio(part: float, whole: float) -> float:
    """part / whole; 0 where whole is 0 or the ratio no float32: a noise level that repeats shows nothing new."""
    value = part / whole if whole else 0.0
    return value if abs(value) < 1e38 else 0.0


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _change_of_u(sigma: float, following: float) -> float:
    """From one noise level to the next; at level 0 nothing is left to integrate."""
    return ratio(sigma - following, sigma * following) if sigma > 0 and following > 0 else 0.0
