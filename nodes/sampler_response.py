"""What a sampler of ComfyUI makes of the network's answers, found by running it once on numbers."""

import inspect
import logging

import numpy as np
import torch
from comfy.samplers import KSAMPLER

from ..easycache_core import Response
from ..easycache_core.response import euler_response, evaluated_levels
from .origins import COMFY, is_code_of
from .steps import chooses_steps, step_lengths

log = logging.getLogger("easycache")

# More than any sampler evaluates per step, and more steps than anybody waits for.
EVALUATIONS_PER_STEP, MAX_STEPS = 4, 200


class _Impulses:
    """Stands in for the model: answers evaluation k with 1 in row k of a batch and 0 elsewhere. Noise is 1 in the last
    row, which no evaluation has: some samplers draw noise and add nothing of it.

    Samplers reach for the noise levels' properties through these attributes.
    """

    def __init__(self, model_sampling, rows: int):
        self.model_sampling, self.model_options = model_sampling, {}
        self.inner_model = self.model_patcher = self
        self._rows = rows
        self.takes_branches = False
        self.sigmas: list[float] = []
        self.latents: list[torch.Tensor] = []

    def noise_sampler(self, *_) -> torch.Tensor:
        noise = torch.zeros(self._rows, 1, 1, 1)
        noise[-1] = 1
        return noise

    def get_model_object(self, name: str):
        return getattr(self, name)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, model_options=None, **_) -> torch.Tensor:
        k = len(self.sigmas)
        if k >= self._rows - 1 or x.shape != (self._rows, 1, 1, 1):
            raise ValueError("it evaluates more often than expected, or something else than its latent")
        self.sigmas.append(float(sigma.flatten()[0]))
        self.latents.append(x.flatten().clone())
        denoised = torch.zeros_like(x)
        denoised[k] = 1
        options = model_options or {}
        answers = dict(denoised=denoised, cond_denoised=denoised, uncond_denoised=denoised)
        for function in options.get("sampler_post_cfg_function", []):  # CFG++ samplers listen in there
            self.takes_branches = True
            answers["denoised"] = function({**answers, "input": x, "sigma": sigma, "model": self,
                                            "model_options": options, "cond_scale": 1.0})  # fmt: skip
        return answers["denoised"]


def is_own(sampler) -> bool:
    """Whether it is one of ComfyUI's samplers. Others may do more than sample when they are called."""
    return type(sampler) is KSAMPLER and is_code_of(sampler.sampler_function, COMFY)


def response_of(sampler, sigmas: torch.Tensor, model_sampling) -> Response | None:
    """The sampler's impulse response over a run; None where it is not one of ComfyUI's own that are linear.

    sigmas: (steps + 1,), as the sampler gets them; waits for their device. Injected noise is left out, and nobody's
    random numbers are used up.
    """
    steps = len(sigmas) - 1
    if not is_own(sampler) or chooses_steps(sampler) or not 0 < steps <= MAX_STEPS:
        return None
    function = sampler.sampler_function
    model = _Impulses(model_sampling, EVALUATIONS_PER_STEP * steps + 4)
    options = dict(sampler.extra_options)
    if "noise_sampler" in inspect.signature(function).parameters:
        options["noise_sampler"] = model.noise_sampler
    start = torch.zeros(model._rows, 1, 1, 1)
    arguments = dict(extra_args={"model_options": {}, "seed": 0}, callback=None, disable=True)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            final = function(model, start, sigmas.detach().float().cpu().clone(), **arguments, **options)
        weights = torch.stack([*model.latents, final.flatten()]).numpy().astype(np.float64)
    except Exception as error:
        log.debug(f"EasyCache: what the sampler makes of its answers is not known: {type(error).__name__}: {error}")
        return None
    count = len(model.sigmas)
    weights, untouched, noise = weights[:, :count], weights[:, count:-1], weights[:, -1]
    if not count or not np.isfinite(weights).all() or untouched.any():  # noise from elsewhere
        return None
    lengths = step_lengths(model_sampling, torch.tensor(model.sigmas)) or ()
    return Response(tuple(model.sigmas), weights, bool(noise.any()), lengths, model.takes_branches)


def supposed_response(sigmas: torch.Tensor, model_sampling) -> Response | None:
    """Euler's, by which a budget is placed for samplers of which nothing is known. Noise may be added.

    sigmas: (steps + 1,), on the host. None where levels repeat.
    """
    if len(sigmas) < 2 or not bool(sigmas.diff().all()):
        return None
    where, lengths = np.flatnonzero(evaluated_levels(sigmas.tolist())), step_lengths(model_sampling, sigmas)
    if lengths is not None:  # of a rise, too: what is on its other side is far
        lengths = np.add.reduceat(lengths, where)[:-1].tolist()
    return euler_response(sigmas.tolist())._replace(adds_noise=True, lengths=lengths or ())
