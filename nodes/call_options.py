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
_MAX_NUMBERS = 4096  # of a list that holds nothing else: one for each frame of a video, say


def unknown_options(model_options: dict) -> Iterator[tuple[str, object]]:
    """(name, value) of other packs' entries."""
    options = model_options.get("transformer_options", {})
    return ((name, value) for name, value in options.items() if name not in KNOWN_OPTIONS)


def switches_of(model_options: dict) -> tuple:
    """Entries that are words or switches."""
    found = ((name, value) for name, value in unknown_options(model_options) if isinstance(value, str | bool))
    return tuple(sorted(found, key=repr))  # names need not be words, and would not compare


def values_of(model_options: dict, identity: Callable) -> dict:
    """Entries that are neither words nor switches, by name, and the strengths that objects among them hold.
    identity(thing): tells objects, such as tensors, apart.
    """
    values = {}
    for name, value in unknown_options(model_options):
        if not isinstance(value, str | bool):
            values["option", name] = _plain(value, _DEPTH, identity)
            values |= strengths(("option", name), value)
    return values


def strengths(name: tuple, value) -> dict:
    """The fractional numbers in the variables of a function or an object, by name."""
    return {(*name, key): one for key, one in variables_of(value).items() if isinstance(one, float)}


def _plain(value, depth: int, identity: Callable):
    """The value, with tuples for lists and dicts, and what tells objects apart; None for lists that are too long or
    deep.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        value = sorted(value.items(), key=repr)
    if not isinstance(value, list | tuple):
        return identity(value)
    if len(value) > _MAX_ITEMS:
        numbers = len(value) <= _MAX_NUMBERS and all(isinstance(part, int | float) for part in value)
        return tuple(value) if numbers else None
    if not depth:
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
    """Of a function those that it takes from around it, and its arguments that are given already; of an object its
    attributes.
    """
    if isinstance(value, functools.partial):
        return {**_arguments(value), "called": value.func}
    if isinstance(value, types.MethodType):
        return variables_of(value.__self__) | {"called": value.__func__}
    if isinstance(value, types.FunctionType):
        found = _defaults(value)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not assigned yet
                found[name] = cell.cell_contents
        return found
    if isinstance(value, torch.nn.Module | type):
        return {}
    held = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
    return held | getattr(value, "__dict__", {})


def _slots(kind: type) -> Iterator[str]:
    """Names of the attributes that its instances have beside those in their __dict__."""
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        yield from (name for name in ((names,) if isinstance(names, str) else names) if not name.startswith("__"))


def _defaults(function: types.FunctionType) -> dict:
    """By the names of the arguments."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    given = function.__defaults__ or ()
    return dict(zip(names[len(names) - len(given) :], given, strict=False)) | (function.__kwdefaults__ or {})


def _arguments(partial: functools.partial) -> dict:
    """By name, or by position where that is not known."""
    code = partial.func.__code__ if isinstance(partial.func, types.FunctionType) else None
    names = code.co_varnames[: code.co_argcount] if code else ()
    return {names[i] if i < len(names) else i: one for i, one in enumerate(partial.args)} | partial.keywords
