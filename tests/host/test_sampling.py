"""What the node does to a KSampler run. Network evaluations are counted by hooks on the network itself."""

import logging
import re

import pytest
import torch
from closeness import psnr
from scene import Scene


def test_threshold_zero_is_bit_identical(comfy, small_scene):
    plain, everywhere = small_scene.counting(lambda: comfy.sample(small_scene))
    exact = comfy.cached(small_scene.model, threshold=0.0)
    same, levels = small_scene.counting(lambda: comfy.sample(small_scene, exact))
    assert torch.equal(plain, same)
    assert levels == everywhere and len(levels) == 16


def test_skips_network_calls_and_stays_close(comfy, demo_scene, caplog):
    """Catches a cache that only says it skips, and one whose result drifts away."""
    plain = comfy.sample(demo_scene, steps=30)
    with caplog.at_level(logging.INFO):
        cached, levels = demo_scene.counting(
            lambda: comfy.sample(demo_scene, comfy.cached(demo_scene.model, threshold=0.05), steps=30)
        )
    assert len(levels) < 24
    assert psnr(cached, plain) > 20
    assert levels[:3] == sorted({sigma for _, sigma, _ in demo_scene.calls}, reverse=True)[:3]
    (line,) = [message for message in caplog.messages if message.startswith("EasyCache: computed")]
    computed, total, skipped, speedup = re.search(
        r"computed (\d+) of (\d+) .* skipped (\d+) \(([\d.]+)x\)", line
    ).groups()
    assert (int(computed), int(total), int(skipped)) == (len(levels), 30, 30 - len(levels))
    assert float(speedup) == pytest.approx(30 / len(levels), abs=0.01)
    assert "threshold 0.05, warm-up 3" in line


@pytest.mark.parametrize(("sampler", "better_by"), [("euler", 3.0), ("dpmpp_2m", 1.0), ("euler_ancestral", -1.0)])
def test_a_budget_is_spent_to_the_last_and_forecasts_make_more_of_it(comfy, demo_scene, sampler, better_by):
    """What forecasts are worth on a trained network; and noise that a sampler injects must not lead them astray."""
    settings, closeness = dict(sampler_name=sampler, steps=24), {}
    plain = comfy.sample(demo_scene, **settings)
    for predictor in ("forecast", "reuse"):
        model = comfy.cached(demo_scene.model, target_speedup=2.5, predictor=predictor)
        cached, levels = demo_scene.counting(lambda model=model: comfy.sample(demo_scene, model, **settings))
        assert len(levels) == 10, "24 / 2.5, rounded up"
        closeness[predictor] = psnr(cached, plain)
    assert closeness["forecast"] > closeness["reuse"] + better_by, closeness


@pytest.mark.parametrize(("steps", "better_by"), [(12, 9), (20, 13)])
def test_what_the_node_does_untouched(comfy, demo_scene, steps, better_by):
    """The lengths that most people sample. Catches defaults that skip next to nothing, and long gaps, which cost what
    all of their answers are off by: 4 dB in 20 steps.
    """
    exact = comfy.sample(demo_scene, steps=steps)
    untouched, levels = demo_scene.counting(
        lambda: comfy.sample(demo_scene, comfy.cached(demo_scene.model), steps=steps)
    )
    fewer = comfy.sample(demo_scene, steps=len(levels))
    assert len(levels) <= 0.75 * steps
    assert psnr(untouched, exact) > psnr(fewer, exact) + better_by


def test_strong_guidance_on_few_evaluations_is_no_worse_than_reuse(comfy):
    """Catches forecasts that overshoot: here the denoised latent swings to and fro between sparse evaluations."""
    model, positive, negative, latent = comfy.node("EasyCacheDemoModel", "unicorn", "sky", "sway", 1)
    scene = Scene(comfy.node("ModelSamplingSD3", model, 7.0)[0], positive, negative, latent)
    closeness = {}
    for predictor in (None, "forecast", "reuse"):
        patched = scene.model
        if predictor:
            patched = comfy.cached(patched, target_speedup=4.6, predictor=predictor)
        sampled = comfy.sample(scene, patched, seed=3, steps=40, cfg=5.5, sampler_name="dpmpp_2m")
        if not predictor:
            plain = sampled
        else:
            closeness[predictor] = psnr(sampled, plain)
    assert closeness["forecast"] > closeness["reuse"] - 1, closeness


