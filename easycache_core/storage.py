"""Copies of tensors that outlive an evaluation."""

from typing import NamedTuple

import torch


class Snapshot(NamedTuple):
    """Input and output of one branch at its last computed evaluation."""

    x: torch.Tensor
    output: torch.Tensor


def keep(tensor: torch.Tensor, cache_device: str, ours: bool = False) -> torch.Tensor:
    """A copy that shares no memory with the caller's tensor, who may overwrite it at any time.

    ours: nobody else has the tensor, so that it need not be copied.
    """
    device = torch.device("cpu") if cache_device == "cpu" else tensor.device
    return tensor.detach().to(device, copy=not ours)
