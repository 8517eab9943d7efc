"""By what tensors are told apart, without a look at all of them."""

import functools
import math
from collections.abc import Sequence

import torch

SAMPLE_SIZE = 1 << 12  # elements


def can_be_sampled(tensor: torch.Tensor) -> bool:
    """Whether its elements can be read as numbers: not those of sparse, nested or quantised tensors, and meta tensors
    have none.
    """
    plain = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)
    return plain and (tensor.is_complex() or _are_numbers(tensor.dtype))


@functools.cache
def _are_numbers(dtype: torch.dtype) -> bool:
    try:
        torch.empty(1, dtype=dtype).to(torch.float32)
    except (RuntimeError, TypeError):  # several in one byte, say
        return False
    return True


def flat_of(tensor: torch.Tensor) -> torch.Tensor:
    """Its elements, a complex one as two; a view where possible."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).flatten()


def sample_of(x: Sequence[torch.Tensor], size: int = SAMPLE_SIZE) -> torch.Tensor:
    """Some elements of a latent, by which to tell it from others; a copy. size: about how many."""
    flat = [flat_of(one) for one in x]
    every = max(1, sum(map(len, flat)) // size) | 1
    return torch.cat([one[::every].to(torch.float32) for one in flat])


def checksums(tensor: torch.Tensor) -> torch.Tensor:
    """Two sums of all elements, (2,), the second one weighted by place: they tell tensors apart of which samples are
    alike, such as two that are nearly all zero.
    """
    flat = flat_of(tensor).to(torch.float32)
    places = torch.arange(len(flat), device=flat.device, dtype=torch.float32)
    return torch.stack([flat.sum(), (flat * places.cos()).sum()])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Between two samples, as a part of their size; of what differs at all, as pictures for reference do not. Waits for
    the device.
    """
    if a.shape != b.shape or a.device != b.device:
        return math.inf
    differs = a != b
    return float((a - b).abs().sum() / (b.abs() * differs).sum().clamp_min(1e-30))
