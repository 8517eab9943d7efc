"""Guiders of other packs: some go past PREDICT_NOISE, call other guiders, or answer by themselves."""

import functools
import logging
import math
from collections import Counter

import pytest
import tiny_models
import torch
from closeness import psnr
from sampling import (
    BUDGET,
    HALF,
    STEPS,
    THRESHOLD,
    THRESHOLD_OR_BUDGET,
    ask,
    ask_past_the_cache,
    away_from,
    both,
    check_counts,
    direct,
    guiding,
    log_of,
    pair,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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


PAST_IT = {
    "at each step": lambda step: True, "at every other step": lambda step: step % 2, "at first": lambda step: step < 8,
    "at last": lambda step: step >= 8,
}  # fmt: skip


@pytest.mark.parametrize("widgets", [HALF, dict(threshold=0.15, warmup_steps=2)], ids=str)
@pytest.mark.parametrize("past_it", PAST_IT)
def test_going_past_predict_noise_costs_nothing(comfy, small_scene, run, past_it, widgets):
    """Catches two histories of one latent (17 dB at 2x for 32), and forecasts that do not learn what guidance makes of
    the answers (24 dB).
    """
    from comfy.samplers import CFGGuider

    def make_guider(model, past=lambda step: False):
        guider, step = guiding(model, pair(small_scene), both), iter(range(STEPS))

        def call(self, x, timestep, *args, **kwargs):
            named = self.predict_noise if past(next(step)) else functools.partial(CFGGuider.__call__, self)
            return named(x, timestep, *args, **kwargs)

        type(guider).__call__ = call
        return guider

    through = run(small_scene, make_guider, **widgets)
    past = run(small_scene, functools.partial(make_guider, past=PAST_IT[past_it]), **widgets)
    plain = run(small_scene, make_guider)
    assert past.report["computed"] <= through.report["computed"] + 1
    assert psnr(past.latent, plain.latent) > psnr(through.latent, plain.latent) - 4


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


def test_a_pack_that_replaces_what_the_node_wraps(comfy, tiny, run, monkeypatch, caplog):
    """Catches a run of which nothing is skipped, and a log that does not say who is to blame."""
    import comfy.samplers as samplers

    def replacement(model, conds, x, timestep, options):
        return samplers._calc_cond_batch(model, conds, x, timestep, options)

    replacement.__module__ = "custom_nodes.another_pack"
    scene = tiny("SD15")
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain = run(scene, make_guider)
    monkeypatch.setattr(samplers, "calc_cond_batch", replacement)
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, threshold=1.0)
    assert torch.equal(cached.latent, plain.latent)
    assert any("another_pack has replaced ComfyUI's calc_cond_batch" in line for line in log_of(caplog))


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


@pytest.mark.parametrize("asked_first", ["outer", "inner"])
@pytest.mark.parametrize("how", ["a guider of its own", "itself, at another point"])
def test_a_guider_within_a_guider(tiny, run, how, asked_first):
    """One evaluation asks for another within itself. Catches the outer one's answers from the inner one's latent.

    at another point: the guided latent is looked at once more from a little further on, before the negative is asked.
    """
    scene = tiny("SD15")

    def inner(guider, x, timestep, options):
        if how == "a guider of its own":
            other = guiding(guider.model_patcher, {}, both)
            other.inner_model, other.conds = guider.inner_model, guider.conds
            return other(x, timestep, options)
        guider.within = True
        try:
            return guider(x + 0.3 * timestep.view(-1, 1, 1, 1), timestep, options)
        finally:
            guider.within = False

    def predict(guider, x, timestep, options):
        if guider.within:
            return both(guider, x, timestep, options)
        looked = inner(guider, x, timestep, options) if asked_first == "inner" else None
        (positive,) = ask(guider, ["positive"], x, timestep, options)
        looked = inner(guider, x, timestep, options) if looked is None else looked
        (negative,) = ask(guider, ["negative"], x, timestep, options)
        return away_from(positive, [negative, negative, looked])

    def make_guider(model):
        guider = guiding(model, pair(scene), predict)
        guider.within = False
        return guider

    plain, exact = run(scene, make_guider), run(scene, make_guider, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent) and exact.calls == plain.calls
    for widgets in (THRESHOLD, BUDGET):
        cached = run(scene, make_guider, **widgets)
        assert len(cached.levels) < STEPS
        assert psnr(cached.latent, plain.latent) > 15, widgets


def test_a_guider_that_asks_nothing_where_it_can_be_seen(tiny, run, caplog):
    """It leaves out both, and asks with options that it copied before the node was put into the model. Catches a log
    that speaks of parts of the latent.
    """
    scene = tiny("SD15")

    def predict(guider, x, timestep, options):
        from comfy.samplers import calc_cond_batch

        nothing = calc_cond_batch(guider.inner_model, [None, None], x, timestep, options)
        assert not any(answer.any() for answer in nothing)
        return ask_past_the_cache(guider, ["positive"], x, timestep, options)[0]

    make_guider = functools.partial(guiding, conds=pair(scene), predict=predict)
    plain = run(scene, make_guider)
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, **THRESHOLD)
    assert torch.equal(cached.latent, plain.latent) and cached.report["evaluations"] == 0
    assert log_of(caplog)[-1].endswith("nothing was skipped: it asked nothing that the node sees")


