"""How long the steps of a diffusers scheduler are."""

import math

import torch


def step_lengths(scheduler, count: int) -> list[float] | None:
    """Of the next so many evaluations, in the model's own time, 0 to 1: the timestep where a table of noise levels was
    trained, and the noise level without its shift in flow models. None where the scheduler does not say.

    scheduler: one whose timesteps are set; what it has done already is left out.
    """
    config, timesteps = scheduler.config, getattr(scheduler, "timesteps", None)
    if timesteps is None or getattr(scheduler, "num_inference_steps", None) is None:
        return None
    if "FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas"):
        sigmas = scheduler.sigmas.double().cpu()
        times = _without_shift(1 - sigmas if config.get("invert_sigmas") else sigmas, _shift(scheduler))
    else:
        times = torch.cat([timesteps.double().cpu(), torch.zeros(1)]) / config.num_train_timesteps
    lengths = times.diff().abs().tolist()
    # The second of two evaluations at one timestep belongs to the step that led there.
    for n, length in enumerate(lengths):
        lengths[n] = length or lengths[max(n - 1, 0)]
    start = next((one for one in (_index(scheduler, name) for name in ("step_index", "begin_index")) if one), 0)
    lengths = lengths[start : start + count]
    return lengths if len(lengths) == count and all(map(math.isfinite, lengths)) and min(times) >= 0 else None


def _index(scheduler, name: str) -> int:
    return getattr(scheduler, name, None) or 0


def _shift(scheduler) -> float | None:
    """None: unknown, as it goes by the size of the picture."""
    if scheduler.config.get("use_dynamic_shifting"):
        return None
    return scheduler.config.get("flow_shift") or getattr(scheduler, "_shift", scheduler.config.get("shift", 1.0))


def _without_shift(sigmas: torch.Tensor, shift: float | None) -> torch.Tensor:
    """The inverse of sigma = shift t / (1 + (shift - 1) t)."""
    if shift is None:  # with it, the middle of the schedule is half way
        n = len(sigmas) - 1
        even = 1 - torch.arange(1, n, dtype=sigmas.dtype) / n
        shift = float(torch.exp((torch.logit(sigmas[1:n]) - torch.logit(even)).median())) if n > 1 else 1.0
    return sigmas / (shift - (shift - 1) * sigmas)
