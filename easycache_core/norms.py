"""Norms of latents: ||a|| is the mean of absolute values.

Norms are taken per stream: streams are latents of different kinds that a model denoises together (video and its sound),
packed one after the other along the last axis. `streams` are their sizes there; any other tensor is one stream.
"""

from collections.abc import Sequence

import torch

SAMPLE_SIZE = 1 << 16


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in at least float32: sums over a latent in half precision would lose the small changes."""
    if tensor.dtype == torch.float32:
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def subsample(tensor: torch.Tensor) -> torch.Tensor:
    """Evenly spread elements of a large tensor, some 65,000 of them: enough for a mean, and next to no work."""
    every = tensor.numel() // SAMPLE_SIZE
    return tensor if every < 2 else tensor.flatten()[:: every | 1]  # an odd stride, to fall into no pattern of rows


def mean_abs(tensor: torch.Tensor, streams: Sequence[int] = ()) -> list[torch.Tensor]:
    """||a||, one scalar tensor per stream."""
    return [part.mean() for part in _by_stream(upcast(tensor).abs(), streams)]


def mean_abs_diff(a: torch.Tensor, b: torch.Tensor, streams: Sequence[int] = ()) -> list[torch.Tensor]:
    """||a - b||, one scalar tensor per stream, on a's device."""
    difference = (upcast(a) - upcast(b.to(a.device))).abs_()
    return [part.mean() for part in _by_stream(difference, streams)]


def numel_by_stream(tensor: torch.Tensor, streams: Sequence[int] = ()) -> list[int]:
    return [part.numel() for part in _by_stream(tensor, streams)]


def _by_stream(tensor: torch.Tensor, streams: Sequence[int]) -> Sequence[torch.Tensor]:
    return tensor.split(list(streams), -1) if streams and sum(streams) == tensor.shape[-1] else [tensor]
