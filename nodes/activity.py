"""Which conditionings, ControlNets, hooks and patches are at work at a noise level.

A cached output answers for the conditioning it was computed with. Prompts, ControlNets and hooks can be
switched on and off in the course of a run; when that happens the network has to be asked again.
"""


def active_parts(conds: dict[str, list[dict] | None], sigma: float) -> tuple:
    """A value that changes exactly when the set of active parts changes.

    conds: a guider's conditionings by name, prepared for sampling. sigma: noise level as a number.
    """
    return tuple(
        (name, tuple(_state(cond, sigma) for cond in entries or ())) for name, entries in sorted(conds.items())
    )


def patched_layers(model_options: dict) -> tuple:
    """Names of the layers that are replaced or skipped in a call to the network."""
    replaced = model_options.get("transformer_options", {}).get("patches_replace", {})
    return tuple(sorted((kind, str(layer)) for kind, layers in replaced.items() for layer in layers))


def _state(cond: dict, sigma: float) -> tuple:
    return (
        _within(sigma, cond.get("timestep_start"), cond.get("timestep_end")),
        tuple(_within(sigma, *(net.timestep_range or (None, None))) for net in _controlnets(cond)),
        tuple(_passed_keyframes(hook, sigma) for hook in getattr(cond.get("hooks"), "hooks", ())),
    )


def _within(sigma: float, start: float | None, end: float | None) -> bool:
    return (start is None or sigma <= start) and (end is None or sigma >= end)


def _controlnets(cond: dict):
    net = cond.get("control")
    while net is not None:
        yield net
        net = net.previous_controlnet


def _passed_keyframes(hook, sigma: float) -> int:
    return sum(sigma <= keyframe.start_t for keyframe in getattr(hook.hook_keyframe, "keyframes", ()))
