"""Put the cache into a MODEL."""

import logging

from comfy.patcher_extension import WrapperExecutor, WrappersMP

from .outer_sample import sample_with_cache
from .own_wrappers import WRAPPER_KEY, own_wrappers, set_own_wrapper
from .run_history import RunHistory
from .settings import Settings

log = logging.getLogger("easycache")


class CachedSampling:
    """The OUTER_SAMPLE wrapper that one node adds, with the history of its runs."""

    def __init__(self, settings: Settings, history: RunHistory):
        self.settings, self.history = settings, history

    def __deepcopy__(self, memo) -> "CachedSampling":
        """Itself, where a pack copies a model's options: the report is looked for in this history."""
        return self

    def __call__(self, executor, *args, **kwargs):
        inner = executor.wrappers[executor.idx + 1 :]
        if inner:  # Some sample several times in one call, and each time is a run: so this one goes innermost, once.
            wrappers = [*(one for one in inner if one is not self), self]
            executor = WrapperExecutor.new_class_executor(executor.original, executor.class_obj, wrappers)
            return executor.execute(*args, **kwargs)
        return sample_with_cache(self.settings, self.history, executor, *args, **kwargs)


def warning_outside_of_runs():
    """An APPLY_MODEL wrapper for the model's own options: it says once that the network is asked where no run was
    opened. Some packs have a sampling loop of their own, or guiders that ask with the model's options, not the run's.
    """
    warned = []

    def wrapper(executor, *args, **kwargs):
        if not warned:
            warned.append(True)
            log.warning(
                "EasyCache: the network is asked past ComfyUI's sampling, where the node sees no run; what is asked "
                "that way is computed, and nothing of it is skipped"
            )
        return executor(*args, **kwargs)

    return wrapper


def remove_cache(model) -> None:
    """From a ModelPatcher that is nobody else's."""
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY)
    set_own_wrapper(WrappersMP.OUTER_SAMPLE, None, model.model_options)


def with_cache(model, settings: Settings, node: str | None = None):
    """A clone of a ModelPatcher whose sampling runs use the cache; the original is not changed.

    node: as in RunHistory.
    """
    patched = model.clone()
    if own_wrappers(patched):
        log.warning("EasyCache: the model has been through an EasyCache (Adaptive) node already; the last one counts")
        remove_cache(patched)
    wrapper = CachedSampling(settings, RunHistory(node))
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, wrapper)
    set_own_wrapper(WrappersMP.OUTER_SAMPLE, wrapper, patched.model_options)
    if settings.config.threshold or settings.config.target_speedup:
        set_own_wrapper(WrappersMP.APPLY_MODEL, warning_outside_of_runs(), patched.model_options)
    return patched
