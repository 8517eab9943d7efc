"""Convert the sampler's noisy and denoised latents to the network's input and output, and back.

Networks predict different things: velocity, noise, v, the picture itself, or mixtures that change with sigma. A rate
of change is meaningful only for the network's own input and output: at high noise levels of v-prediction and EDM
models nearly all of (x - denoised) / sigma is noise, whatever the network returns.

ComfyUI's model_sampling converts an output to the denoised latent with `calculate_denoised`. That is linear in output
and latent, so its inverse can be computed without knowing the model.
"""

import torch


class Parametrisation:
    """The conversion of one model.

    x, denoised, output: (batch, channels, ...). sigma: (batch,), as the sampler passes it.
    """

    def __init__(self, model_sampling):
        self._sampling = model_sampling

    def network_input(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self._sampling.calculate_input(sigma, x)

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self._sampling.calculate_denoised(sigma, output, x)

    def network_output(self, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The inverse of `denoised`."""
        one = torch.ones(len(x), *[1] * (x.ndim - 1), device=x.device, dtype=x.dtype)
        zero = torch.zeros_like(one)
        slope = self._sampling.calculate_denoised(sigma, one, zero)
        without = self._sampling.calculate_denoised(sigma, zero, x)
        # At sigma 0 the result does not depend on the output, and any finite value will do.
        return (denoised - without).div_(torch.where(slope.abs() < 1e-6, 1.0, slope))