def test_warmup_and_last_step_reach_the_network(comfy, small_scene):
    model = comfy.cached(small_scene.model, threshold=1.0, warmup_steps=6)
    _, levels = small_scene.counting(lambda: comfy.sample(small_scene, model))
    _, everywhere = small_scene.counting(lambda: comfy.sample(small_scene))
    assert levels[:6] == everywhere[:6] and levels[-1] == everywhere[-1]
    assert len(levels) < 12


def test_a_run_is_deterministic(comfy, small_scene):
    """Catches state that leaks from one run into the next."""
    model = comfy.cached(small_scene.model)
    first = comfy.sample(small_scene, model)
    comfy.sample(small_scene, model, seed=77, steps=9)
    assert torch.equal(first, comfy.sample(small_scene, model))


def test_cond_and_uncond_share_each_decision(comfy, small_scene, monkeypatch):
    """Whether memory lets both run in one batch must not matter (ComfyUI issue 10344)."""
    cached = comfy.cached(small_scene.model)
    together, levels_together = small_scene.counting(lambda: comfy.sample(small_scene, cached))
    assert all(sorted(kinds) == [0, 1] for _, _, kinds in small_scene.calls)

    monkeypatch.setattr(small_scene.model.model, "memory_required", lambda *args, **kwargs: 1e30)
    apart, levels_apart = small_scene.counting(lambda: comfy.sample(small_scene, cached))
    by_level = {}
    for _, sigma, kinds in small_scene.calls:
        by_level.setdefault(sigma, []).extend(kinds)
    assert all(sorted(kinds) == [0, 1] for kinds in by_level.values()), "both branches or none"
    assert all(len(kinds) == 1 for _, _, kinds in small_scene.calls), "the batch was really split"
    assert levels_apart == levels_together
    torch.testing.assert_close(apart, together, rtol=1e-3, atol=1e-3)


def test_without_guidance(comfy, small_scene):
    """CFG 1: ComfyUI leaves the negative out altogether."""
    plain = comfy.sample(small_scene, cfg=1.0)
    cached, levels = small_scene.counting(lambda: comfy.sample(small_scene, comfy.cached(small_scene.model), cfg=1.0))
    assert all(kinds == (0,) for _, _, kinds in small_scene.calls)
    assert len(levels) < 14 and psnr(cached, plain) > 20


def test_a_batch_of_videos(comfy, small_scene):
    latent = {"samples": small_scene.latent["samples"].repeat(3, 1, 1, 1, 1)}
    cached, levels = small_scene.counting(
        lambda: comfy.sample(small_scene, comfy.cached(small_scene.model), latent_image=latent)
    )
    assert cached.shape[0] == 3 and cached.isfinite().all() and len(levels) < 14


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "uni_pc", "euler_ancestral", "res_multistep", "lcm", "ddim"])
def test_samplers_with_one_evaluation_a_step(comfy, small_scene, sampler):
    model = comfy.cached(small_scene.model, threshold=1.0, warmup_steps=4)
    cached, levels = small_scene.counting(lambda: comfy.sample(small_scene, model, sampler_name=sampler, steps=12))
    _, everywhere = small_scene.counting(lambda: comfy.sample(small_scene, sampler_name=sampler, steps=12))
    assert cached.isfinite().all()
    assert levels[:4] == everywhere[:4], "the warm-up"
    assert len(levels) < len(everywhere)


@pytest.mark.parametrize(
    ("sampler", "evaluations"), [("heun", 8), ("dpm_2", 8), ("dpmpp_sde", 8), ("seeds_2", 8), ("sa_solver_pece", 7)]
)
def test_warmup_counts_steps_of_second_order_samplers(comfy, small_scene, sampler, evaluations):
    """A warm-up counted in evaluations would end after half as many steps.

    evaluations: how many the first four steps take (the first step of sa_solver_pece takes one).
    """
    warmup, steps = 4, 12
    model = comfy.cached(small_scene.model, threshold=1.0, warmup_steps=warmup)
    small_scene.counting(lambda: comfy.sample(small_scene, sampler_name=sampler, steps=steps))
    every = [sigma for _, sigma, _ in small_scene.calls]
    cached, _ = small_scene.counting(lambda: comfy.sample(small_scene, model, sampler_name=sampler, steps=steps))
    computed = [sigma for _, sigma, _ in small_scene.calls]
    assert len(every) > 1.5 * steps, "otherwise it is no second-order sampler"
    assert computed[:evaluations] == every[:evaluations]
    after = slice(evaluations, evaluations + 2)  # with noise, the first of them may be too far from the last step
    assert computed[after] != every[after], "the warm-up is over"
    assert len(computed) < len(every) and cached.isfinite().all()


