"""Other caches that work on the same model: their errors and ours would add up."""

import logging
import re

log = logging.getLogger("easycache")

# As they name their wrappers, their options or the functions that they put into a model.
NAMES = {
    "easycache": "ComfyUI's built-in EasyCache or LazyCache node",
    "lazycache": "ComfyUI's built-in EasyCache or LazyCache node",
    "teacache": "TeaCache",
    "rel_l1_thresh": "TeaCache",
    "magcache": "MagCache",
    "wavespeed": "WaveSpeed",
    "fbcache": "WaveSpeed's first-block cache",
    "first_block_cache": "a first-block cache",
    "cachedit": "CacheDiT",
    "cache_dit": "CacheDiT",
    "dbcache": "CacheDiT",
    "taylorseer": "TaylorSeer",
    "spectrum": "Spectrum",
    "dicache": "DiCache",
    "nunchaku_cache": "Nunchaku's cache",
    "deepcache": "DeepCache",
}


def other_caches(model_options: dict, own_key: str) -> list[str]:
    """Who else caches, by name, as far as the names in the model's options tell. own_key: of our wrappers."""
    options = model_options.get("transformer_options", {})
    names = [key for key in options if key not in ("wrappers", "easycache_ranks")]
    for by_key in options.get("wrappers", {}).values():
        for key, wrappers in by_key.items():
            if key != own_key:
                names += [str(key), *map(_origin, wrappers)]
    functions = [value for value in model_options.values() if callable(value)]
    functions += [one for value in model_options.values() if isinstance(value, list) for one in value if callable(one)]
    names += map(_origin, functions)
    words = [re.sub(r"[^a-z0-9]+", "_", name.lower()) for name in map(str, names)]
    found = {who for mark, who in NAMES.items() for word in words if mark in word or mark in word.replace("_", "")}
    return sorted(found)


def _origin(function) -> str:
    """Where a function comes from: its own name and those of the class and the module that hold it."""
    function = getattr(function, "func", function)  # of a functools.partial
    kind = function if hasattr(function, "__qualname__") else type(function)
    # ComfyUI names a pack's modules by the path of its folder, which says nothing above the last one.
    modules = kind.__module__.replace("\\", "/").split("/")[-1].split(".")[-2:]
    return f"{' '.join(modules)} {kind.__qualname__}"


def warn_of_other_caches(model_options: dict, own_key: str) -> None:
    for who in other_caches(model_options, own_key):
        log.warning(f"EasyCache: the model also goes through {who}; two caches add up their errors, so use one of them")