@THRESHOLD_OR_BUDGET
@pytest.mark.parametrize(
    "by_itself", [range(2), range(0, STEPS, 3), range(5, 9)], ids=["first", "every third", "middle"]
)
def test_a_guider_that_answers_by_itself(tiny, run, by_itself, widgets):
    """At some steps. Catches a report that counts them as computed, and a budget that is spent on nothing."""
    scene = tiny("SD15")

    def predict(guider, x, timestep, options):
        guider.turn += 1
        return x * 0.5 if guider.turn - 1 in by_itself else both(guider, x, timestep, options)

    def make_guider(model):
        guider = guiding(model, pair(scene), predict)
        guider.turn = 0
        return guider

    plain, exact = run(scene, make_guider), run(scene, make_guider, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent)
    assert exact.report["computed"] == exact.report["evaluations"] == STEPS - len(by_itself)
    cached = run(scene, make_guider, **widgets)
    check_counts(cached, plain.calls)
    assert cached.report["evaluations"] == STEPS - len(by_itself)
    assert len(cached.levels) < STEPS - len(by_itself)
    assert min(plain.levels) in cached.levels or STEPS - 1 in by_itself


def test_a_guider_with_two_models(comfy, tiny, run):
    """The positive is asked of one network and the negative of another, each behind a node. Catches the answer of one
    for the other.
    """
    if "DualModelGuider" not in comfy.classes:
        pytest.skip("this ComfyUI has no guider with two models")
    scene, second = tiny("Flux"), tiny_models.build("Flux", seed=1)

    def sample(cfg, **widgets):
        def make_guider(model):
            other = comfy.cached(second.model, **widgets) if widgets else second.model
            return comfy.node(
                "DualModelGuider", model=model, model_negative=other, positive=scene.positive,
                negative=scene.negative, cfg=cfg,
            )[0]  # fmt: skip

        second.calls.clear()
        outcome = run(scene, make_guider, **widgets)
        return outcome, Counter(sigma for _, sigma, _ in second.calls)

    for cfg in (7.0, 1.0):
        (plain, _), (exact, _) = sample(cfg), sample(cfg, threshold=0.0)
        assert torch.equal(exact.latent, plain.latent)
        cached, negative = sample(cfg, threshold=0.3)
        assert len(cached.levels) < STEPS and psnr(cached.latent, plain.latent) > 10
        assert cfg == 1.0 or sorted(negative, reverse=True) == cached.levels


def sampled_by_a_loop_of_its_own(comfy, scene, model):
    """As nodes do that prepare the network themselves, and ask it without a guider's run."""
    from comfy import sampler_helpers, samplers

    sigmas, latent = comfy.node("BasicScheduler", model, "simple", 4, 1.0)[0], scene.latent["samples"]
    x = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    conds = {"positive": scene.positive, "negative": scene.negative}
    conds = {name: sampler_helpers.convert_cond(cond) for name, cond in conds.items()}
    network, conds, loaded = sampler_helpers.prepare_sampling(model, x.shape, conds, model.model_options)
    model.pre_run()
    conds = samplers.process_conds(network, x, conds, x.device)
    with torch.no_grad():
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            timestep = sigma * x.new_ones([len(x)])
            denoised = samplers.sampling_function(
                network, x, timestep, conds["negative"], conds["positive"], 4.0, model_options=model.model_options
            )
            x = x + (following - sigma) * (x - denoised) / sigma
    model.cleanup()
    sampler_helpers.cleanup_models(conds, loaded)
    return x


def guided_with_the_options_of_the_model(comfy, scene, model):
    """As guiders do that mix several models, each with its own options."""

    def predict(guider, x, timestep, options):
        return both(guider, x, timestep, model.model_options)

    sigmas, noise = comfy.node("BasicScheduler", model, "simple", 4, 1.0)[0], comfy.node("RandomNoise", 5)[0]
    guider, sampler = guiding(model, pair(scene), predict), comfy.node("KSamplerSelect", "euler")[0]
    return comfy.node("SamplerCustomAdvanced", noise, guider, sampler, sigmas, scene.latent)[0]["samples"]


@pytest.mark.parametrize("sampled", [sampled_by_a_loop_of_its_own, guided_with_the_options_of_the_model])
def test_a_network_that_is_asked_outside_of_a_run(comfy, tiny, caplog, sampled):
    """Catches a cache that has no effect and does not say so."""
    scene = tiny("SD15")
    plain, cached = sampled(comfy, scene, scene.model), comfy.cached(scene.model, **BUDGET)
    comfy.sample(scene, cached, steps=4)
    assert not any("past ComfyUI's sampling" in line for line in log_of(caplog)), "that was a run"
    assert torch.equal(sampled(comfy, scene, cached), plain) and torch.equal(sampled(comfy, scene, cached), plain)
    assert sum("past ComfyUI's sampling" in line for line in log_of(caplog)) == 1
