"""What patches do changes: at which noise levels, and between evaluations, as far as their own variables tell.

Patches that act in a part of the schedule only (Kohya's deep shrink, say) hold its ends in variables that are named
after what they are: sigma_start, start_percent, end_step, timestep_end. These may be numbers, tensors or ranges, in a
function's closure or default arguments, or in objects that a patch holds. Others hold a number for each step.
"""

import math
import types
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .call_options import INSIDE, strengths, unknown_options, variables_of

# In names of variables; of the latter the value tells whether they are percents or steps.
_WORDS = "sigma", "percent", "step", "start_at", "end_at"
_DEPTH = 3  # of functions that call functions, and of what they hold
_MAX_ITEMS = 64  # of a list
_MAX_SEEN = 512  # functions, objects, dicts and lists
_ROUNDING = 1e-3  # of noise levels that schedulers compute
_MAX_ENDS = 4  # numbers that are ends of ranges; changes from step to step


def patch_levels(model_options: dict, own_key: str, model_sampling, sigmas: torch.Tensor) -> list[float]:
    """Sigmas within a run's schedule at which patches may begin to act in another way. own_key: of our wrappers."""
    schedule = sigmas.detach().cpu().double().tolist()
    if not schedule:
        return []
    found = []
    for name, value in _variables(_patches(model_options, own_key)):
        if isinstance(name, str) and any(word in name.lower() for word in _WORDS):
            for number in _ends(value):
                found += _levels_named(name.lower(), number, model_sampling, schedule)
        found += _levels_by_step(value, schedule)
    first = (1 - _ROUNDING) * max(schedule)  # what begins there, at sigma_max say, acts from the first evaluation on
    return sorted({level for level in found if min(schedule) <= level < first})


def _levels_named(name: str, value: float, model_sampling, schedule: list[float]) -> list[float]:
    """A percent counts both as ComfyUI means it and as a part of the steps. A step may be the last or the first one
    of a part: what is at the noise level itself differs from what is above and from what is below.
    """
    if "sigma" in name:
        return [float(value)]
    if "percent" in name or (name.endswith("_at") and 0 < value < 1):
        part = value / 100 if 1 < value < 100 else value
        steps = float(np.interp(part * (len(schedule) - 1), range(len(schedule)), schedule))
        return [float(model_sampling.percent_to_sigma(part)), steps] if 0 < part < 1 else []
    if "timestep" in name:
        return [float(model_sampling.sigma(torch.tensor(float(value))))] if value > 0 else []
    if float(value).is_integer() and 0 < value < len(schedule) - 1:
        return [schedule[int(value)]]
    return []


def _levels_by_step(value, schedule: list[float]) -> list[float]:
    """Of a list with a number for each step, where it changes; of one that moves on from step to step, nothing."""
    count = len(schedule) - 1
    if not (isinstance(value, list | tuple) and len(value) in (count, count + 1)):
        return []
    if not all(isinstance(one, int | float) for one in value):
        return []
    changes = [i for i in range(1, count) if value[i] != value[i - 1]]
    return [(schedule[i - 1] + schedule[i]) / 2 for i in changes] if len(changes) <= _MAX_ENDS else []


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


def _variables(patches: Iterator) -> Iterator[tuple]:
    """(name, value) of the variables of functions and objects, and of what these hold. What is next to a patch comes
    first: there is a limit to what is looked at.
    """
    seen, near = set(), list(patches)
    for _ in range(_DEPTH + 1):
        further = []
        for thing in near:
            if thing is None or id(thing) in seen or len(seen) >= _MAX_SEEN:
                continue
            seen.add(id(thing))
            parts = _parts(thing)
            yield from parts.items()
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
