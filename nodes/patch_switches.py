"""What patches do changes: at which noise levels, and between evaluations, as far as their own variables tell.

Patches that act in a part of the schedule only (Kohya's deep shrink, say) hold its ends in variables that are named
after what they are: sigma_start, end_sigma, start_percent. These may be numbers, tensors or ranges, in a function's
closure or default arguments, or in objects that a patch holds.
"""

import math
import types
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .call_options import INSIDE, strengths, unknown_options, variables_of

_DEPTH = 3  # of functions that call functions, and of what they hold
_MAX_ITEMS = 64  # of a list
_MAX_SEEN = 512  # functions, objects, dicts and lists
_MAX_ENDS = 4  # numbers that are ends of ranges


def patch_levels(model_options: dict, own_key: str, model_sampling, sigmas: torch.Tensor) -> list[float]:
    """Sigmas. A percent counts both as ComfyUI means it and as a part of the steps. own_key: of our wrappers."""
    levels, steps = [], sigmas.detach().cpu().double().tolist()
    for name, value in _numbers(_patches(model_options, own_key)):
        if "sigma" in name:
            levels.append(float(value))
        elif 0 < value < 1 and steps:
            levels.append(float(model_sampling.percent_to_sigma(value)))
            levels.append(float(np.interp(value * (len(steps) - 1), range(len(steps)), steps)))
    return sorted({level for level in levels if steps and min(steps) <= level <= max(steps)})


def patch_values(model_options: dict, own_key: str, identity: Callable) -> dict:
    """Which patches there are, and their strengths: the fractional numbers in their variables, by name.

    own_key: of our wrappers. identity(thing): tells objects apart.
    """
    values = {}
    for i, patch in enumerate(one for one in _patches(model_options, own_key) if one is not None):
        values["patch", i] = identity(patch)
        values |= strengths(("patch", i), patch)
    return values


def keeps_latents(model_options: dict, shape: torch.Size) -> bool:
    """Whether what makes one answer of several has tensors of this shape in its variables, as momentum has, or leaves
    some in the options of a call, which these are, once it is answered.
    """
    functions = [model_options.get("sampler_cfg_function")]
    functions += model_options.get("sampler_pre_cfg_function", []) + model_options.get("sampler_post_cfg_function", [])
    functions = [one for one in functions if one is not None]
    kept = [value for one in functions for value in variables_of(one).values()]
    if functions:
        kept += _held({key: value for key, value in model_options.items() if key != "transformer_options"}, _DEPTH)
        kept += _held(dict(unknown_options(model_options)), _DEPTH)
    return any(isinstance(value, torch.Tensor) and value.shape == shape for value in kept)


def _held(value, depth: int) -> Iterator:
    """What is in it, and in the dicts and lists that are in it."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        yield part
        if depth:
            yield from _held(part, depth - 1)


def _patches(model_options: dict, own_key: str) -> Iterator:
    """Functions and objects that are called within the cached part of an evaluation."""
    options = model_options.get("transformer_options", {})
    yield model_options.get("model_function_wrapper")
    yield from (patch for patches in options.get("patches", {}).values() for patch in patches)
    yield from (patch for patches in options.get("patches_replace", {}).values() for patch in patches.values())
    yield options.get("optimized_attention_override")
    for level in INSIDE:
        by_key = options.get("wrappers", {}).get(level, {})
        yield from (wrapper for key, wrappers in by_key.items() if key != own_key for wrapper in wrappers)


def _numbers(patches: Iterator) -> Iterator[tuple[str, float]]:
    """(name, value) of the numbers in the variables of functions and objects, and in what these hold, named after a
    noise level or percent. What is next to a patch comes first: there is a limit to what is looked at.
    """
    seen, near = set(), list(patches)
    for _ in range(_DEPTH + 1):
        further = []
        for thing in near:
            if thing is None or id(thing) in seen or len(seen) >= _MAX_SEEN:
                continue
            seen.add(id(thing))
            parts = _parts(thing)
            for name, value in parts.items():
                if isinstance(name, str) and ("sigma" in name.lower() or "percent" in name.lower()):
                    yield from ((name.lower(), number) for number in _ends(value))
            further += filter(_holds_parts, parts.values())
        near = further


def _parts(value) -> dict:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):  # a named one
        return value._asdict()
    if isinstance(value, list | tuple):
        return dict(enumerate(value[:_MAX_ITEMS]))
    return value if isinstance(value, dict) else variables_of(value)


def _holds_parts(value) -> bool:
    """Whether what it holds may be a patch's own. Objects of torch and ComfyUI are the model's, mostly, and large."""
    if callable(value) or isinstance(value, dict | list | tuple):
        return True
    others = isinstance(value, types.ModuleType) or type(value).__module__.startswith(("torch", "comfy."))
    return not others and bool(variables_of(value))


def _ends(value, depth: int = 2) -> list[float]:
    """The number that it is, or those of a range, or of a few; longer lists may be the schedule itself. Waits for the
    device of a tensor.
    """
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        held = math.prod(value.shape) <= _MAX_ENDS and not getattr(value, "is_meta", False)
        value = value.reshape(-1).tolist() if held else ()
    if isinstance(value, list | tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        return [one for part in parts for one in _ends(part, depth - 1)] if depth and len(value) <= _MAX_ENDS else []
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
