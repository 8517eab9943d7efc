"""What a model's options say of a call: which layers are patched, and the words, switches and numbers that packs leave
there for their patches.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator

import torch
from comfy.patcher_extension import WrappersMP

# ComfyUI's own entries, and ours.
KNOWN_OPTIONS = {
    "wrappers", "callbacks", "patches", "patches_replace", "optimized_attention_override", "sample_sigmas", "sigmas",
    "uuids", "cond_or_uncond", "context_window", "easycache_ranks",
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


def values_of(model_options: dict, identity: Callable) -> dict:
    """Entries that are neither words nor switches, by name. identity(thing): tells objects, such as tensors, apart."""
    found = ((name, value) for name, value in unknown_options(model_options) if not isinstance(value, str | bool))
    return {name: _plain(value, _DEPTH, identity) for name, value in found}


def _plain(value, depth: int, identity: Callable):
    """The value, with tuples for lists and dicts, and numbers for objects; None for lists that are too long or deep."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        value = sorted(value.items(), key=repr)
    if not isinstance(value, list | tuple):
        return identity(value)
    if not depth or len(value) > _MAX_ITEMS:
        return None
    return tuple(_plain(part, depth - 1, identity) for part in value)


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


def variables_of(value) -> dict:
    """Of a function those that it takes from around it, of an object its attributes."""
    if isinstance(value, functools.partial):
        return {**value.keywords, "called": value.func}
    if isinstance(value, types.MethodType):
        return variables_of(value.__self__) | {"called": value.__func__}
    if isinstance(value, types.FunctionType):
        found = {}
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not assigned yet
                found[name] = cell.cell_contents
        return found
    return {} if isinstance(value, torch.nn.Module | type) else dict(getattr(value, "__dict__", {}))
