"""What TeaCache and MagCache have to know of a model, measured over uncached runs."""

from dataclasses import dataclass

import torch

from .magcache import magnitude_ratio
from .teacache import fit, relative_change
from .trunk import with_policy


@dataclass(frozen=True)
class Calibration:
    """polynomial: TeaCache's, the highest power first. ratios: MagCache's curve of each branch, one entry per step."""

    polynomial: list[float]
    ratios: dict[int, list[float]]


class _Observer:
    """A policy that computes everything and takes notes."""

    def __init__(self, notes: "_Notes"):
        self._notes = notes
        self._modulated: dict[int, torch.Tensor] = {}
        self._residual: dict[int, torch.Tensor] = {}

    def wants(self, step, branch, modulated):
        if branch in self._modulated:
            self._notes.input_changes.append(relative_change(modulated, self._modulated[branch]))
        self._modulated[branch] = modulated
        return True

    def follow(self, branch, runs):
        pass

    def store(self, step, branch, entering, leaving):
        residual, before = leaving - entering, self._residual.get(branch)
        ratio = 1.0 if before is None else magnitude_ratio(residual, before)
        self._notes.ratios.setdefault(branch, {}).setdefault(step, []).append(ratio)
        self._residual[branch] = residual

    def predict(self, step, branch, entering):
        raise AssertionError("an observer leaves nothing out")


class _Notes:
    def __init__(self):
        self.input_changes: list[float] = []
        self.output_changes: list[float] = []
        self.ratios: dict[int, dict[int, list[float]]] = {}
        self._outputs = None

    def start(self, total_steps: int) -> _Observer:
        self._outputs = None
        return _Observer(self)

    def output(self, _network, _inputs, output):
        """Forward hook: the network's answer for the whole batch of branches."""
        outputs = output.chunk(len(self.ratios))
        if self._outputs is not None:
            pairs = zip(outputs, self._outputs, strict=True)
            self.output_changes += [relative_change(now, before) for now, before in pairs]
        self._outputs = outputs


def calibrate(subject, configuration, seeds) -> Calibration:
    notes = _Notes()
    model = with_policy(subject.prepared(configuration, "fp32"), notes.start)
    hook = model.model.diffusion_model.register_forward_hook(notes.output)
    try:
        for seed in seeds:
            subject.sample(model, subject.scene(seed), configuration, seed)
    finally:
        hook.remove()
    ratios = {
        branch: [sum(values) / len(values) for _, values in sorted(steps.items())]
        for branch, steps in notes.ratios.items()
    }
    return Calibration(fit(notes.input_changes, notes.output_changes), ratios)
