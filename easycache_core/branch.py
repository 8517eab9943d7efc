"""One branch (cond, uncond, or what a guider makes of them) at its last computed evaluation, and what changed since.

Formulas are forecast.py's, and so are the letters: n is an evaluation, j < i the last two computed ones before it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .correction import GAPS
from .norms import upcast
from .steps import StepRatios

# Of D, in an answer that has a payment in it.
LEAST_KEPT = 0.25
# In place of a sum of squares that is 0.
TINY = 1e-20


class Branch(NamedTuple):
    """x_i, which branches may share, D_i, D_i - D_j, None where nothing comparable was before, and the defect d of each
    of the last gaps, the last one first; without what added noise did.
    """

    x: torch.Tensor
    denoised: torch.Tensor
    change: torch.Tensor | None = None
    defects: Sequence[torch.Tensor] = ()


class Departure(NamedTuple):
    """By how much D and x left what was known at i: D_n - D_i, r (D_i - D_j), and x_n - xe_n."""

    change: torch.Tensor
    extrapolated: torch.Tensor
    off_path: torch.Tensor


def off_path(x: torch.Tensor, x_i: torch.Tensor, denoised_i: torch.Tensor, sigma_ratio: float) -> torch.Tensor:
    """x_n - xe_n. x: x_n, at least float32 as the others."""
    return (x - denoised_i).sub_(x_i - denoised_i, alpha=sigma_ratio)


def departure(i: Branch, denoised: torch.Tensor, x: torch.Tensor, ratios: StepRatios) -> Departure:
    """At the next computed evaluation n. denoised, x: D_n and x_n; all at least float32 and on one device."""
    change = denoised - i.denoised
    extrapolated = torch.zeros_like(change) if i.change is None else i.change * ratios.step_ratio
    return Departure(change, extrapolated, off_path(x, i.x, i.denoised, ratios.sigma_ratio))


def noise_part(i: Branch, departed: Departure, x: torch.Tensor) -> torch.Tensor:
    """The part of noise in how x moved from i to the next computed evaluation, of squares; a scalar tensor.

    What a sampler makes of its answers lies along D_i - D_j and x_i - D_i, all but some: the rest is noise that it
    added. x: x_n.
    """
    rest = departed.off_path.flatten()
    direction = (i.x - i.denoised).flatten()
    extrapolated = departed.extrapolated.flatten()
    for along in (direction, _without(extrapolated, direction)):
        rest = _without(rest, along)
    return rest.square().mean() / (x - i.x).square().mean().clamp_min(TINY)


def _without(vector: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The part of it that is at right angles to a direction; all of it for direction 0."""
    return vector - direction * ((vector * direction).mean() / direction.square().mean().clamp_min(TINY))


def changes(
    i: Branch, denoised: torch.Tensor, gain: float, step_ratio: float | None, noise: torch.Tensor | None
) -> dict:
    """change and defects of the branch at the next computed evaluation, kept where i's are. denoised: D there.
    step_ratio: r of the gap between the two, None if there is none. noise: what added noise did to D in between.
    """
    device = denoised.device
    change = upcast(denoised) - upcast(i.denoised.to(device))
    if noise is not None:
        change.sub_(noise)
    kept = change.to(i.denoised)
    if step_ratio is None:
        return dict(change=kept, defects=i.defects)
    defect = -change
    if i.change is not None:
        defect.add_(i.change.to(device), alpha=gain * step_ratio)
    return dict(change=kept, defects=(defect.to(i.denoised), *i.defects[: GAPS - 1]))


def uncorrected(
    i: Branch, answer: torch.Tensor, gain: float, step_ratio: float | None, payments: Sequence[float]
) -> torch.Tensor | None:
    """D at the next computed evaluation, where the sampler got answer = D + sum of payments times defects, those of
    `changes`. None where the payment leaves next to nothing of D. A new tensor.
    """
    kept = 1.0
    if step_ratio is not None and payments:
        c, *payments = payments
        kept -= c  # the defect of the gap that ended here has D itself in it
        if kept < LEAST_KEPT:
            return None
        answer = answer.sub(i.denoised, alpha=c)
        if i.change is not None:
            answer.sub_(i.change, alpha=c * gain * step_ratio)
    for c, defect in zip(payments, i.defects, strict=False):
        answer = answer.sub(defect, alpha=c)
    return answer / kept
