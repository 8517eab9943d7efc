"""The noise levels of one run of an attached network, and what its scheduler tells of them."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from .config import CacheConfig
from .prediction import Prediction
from .response import Response, euler_response
from .schedule import is_rounded, response_of, step_lengths


class RunSchedule:
    """scheduler, sigma_of, total_steps, config: as `attach` takes them. conversion: of what the network predicts, None
    for predictors that do not follow the denoised latent. response: as CacheController takes it, where the caller knows
    it. say: logs a text, once per run.

    options: what the scheduler tells, as options of CacheController; once it was read.
    """

    def __init__(
        self, scheduler, sigma_of: Callable[[float], float] | None, total_steps: int, config: CacheConfig,
        conversion: Prediction | None, response: Response | None, say: Callable[[str], None],
    ):  # fmt: skip
        self._scheduler, self._sigma_of, self._total_steps = scheduler, sigma_of, total_steps
        self._config, self._conversion, self._given, self._say = config, conversion, response, say
        self.options: dict = {}
        self._supposed: Response | None = None
        self._believed = True

    @property
    def response(self) -> Response | None:
        """None: not known, or not believed any more."""
        return (self.options.get("response") or self._given) if self._believed else None

    @property
    def planned(self) -> Response | None:
        """By which a budget is placed: the response, or the one that was supposed."""
        return self.response or self._supposed

    def distrust(self) -> None:
        """The latent is not where it leads."""
        self._believed = False

    def read(self, timestep: float) -> bool:
        """Read the scheduler, at the run's first evaluation; whether it tells anything."""
        config, forecasts = self._config, self._conversion is not None
        if self._scheduler is None or not config.needs_response:
            return False
        lengths, response = step_lengths(self._scheduler, self._total_steps), None
        if config.target_speedup and lengths is None:
            self._say(
                f"the scheduler does not have {self._total_steps} steps from here; all are taken for equally long"
            )
        if forecasts:
            asked = self._conversion, self._sigma_of, float(self._sigma_of(timestep)), lengths
            response = response_of(self._scheduler, self._total_steps, *asked)
        found = dict(step_lengths=lengths if config.target_speedup else None, response=response)
        self.options = {name: value for name, value in found.items() if value is not None}
        return bool(self.options)

    def supposed(self, first: float, second: float) -> Response | None:
        """Euler's response over the steps that a run's first two timesteps begin, to place a budget by: even ones, or
        those of a flow model with a shift. None where they begin others, or where the scheduler tells.
        """
        told = self._scheduler is not None or self._given is not None
        if not self._config.target_speedup or self._sigma_of is None or told or self._total_steps < 3:
            return None
        try:
            levels = self._levels_from(first, second)
        except Exception:  # its own timesteps may be all that sigma_of knows
            return None
        descends = levels and all(a > b > 0 for a, b in pairwise(levels))  # not where one is NaN
        self._supposed = euler_response([*levels, 0.0])._replace(adds_noise=True) if descends else None
        return self._supposed

    def _levels_from(self, first: float, second: float) -> list[float]:
        """One per step; empty if not known."""
        steps, stride = self._total_steps, first - second
        timesteps, even = first - stride * np.arange(steps), np.arange(steps, 0, -1) / steps
        if stride > 0 and -0.1 * stride < timesteps[-1] <= 1.5 * stride:
            return [float(self._sigma_of(max(0.0, float(t)))) for t in timesteps]
        sigma, following = float(self._sigma_of(first)), float(self._sigma_of(second))
        if not (0 < following < sigma and is_rounded(1.0, sigma)):
            return []
        shift = following * (1 - even[1]) / (even[1] * (1 - following))
        return (shift * even / (1 + (shift - 1) * even)).tolist()

    def sigma(self, timestep: float, n: int) -> float | None:
        """The noise level of evaluation n: the scheduler's own, where that is what the timestep says, rounded. None
        without sigma_of.
        """
        if self._sigma_of is None:
            return None
        sigma, response = float(self._sigma_of(timestep)), self.response
        if not math.isfinite(sigma):
            self._say(f"sigma_of({timestep:g}) is {sigma}, which is no noise level; such steps are computed")
        exact = response.sigmas[n] if response is not None and n < len(response.sigmas) else sigma
        return exact if is_rounded(exact, sigma) else sigma

    def adds_noise(self, timestep: float, n: int) -> bool | None:
        """Whether noise is added on the way to evaluation n, at this timestep; None: not known, or it is elsewhere."""
        response = self.response
        if response is None or not response.expects(n, self.sigma(timestep, n)):
            return None
        return response.adds_noise
