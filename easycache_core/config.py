"""What a user may set."""

import math
from dataclasses import dataclass

PREDICTORS = ("reuse",)
CACHE_DEVICES = ("gpu", "cpu")


@dataclass(frozen=True)
class CacheConfig:
    """Settings of one cached run.

    threshold: tau, 0 to 1. Reuse while the accumulated relative error stays below it. Higher: fewer network
        evaluations, further from the uncached result. 0: nothing is reused.
    warmup_steps: R, 1 to 50. The first R sampler steps are always computed.
    predictor: how a skipped output is made. "reuse" is the paper's rule.
    max_consecutive_skips: 0 to 50. Compute after that many reused evaluations in a row; 0 sets no limit.
    cache_device: "gpu" keeps cached tensors on the device of the latent, "cpu" in main memory, at the cost
        of one copy to and fro an evaluation.

    Raises ValueError naming the field and its range.
    """

    threshold: float = 0.05
    warmup_steps: int = 5
    predictor: str = "reuse"
    max_consecutive_skips: int = 0
    cache_device: str = "gpu"

    def __post_init__(self):
        require_number("threshold", self.threshold, 0, 1)
        require_integer("warmup_steps", self.warmup_steps, 1, 50)
        require_choice("predictor", self.predictor, PREDICTORS)
        require_integer("max_consecutive_skips", self.max_consecutive_skips, 0, 50)
        require_choice("cache_device", self.cache_device, CACHE_DEVICES)


def require_number(name: str, value, low: float, high: float) -> None:
    """Raise ValueError unless value is a number in [low, high]; NaN is in no range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or math.isnan(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low} to {high}, got {value!r}")


def require_integer(name: str, value, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def require_choice(name: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
