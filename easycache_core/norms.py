"""Norms of latents: ||a|| is the mean of absolute values."""

from collections.abc import Sequence

import torch

SAMPLE_SIZE = 1 << 16


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in at least float32: sums over a latent in half precision would lose the small changes."""
    if tensor.dtype == torch.float32:
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def some_of(tensor: torch.Tensor) -> torch.Tensor:
    """Some 65,000 evenly spread elements of a large tensor, in one row."""
    return tensor.flatten()[:: _every(tensor)]


def _every(tensor: torch.Tensor) -> int:
    """Odd, to fall into no pattern of rows."""
    return tensor.numel() // SAMPLE_SIZE | 1


class Norms:
    """Norms of each part of a latent that has an error of its own, as scalar tensors.

    streams: latents of different kinds that a model denoises together (video and its sound), packed one after the other
    along the last axis; their sizes there. by_row: each row of a batch is a picture of its own, too.
    """

    def __init__(self, streams: Sequence[int], by_row: bool):
        self._streams, self._by_row = list(streams), by_row

    def of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """||a||"""
        return self._means(upcast(tensor).abs())

    def of_difference(self, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        """||a - b||, on a's device."""
        return self._means((upcast(a) - upcast(b.to(a.device))).abs_())

    def numel(self, tensor: torch.Tensor) -> list[int]:
        """How many elements each norm is the mean of."""
        return [part.numel() // self._rows(part) for part in self._split(tensor) for _ in range(self._rows(part))]

    def subsample(self, tensor: torch.Tensor) -> torch.Tensor:
        """Some 65,000 evenly spread elements of a large tensor: enough for means. Of several streams all are taken."""
        every = _every(tensor)
        if self._streams or every < 2:
            return tensor
        return tensor.reshape(self._rows(tensor), -1)[:, ::every]

    def _means(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        parts = self._split(tensor)
        if self._rows(tensor) == 1:
            return [part.mean() for part in parts]
        return [mean for part in parts for mean in part.flatten(1).mean(1)]

    def _split(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        packed = self._streams and sum(self._streams) == tensor.shape[-1]
        return tensor.split(self._streams, -1) if packed else [tensor]

    def _rows(self, tensor: torch.Tensor) -> int:
        return len(tensor) if self._by_row and tensor.ndim > 1 else 1
