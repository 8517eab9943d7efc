"""A diffusers scheduler: how long its steps are, and what it makes of the network's answers."""

import copy
import logging
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from .prediction import Prediction
from .response import ROUNDED, Response

log = logging.getLogger("easycache")

# By how much a linear scheduler may be off, of its largest weight.
LINEAR = 1e-3
# By how much a noise level may be that was a timestep in whole thousandths.
ROUNDED_TIMESTEP = 1e-3


def step_lengths(scheduler, count: int) -> list[float] | None:
    """Of the next so many evaluations, in the model's own time, 0 to 1: the timestep where a table of noise levels was
    trained, and the noise level without its shift in flow models. None where the scheduler does not say.

    scheduler: one whose timesteps are set; what it has done already is left out.
    """
    timesteps, trained = getattr(scheduler, "timesteps", None), _setting(scheduler, "num_train_timesteps")
    if timesteps is None or getattr(scheduler, "num_inference_steps", None) is None:
        return None
    if _is_flow(scheduler):
        times = _without_shift(_flow_sigmas(scheduler), _shift(scheduler))
    elif trained:
        times = torch.cat([torch.as_tensor(timesteps).cpu().double(), torch.zeros(1)]) / trained
    else:
        return None
    lengths = times.diff().abs().tolist()
    # The second of two evaluations at one timestep belongs to the step that led there.
    for n, length in enumerate(lengths):
        lengths[n] = length or lengths[max(n - 1, 0)]
    start = _start(scheduler)
    lengths = lengths[start : start + count]
    return lengths if len(lengths) == count and all(map(math.isfinite, lengths)) and min(times) >= 0 else None


def response_of(
    scheduler, count: int, prediction: Prediction, sigma_of: Callable[[float], float], sigma: float,
    lengths: list[float] | None = None,
) -> Response | None:  # fmt: skip
    """What it makes of the network's next so many answers, found by running a copy of it on numbers.

    scheduler: as above. prediction: of the network. sigma_of: as `attach` takes it. sigma: the noise level of the first
    of these evaluations, as sigma_of has it. lengths: of their steps, as above. None where the scheduler is not linear
    in the answers, does not say, or has another first noise level.
    """
    try:
        timesteps = scheduler.timesteps[_start(scheduler) :][:count]
        sigmas = _noise_levels(scheduler, timesteps.tolist(), sigma_of, sigma)
        if sigmas is None or len(sigmas) < count:
            return None
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            nothing, one, two = (_latents(scheduler, timesteps, sigmas, prediction, size) for size in (0.0, 1.0, 2.0))
    except Exception as error:  # schedulers may ask for more than answers
        log.debug(f"EasyCache: what the scheduler makes of its answers is not known: {type(error).__name__}: {error}")
        return None
    weights, twice = one - nothing, two - nothing
    if not np.isfinite(weights).all() or np.abs(twice - 2 * weights).max() > LINEAR * np.abs(weights).max():
        return None
    return Response(tuple(sigmas), weights, bool(np.abs(nothing).max() > LINEAR), (lengths or ())[: count - 1])


def _noise_levels(scheduler, timesteps: list[float], sigma_of, sigma: float) -> list[float] | None:
    """At these timesteps, the first of them sigma. A flow model's own are exact; other timesteps are handed to networks
    as they are, or as parts of all.
    """
    if _is_flow(scheduler):
        start = _start(scheduler)
        candidates = [_flow_sigmas(scheduler)[start : start + len(timesteps)].tolist()]
    else:
        units = 1, 1 / _setting(scheduler, "num_train_timesteps")
        candidates = [[float(sigma_of(t * unit)) for t in timesteps] for unit in units]
    return next((levels for levels in candidates if is_rounded(levels[0], sigma)), None)


def is_rounded(exact: float, sigma: float) -> bool:
    """Whether it is that noise level, of a timestep in half precision or in whole thousandths."""
    return abs(exact - sigma) <= max(ROUNDED * exact, ROUNDED_TIMESTEP)


def _latents(
    scheduler, timesteps: torch.Tensor, sigmas: list[float], prediction: Prediction, size: float
) -> np.ndarray:
    """x at each evaluation, and the final latent, (N + 1, N), where answer k is a denoised latent of that size in row k
    and 0 elsewhere. Whatever noise is added is the same each time.
    """
    torch.default_generator.manual_seed(0)  # torch.manual_seed would seed GPUs, too
    rows, x, latents = len(sigmas), torch.zeros(len(sigmas), 1, 1, 1, dtype=torch.float64), []
    scheduler = _on_numbers(scheduler, x)
    for k, (t, sigma) in enumerate(zip(timesteps.cpu(), sigmas, strict=True)):
        prediction.set_sigma(sigma)
        network_x = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        latents.append(prediction.latent(network_x))
        denoised = torch.zeros_like(x)
        denoised[k] = size
        x = scheduler.step(prediction.output(denoised, network_x), t, x, return_dict=False)[0]
    return torch.stack([*latents, x]).reshape(rows + 1, rows).double().numpy()


def _on_numbers(scheduler, x: torch.Tensor):
    """A copy of it, on the host, for latents of x's shape. What it keeps of earlier answers is 0 in there."""

    def shown(value):
        if isinstance(value, list):
            return [shown(one) for one in value]
        if not isinstance(value, torch.Tensor):
            return value
        return torch.zeros_like(x) if value.ndim > 2 else value.cpu().clone()

    scheduler = copy.copy(scheduler)
    vars(scheduler).update({name: shown(value) for name, value in vars(scheduler).items()})
    return scheduler


def _start(scheduler) -> int:
    """How many of its evaluations are done, or left out."""
    return next((index for name in ("step_index", "begin_index") if (index := getattr(scheduler, name, None))), 0)


def _setting(scheduler, name: str, default=None):
    """Of its configuration, which is one of diffusers' or a plain dict; not every scheduler has each."""
    config = scheduler.config
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)


def _is_flow(scheduler) -> bool:
    """Whether it is one of a flow model, and has its noise levels."""
    if getattr(scheduler, "sigmas", None) is None:
        return False
    return bool("FlowMatch" in type(scheduler).__name__ or _setting(scheduler, "use_flow_sigmas"))


def _flow_sigmas(scheduler) -> torch.Tensor:
    """From 1, of noise, to 0, with their shift."""
    sigmas = scheduler.sigmas.cpu().double()
    return 1 - sigmas if _setting(scheduler, "invert_sigmas") else sigmas


def _shift(scheduler) -> float | None:
    """None: unknown, as it goes by the size of the picture."""
    if _setting(scheduler, "use_dynamic_shifting"):
        return None
    return _setting(scheduler, "flow_shift") or getattr(scheduler, "_shift", _setting(scheduler, "shift", 1.0))


def _without_shift(sigmas: torch.Tensor, shift: float | None) -> torch.Tensor:
    """The inverse of sigma = shift t / (1 + (shift - 1) t)."""
    if shift is None:  # with it, the middle of the schedule is half way
        n = len(sigmas) - 1
        even = 1 - torch.arange(1, n, dtype=sigmas.dtype) / n
        shift = float(torch.exp((torch.logit(sigmas[1:n]) - torch.logit(even)).median())) if n > 1 else 1.0
    return sigmas / (shift - (shift - 1) * sigmas)
