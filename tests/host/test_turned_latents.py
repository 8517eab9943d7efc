"""Guiders, samplers and callbacks that turn their latent: they roll or flip it from step to step."""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from closeness import psnr
from sampling import (
    HALF,
    MIDWAY,
    PROMPTS,
    STEPS,
    answering_by_prompt,
    both,
    counting,
    direct,
    guided,
    log_of,
    pair,
    schedule,
    uncached,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def turned(how):
    """The guider's own way to look at the latent: (there, back), by step."""

    def flip(x):
        return x.flip(-1)

    def rolled(amount):
        return lambda x: x.roll(amount, -1)

    def same(x):
        return x

    if how == "flipped at every other step":
        return lambda step: (flip, flip) if step % 2 else (same, same)
    return lambda step: (rolled(3 * step), rolled(-3 * step))


@pytest.mark.parametrize("name", ["Flux", "SD15"])
@pytest.mark.parametrize("how", ["flipped at every other step", "rolled on from step to step"])
def test_a_guider_that_turns_its_latent(tiny, run, caplog, how, name):
    """As for seamless textures. Catches an answer to the latent as it lay before (5 to 15 dB at a budget), and a log
    that says nothing of it.
    """
    scene, way = tiny(name), turned(how)

    def predict(guider, step, x, timestep, options):
        there, back = way(step)
        return back(guided(guider, there(x), timestep, options))

    make_guider = counting(predict, PROMPTS if name == "Flux" else pair(scene))
    patch = answering_by_prompt if name == "Flux" else None
    plain = uncached(run, scene, make_guider, patch=patch)
    for widgets in (HALF, dict(threshold=1.0, warmup_steps=2)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cached = run(scene, make_guider, patch=patch, **widgets)
        assert psnr(cached.latent, plain.latent) > 40, widgets
        assert sum("is turned or moved against" in line for line in log_of(caplog)) == 1
        assert any("could not be predicted" in line for line in log_of(caplog)) == (widgets == HALF)


class Turning(NamedTuple):
    """A sampler's way to turn its latent: there(x, step), and back again; None: for good. frames, width, rows: of the
    latent; in those that it is rolled along it is not back within the run.
    """

    there: Callable
    back: Callable | None = None
    frames: int = 1
    width: int = STEPS + 2
    rows: int = 1

    @torch.no_grad()
    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        """Euler's method."""
        one = x.new_ones([len(x)])
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            x = self.there(x, i)
            denoised = model(x, sigma * one, **extra_args)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
            x = self.back(x, i) if self.back else x
        return x


TURNINGS = {
    "along the width, to look": Turning(lambda x, i: x.roll(i, -1), lambda x, i: x.roll(-i, -1)),
    "in time, to look": Turning(lambda x, i: x.roll(i, -3), lambda x, i: x.roll(-i, -3), STEPS + 1, 8),
    "along both sides, for good": Turning(lambda x, i: x.roll((1, 1), (-2, -1))),
    "by half of the width, for good": Turning(lambda x, i: x.roll(4, -1), width=8),
    "flipped, for good": Turning(lambda x, i: x.flip(-1), width=8),
    "rows in another order, for good": Turning(lambda x, i: x.roll(1, 0), width=8, rows=3),
    "rows in another order, to look": Turning(lambda x, i: x.roll(i, 0), lambda x, i: x.roll(-i, 0), 1, 8, 4),
}


@pytest.mark.parametrize("how", TURNINGS)
def test_a_sampler_that_turns_its_latent(comfy, demo_scene, run, caplog, how):
    """As for panoramas and for videos without an end. Catches answers to the picture as it lay before (1 to 8 dB at a
    budget), without a word of it; and two latents in turn where it is back at every other step, each at half the rate.
    """
    past_predict_noise = how == "in time, to look"
    make_guider = functools.partial(direct, scene=demo_scene, predict=guided, past_predict_noise=past_predict_noise)
    sampler, sigmas = TURNINGS[how], schedule(comfy, demo_scene)
    channels = demo_scene.latent["samples"].shape[1]
    latent = {"samples": torch.zeros(sampler.rows, channels, sampler.frames, 8, sampler.width)}
    plain = run(demo_scene, make_guider, sampler, sigmas, latent)
    for widgets in (HALF, dict(threshold=1.0, warmup_steps=2)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cached = run(demo_scene, make_guider, sampler, sigmas, latent, **widgets)
        assert psnr(cached.latent, plain.latent) > 40, widgets
        assert sum("the sampler turns its latent" in line for line in log_of(caplog)) == 1


@pytest.mark.parametrize("past_predict_noise", [False, True])
def test_a_guider_that_looks_at_its_latent_turned_as_well(tiny, run, caplog, past_predict_noise):
    """At each step, and takes the mean. Catches a speed-up of nothing where the latent is turned the same each time,
    and a log that says that it is turned from step to step.
    """
    scene = tiny("Flux")

    def predict(guider, x, timestep, options):
        return sum([both(guider, x, timestep, options), both(guider, x.flip(-1), timestep, options).flip(-1)]) / 2

    make_guider = functools.partial(direct, scene=scene, predict=predict, past_predict_noise=past_predict_noise)
    plain = uncached(run, scene, make_guider)
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, **HALF)
    assert cached.report["computed"] == cached.report["evaluations"] / 2
    assert psnr(cached.latent, plain.latent) > (15 if past_predict_noise else 40), "these are evaluations of their own"
    assert not any("turn" in line for line in log_of(caplog))


def rolled_once(x, step):
    return x.roll(x.shape[-1] // 2, -1) if step == MIDWAY else x


def with_noise(x, step, part=0.05):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
    return x + part * x.std() * noise


# What a callback makes of the latent: (function of x and step, whether it is another latent then, least dB).
WRITES = {
    "rolled at each step": (lambda x, step: x.roll(1, -1), True, 60),
    "flipped at each step": (lambda x, step: x.flip(-2), True, 60),
    "rolled once": (rolled_once, True, 15),
    "noise, a little at each step": (with_noise, False, 20),
    "noise, much of it at each step": (functools.partial(with_noise, part=0.3), True, 17),
    "a part of it scaled": (lambda x, step: torch.cat([x[..., :2] * 0.9, x[..., 2:]], -1), False, 20),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_callback_that_writes_to_the_latent(demo_scene, run, caplog, how):
    """Of another pack, under one of ComfyUI's own samplers, where no other latent is looked for. Catches forecasts of
    the latent as it lay before (6 to 8 dB) without a word of it, and a budget that is spent on what noise does.
    """
    write, another, least = WRITES[how]

    def make_guider(model):
        guider = direct(model, demo_scene, guided, past_predict_noise=False)

        def sample(*args, callback, **kwargs):
            def writing(step, denoised, x, total_steps):
                callback(step, denoised, x, total_steps)
                x.copy_(write(x, step))

            return type(guider).sample(guider, *args, callback=writing, **kwargs)

        guider.sample = sample
        return guider

    latent = {"samples": torch.zeros(1, demo_scene.latent["samples"].shape[1], 1, 8, 8)}
    plain = uncached(run, demo_scene, make_guider, latent=latent)
    for widgets in (HALF, dict(threshold=0.15, warmup_steps=2)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cached = run(demo_scene, make_guider, latent=latent, **widgets)
        assert psnr(cached.latent, plain.latent) > least, widgets
        assert sum("a callback turns or moves" in line for line in log_of(caplog)) == another
        assert (cached.report["computed"] == STEPS) == (least == 60), "what is turned is computed, and nothing else"
