"""The steps of a sampler: how long they are, and which of them an evaluation belongs to."""

import numpy as np
import torch

# Samplers whose number of steps is not that of their schedule: one takes three evaluations of it for a step, one
# chooses its steps itself.
OF_OWN_STEPS = ("dpm_fast_function", "dpm_adaptive_function")


def foreseen(sampler) -> bool:
    """Whether a sampler of ComfyUI's evaluates at least once for each step of its schedule."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "") not in OF_OWN_STEPS


def lengths(model_sampling, sigmas: torch.Tensor) -> list[float] | None:
    """How long each step is in the model's own time, 0 to 1, in which the steps of the scheduler "simple" are alike.

    sigmas: the noise levels that steps lead from and to. Waits for them if they are on a device. None where the model
    has no table of its levels, from low to high.
    """
    levels = getattr(model_sampling, "sigmas", None)
    if levels is None or len(levels) < 2 or len(sigmas) < 2:
        return None
    levels, sigmas = (tensor.detach().float().cpu() for tensor in (levels, sigmas))  # numpy has no bf16
    times = np.interp(sigmas, levels, np.linspace(0, 1, len(levels)))
    return np.abs(np.diff(times)).tolist()


class StepClock:
    """Tells steps from evaluations by the sampler's own callbacks, so that no device tensor has to be read.

    Samplers call back once a step, after the step's first evaluation (k-diffusion), its only one (UniPC) or its last
    one (DPM adaptive, of three). With m evaluations a step, the m - 1 after a callback still belong to its step; m is
    learnt from the first two callbacks, and between them nobody can tell (`unsettled`). A sampler that has not called
    back by then is taken to evaluate once a step.
    """

    _LATEST_CALLBACK = 4  # evaluations

    def __init__(self):
        self._evaluations = 0
        self._reported: int | None = None  # the last step called back for
        self._since_report = 0
        self._per_step: int | None = None  # m, once learnt
        self.steps = 0  # how many steps have been seen

    def tick(self) -> int:
        """Count one evaluation and return its step, from 0."""
        if self._reported is None:
            step = self._evaluations if self._evaluations >= self._LATEST_CALLBACK else 0
        elif self._since_report < (self._per_step or 1) - 1:
            step = self._reported
        else:
            step = self._reported + 1
        self.steps = max(self.steps, step + 1)
        self._evaluations += 1
        self._since_report += 1
        return step

    @property
    def unsettled(self) -> bool:
        """Whether the evaluation just counted may belong to the first step or to the second."""
        return self._reported is not None and self._per_step is None

    @property
    def single(self) -> bool:
        """Whether the sampler seems to evaluate once a step."""
        return self._per_step == 1

    def report(self, step: int) -> None:
        """The sampler's callback for a step."""
        if self._reported is not None:
            self._per_step = max(1, self._since_report)
        self._reported, self._since_report = step, 0
