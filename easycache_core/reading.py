"""What the host knows of an evaluation: everything that is on the device is read at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Products(NamedTuple):
    """From which gains are estimated at a computed evaluation n: means over the latent, with x what is off the path, y
    the residual of the extrapolation p, and q the change of D. All of the tracked branch, but guided_pq and guided_pp,
    which are those of the guided latent where it is known. noise: the part of noise in x's last move, of squares.
    """

    xy: float
    xx: float
    yy: float
    pq: float
    pp: float
    guided_pq: float
    guided_pp: float
    noise: float


class Measurements(NamedTuple):
    """What the tracked branch showed at a computed evaluation i, against the computed evaluation j < i before it. Norms
    have one entry per part of the latent (stream, row). All entries are scalar tensors, and numbers once they are read.

    output_norm: ||v_i||. The rest is empty without j. output_change, input_change: ||v_i - v_j||, ||x_i - x_j||. Of
    forecasts alone: miss, how far a forecast of D_i would have been off; products.
    """

    output_norm: Sequence
    output_change: Sequence = ()
    input_change: Sequence = ()
    miss: Sequence = ()
    products: Products | tuple[()] = ()

    @classmethod
    def of(cls, groups: Sequence[Sequence]) -> "Measurements":
        """From its fields, as lists of numbers."""
        *norms, products = groups
        return cls(*norms, Products(*products) if products else ())


class Reading(NamedTuple):
    """What decides about evaluation n: numbers of this process, or of all ranks together.

    sigma: its noise level. force, changed, windows_moved, unpredictable: as in CacheController.begin. finite: whether
    what was stored last is. input_change: ||x_n - x_(n-1)||, per part; None if not known. measured: at the last
    evaluation, if it was computed. For other ranks: step; cache_lost: whether the cache had to be dropped; numel:
    elements per part.
    """

    sigma: float | None
    force: bool
    changed: bool
    finite: bool
    input_change: Sequence[float] | None
    measured: Measurements | None
    windows_moved: bool = False
    unpredictable: bool = False
    step: int = 0
    cache_lost: bool = False
    numel: Sequence[int] = ()


def read_scalars(groups: Sequence[Sequence], device: torch.device) -> list[list]:
    """Groups of values, with numbers in place of scalar tensors; waits for the device once if there are any."""
    scalars = [value for group in groups for value in group if isinstance(value, torch.Tensor)]
    scalars = [(value if value.ndim == 0 else value.reshape(())).to(device, torch.float32) for value in scalars]
    numbers = iter(torch.stack(scalars).tolist() if scalars else ())
    return [[next(numbers) if isinstance(value, torch.Tensor) else value for value in group] for group in groups]
