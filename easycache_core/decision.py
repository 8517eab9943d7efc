"""When to reuse: the accumulated relative error against the threshold (paper, section 3.3)."""

from collections.abc import Sequence

import torch


def relative_change(rate, input_change, output_norm) -> torch.Tensor:
    """eps_n = k ||x_n - x_(n-1)|| / ||v_i||: the estimated relative change of the output, an entry a stream."""
    return rate * (input_change / output_norm.clamp_min(torch.finfo(output_norm.dtype).tiny))


def ask(
    error: torch.Tensor,
    threshold: float,
    healthy: torch.Tensor,
    force: bool | torch.Tensor = False,
    along: Sequence[torch.Tensor] = (),
) -> tuple[bool, bool, list[float]]:
    """(error < threshold in all streams, healthy, along) on the host: the one moment when it waits for the device.

    A NaN error compares as not below, so it leads to a computed evaluation; so do ill health and force. along: other
    one-element tensors that somebody would like to know.
    """
    below = (error < threshold).all() & healthy
    if isinstance(force, torch.Tensor):
        below = below & ~force.to(below.device)
    answers = [below, healthy, *along]
    below, sound, *numbers = as_floats(answers, error.device).tolist()
    return bool(below), bool(sound), numbers


def read(values: Sequence[float | torch.Tensor], device: torch.device) -> list[float]:
    """Numbers and one-element tensors as numbers on the host, which waits for the device once."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    numbers = iter(as_floats(tensors, device).tolist() if tensors else ())
    return [next(numbers) if isinstance(value, torch.Tensor) else float(value) for value in values]


def as_floats(values: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """One-element tensors as one tensor there, so that they can be read at once."""
    return torch.stack([value.reshape(()).to(device) for value in values]).detach().float()
