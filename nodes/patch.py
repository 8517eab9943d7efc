"""Put the cache into a MODEL."""

import logging
from functools import partial

from comfy.patcher_extension import WrappersMP

from .run import KEY, sample_with_cache
from .settings import Settings

log = logging.getLogger("easycache")


def with_cache(model, settings: Settings):
    """A clone of a ModelPatcher whose sampling runs go through the cache; the original is untouched."""
    patched = model.clone()
    if patched.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        log.warning("EasyCache: the model has been through an EasyCache (Adaptive) node already; the last one counts")
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(sample_with_cache, settings))
    return patched
