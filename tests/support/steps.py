"""Looks at a run step by step: what went into and came out of each evaluation, and of the network within it."""

from typing import NamedTuple

import torch


class Call(NamedTuple):
    """One forward call of the network, in its own terms."""

    x: torch.Tensor
    output: torch.Tensor


class Step(NamedTuple):
    """One evaluation, in the sampler's terms; last_call is the network's last one, be it in this or an earlier step."""

    x: torch.Tensor
    sigma: torch.Tensor
    denoised: torch.Tensor
    computed: bool
    last_call: Call


class Steps:
    """Notes the evaluations of the runs of a MODEL while it is entered."""

    def __init__(self, model):
        from comfy.patcher_extension import WrappersMP

        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "steps", self._note_step)
        self._calls: list[Call] = []
        self._steps: list[Step] = []

    def __enter__(self):
        network = self.model.model.diffusion_model
        self._hook = network.register_forward_hook(self._note_call, with_kwargs=True)
        return self

    def __exit__(self, *error):
        self._hook.remove()

    def _note_call(self, module, args, kwargs, output):
        self._calls.append(Call(args[0], output))

    def _note_step(self, executor, x, timestep, *args, **kwargs):
        before = len(self._calls)
        denoised = executor(x, timestep, *args, **kwargs)
        self._steps.append(Step(x, timestep, denoised, len(self._calls) > before, self._calls[-1]))
        return denoised

    def __iter__(self):
        return iter(self._steps)
