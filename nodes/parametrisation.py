"""Between what a sampler speaks of, noisy and denoised latents, and what the network is given and answers.

Models differ in what their network predicts (velocity, noise, v, the picture itself, mixtures of these that
change with the noise level), and only in the network's own terms does a rate mean anything: at high noise levels
of v-prediction and EDM models nearly all of (x - denoised) / sigma is noise, whatever the network says.
ComfyUI's model_sampling knows each way there as `calculate_denoised`, which is linear in output and latent; so the
way back needs no knowledge of the model.
"""

import torch


class Parametrisation:
    """One model's way to speak of latents.

    x: the sampler's latent, (batch, channels, ...). sigma: (batch,), as the sampler hands it on.
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
        # At sigma 0 the output has no say in the result, and any finite answer does.
        return (denoised - without).div_(torch.where(slope.abs() < 1e-6, torch.ones_like(slope), slope))


class Denoised:
    """The sampler's own terms, which are the same for every model; forecasts follow the denoised latent.

    The interface is Parametrisation's.
    """

    def network_input(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return output

    def network_output(self, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return denoised
