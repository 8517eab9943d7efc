"""Guiders, samplers and add-ons of other packs under which users have seen caches go wrong.

Each is imitated here in a few lines, on tiny models. What most tests ask for: whatever is not asked as it was before is
computed, whatever is predicted is predicted from its own past, and the report counts what the network really did.
"""

import functools
import json
import logging
import math
import sys
import uuid
from collections import Counter
from typing import NamedTuple

import pytest
import tiny_models
import torch
from closeness import psnr

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 16
THRESHOLD, BUDGET = dict(threshold=1.0, warmup_steps=3), dict(target_speedup=4.0)
SHORT_GAPS = dict(THRESHOLD, max_consecutive_skips=1)
THRESHOLD_OR_BUDGET = pytest.mark.parametrize("widgets", [THRESHOLD, BUDGET], ids=["threshold", "budget"])


class Outcome(NamedTuple):
    """calls: of the network, by noise level. report: of the cache, None without one."""

    latent: torch.Tensor
    calls: Counter
    report: dict | None

    @property
    def levels(self):
        return sorted(self.calls, reverse=True)


@pytest.fixture
def run(comfy):
    """run(scene, make_guider, **widgets): one sampling run of `make_guider(model)`; without widgets uncached.

    sampler: a name or a function as k-diffusion has them.
    """

    def run(scene, make_guider, sampler="euler", sigmas=None, latent=None, patch=None, **widgets):
        import comfy.samplers as samplers

        model = patch(scene.model) if patch else scene.model
        model = comfy.cached(model, **widgets) if widgets else model
        sigmas = schedule(comfy, scene) if sigmas is None else sigmas
        sampler = samplers.KSAMPLER(sampler) if callable(sampler) else samplers.sampler_object(sampler)
        noise, latent = comfy.node("RandomNoise", 5)[0], scene.latent if latent is None else latent
        scene.calls.clear()
        samples = comfy.node("SamplerCustomAdvanced", noise, make_guider(model), sampler, sigmas, latent)[0]["samples"]
        calls = Counter(sigma for _, sigma, _ in scene.calls)
        assert samples.isfinite().all()
        report = json.loads(comfy.node("EasyCacheReport", model, {"samples": samples})[2]) if widgets else None
        return Outcome(samples, calls, report)

    return run


def schedule(comfy, scene, steps=STEPS):
    return comfy.node("BasicScheduler", scene.model, "simple", steps, 1.0)[0]


def ask(guider, names, x, timestep, options):
    """Denoised latents of the guider's conditionings of these names, asked in one call."""
    from comfy.samplers import calc_cond_batch

    return calc_cond_batch(guider.inner_model, [guider.conds[name] for name in names], x, timestep, options)


def ask_past_the_cache(guider, names, x, timestep, options):
    """As `ask`, without anybody's wrappers: what the network has to say."""
    bare = {**options, "transformer_options": {**options["transformer_options"], "wrappers": {}}}
    return ask(guider, names, x, timestep, bare)


def guiding(model, conds, predict):
    """A guider with these conditionings by name; predict(guider, x, timestep, options) is its predict_noise."""
    from comfy.samplers import CFGGuider

    class Guider(CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            return predict(self, x, timestep, model_options)

    guider = Guider(model)
    guider.inner_set_conds(conds)
    return guider


def both(guider, x, timestep, options):
    """As ComfyUI's own guider, with its conditionings "positive" and "negative"."""
    from comfy.samplers import sampling_function

    conds = guider.conds
    return sampling_function(guider.inner_model, x, timestep, conds["negative"], conds["positive"], 4.0, options)


def away_from(answer, others):
    """Guidance, weak enough that the latent does not run away."""
    return answer + sum(0.1 * (answer - other) for other in others)


def pair(scene):
    return {"positive": scene.positive, "negative": scene.negative}


def log_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "easycache"]


