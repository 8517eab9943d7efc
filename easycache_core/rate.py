"""The transformation rate: how far the network's output moves when its input moves (paper, section 3.2).

All quantities are scalars on the tensors' own device; nothing here waits for a GPU.
"""

import torch


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in at least float32: sums over a latent in half precision would lose the small changes."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mean_abs(tensor: torch.Tensor) -> torch.Tensor:
    """||a||: mean of absolute values, a scalar."""
    return wide(tensor).abs().mean()


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """||a - b||, a scalar on a's device."""
    return mean_abs(wide(a) - wide(b.to(a.device)))


def transformation_rate(output, earlier_output, x, earlier_x, previous_rate=None) -> torch.Tensor:
    """k = ||v_i - v_j|| / ||x_i - x_j|| between two computed evaluations j < i.

    Where the input did not move at all (a repeated noise level) the rate says nothing new: the previous one
    stays, NaN if there was none.
    """
    moved = distance(x, earlier_x)
    rate = distance(output, earlier_output) / moved
    unknown = torch.full_like(rate, torch.nan) if previous_rate is None else previous_rate
    return torch.where(moved > 0, rate, unknown)
