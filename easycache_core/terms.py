"""What a network predicts, for forecasts, which follow the denoised latent."""

import math

import torch

from .config import require_choice
from .rate import wide

PREDICTIONS = ("flow", "reverse_flow", "epsilon", "v_prediction")


class Terms:
    """Between a network's own latents and outputs and the denoised latent D at one noise level sigma.

    D = a x - b v, and the latent that a sampler would call noisy, D + sigma noise, is c x:

        flow            x = (1 - sigma) D + sigma noise    v = noise - D
        reverse_flow    the same x                         v = D - noise
        epsilon         x = (D + sigma noise) / c          v = noise             c = sqrt(1 + sigma^2)
        v_prediction    the same x                         v = (noise - sigma D) / c

    For the flows sigma goes from 1 to 0 and c is 1; of the other two it is the ratio of noise to signal,
    sqrt((1 - alphas_cumprod) / alphas_cumprod) in diffusers' words.

    Raises ValueError for another prediction.
    """

    def __init__(self, prediction: str):
        require_choice("prediction", prediction, PREDICTIONS)
        self._prediction = prediction

    def at(self, sigma: float) -> None:
        """Come to a noise level."""
        variance_kept = self._prediction in ("epsilon", "v_prediction")
        self._c = math.sqrt(1 + sigma * sigma) if variance_kept else 1.0
        self._a = 1 / self._c if self._prediction == "v_prediction" else self._c
        self._b = {"reverse_flow": -sigma, "v_prediction": sigma / self._c}.get(self._prediction, sigma)

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._c == 1 else wide(x) * self._c

    def denoised(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """D, a new tensor in at least float32."""
        return torch.sub(wide(x) * self._a, wide(output), alpha=self._b)

    def output(self, denoised: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """v, the inverse of `denoised`; a new tensor. Without noise it has no say in D, and any will do."""
        return (wide(x) * self._a - denoised).div_(self._b or 1.0)


class Raw:
    """The network's own terms: the paper's rule needs no others."""

    def at(self, sigma: float | None) -> None:
        pass

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def denoised(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return output

    def output(self, predicted: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return predicted
