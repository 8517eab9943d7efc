"""Where in the schedule conditionings, ControlNets and hooks start or end.

A cached output is valid only for the conditioning that it was computed with. So the network has to run again once a
part of the conditioning has started or ended in the course of a run.
"""

import torch


class Switches:
    """The sigmas at which a part of the conditioning starts (it is active below) or ends (it is inactive below).

    conds: a guider's conditionings by name, prepared for sampling, so that their starts and ends are sigmas. These are
    kept on the device, so that `crossed` does not wait for it.
    """

    def __init__(self, conds: dict[str, list[dict] | None], device: torch.device):
        starts, ends = [], []
        for cond in (cond for entries in conds.values() for cond in entries or ()):
            spans = [(cond.get("timestep_start"), cond.get("timestep_end"))]
            spans += [net.timestep_range for net in _controlnets(cond) if net.timestep_range]
            starts += [start for start, _ in spans if start is not None]
            ends += [end for _, end in spans if end is not None]
            for hook in getattr(cond.get("hooks"), "hooks", ()):
                starts += [keyframe.start_t for keyframe in getattr(hook.hook_keyframe, "keyframes", ())]
        self._any = bool(starts or ends)
        # Without non_blocking the copy would wait for the device.
        self._starts, self._ends = (torch.tensor(sigmas).to(device, non_blocking=True) for sigmas in (starts, ends))

    def crossed(self, before: torch.Tensor, now: torch.Tensor) -> torch.Tensor | bool:
        """Whether other parts are active at one sigma than at another: one-element tensors on the device, as is the
        result; False where nothing starts or ends."""
        if not self._any:
            return False
        started = (before > self._starts) != (now > self._starts)
        ended = (before < self._ends) != (now < self._ends)
        return started.any() | ended.any()


def _controlnets(cond: dict):
    net = cond.get("control")
    while net is not None:
        yield net
        net = net.previous_controlnet
