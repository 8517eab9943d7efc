"""The steps of a sampler: how long they are, and which one an evaluation belongs to."""

import numpy as np
import torch

# These take another number of steps than their schedule has: dpm_fast combines up to three evaluations in a step,
# dpm_adaptive chooses its steps itself.
SELF_STEPPING_SAMPLERS = ("dpm_fast_function", "dpm_adaptive_function")


def step_count_known(sampler) -> bool:
    """Whether one of ComfyUI's samplers evaluates at least once for each step of its schedule."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "") not in SELF_STEPPING_SAMPLERS


def step_lengths(model_sampling, sigmas: torch.Tensor) -> list[float] | None:
    """The length of each step in the model's own time, 0 to 1, in which the scheduler "simple" takes equal steps.

    sigmas: (steps + 1,), the noise levels that steps lead from and to. Waits for their device. None where the model has
    no ascending table of noise levels.
    """
    levels = getattr(model_sampling, "sigmas", None)
    if levels is None or len(levels) < 2 or len(sigmas) < 2:
        return None
    levels, sigmas = (tensor.detach().float().cpu() for tensor in (levels, sigmas))  # numpy has no bf16
    times = np.interp(sigmas, levels, np.linspace(0, 1, len(levels)))
    return np.abs(np.diff(times)).tolist()


class StepCounter:
    """Finds the step of each evaluation from the sampler's callbacks, so that no device tensor has to be read.

    Samplers call back once per step, after the step's first evaluation (k-diffusion), its only one (UniPC) or its last
    one (DPM adaptive, of three). With m evaluations per step, the m - 1 after a callback still belong to its step. m is
    known from the second callback on; between the first two, the step is `ambiguous`. A sampler that has not called
    back within _LATEST_CALLBACK evaluations is taken to evaluate once per step.
    """

    _LATEST_CALLBACK = 4  # evaluations

    def __init__(self):
        self._evaluations = 0
        self._callback_step: int | None = None  # step of the last callback
        self._since_callback = 0  # evaluations
        self._per_step: int | None = None  # m, once known
        self.steps = 0  # how many steps there have been

    def next_evaluation(self) -> int:
        """Count one evaluation and return its step, from 0."""
        if self._callback_step is None:
            step = self._evaluations if self._evaluations >= self._LATEST_CALLBACK else 0
        elif self._since_callback < (self._per_step or 1) - 1:
            step = self._callback_step
        else:
            step = self._callback_step + 1
        self.steps = max(self.steps, step + 1)
        self._evaluations += 1
        self._since_callback += 1
        return step

    @property
    def ambiguous(self) -> bool:
        """Whether the evaluation just counted may belong to the first step or to the second."""
        return self._callback_step is not None and self._per_step is None

    @property
    def one_per_step(self) -> bool:
        """Whether the sampler has been seen to evaluate once per step."""
        return self._per_step == 1

    def on_callback(self, step: int) -> None:
        """The sampler has called back for this step, from 0."""
        if self._callback_step is not None:
            self._per_step = max(1, self._since_callback)
        self._callback_step, self._since_callback = step, 0
