"""What stands in for the network's output at a reused evaluation."""

import torch

from .rate import wide
from .storage import Snapshot


def reuse(x: torch.Tensor, last: Snapshot) -> torch.Tensor:
    """v_n := x_n + (v_i - x_i), the paper's rule: the last transformation vector added to the new input.

    Returns a new tensor of x's shape and device in the dtype of the network's output.
    """
    output, earlier_x = last.output.to(x.device), last.x.to(x.device)
    return (wide(output) - wide(earlier_x)).add_(wide(x)).to(output.dtype)
