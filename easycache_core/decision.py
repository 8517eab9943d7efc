"""When to reuse: the accumulated relative error against the threshold (paper, section 3.3)."""

import torch


def relative_change(rate, input_change, output_norm) -> torch.Tensor:
    """eps_n = k ||x_n - x_(n-1)|| / ||v_i||: the estimated relative change of the output, an entry a stream."""
    return rate * (input_change / output_norm.clamp_min(torch.finfo(output_norm.dtype).tiny))


def ask(
    error: torch.Tensor, threshold: float, healthy: torch.Tensor, force: bool | torch.Tensor = False
) -> tuple[bool, bool]:
    """(error < threshold in all streams, healthy) on the host: the one moment when a decision waits for the device.

    A NaN error compares as not below, so it leads to a computed evaluation; so do ill health and force.
    """
    below = (error < threshold).all() & healthy
    if isinstance(force, torch.Tensor):
        below = below & ~force.to(below.device)
    below, sound = torch.stack([below, healthy]).tolist()
    return below, sound