def test_partial_denoise_and_two_stages(comfy, small_scene):
    """img2img, and KSamplerAdvanced handing a half-denoised latent over: each run warms up for itself."""
    model = comfy.cached(small_scene.model)
    start = comfy.sample(small_scene)
    again, levels = small_scene.counting(
        lambda: comfy.sample(small_scene, model, latent_image={"samples": start}, denoise=0.6, steps=20)
    )
    assert again.isfinite().all() and len(levels) < 18

    def stage(latent, first, last, noise):
        return comfy.node(
            "KSamplerAdvanced", model, noise, 5, 24, 4.0, "euler", "simple", small_scene.positive, small_scene.negative,
            latent, first, last, "enable" if last < 24 else "disable",
        )[0]  # fmt: skip

    _, high = small_scene.counting(lambda: stage(small_scene.latent, 0, 12, "enable"))
    assert len(high) < 12
    handed = stage(small_scene.latent, 0, 12, "enable")
    finished, low = small_scene.counting(lambda: stage(handed, 12, 10000, "disable"))
    assert len(low) < 12 and finished["samples"].isfinite().all()


def test_a_prompt_that_starts_in_the_middle_is_computed_where_it_starts(comfy, small_scene):
    """An output cached under one prompt must not answer for another."""
    late = comfy.node("ConditioningSetTimestepRange", small_scene.positive, 0.7, 1.0)[0]
    early = comfy.node("ConditioningSetTimestepRange", small_scene.negative, 0.0, 0.7)[0]
    both = comfy.node("ConditioningCombine", late, early)[0]
    model = comfy.cached(small_scene.model, threshold=1.0, warmup_steps=2)
    _, everywhere = small_scene.counting(lambda: comfy.sample(small_scene, positive=both))
    _, levels = small_scene.counting(lambda: comfy.sample(small_scene, model, positive=both))
    switch = small_scene.model.get_model_object("model_sampling").percent_to_sigma(0.7)
    first_after = max(sigma for sigma in everywhere if sigma <= switch)
    assert first_after in levels[2:-1]
    assert len(levels) < 10


def test_start_and_end_percent(comfy, small_scene):
    """No reuse outside the part of the schedule that the widgets allow."""
    sampling = small_scene.model.get_model_object("model_sampling")
    model = comfy.cached(small_scene.model, threshold=1.0, warmup_steps=1, start_percent=0.3, end_percent=0.6)
    _, everywhere = small_scene.counting(lambda: comfy.sample(small_scene, steps=24))
    _, levels = small_scene.counting(lambda: comfy.sample(small_scene, model, steps=24))
    high, low = sampling.percent_to_sigma(0.3), sampling.percent_to_sigma(0.6)
    skipped = set(everywhere) - set(levels)
    assert skipped and all(low <= sigma <= high for sigma in skipped)


@pytest.mark.parametrize(
    ("speedup", "start", "end", "fits", "dB"),
    [(2.0, 0.2, 0.8, True, 19), (2.0, 0.0, 0.6, True, 19), (4.6, 0.2, 0.8, False, 10), (2.0, 0.4, 0.8, False, 28)],
)
def test_a_budget_with_start_and_end_percent(comfy, demo_scene, caplog, speedup, start, end, fits, dB):
    """Catches a budget that is spent before skipping may begin: 16, 13, 1 and 3 dB for 21, 21, 12 and 32. Where it does
    not suffice for all that is outside, it goes first, and the log says so.
    """
    sampling = demo_scene.model.get_model_object("model_sampling")
    model = comfy.cached(demo_scene.model, target_speedup=speedup, start_percent=start, end_percent=end)
    plain, everywhere = demo_scene.counting(lambda: comfy.sample(demo_scene, steps=20))
    with caplog.at_level(logging.INFO):
        cached, levels = demo_scene.counting(lambda: comfy.sample(demo_scene, model, steps=20))
    assert len(levels) == (10 if speedup == 2 else 5)
    high, low = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
    outside = {sigma for sigma in everywhere if sigma > high + 1e-4 or sigma < low - 1e-4}
    assert (outside <= set(levels)) == fits
    assert any("outside of start_percent" in message for message in caplog.messages) != fits
    assert psnr(cached, plain) > dB


