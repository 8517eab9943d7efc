"""The transformation rate: how far the network's output moves when its input moves (paper, section 3.2).

All quantities are vectors on the tensors' own device with one entry a stream; nothing here waits for a GPU.

Streams are latents of different kinds that a model denoises together (video and its sound), packed one after the
other along the last axis. `streams` are their sizes there; a tensor of any other size is one stream.
"""

from collections.abc import Sequence

import torch

THIN = 1 << 16


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in at least float32: sums over a latent in half precision would lose the small changes."""
    if tensor.dtype == torch.float32:
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def thin(tensor: torch.Tensor) -> torch.Tensor:
    """Evenly spread elements of a large tensor, some 65,000 of them: enough for a mean, and next to no work."""
    every = tensor.numel() // THIN
    return tensor if every < 2 else tensor.flatten()[:: every | 1]  # an odd stride, to fall into no pattern of rows


def mean_abs(tensor: torch.Tensor, streams: Sequence[int] = ()) -> torch.Tensor:
    """||a||: mean of absolute values."""
    return _means(wide(tensor).abs(), streams)


def distance(a: torch.Tensor, b: torch.Tensor, streams: Sequence[int] = ()) -> torch.Tensor:
    """||a - b||, on a's device."""
    return _means((wide(a) - wide(b.to(a.device))).abs_(), streams)


def transformation_rate(output_change, moved, previous_rate=None) -> torch.Tensor:
    """k = ||v_i - v_j|| / ||x_i - x_j|| between two computed evaluations j < i; output_change, moved: the two norms.

    Where the input did not move at all (a repeated noise level) the rate says nothing new: the previous one
    stays, NaN if there was none. A stream that stands still while another moves (a soundtrack that is given)
    has rate 0: it must not keep the others from being reused.
    """
    rate = output_change / moved
    if previous_rate is None:
        previous_rate = torch.where((moved > 0).any(), torch.zeros_like(rate), torch.full_like(rate, torch.nan))
    return torch.where(moved > 0, rate, previous_rate)


def elements(tensor: torch.Tensor, streams: Sequence[int] = ()) -> list[int]:
    """How many elements norms are means of, an entry a stream."""
    return [part.numel() for part in _parts(tensor, streams)]


def _means(tensor: torch.Tensor, streams: Sequence[int]) -> torch.Tensor:
    means = [part.mean() for part in _parts(tensor, streams)]
    return means[0].reshape(1) if len(means) == 1 else torch.stack(means)


def _parts(tensor: torch.Tensor, streams: Sequence[int]) -> Sequence[torch.Tensor]:
    return tensor.split(list(streams), -1) if streams and sum(streams) == tensor.shape[-1] else [tensor]
