"""Model options that functions of guidance hold in their variables: copies from before the run, with which some of them
ask the network once more. For a run they get its wrapper, or what they ask would go past the cache.
"""

import contextlib
from collections.abc import Iterator

from comfy.patcher_extension import WrappersMP

from .call_options import variables_of
from .own_wrappers import set_own_wrapper

_DEPTH = 3  # of functions that call functions


@contextlib.contextmanager
def wrapped_along(model_options: dict, calc_cond_batch):
    """While this is entered, what is asked with options that functions in these hold goes through this CALC_COND_BATCH
    wrapper, and is not taken for something outside of a run.
    """
    replaced = []
    try:
        for held in held_options(model_options):
            for level, wrapper in ((WrappersMP.CALC_COND_BATCH, calc_cond_batch), (WrappersMP.APPLY_MODEL, None)):
                wrappers = held["transformer_options"].get("wrappers", {})
                replaced.append((held["transformer_options"], level, wrappers.get(level)))
                set_own_wrapper(level, wrapper, held)
        yield
    finally:
        for options, level, before in reversed(replaced):
            if before is None:
                options["wrappers"].pop(level, None)
            else:
                options["wrappers"][level] = before


def held_options(model_options: dict) -> list[dict]:
    """Each of them once, without these themselves; only such as have transformer_options."""
    given = [one for value in model_options.values() for one in (value if isinstance(value, list) else [value])]
    found = {id(one): one for one in _held([one for one in given if callable(one)], _DEPTH, set())}
    found.pop(id(model_options), None)
    return list(found.values())


def _held(functions: list, depth: int, seen: set[int]) -> Iterator[dict]:
    for function in functions:
        if id(function) in seen:
            continue
        seen.add(id(function))
        variables = list(variables_of(function).values())
        for value in variables:
            options = value if isinstance(value, dict) else getattr(value, "model_options", None)  # of a ModelPatcher
            if isinstance(options, dict) and isinstance(options.get("transformer_options"), dict):
                yield options
        if depth:
            yield from _held([one for one in variables if callable(one)], depth - 1, seen)
