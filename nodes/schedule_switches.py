"""Where in the schedule a part of what is asked starts, ends or changes: conditionings, ControlNets, hooks, patches.

A cached output is valid only for what it was computed with. So the network has to run again once a part of that has
started, ended or changed in the course of a run.
"""

import copy
from collections.abc import Sequence

import torch


class Switches:
    """The sigmas at which something starts (it is active below) or ends (it is inactive below), and what only the
    course of the run tells.

    conds: a guider's conditionings by name, prepared for sampling, so that their starts and ends are sigmas. levels:
    sigmas at which something else may change. first_sigma: the highest one of the schedule. ranges: whether those of
    conditionings and ControlNets count. What is compared on the device stays there, so that nothing waits for it;
    keyframes need the noise level on the host.
    """

    def __init__(
        self, conds: dict, device: torch.device, levels: Sequence[float], first_sigma: float, ranges: bool
    ):  # fmt: skip
        starts, ends = list(levels), list(levels)
        self._keyframes: list[Keyframes] = []
        self._unknown: list[tuple[float, float]] = []  # where ControlNets are active that switch by themselves
        seen = set()
        for cond in entries_of(conds):
            spans = spans_of(cond) if ranges else []
            for net in controlnets(cond):
                groups = keyframe_groups(net)
                if id(net) not in seen:
                    self._keyframes += [Keyframes(group, -1, first_sigma) for group in groups]
                    if switches_by_itself(net) and _number(net.strength):
                        self._unknown.append(net.timestep_range or (float("inf"), 0.0))
                seen.add(id(net))
            starts += [start for start, _ in spans if start is not None]
            ends += [end for _, end in spans if end is not None]
            for hook in getattr(cond.get("hooks"), "hooks", ()):
                group = hook.hook_keyframe
                if id(group) not in seen and getattr(group, "keyframes", None):
                    self._keyframes.append(Keyframes(group.keyframes, 0, first_sigma))
                seen.add(id(group))
        self._any = bool(starts or ends)
        self._on_host = torch.tensor(starts), torch.tensor(ends)
        # Without non_blocking the copy would wait for the device.
        self._starts, self._ends = (sigmas.to(device, non_blocking=True) for sigmas in self._on_host)
        self._now = self._computed = None

    def changes_at(self, sigmas: Sequence[float]) -> list[int]:
        """At which of a run's evaluations at these noise levels, on the host, other parts are active than at the one
        before, as indices, as far as it is known beforehand.
        """
        in_force = [torch.tensor(keyframes.in_force(sigmas))[:, None] for keyframes in self._keyframes]
        active = torch.cat((_active(torch.tensor(sigmas)[:, None], *self._on_host), *in_force), dim=1)
        return [n for n in range(1, len(active)) if not torch.equal(active[n], active[n - 1])]

    def observe(self, sigma: torch.Tensor, conds: dict) -> None:
        """The next evaluation is at this noise level, a one-element tensor."""
        level = float(sigma) if self._keyframes else 0.0
        for keyframes in self._keyframes:
            keyframes.observe(level)
        self._now = [keyframes.index for keyframes in self._keyframes], state_of(conds)

    def on_computed(self) -> None:
        """The network runs at the evaluation that was observed last."""
        self._computed = self._now

    @property
    def moved(self) -> bool:
        """Whether keyframes or strengths are others at the evaluation that was observed last than at the one
        that was computed last.
        """
        return self._now != self._computed

    def changed(self, before: torch.Tensor, now: torch.Tensor) -> torch.Tensor | bool:
        """Whether other parts are active at the evaluation that was observed last than at the one that was computed
        last. before, now: their sigmas, one-element tensors on the device, as is the result.
        """
        if self.moved:
            return True
        if not self._any:
            return False
        spans = self._starts, self._ends
        return (_active(before, *spans) != _active(now, *spans)).any()

    def must_compute(self, sigma: torch.Tensor) -> torch.Tensor | bool:
        """Whether something has to be called at this evaluation, or may change at any: keyframes that count their
        calls, and ControlNets that switch by themselves.
        """
        force = any(keyframes.counting for keyframes in self._keyframes)
        for start, end in self._unknown:
            force = force | ((sigma <= start) & (sigma >= end))
        return force


