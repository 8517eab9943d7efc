"""Parts of the latent are asked about: windows, tiles, crops."""

import functools
import logging
from collections import Counter

import pytest
import torch
from closeness import psnr
from sampling import (
    BUDGET,
    STEPS,
    THRESHOLD,
    THRESHOLD_OR_BUDGET,
    ask,
    away_from,
    both,
    check_counts,
    direct,
    guiding,
    log_of,
    pair,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def windowed(model, moving):
    """Eight frames in two windows of four, as another pack's wrapper makes them; they may move from step to step."""
    from comfy.patcher_extension import WrappersMP

    model, levels = model.clone(), []

    def windows(executor, network, conds, x, timestep, options):
        if float(timestep[0]) not in levels:
            levels.append(float(timestep[0]))
        results = [torch.zeros_like(x) for _ in conds]
        for start in (0, 4):
            frames = [(start + i + moving * len(levels)) % len(x) for i in range(4)]
            parts = executor(network, conds, x[frames], timestep[frames], options)
            for result, part in zip(results, parts, strict=True):
                result[frames] = part
        return results

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "sliding windows", windows)
    return model


WINDOWS = {  # (whether the cache comes before them, whether the guider goes past PREDICT_NOISE)
    "behind the cache": (False, False),
    "before the cache": (True, False),
    "past PREDICT_NOISE": (False, True),
}


@pytest.mark.in_turn("moving")
@pytest.mark.parametrize("way", WINDOWS)
@pytest.mark.parametrize("moving", [False, True], ids=["fixed", "moving"])
def test_windows_of_another_pack(comfy, tiny, run, moving, way):
    """Catches a window that is answered with another one's past, and windows under which nothing is skipped."""
    scene, latent = tiny("SD15"), {"samples": torch.zeros(8, 4, 8, 8)}
    cache_first, past_predict_noise = WINDOWS[way]

    def sample(**widgets):
        def make_guider(model):
            model = windowed(model, moving) if cache_first else model
            return direct(model, scene, past_predict_noise=past_predict_noise)

        patch = None if cache_first else functools.partial(windowed, moving=moving)
        return run(scene, make_guider, latent=latent, patch=patch, **widgets)

    plain, exact = sample(), sample(threshold=0.0)
    assert torch.equal(exact.latent, plain.latent)
    for widgets in (dict(threshold=0.3), dict(target_speedup=2.0)):
        cached = sample(**widgets)
        check_counts(cached, plain.calls)
        assert len(cached.levels) <= STEPS * 0.75
        assert psnr(cached.latent, plain.latent) > 20


@pytest.mark.parametrize("part_first", [False, True])
@pytest.mark.parametrize("past_predict_noise", [False, True])
def test_a_question_about_a_part_of_the_latent(comfy, tiny, run, past_predict_noise, part_first):
    """The part lies elsewhere in each step, so it is computed, and the rest is skipped as ever. Catches one part that
    is answered with another one's past.
    """
    scene, sizes = tiny("SD15"), Counter()

    def predict(guider, x, timestep, options):
        at = guider.turn % 9
        guider.turn += 1
        part = x[..., at : at + 8, 8 - at : 16 - at]

        def look_closer():
            before = len(scene.calls)
            (answer,) = ask(guider, ["positive"], part, timestep, options)
            sizes["part"] += len(scene.calls) > before
            return answer

        closer = look_closer() if part_first else None
        before = len(scene.calls)
        positive, negative = ask(guider, ["positive", "negative"], x, timestep, options)
        sizes["whole"] += len(scene.calls) > before
        closer = closer if part_first else look_closer()
        result = away_from(positive, [negative])
        result[..., at : at + 8, 8 - at : 16 - at] += 0.2 * closer
        return result

    def make_guider(model):
        guider = direct(model, scene, predict, past_predict_noise)
        guider.turn = 0
        return guider

    plain, exact = run(scene, make_guider), run(scene, make_guider, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent)
    for widgets in (THRESHOLD, BUDGET):
        sizes.clear()
        cached = run(scene, make_guider, **widgets)
        assert sizes["part"] == STEPS and 0 < sizes["whole"] < STEPS - 3
        assert cached.report["evaluations"] == STEPS and cached.report["computed"] == sizes["whole"]
        assert psnr(cached.latent, plain.latent) > 10


