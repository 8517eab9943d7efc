"""Our wrappers in a MODEL and in its options."""

from comfy.patcher_extension import WrappersMP

WRAPPER_KEY = "easycache_adaptive"


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


def own_wrappers(model) -> list:
    """What an EasyCache (Adaptive) node has put around the sampling runs of a MODEL (a ModelPatcher): the same in two
    places, as some packs replace all that is in one of them.
    """
    options = model.model_options.get("transformer_options", {}).get("wrappers", {})
    in_options = options.get(WrappersMP.OUTER_SAMPLE, {}).get(WRAPPER_KEY, [])
    return [*in_options, *model.get_wrappers(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY)]