@pytest.mark.parametrize(("sampler", "speedup"), [("heun", 4.6), ("heunpp2", 2.0)])
def test_a_planned_end_is_no_lack_of_budget(comfy, demo_scene, caplog, sampler, speedup):
    """Samplers with several evaluations per step reach the last level more than once. The log said that the budget did
    not suffice, and with heunpp2 the wrong one of them was computed (3.8 dB).
    """
    model = comfy.cached(demo_scene.model, target_speedup=speedup)
    with caplog.at_level(logging.INFO):
        comfy.sample(demo_scene, model, sampler_name=sampler, steps=20)
    assert not any("suffice" in message for message in caplog.messages)
    assert any("computed" in message for message in caplog.messages)


def test_max_consecutive_skips(comfy, small_scene):
    model = comfy.cached(small_scene.model, threshold=1.0, warmup_steps=2, max_consecutive_skips=2)
    _, everywhere = small_scene.counting(lambda: comfy.sample(small_scene))
    _, levels = small_scene.counting(lambda: comfy.sample(small_scene, model))
    gaps = "".join("c" if sigma in levels else "s" for sigma in everywhere).split("c")
    assert max(map(len, gaps)) == 2


def test_cache_in_main_memory(comfy, small_scene):
    near = comfy.sample(small_scene, comfy.cached(small_scene.model))
    far = comfy.sample(small_scene, comfy.cached(small_scene.model, cache_device="cpu"))
    assert torch.equal(near, far)


def test_verbose_writes_a_line_an_evaluation(comfy, small_scene, caplog):
    model = comfy.cached(small_scene.model, verbose=True)
    with caplog.at_level(logging.INFO):
        _, levels = small_scene.counting(lambda: comfy.sample(small_scene, model))
    lines = [message for message in caplog.messages if message.startswith("EasyCache: step")]
    assert len(lines) == 16
    assert sum(": computed," in line for line in lines) == len(levels)


@pytest.mark.parametrize(
    ("widgets", "steps", "reason"),
    [
        (dict(threshold=0.0), 10, "threshold is 0"),
        (dict(warmup_steps=20), 10, "the run has 10 steps, of which the first 20 (warmup_steps)"),
        (dict(warmup_steps=20), 1, "the run has 1 step, of which"),
        (dict(threshold=1e-6), 10, "raise threshold"),
        (dict(threshold=1.0, start_percent=1.0), 10, "start_percent"),
        (dict(threshold=1e-6, end_percent=0.9), 10, "end_percent 0.9; widen them or raise threshold"),
        (dict(target_speedup=2.0), 2, "the first and the last one are always computed"),
        (dict(target_speedup=2.0), 1, "allows each of them to be computed"),
    ],
)
def test_the_log_says_why_nothing_was_skipped(comfy, small_scene, caplog, widgets, steps, reason):
    with caplog.at_level(logging.INFO):
        _, levels = small_scene.counting(
            lambda: comfy.sample(small_scene, comfy.cached(small_scene.model, **widgets), steps=steps)
        )
    assert len(levels) == steps
    (line,) = [message for message in caplog.messages if message.startswith("EasyCache: computed")]
    assert "Nothing was skipped" in line and reason in line


@pytest.mark.parametrize("predictor", ["forecast", "reuse"])
@pytest.mark.parametrize(("steps", "denoise"), [(3, 0.3), (4, 0.2)])
def test_the_log_blames_no_error_that_nobody_estimated(comfy, small_scene, caplog, steps, denoise, predictor):
    """All steps are the first or the last ones. Catches the advice to raise a threshold that is as high as can be."""
    model = comfy.cached(small_scene.model, threshold=1.0, warmup_steps=1, predictor=predictor)
    with caplog.at_level(logging.INFO):
        comfy.sample(small_scene, model, steps=steps, denoise=denoise)
    (line,) = [message for message in caplog.messages if message.startswith("EasyCache: computed")]
    assert "Nothing was skipped: at no step could an error be estimated" in line or "skipped 0" not in line


