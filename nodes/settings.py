"""The settings of one EasyCache (Adaptive) node."""

from dataclasses import dataclass

from ..easycache_core import CacheConfig
from ..easycache_core.config import require_number


@dataclass(frozen=True)
class Settings:
    """The engine's settings, and those that need ComfyUI.

    start_percent, end_percent: the part of the model's schedule in which evaluations may be skipped, 0 to 1, in
    ComfyUI's sense (`model_sampling.percent_to_sigma`). verbose: one log line per evaluation.

    Raises ValueError naming the widget and its range.
    """

    config: CacheConfig
    start_percent: float = 0.0
    end_percent: float = 1.0
    verbose: bool = False

    def __post_init__(self):
        require_number("start_percent", self.start_percent, 0, 1)
        require_number("end_percent", self.end_percent, 0, 1)
        if self.start_percent > self.end_percent:
            raise ValueError(
                f"start_percent ({self.start_percent}) must not be above end_percent ({self.end_percent}): "
                "nothing could ever be skipped"
            )

    @property
    def exact(self) -> bool:
        """Whether nothing is to be skipped."""
        return self.config.threshold == 0 == self.config.target_speedup