@THRESHOLD_OR_BUDGET
def test_a_sampler_that_goes_over_the_latent_in_parts(tiny, run, widgets):
    """Two halves in turn, each an evaluation of its own. Catches one half that is answered with the other's past."""
    scene = tiny("SD15")
    latent = {"samples": torch.linspace(-3, 3, 16).view(1, 1, 1, 16).expand(1, 4, 16, 16).clone()}

    @torch.no_grad()
    def halves(model, x, sigmas, extra_args=None, callback=None, disable=None):
        x = x.clone()
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            for half in (x[..., :8], x[..., 8:]):
                denoised = model(half, sigma * x.new_ones([len(x)]), **extra_args)
                half += (following - sigma) * (half - denoised) / sigma
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x})
        return x

    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain, exact = (run(scene, make_guider, halves, latent=latent, **given) for given in ({}, dict(threshold=0.0)))
    assert torch.equal(exact.latent, plain.latent)
    cached = run(scene, make_guider, halves, latent=latent, **widgets)
    assert psnr(cached.latent, plain.latent) > 20


@torch.no_grad()
def growing(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Twice as large from the sixth step on, with new noise."""
    rng = torch.Generator().manual_seed(3)
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma * x.new_ones([len(x)]), **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        if i == 5:
            denoised = torch.nn.functional.interpolate(denoised, scale_factor=2)
        x = denoised + following * torch.randn(denoised.shape, generator=rng)
    return x


@THRESHOLD_OR_BUDGET
def test_a_latent_that_grows_on_the_way(tiny, run, caplog, widgets):
    """Catches an answer of the wrong size, and a log from which computed steps are missing."""
    scene, latent = tiny("SD15"), {"samples": torch.zeros(1, 4, 8, 8)}
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain, exact = (run(scene, make_guider, growing, latent=latent, **given) for given in ({}, dict(threshold=0.0)))
    assert torch.equal(exact.latent, plain.latent) and plain.latent.shape[-1] == 16
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, growing, latent=latent, **widgets)
    assert cached.latent.shape == plain.latent.shape
    assert cached.report["evaluations"] == 6 and min(plain.levels) in cached.levels
    assert f"{STEPS - 6} calls about parts of the latent, or at another size, were computed" in log_of(caplog)[-1]
    assert "the last evaluation was predicted" not in log_of(caplog)[-1]


@torch.no_grad()
def looking_again(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler steps; in the third and fourth it evaluates at half size, too, and calls back for that as for a step."""
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma * x.new_ones([len(x)]), **extra_args)
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        if i in (2, 3):
            half = x[..., ::2, ::2]
            smaller = model(half, sigma * x.new_ones([len(x)]), **extra_args)
            callback({"x": half, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": smaller})
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


def test_a_sampler_that_calls_back_for_a_part_of_the_latent(tiny, run, caplog):
    """Catches such a callback that counts as a step: a budget is spent before the end, and then exceeded."""
    scene, latent = tiny("SD15"), {"samples": torch.zeros(1, 4, 16, 16)}
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain, exact = (run(scene, make_guider, looking_again, latent=latent, **one) for one in ({}, dict(threshold=0.0)))
    assert torch.equal(exact.latent, plain.latent)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, looking_again, latent=latent, target_speedup=2.0)
    assert cached.report["evaluations"] == STEPS and cached.report["computed"] == STEPS / 2
    assert cached.report["trace"][-1]["computed"] and "more than it allows" not in caplog.text


def test_why_nothing_is_skipped_of_a_latent_that_grows(comfy, tiny, run, caplog):
    """ComfyUI's SamplerLCMUpscale. Catches a log that blames the settings."""
    scene = tiny("SD15")
    sampler = comfy.node("SamplerLCMUpscale", scale_ratio=1.5, scale_steps=4, upscale_method="bilinear")[0]
    for widgets in (dict(threshold=1.0, warmup_steps=2), dict(target_speedup=2.0)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(scene, functools.partial(guiding, conds=pair(scene), predict=both), sampler, **widgets)
        assert caplog.messages[-1].endswith("Nothing was skipped: it asks about parts of the latent, one after the "
                                            "other, or at another size")  # fmt: skip