def test_the_log_gives_no_advice_that_cannot_be_followed(comfy):
    """Catches a threshold of 1 that is to be raised, and a budget that is said to allow for what is beyond it."""
    summary, settings = comfy.module("nodes.summary"), comfy.module("nodes.settings").Settings
    config = comfy.module("easycache_core").CacheConfig
    did = dict(evaluations=10, computed=10, skipped=0)
    course = dict.fromkeys(summary.Facts._fields, False) | dict(steps=10, reason=None, estimated=True)

    def reason(beyond_budget=None, **given):
        about = summary.Facts(**{**course, "beyond_budget": beyond_budget})
        return summary.nothing_skipped(did, settings(config(**given)), about)

    assert "raise" in reason(threshold=0.9) and "raise" not in reason(threshold=1.0)
    assert "allows" in reason(target_speedup=1.0)
    assert reason("as it is", target_speedup=2.0) == "each of them had to be computed, as it is"


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "computed", "left"),
    [(4, 2, 2, "one"), (4, 1, 2, "one"), (5, 2, 2, "two"), (6, 3, 3, "two"), (6, 2, 2, None)],
)
def test_few_steps_are_the_reason(comfy, small_scene, caplog, steps, warmup_steps, computed, left):
    """A Turbo model takes four, of which one can be skipped at all. Catches a log, and a chart, that blame every step's
    error where all but one are computed whatever the error is.
    """
    model = comfy.cached(small_scene.model, threshold=1e-6, warmup_steps=warmup_steps)
    with caplog.at_level(logging.INFO):
        comfy.sample(small_scene, model, steps=steps)
    (line,) = [message for message in caplog.messages if message.startswith("EasyCache: computed")]
    reached = "the error reached the threshold"
    few = (
        f"Nothing was skipped: with {steps} steps hardly anything can be skipped: the first {computed} and the last "
        f"are always computed, and at the {left} left {reached}; take more steps, or raise threshold"
    )
    assert few in line if left else f"Nothing was skipped: {reached} at every step;" in line


def test_few_steps_of_a_schedule_that_another_run_goes_on_with(comfy, small_scene, caplog):
    """Its last step is none of the schedule's."""
    model = comfy.cached(small_scene.model, threshold=1e-6, warmup_steps=2)
    with caplog.at_level(logging.INFO):
        comfy.node("KSamplerAdvanced", model, "enable", 5, 8, 4.0, "euler", "simple", small_scene.positive,
                   small_scene.negative, small_scene.latent, 0, 4, "enable")  # fmt: skip
    (line,) = [message for message in caplog.messages if message.startswith("EasyCache: computed")]
    assert "the first 2 are always computed, and at the two left the error reached the threshold" in line


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_preview_at_each_step(comfy, tiny, one_thread, sampler):
    """Catches previews that come at the end only, that stand still, or that are left out where a step is skipped."""
    scene = tiny("WAN21_T2V")
    sigmas = comfy.node("BasicScheduler", scene.model, "simple", 16, 1.0)[0]

    def previews(model):
        shown, latent = [], scene.latent["samples"]
        guider = comfy.node("CFGGuider", model, scene.positive, scene.negative, 4.0)[0]
        noise = comfy.node("RandomNoise", 5)[0].generate_noise({"samples": latent})
        with torch.no_grad():
            guider.sample(
                noise, latent, comfy.node("KSamplerSelect", sampler)[0], sigmas,
                callback=lambda step, denoised, x, total: shown.append((step, total, denoised.clone())), seed=5,
            )  # fmt: skip
        return shown

    plain, cached = previews(scene.model), previews(comfy.cached(scene.model, target_speedup=1.5))
    assert [one[:2] for one in cached] == [one[:2] for one in plain] == [(step, 16) for step in range(16)]
    for (*_, before), (*_, now), (*_, expected) in zip(cached[:-1], cached[1:], plain[1:], strict=True):
        assert psnr(now, expected) > 20 and not torch.equal(now, before)


@pytest.mark.parametrize("steps", [2, 5, 10, 16])
def test_a_budget_for_less_than_the_first_and_the_last_step(comfy, small_scene, one_thread, caplog, steps):
    """Catches a log that gives another reason for what is computed beyond it, or none, or one where nothing is."""
    with caplog.at_level(logging.INFO):
        _, levels = small_scene.counting(
            lambda: comfy.sample(small_scene, comfy.cached(small_scene.model, target_speedup=8.0), steps=steps)
        )
    (line,) = [message for message in caplog.messages if message.startswith("EasyCache: computed")]
    assert len(levels) == 2
    assert ("more than it allows, as the first and the last one are computed" in line) == (steps <= 8)
    assert "nothing told" not in line
