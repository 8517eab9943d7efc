"""A flow model's velocity, per conditioning, as what a policy such as VDE stores and predicts."""

import torch
from comfy.patcher_extension import WrappersMP


def with_velocity_policy(model, make):
    """A clone of a ModelPatcher that samples with make(number of steps), a new one each run (vde.py has one).

    Where the policy predicts, nothing of the network runs.
    """
    patched, run = model.clone(), _Run(make)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "peer", run.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "peer", run.predict_noise)
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "peer", run.calc_cond_batch)
    return patched


class _Run:
    def __init__(self, make):
        self._make, self._policy, self._step = make, None, -1

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        self._policy, self._step = self._make(len(sigmas) - 1), -1
        try:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            self._policy = None

    def predict_noise(self, executor, *args, **kwargs):
        self._step += 1
        return executor(*args, **kwargs)

    def calc_cond_batch(self, executor, model, conds, x, timestep, model_options):
        """Denoised latents, one per conditioning; of one that is not asked (CFG 1), zeros."""
        sigma = float(timestep[0])
        asked = [branch for branch, conditioning in enumerate(conds) if conditioning is not None]
        if self._policy.wants(self._step):
            denoised = executor(model, conds, x, timestep, model_options)
            for branch in asked:
                self._policy.store(self._step, branch, sigma, x, (x - denoised[branch]) / sigma)
            return denoised
        denoised = [torch.zeros_like(x) for _ in conds]
        for branch in asked:
            denoised[branch] = x - sigma * self._policy.predict(branch, sigma, x)
        return denoised