class Keyframes:
    """Which of several keyframes is in force, as ComfyUI's hooks and Advanced-ControlNet choose it: the last one that
    has started, but one after another, each for at least its guaranteed evaluations.

    index: of the present one, -1 before the first. counting: whether it still waits for a guaranteed evaluation, of
    which a skipped one would be none.
    """

    def __init__(self, keyframes: Sequence, index: int, first_sigma: float):
        self._starts = [float(keyframe.start_t) for keyframe in keyframes]
        guaranteed = [getattr(keyframe, "guarantee_steps", 0) for keyframe in keyframes]
        # A keyframe that starts before the schedule does is in force already.
        self._guaranteed = [0 if s > first_sigma else g for s, g in zip(self._starts, guaranteed, strict=True)]
        self._restart(index)

    def _restart(self, index: int) -> None:
        self._first = self.index = index
        self._used, self._sigma = 0, None

    def in_force(self, sigmas: Sequence[float]) -> list[int]:
        """The index at each of a run's noise levels, one after the other."""
        run = copy.copy(self)
        run._restart(self._first)
        return [run.observe(sigma) for sigma in sigmas]

    def observe(self, sigma: float) -> int:
        """Go on to this noise level; the index there."""
        if sigma != self._sigma:
            self._sigma = sigma
            if self.index < 0 or self._used >= self._guaranteed[self.index]:
                for i in range(self.index + 1, len(self._starts)):
                    if self._starts[i] < sigma:
                        break
                    self.index, self._used = i, 0
                    if self._guaranteed[i] > 0:
                        break
            self._used += 1
        return self.index

    @property
    def counting(self) -> bool:
        return 0 <= self.index < len(self._starts) - 1 and self._used <= self._guaranteed[self.index]


def _active(sigmas: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Which of these have not started, and which have ended, at noise levels (..., 1) or (): (..., starts + ends)."""
    return torch.cat((sigmas > starts, sigmas < ends), dim=-1)


def spans_of(cond: dict) -> list[tuple]:
    """(start, end), in sigmas, None where there is none: of a conditioning, and of its ControlNets after that."""
    ranges = [net.timestep_range for net in controlnets(cond) if net.timestep_range]
    return [(cond.get("timestep_start"), cond.get("timestep_end")), *ranges]


def controlnets(cond: dict):
    """Its ControlNet and those that are chained to it."""
    net = cond.get("control")
    while net is not None:
        yield net
        net = net.previous_controlnet


def keyframe_groups(net) -> list[Sequence]:
    """Lists of keyframes that a ControlNet of another pack holds; each has a noise level at which it starts."""
    groups = [getattr(value, "__dict__", {}).get("keyframes") for value in vars(net).values()]
    return [group for group in groups if group and all(hasattr(one, "start_t") for one in group)]


def switches_by_itself(net) -> bool:
    """Whether a ControlNet is not ComfyUI's own and shows no keyframes: nothing tells when it acts in another way."""
    method = getattr(net.get_control, "__func__", net.get_control)
    return not str(getattr(method, "__module__", "")).startswith("comfy.") and not keyframe_groups(net)


def self_switching(conds: dict) -> list[str]:
    """Names of the classes of ControlNets that switch by themselves."""
    nets = [net for cond in entries_of(conds) for net in controlnets(cond)]
    return sorted({type(net).__name__ for net in nets if switches_by_itself(net) and _number(net.strength)})


def state_of(conds: dict) -> dict:
    """What others may change in ControlNets between evaluations."""
    return {
        cond.get("uuid", i): [(id(net), _number(net.strength), net.timestep_range) for net in controlnets(cond)]
        for i, cond in enumerate(entries_of(conds))
    }


def _number(strength) -> float:
    """Other packs' strengths need not be numbers."""
    return strength if isinstance(strength, int | float) else id(strength)


def entries_of(conds: dict):
    return (cond for entries in conds.values() for cond in entries or ())
