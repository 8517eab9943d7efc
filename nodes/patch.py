"""Put the cache into a MODEL."""

import logging

from comfy.patcher_extension import WrappersMP

from .journal import KEY, Journal
from .run import sample_with_cache
from .settings import Settings

log = logging.getLogger("easycache")


class CachedSampling:
    """The OUTER_SAMPLE wrapper of one node, with the journal of its runs."""

    def __init__(self, settings: Settings, journal: Journal):
        self.settings, self.journal = settings, journal

    def __call__(self, executor, *args, **kwargs):
        return sample_with_cache(self.settings, self.journal, executor, *args, **kwargs)


def with_cache(model, settings: Settings, node: str | None = None):
    """A clone of a ModelPatcher whose sampling runs go through the cache; the original is untouched.

    node: as in Journal.
    """
    patched = model.clone()
    if patched.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        log.warning("EasyCache: the model has been through an EasyCache (Adaptive) node already; the last one counts")
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, CachedSampling(settings, Journal(node)))
    return patched
