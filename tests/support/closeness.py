"""How near one result is to another."""

import math

import torch


def psnr(result: torch.Tensor, reference: torch.Tensor) -> float:
    """In dB, with the reference's standard deviation as the signal; inf for equal tensors."""
    error = (result - reference).square().mean().item()
    return -10 * math.log10(error / reference.var().item()) if error else math.inf
