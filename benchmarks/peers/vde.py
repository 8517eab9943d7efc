"""VDE (arXiv 2605.23381, CVPR 2026), from the paper's formulas and the authors' description of their settings.

The velocity v of a flow model is split along and across its input x:

    v = alpha x + beta ||x|| n,   alpha = <v, x> / <x, x>,   n a unit vector with <n, x> = 0

Where the network does not run, alpha and beta are continued on a line in the noise level through the last two computed
evaluations, n is the last one, and x is the present one. All steps up to `stable` are computed, from there on each
`interval`-th, and the last one. The split starts at the step before `stable`, so that there are two values of alpha and
beta. Nothing is calibrated. Each conditioning has a split of its own, and, other than in the authors' code, which
samples one picture at a time, each picture of a batch.

The authors' settings for 50 steps: stable 6 with intervals of 3, 4 and 5 for FLUX, stable 10 with 3 and 5 for
Qwen-Image. For 20 steps there are none; stable is shortened in proportion.
"""

from typing import NamedTuple

import torch


class Split(NamedTuple):
    """alpha and beta, one per row in a shape that broadcasts; n of x's shape."""

    alpha: torch.Tensor
    beta: torch.Tensor
    across: torch.Tensor


def norm(x: torch.Tensor) -> torch.Tensor:
    """Per row."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def split(x: torch.Tensor, velocity: torch.Tensor) -> Split:
    length = norm(x)
    alpha = (velocity * x).sum(tuple(range(1, x.ndim)), keepdim=True) / length**2
    across = velocity - alpha * x
    beta = norm(across) / length
    return Split(alpha, beta, across / norm(across))


def joined(x: torch.Tensor, parts: Split) -> torch.Tensor:
    return parts.alpha * x + parts.beta * norm(x) * parts.across


class VDE:
    """One sampling run's state."""

    def __init__(self, total_steps: int, stable: int, interval: int):
        self._total_steps, self._stable, self._interval = total_steps, stable, interval
        self._anchors: dict[int, list[tuple[float, Split]]] = {}  # noise level and split, the last two

    def wants(self, step: int) -> bool:
        after = step - self._stable
        return after <= 0 or after % self._interval == 0 or step >= self._total_steps - 1

    def store(self, step: int, branch: int, sigma: float, x: torch.Tensor, velocity: torch.Tensor) -> None:
        if step >= self._stable - 1:
            self._anchors[branch] = [*self._anchors.get(branch, [])[-1:], (sigma, split(x, velocity))]

    def predict(self, branch: int, sigma: float, x: torch.Tensor) -> torch.Tensor:
        (earlier, before), (later, last) = self._anchors[branch]
        part = (sigma - earlier) / (later - earlier)
        alpha, beta = (torch.lerp(getattr(before, name), getattr(last, name), part) for name in ("alpha", "beta"))
        return joined(x, Split(alpha, beta, last.across))
