"""What a network predicts, and how it follows from the denoised latent that forecasts are of."""

import math

import torch

from .norms import upcast

PREDICTIONS = ("flow", "reverse_flow", "epsilon", "v_prediction")


class Prediction:
    """Converts between a network's own latents and outputs and the denoised latent D at one noise level sigma.

    D = a x - b v, and the latent that a sampler would call noisy, D + sigma noise, is c x:

        flow            x = (1 - sigma) D + sigma noise    v = noise - D
        reverse_flow    the same x                         v = D - noise
        epsilon         x = (D + sigma noise) / c          v = noise             c = sqrt(1 + sigma^2)
        v_prediction    the same x                         v = (noise - sigma D) / c

    For the flows sigma goes from 1 to 0 and c is 1; of the other two it is the ratio of noise to signal,
    sqrt((1 - alphas_cumprod) / alphas_cumprod) in diffusers' words. As "flow" it also converts the derivative
    v = (x - D) / sigma that k-diffusion's samplers integrate, of any model.

    Raises ValueError for another prediction.
    """

    def __init__(self, prediction: str):
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        self._prediction = prediction
        self.set_sigma(1.0)

    def set_sigma(self, sigma: float) -> None:
        variance_kept = self._prediction in ("epsilon", "v_prediction")
        self._c = math.sqrt(1 + sigma * sigma) if variance_kept else 1.0
        self._a = 1 / self._c if self._prediction == "v_prediction" else self._c
        self._b = {"reverse_flow": -sigma, "v_prediction": sigma / self._c}.get(self._prediction, sigma)

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """c x"""
        return x if self._c == 1 else upcast(x) * self._c

    def denoised(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """D, a new tensor in at least float32."""
        return torch.sub(upcast(x) * self._a, upcast(output), alpha=self._b)

    def output(self, denoised: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """v, the inverse of `denoised`; a new tensor. At noise level 0, D does not depend on it, and any will do."""
        return (upcast(x) * self._a - denoised).div_(self._b or 1.0)
