"""What the sampling runs of a patched MODEL did: numbers only, kept for reports and sent to the browser."""

from comfy.patcher_extension import WrappersMP

from ..easycache_core import CacheController
from .settings import Settings

KEY = "easycache_adaptive"  # of the pack's wrappers


class Journal:
    """Of one EasyCache (Adaptive) node's MODEL; clones of it (LoRAs put behind the node) share it.

    node: the node's id in the graph that is executed ("5", in a subgraph "12:5"), None outside of one.
    last: the report of the run that ended last, None before.
    """

    def __init__(self, node: str | None = None):
        self.node = node
        self.last: dict | None = None


def journal_of(model) -> Journal | None:
    """The journal of a MODEL (a ModelPatcher), None if it has not been through an EasyCache (Adaptive) node."""
    wrappers = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return wrappers[-1].journal if wrappers else None


def totals(settings: Settings, steps: int, controller: CacheController) -> dict:
    """What a run did so far, ready for JSON and without `trace`; steps: of the sampler.

    speedup is evaluations / computed, None if there were none.
    """
    config, computed, skipped = settings.config, controller.computed, controller.skipped
    return {
        "steps": steps,
        "evaluations": computed + skipped,
        "computed": computed,
        "skipped": skipped,
        "speedup": (computed + skipped) / computed if computed else None,
        "threshold": config.threshold,
        "warmup_steps": config.warmup_steps,
        "predictor": config.predictor,
        "target_speedup": config.target_speedup,
    }