def relative(answer, truth):
    return float((answer - truth).abs().mean() / truth.abs().mean())


def check_counts(outcome, everywhere):
    """The report says what the network did, and a step is computed as a whole or not at all."""
    assert outcome.calls == {level: everywhere[level] for level in outcome.calls}
    computed = [record["sigma"] for record in outcome.report["trace"] if record["computed"]]
    assert computed == pytest.approx(outcome.levels)
    assert outcome.report["computed"] == len(outcome.levels)


# Guiders that go past ComfyUI's PREDICT_NOISE.


def direct(model, scene, predict=both, past_predict_noise=True):
    """A guider whose predict_noise the sampler calls itself, as with normalised attention guidance."""
    guider = guiding(model, pair(scene), predict)
    if past_predict_noise:
        type(guider).__call__ = lambda self, *args, **kwargs: self.predict_noise(*args, **kwargs)
    return guider


@THRESHOLD_OR_BUDGET
@pytest.mark.parametrize(("sampler", "evaluations"), [("euler", STEPS), ("heun", 2 * STEPS - 1)])
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_a_guider_past_predict_noise(tiny, run, name, sampler, evaluations, widgets):
    """Catches a cache that has no effect there, at any setting, and evaluations that are not told apart."""
    scene = tiny(name)
    make_guider = functools.partial(direct, scene=scene)
    plain, exact = run(scene, make_guider, sampler), run(scene, make_guider, sampler, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent) and exact.calls == plain.calls
    cached = run(scene, make_guider, sampler, **widgets)
    assert cached.report["evaluations"] == evaluations
    assert cached.report["computed"] <= (math.ceil(evaluations / 4) if widgets == BUDGET else evaluations * 0.7)
    assert len(cached.report["trace"]) == evaluations
    assert min(plain.levels) in cached.levels, "the last evaluation draws the detail"
    assert psnr(cached.latent, plain.latent) > 10
    if sampler == "euler":
        check_counts(cached, plain.calls)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_log_of_a_guider_past_predict_noise(tiny, run, caplog, threshold):
    """Catches a run of 16 steps of which the log says that it had none, and steps that `verbose` leaves out."""
    scene = tiny("SD15")
    with caplog.at_level(logging.INFO):
        cached = run(scene, functools.partial(direct, scene=scene), threshold=threshold, verbose=True)
    computed = len(cached.levels)
    (line,) = [line for line in log_of(caplog) if line.startswith("EasyCache: computed")]
    assert f"computed {computed} of {STEPS} evaluations, skipped {STEPS - computed} " in line
    steps = [line for line in log_of(caplog) if line.startswith("EasyCache: step")]
    assert len(steps) == STEPS and sum(": computed," in line for line in steps) == computed


@torch.no_grad()
def twice_per_level(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler steps, each after a correction at the same noise level, for which it hands on the same tensor."""
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        timestep = sigma * x.new_ones([len(x)])
        for share in (0.1, 1.0):
            denoised = model(x, timestep, **extra_args)
            x = x + share * (following - sigma) * (x - denoised) / sigma
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
    return x


@THRESHOLD_OR_BUDGET
@pytest.mark.parametrize("past_predict_noise", [False, True])
def test_two_evaluations_that_share_a_tensor_of_noise_levels(tiny, run, past_predict_noise, widgets):
    """Catches two evaluations that are taken for one, as they have one noise level."""
    scene = tiny("SD15")

    make_guider = functools.partial(direct, scene=scene, past_predict_noise=past_predict_noise)
    plain = run(scene, make_guider, twice_per_level)
    exact = run(scene, make_guider, twice_per_level, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent) and exact.calls == plain.calls
    cached = run(scene, make_guider, twice_per_level, **widgets)
    assert cached.report["evaluations"] == 2 * STEPS
    assert cached.calls.total() == cached.report["computed"] < 2 * STEPS
    assert psnr(cached.latent, plain.latent) > 10
