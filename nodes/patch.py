"""Put the cache into a MODEL."""

import logging

from comfy.patcher_extension import WrapperExecutor, WrappersMP

from .run import sample_with_cache
from .run_history import WRAPPER_KEY, RunHistory
from .settings import Settings

log = logging.getLogger("easycache")


class CachedSampling:
    """The OUTER_SAMPLE wrapper that one node adds, with the history of its runs."""

    def __init__(self, settings: Settings, history: RunHistory):
        self.settings, self.history = settings, history

    def __call__(self, executor, *args, **kwargs):
        inner = executor.wrappers[executor.idx + 1 :]
        if inner:  # Some sample several times in one call, and each time is a run: so this one goes innermost.
            wrappers = [*inner, self]
            executor = WrapperExecutor.new_class_executor(executor.original, executor.class_obj, wrappers)
            return executor.execute(*args, **kwargs)
        return sample_with_cache(self.settings, self.history, executor, *args, **kwargs)


def with_cache(model, settings: Settings, node: str | None = None):
    """A clone of a ModelPatcher whose sampling runs use the cache; the original is not changed.

    node: as in RunHistory.
    """
    patched = model.clone()
    if patched.get_wrappers(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY):
        log.warning("EasyCache: the model has been through an EasyCache (Adaptive) node already; the last one counts")
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, CachedSampling(settings, RunHistory(node)))
    return patched
