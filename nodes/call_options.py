"""What a model's options say of a call: which layers are patched, and the words, switches and numbers that packs leave
there for their patches.
"""

from collections.abc import Iterator

from comfy.patcher_extension import WrappersMP

# ComfyUI's own entries, and ours.
KNOWN_OPTIONS = {
    "wrappers", "callbacks", "patches", "patches_replace", "optimized_attention_override", "sample_sigmas", "sigmas",
    "uuids", "cond_or_uncond", "easycache_ranks",
}  # fmt: skip
INSIDE = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)  # of the cached part
_MAX_ITEMS, _DEPTH = 64, 3  # of lists


def unknown_options(model_options: dict) -> Iterator[tuple[str, object]]:
    """(name, value) of other packs' entries."""
    options = model_options.get("transformer_options", {})
    return ((name, value) for name, value in options.items() if name not in KNOWN_OPTIONS)


def switches_of(model_options: dict) -> tuple:
    """Entries that are words or switches."""
    found = ((name, value) for name, value in unknown_options(model_options) if isinstance(value, str | bool))
    return tuple(sorted(found, key=repr))  # names need not be words, and would not compare


def values_of(model_options: dict) -> dict:
    """Entries that are numbers, or lists of numbers and words."""
    found = ((name, _plain(value, _DEPTH)) for name, value in unknown_options(model_options))
    return {name: value for name, value in found if value is not None}


def _plain(value, depth: int):
    """The value, with tuples for lists and dicts; None if it is or holds something else, or is a word or a switch."""
    if isinstance(value, int | float):
        return None if isinstance(value, bool) else value
    if isinstance(value, dict):
        value = sorted(value.items(), key=repr)
    if not isinstance(value, list | tuple) or not depth or len(value) > _MAX_ITEMS:
        return None
    parts = tuple(part if isinstance(part, str | bool | None) else _plain(part, depth - 1) for part in value)
    known = all(new is not None or part is None for part, new in zip(value, parts, strict=True))
    return parts if known else None


def patches_of(model_options: dict) -> tuple:
    """What is patched, and by which function: of functions made anew for each call, the code that they share."""
    options = model_options.get("transformer_options", {})
    found = [(kind, layer, _code(one)) for kind, layers in options.get("patches_replace", {}).items()
             for layer, one in layers.items()]  # fmt: skip
    found += [(kind, i, _code(one)) for kind, functions in options.get("patches", {}).items()
              for i, one in enumerate(functions)]  # fmt: skip
    for level in INSIDE:
        found += [(level, key, len(functions)) for key, functions in options.get("wrappers", {}).get(level, {}).items()]
    single = options.get("optimized_attention_override"), model_options.get("model_function_wrapper")
    found += [("", i, _code(one)) for i, one in enumerate(single) if one is not None]
    return tuple(sorted(found, key=repr))


def _code(function) -> int:
    function = getattr(function, "func", function)  # of a functools.partial
    return id(getattr(function, "__code__", None) or type(function))
