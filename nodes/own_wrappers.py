"""Our wrappers in a model's options."""

from .run_history import WRAPPER_KEY


def set_own_wrapper(level: str, wrapper, model_options: dict) -> None:
    """In place of the one that is there; None: without one. It lies around the wrappers of other packs: what they make
    of one call (context windows, say) is cached as a whole.
    """
    wrappers = model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    others = {key: given for key, given in wrappers.get(level, {}).items() if key != WRAPPER_KEY}
    wrappers[level] = others if wrapper is None else {WRAPPER_KEY: [wrapper], **others}


def with_own_wrapper(level: str, wrapper, model_options: dict) -> dict:
    """The options, or a copy of them with this wrapper where there is none of ours."""
    options = model_options.get("transformer_options", {})
    wrappers = options.get("wrappers", {})
    if WRAPPER_KEY in wrappers.get(level, {}):
        return model_options
    copied = {**model_options, "transformer_options": {**options, "wrappers": {**wrappers}}}
    set_own_wrapper(level, wrapper, copied)
    return copied
