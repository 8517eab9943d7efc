"""What a user may set."""

import math
from dataclasses import dataclass

from .predictors import PREDICTORS

CACHE_DEVICES = ("gpu", "cpu")
MAX_THRESHOLD = 1
MAX_SPEEDUP = 10  # of target_speedup


@dataclass(frozen=True)
class CacheConfig:
    """Settings of one cached run.

    Args:
        threshold: tau, 0 to 1. Skip while the estimated relative errors of the outputs since the last computed one add
            up to less. Higher: fewer network evaluations, further from the uncached result. 0: nothing is skipped.
        warmup_steps: R, 1 to 50. The first R sampler steps are always computed.
        predictor: how a skipped output is made. "reuse" is the paper's rule, decision for decision (reuse.py);
            "forecast" extrapolates the denoised latent and corrects its accumulated error (forecast.py).
        target_speedup: 0 (off), or 1 to 10. Then at most ceil(N / target_speedup) of the run's N evaluations are
            computed, where skipping them would cost most; threshold and warmup_steps have no effect then.
        max_consecutive_skips: 0 to 50. Compute after that many skipped evaluations in a row; 0 sets no limit. A limit
            that target_speedup leaves too few evaluations for has no effect.
        cache_device: "gpu" keeps cached tensors on the device of the latent, "cpu" in main memory, at the cost of one
            copy in each direction per evaluation.

    Raises:
        ValueError: names the field and its range.
    """

    threshold: float = 0.15
    warmup_steps: int = 2
    predictor: str = "forecast"
    target_speedup: float = 0.0
    max_consecutive_skips: int = 0
    cache_device: str = "gpu"

    def __post_init__(self):
        require_number("threshold", self.threshold, 0, MAX_THRESHOLD)
        require_integer("warmup_steps", self.warmup_steps, 1, 50)
        require_choice("predictor", self.predictor, PREDICTORS)
        if self.target_speedup != 0 or self.target_speedup is False:
            require_number("target_speedup", self.target_speedup, 1, MAX_SPEEDUP, "0 (off) or ")
        require_integer("max_consecutive_skips", self.max_consecutive_skips, 0, 50)
        require_choice("cache_device", self.cache_device, CACHE_DEVICES)

    @property
    def needs_response(self) -> bool:
        """Whether anything is decided or corrected by what the sampler makes of answers (response.py)."""
        return bool(self.target_speedup or (self.threshold and PREDICTORS[self.predictor].follows_denoised))


def require_number(name: str, value, low: float, high: float, otherwise: str = "") -> None:
    """Raise ValueError unless value is a number in [low, high]; NaN is in no range. otherwise: what else may be."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or math.isnan(value) or not low <= value <= high:
        raise ValueError(f"{name} must be {otherwise}a number from {low} to {high}, got {value!r}")


def require_integer(name: str, value, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def require_choice(name: str, value, choices) -> None:
    if value not in tuple(choices):
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def require_kind(name: str, fits: bool, kind: str, value) -> None:
    """Raise TypeError unless value fits, as something of that kind."""
    if not fits:
        raise TypeError(f"{name} must be {kind}, got {value!r}")
