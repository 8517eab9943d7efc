"""Which conditionings, ControlNets, hooks and patches are at work at a noise level.

A cached output answers for the conditioning it was computed with. Prompts, ControlNets and hooks can be
switched on and off in the course of a run; when that happens the network has to be asked again.
"""

import torch


class Switches:
    """The noise levels at which something is switched on (and stays on below) or off (and stays off below).

    conds: a guider's conditionings by name, prepared for sampling. They stay on their device, so that asking which
    switches were passed waits for nothing.
    """

    def __init__(self, conds: dict[str, list[dict] | None], device: torch.device):
        on, off = [], []
        for cond in (cond for entries in conds.values() for cond in entries or ()):
            spans = [(cond.get("timestep_start"), cond.get("timestep_end"))]
            spans += [net.timestep_range for net in _controlnets(cond) if net.timestep_range]
            on += [start for start, _ in spans if start is not None]
            off += [end for _, end in spans if end is not None]
            for hook in getattr(cond.get("hooks"), "hooks", ()):
                on += [keyframe.start_t for keyframe in getattr(hook.hook_keyframe, "keyframes", ())]
        self._any = bool(on or off)
        # Pageable memory is copied without a wait only when told so.
        self._on, self._off = (torch.tensor(levels).to(device, non_blocking=True) for levels in (on, off))

    def passed(self, before: torch.Tensor, now: torch.Tensor) -> torch.Tensor | bool:
        """Whether the set of active parts at two noise levels, device scalars, differs; a device scalar."""
        if not self._any:
            return False
        switched_on = (before > self._on) != (now > self._on)
        switched_off = (before < self._off) != (now < self._off)
        return switched_on.any() | switched_off.any()


def patched_layers(model_options: dict) -> tuple:
    """Names of the layers that are replaced or skipped in a call to the network."""
    replaced = model_options.get("transformer_options", {}).get("patches_replace", {})
    return tuple(sorted((kind, str(layer)) for kind, layers in replaced.items() for layer in layers))


def _controlnets(cond: dict):
    net = cond.get("control")
    while net is not None:
        yield net
        net = net.previous_controlnet
