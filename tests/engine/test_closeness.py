"""How close a run is, estimated from itself: Euler on flows whose exact denoiser is known."""

import math

import pytest
import torch

from easycache_core import CacheConfig, CacheController, euler_response

STEPS, SHAPE = 20, (1, 4, 32, 32)


def noise_levels(steps):
    """A schedule with shift 3, as for flow models."""
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (3 * t / (1 + 2 * t)).tolist()


def denoise(x, sigma):
    """D of the exact denoiser for data that are about 0.8 or about -1 in each element, with a spread of 0.3."""
    scale, variance = 1 - sigma, (1 - sigma) ** 2 * 0.09 + sigma**2
    modes = torch.tensor([0.8, -1.0]).view(2, *[1] * x.ndim)
    weights = torch.softmax(-((x - scale * modes) ** 2) / (2 * variance), 0)
    return (weights * (modes + scale * 0.09 / variance * (x - scale * modes))).sum(0)


def sample(config=None, response=True, changed_at=None, steps=STEPS):
    """(final latent, controller)"""
    sigmas, x = noise_levels(steps), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    given = euler_response(sigmas) if response else None
    controller = config and CacheController(config, steps, denoised=True, response=given)
    for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if controller is None:
            denoised = denoise(x, sigma)
        elif controller.begin(x, sigma=sigma, step=step, changed=step == changed_at):
            controller.store("cond", denoise(x, sigma))
            denoised = controller.corrected("cond", denoise(x, sigma))
        else:
            denoised = controller.predict("cond")
        x = x + (following - sigma) * (x - denoised) / sigma
    return x, controller


def budget(speedup):
    return CacheConfig(predictor="forecast", target_speedup=speedup)


def extent(x):
    return float(x.max() - x.min())


@pytest.mark.parametrize("speedup", [1.7, 2.0, 3.0])
def test_about_as_close_as_it_says(speedup):
    """Catches an estimate that promises much more, or much less, than the run holds."""
    exact, _ = sample()
    x, controller = sample(budget(speedup))
    measured = 20 * math.log10(extent(exact)) - 10 * math.log10(float((x - exact).double().square().mean()))
    assert abs(controller.closeness(extent(x)) - measured) < 8


def test_fewer_evaluations_are_less_close():
    """Catches an estimate that does not go with what was skipped, and one that ends with the run."""
    found = [controller.closeness(extent(x)) for x, controller in map(sample, map(budget, (1.3, 2.0, 3.5)))]
    assert found == sorted(found, reverse=True) and found[0] > found[-1] + 10
    x, controller = sample(budget(2.0))
    before = controller.closeness(extent(x))
    controller.release()
    assert controller.closeness(extent(x)) == before
    assert controller.closeness(2 * extent(x)) == pytest.approx(before + 20 * math.log10(2))
    assert controller.closeness(extent(x), guidance=4.0) < before, "guidance enlarges what a branch got wrong"


@pytest.mark.parametrize(
    "trouble",
    [dict(config=CacheConfig(predictor="forecast", threshold=0.0)), dict(config=budget(2.0), response=False),
     dict(config=budget(2.0), changed_at=9), dict(config=budget(2.0), steps=8)],
    ids=["nothing skipped", "an unknown sampler", "another prompt on the way", "a short run"],
)  # fmt: skip
def test_nothing_is_said_where_nothing_is_known(trouble):
    """Catches dB that are made up."""
    x, controller = sample(**trouble)
    assert controller.closeness(extent(x)) is None
