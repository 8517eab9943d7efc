"""Prompts and latents that take turns at one noise level."""

import functools
import logging
from collections import Counter

import pytest
import torch
from closeness import psnr
from edits_in_turn import edit_in_turns
from sampling import BUDGET, STEPS, ask, both, guiding, log_of, pair, renewing_the_noise, schedule

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("bare", [False, True], ids=["", "options of its own"])
def test_two_prompts_that_take_turns(comfy, demo_scene, run, bare):
    """Catches one past for both: the second prompt is then hardly ever asked, and the edit is lost. And evaluations
    that nobody sees, as the sampler gives them options without the node's wrappers: of them all were computed, and none
    counted.
    """
    from comfy.samplers import cfg_function

    scene, asked = demo_scene, Counter()
    _, target, target_negative, _ = comfy.node("EasyCacheDemoModel", "rocket", "meadow", "zoom-out", 1)
    conds = {"source": scene.positive, "not source": scene.negative, "target": target, "not target": target_negative}
    latent = {"samples": comfy.sample(scene, steps=12)}

    def predict(guider, x, timestep, options):
        name, before = options["transformer_options"]["prompt in turn"], len(scene.calls)
        cond, uncond = ask(guider, [name, f"not {name}"], x, timestep, options)
        asked[name] += len(scene.calls) > before
        return cfg_function(
            guider.inner_model, cond, uncond, {"source": 2.0, "target": 4.5}[name], x, timestep, options
        )

    def edit(sigmas, **widgets):
        asked.clear()
        make_guider = functools.partial(guiding, conds=conds, predict=predict)
        sampler = torch.no_grad()(functools.partial(edit_in_turns, bare=bare))
        return run(scene, make_guider, sampler, sigmas, latent, **widgets), dict(asked)

    sigmas = schedule(comfy, scene, 30)[4:]
    plain, everywhere = edit(sigmas)
    cached, computed = edit(sigmas, target_speedup=2.5)
    assert everywhere == {"source": 26, "target": 26}
    assert computed == {"source": 11, "target": 11}, "26 / 2.5, rounded up"
    assert cached.report["evaluations"] == 52 and cached.report["computed"] == 22
    assert psnr(cached.latent, plain.latent) > 16, "evenly spread, the budget has 14.6"
    cached, computed = edit(sigmas, threshold=0.2, warmup_steps=5)
    assert 5 < computed["target"] < 26 and computed["target"] >= 0.5 * computed["source"]
    assert psnr(cached.latent, plain.latent) > 10
    short = sigmas[::5]
    assert torch.equal(edit(short, threshold=0.0)[0].latent, edit(short)[0].latent)


def drawing(latents_of, result):
    """A sampler that draws several latents at once, all with the guider's prompt. latents_of(x): noise for each.
    result: what it returns of them.
    """

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        latents, one = latents_of(x), x.new_ones([len(x)])
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = [model(latent, sigma * one, **extra_args) for latent in latents]
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised[0]})
            pairs = zip(latents, denoised, strict=True)
            latents = [latent + (following - sigma) * (latent - D) / sigma for latent, D in pairs]
        return result(latents)

    return sampler


def noise_like(x, seed):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) * x.std()


def in_turn(count):
    """A sampler that draws so many latents, and returns the last one."""
    return drawing(lambda x: [x, *(noise_like(x, seed) for seed in range(1, count))], lambda latents: latents[-1])


@pytest.mark.in_turn("count")
@pytest.mark.parametrize("widgets", [dict(threshold=0.1), dict(target_speedup=2.0)], ids=["threshold", "budget"])
@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_latents_that_take_turns(comfy, tiny, run, name, count, widgets):
    """Nothing but the latents tells them apart. Catches one past for all of them: a budget then mixes the pictures, and
    a threshold skips nothing.
    """
    scene = tiny(name)
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain = run(scene, make_guider, in_turn(count))
    exact = run(scene, make_guider, in_turn(count), threshold=0.0)
    assert torch.equal(exact.latent, plain.latent) and exact.calls == plain.calls
    cached = run(scene, make_guider, in_turn(count), **widgets)
    assert psnr(cached.latent, plain.latent) > (25 if count == 2 else 18)
    assert cached.report["evaluations"] == count * STEPS
    assert cached.report["computed"] == cached.calls.total() < 0.75 * count * STEPS


def test_latents_in_turn_of_a_sampler_that_bears_the_name_of_comfyuis(comfy, tiny, run):
    """As functools.wraps gives it. Catches one past for all of its latents, as if it were ComfyUI's own."""
    from comfy.k_diffusion.sampling import sample_euler

    make_guider = functools.partial(guiding, conds=pair(tiny("Flux")), predict=both)
    samplers = in_turn(2), functools.wraps(sample_euler)(in_turn(2))
    unnamed, named = (run(tiny("Flux"), make_guider, sampler, target_speedup=2.0) for sampler in samplers)
    assert torch.equal(named.latent, unnamed.latent)


def test_more_latents_than_are_told_apart(comfy, tiny, run, monkeypatch, caplog):
    """Catches a log that blames the threshold."""
    scene = tiny("Flux")
    monkeypatch.setattr(comfy.module("nodes.latents"), "TRAIL", 3)
    with caplog.at_level(logging.INFO):
        run(scene, functools.partial(guiding, conds=pair(scene), predict=both), in_turn(5), threshold=0.1)
    assert any("skipped: the latent, or all of its noise, is another one" in line for line in log_of(caplog))


def original_and_edit(share):
    """A sampler that draws two latents, of one noise but for this share of it."""
    return drawing(lambda x: [x, (1 - share) ** 0.5 * x + share**0.5 * noise_like(x, 1)], torch.cat)


@pytest.mark.parametrize("target_speedup", [2.0, 8.0])
@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize(("name", "dB"), [("SD15", {2.0: 28, 8.0: 9}), ("Flux", {2.0: 40, 8.0: 22})], ids=str)
def test_an_original_and_its_edit(tiny, run, name, dB, share, target_speedup):
    """They share a prompt and most of their noise. Catches one past for both, which spoils both pictures at a budget,
    and which a threshold computes as a whole.
    """
    scene, sampler = tiny(name), original_and_edit(share)
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain = run(scene, make_guider, sampler)
    cached = run(scene, make_guider, sampler, target_speedup=target_speedup)
    for result, reference in zip(cached.latent.chunk(2), plain.latent.chunk(2), strict=True):
        assert psnr(result, reference) > dB[target_speedup]
    assert cached.report["computed"] <= 2 * STEPS / target_speedup + 2
    if target_speedup == 2:
        assert run(scene, make_guider, sampler, threshold=0.1).report["computed"] < 0.75 * 2 * STEPS


def test_a_latent_with_new_noise_is_the_same_one(comfy, tiny, run):
    """Catches a latent that is taken for another one at each step: each would be computed, whatever the budget."""
    scene = tiny("Flux")
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    cached = run(scene, make_guider, renewing_the_noise, **BUDGET)
    assert cached.report["evaluations"] == STEPS and cached.report["computed"] == STEPS / 4
