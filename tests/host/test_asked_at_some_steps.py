"""Prompts that are asked at some steps only, one in turn with another or now and then."""

import logging

import pytest
from closeness import psnr
from sampling import (
    HALF,
    STEPS,
    answering_by_prompt,
    ask,
    both,
    counting,
    guided,
    guiding,
    log_of,
    pair,
    plain_prompt,
    schedule,
    uncached,
)
from scene import Scene

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_negative_is_asked_at_every_other_step(tiny, run):
    """And kept for the next one. Catches steps that are all computed, or a budget that is spent on what is missing, as
    the negative was left out where the network ran last.
    """
    scene, kept = tiny("Flux"), {}

    def predict(guider, step, x, timestep, options):
        (cond,) = ask(guider, ["positive"], x, timestep, options)
        if step % 2 == 0:
            (kept["uncond"],) = ask(guider, ["negative"], x, timestep, options)
        return kept["uncond"] + 2.0 * (cond - kept["uncond"])

    plain = uncached(run, scene, counting(predict), patch=answering_by_prompt)
    cached = run(scene, counting(predict), patch=answering_by_prompt, **HALF)
    assert cached.report["computed"] <= cached.report["evaluations"] / 2 + 1
    assert psnr(cached.latent, plain.latent) > 10


@pytest.mark.parametrize("part", [(0.0, 0.5), (0.5, 1.0)], ids=["at first", "at last"])
@pytest.mark.parametrize("widgets", [dict(threshold=1.0, warmup_steps=2), HALF, dict(HALF, predictor="reuse")])
def test_a_negative_in_a_part_of_the_schedule(comfy, tiny, run, part, widgets):
    """Outside of it ComfyUI answers zero, and a patch that looks for that takes the positive. Catches a prediction
    that is nearly zero, with which all of the guidance goes wrong.
    """
    scene, missing = tiny("Flux"), []
    limited = comfy.node("ConditioningSetTimestepRange", scene.negative, *part)[0]

    def instead(given):
        cond, uncond = given["conds_out"]
        missing.append(not uncond.any())
        return [cond, cond.clone() if missing[-1] else uncond]

    def patch(model):
        model = answering_by_prompt(model)
        model.set_model_sampler_pre_cfg_function(instead)
        return model

    def sampled(**widgets):
        missing.clear()
        conds = {"positive": scene.positive, "negative": limited}
        return run(scene, lambda model: guiding(model, conds, both), patch=patch, **widgets), missing.copy()

    (plain, where), (cached, where_cached) = sampled(), sampled(**widgets)
    assert where_cached == where and 0 < sum(where) < STEPS
    assert cached.report["computed"] <= STEPS / 2 + 1 and psnr(cached.latent, plain.latent) > 20


def every(steps, order, weight=1.0):
    """predict and how many questions are asked: the negative at every so manyth step only, its guidance kept between.
    order: whether it is asked along with the positive, or before or after it in a call of its own.
    """

    def predict(guider, step, x, timestep, options):
        if step % steps:
            (cond,) = ask(guider, ["positive"], x, timestep, options)
        elif order == "before":
            (uncond,), (cond,) = (ask(guider, [name], x, timestep, options) for name in ("negative", "positive"))
        elif order == "after":
            (cond,), (uncond,) = (ask(guider, [name], x, timestep, options) for name in ("positive", "negative"))
        else:
            cond, uncond = ask(guider, ["positive", "negative"], x, timestep, options)
        if step % steps == 0:
            guider.away = cond - uncond
        return cond + weight * guider.away

    return predict


@pytest.mark.parametrize(
    ("steps", "order"), [(2, "along with"), (3, "along with"), (2, "before"), (3, "before"), (2, "after")]
)
def test_the_negative_is_asked_at_some_steps_only(tiny, run, caplog, steps, order):
    """Catches a budget that is exceeded, as the negative was left out where the network ran last, or a picture that is
    lost, as positive and negative are forecast from different steps (1 dB).
    """
    scene, make_guider = tiny("Flux"), counting(every(steps, order))
    plain = uncached(run, scene, make_guider, patch=answering_by_prompt)
    for widgets in (HALF, dict(HALF, predictor="reuse"), dict(threshold=0.15, warmup_steps=2)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cached = run(scene, make_guider, patch=answering_by_prompt, **widgets)
        assert cached.report["evaluations"] == STEPS and cached.calls.total() <= plain.calls.total()
        assert psnr(cached.latent, plain.latent) > 12, widgets
        assert cached.report["computed"] <= STEPS / 2 or "threshold" in widgets
        assert cached.report["skipped"], "what is left out is asked along, so that the step after can be skipped"
        assert cached.report["closeness"] is None, "what is kept for later steps is not in the estimate"


@pytest.mark.parametrize("widgets", [HALF, dict(target_speedup=4.0), dict(threshold=0.15, warmup_steps=2)], ids=str)
def test_a_prompt_is_asked_once_more_at_every_other_step(comfy, small_scene, run, caplog, widgets):
    """As guidance by a weakened network does, by a switch that nobody sees. Catches steps at which the answer to the
    prompt is predicted, and the weakened one, which was left out where the network ran last, is not: at 2x that was 3
    dB.
    """
    weakened, sigmas = [], schedule(comfy, small_scene, 20)

    def weaken(model):
        model = model.clone()
        model.set_model_unet_function_wrapper(
            lambda network, given: network(given["input"], given["timestep"], **given["c"]) * 0.9 ** len(weakened)
        )
        return model

    def predict(guider, step, x, timestep, options):
        cond, uncond = ask(guider, ["positive", "negative"], x, timestep, options)
        guided = cond + (cond - uncond)
        if step % 2:
            return guided
        weakened.append(True)
        (weak,) = ask(guider, ["positive"], x, timestep, options)
        weakened.clear()
        return guided + cond - weak

    make_guider = counting(predict, pair(small_scene))
    plain = run(small_scene, make_guider, sigmas=sigmas, patch=weaken)
    with caplog.at_level(logging.INFO):
        cached = run(small_scene, make_guider, sigmas=sigmas, patch=weaken, **widgets)
    assert psnr(cached.latent, plain.latent) > 20
    assert cached.report["computed"] <= 14
    beyond = "as what was asked could not be predicted" in caplog.text
    assert beyond == (cached.report["computed"] > 20 / widgets.get("target_speedup", 1))


@pytest.mark.parametrize("order", ["along with", "before", "after"])
def test_the_negative_is_asked_at_every_other_step_under_a_threshold(demo_scene, run, order):
    """Catches a run of which nothing is skipped: the negative, left out where the network ran last, has to be computed
    each time, or decides alone.
    """
    make_guider = counting(every(2, order), pair(demo_scene))
    plain, cached = run(demo_scene, make_guider), run(demo_scene, make_guider, threshold=0.1, warmup_steps=2)
    assert cached.report["skipped"] > 0.1 * STEPS and cached.calls.total() < plain.calls.total()
    assert psnr(cached.latent, plain.latent) > 25


@pytest.mark.parametrize(("steps", "sampler"), [(2, "euler"), (3, "dpmpp_2m")])
def test_what_a_guider_keeps_is_not_paid_for_twice(comfy, demo_scene, run, steps, sampler):
    """Guidance that is kept for later steps has the payments of its step in it. Catches forecasts that are worse than
    `reuse` (by 3 to 10 dB), as these are paid again at each step at which it is kept.
    """
    make_guider, sigmas = counting(every(steps, "along with", 3.0), pair(demo_scene)), schedule(comfy, demo_scene, 20)
    plain = run(demo_scene, make_guider, sampler, sigmas)
    closeness = {}
    for predictor in ("forecast", "reuse"):
        cached = run(demo_scene, make_guider, sampler, sigmas, **HALF, predictor=predictor)
        assert cached.report["computed"] == 10
        closeness[predictor] = psnr(cached.latent, plain.latent)
    assert closeness["forecast"] > closeness["reuse"], closeness


IN_TURN = {
    "two prompts": (lambda step: "positive" if step % 2 else "other", 14),
    "three prompts": (lambda step: ("positive", "other", "third")[step % 3], 6),
    "one for every third step": (lambda step: "positive" if step % 3 else "other", 17),
    "nothing at first": (lambda step: "positive" if step > 1 else None, 32),
    "nothing at every other step": (lambda step: "positive" if step % 2 == 0 else None, 19.5),
}


@pytest.mark.parametrize("turn", IN_TURN)
def test_what_is_asked_at_some_steps_only_is_placed_by_these(comfy, demo_scene, run, turn):
    """At the others it is another prompt, or the guider answers by itself. Catches a plan, and corrections, in the
    weights of all steps, or in none: 4 to 8 dB less, and forecasts that are worse than `reuse`.
    """
    name_at, dB = IN_TURN[turn]
    prompts = [
        comfy.node("EasyCacheDemoModel", *words, "zoom-out", 1)[1] for words in (("rocket", "meadow"), ("owl", "night"))
    ]
    conds = {**pair(demo_scene), **dict(zip(("other", "third"), prompts, strict=True))}

    def predict(guider, step, x, timestep, options):
        name = name_at(step)
        if name is None:
            return getattr(guider, "last", 0.0 * x)
        asked = {**guider.conds, "positive": guider.conds[name]}
        guider.last = guided(guider, x, timestep, options, asked)
        return guider.last

    make_guider, sigmas = counting(predict, conds), schedule(comfy, demo_scene, 21)
    plain = run(demo_scene, make_guider, sigmas=sigmas)
    closeness = {}
    for predictor in ("forecast", "reuse"):
        cached = run(demo_scene, make_guider, sigmas=sigmas, **HALF, predictor=predictor)
        assert len(cached.levels) == cached.report["computed"]
        assert 0 <= cached.report["evaluations"] / 2 - cached.report["computed"] + 0.5 <= 1.5
        closeness[predictor] = psnr(cached.latent, plain.latent)
    assert closeness["forecast"] > max(dB, closeness["reuse"] - 1), closeness


@pytest.mark.parametrize("prompts", [1, 3, 8])
def test_budgets_of_prompts_that_take_turns(tiny, run, caplog, prompts):
    """From step to step. Catches parts of a budget that are rounded up each, of which the log says nothing, and a log
    that blames the settings where each prompt is asked too seldom.
    """
    conds = {**pair(tiny("Flux")), **{str(n): plain_prompt(n) for n in range(prompts)}}

    def predict(guider, step, x, timestep, options):
        return guided(guider, x, timestep, options, {**guider.conds, "positive": guider.conds[str(step % prompts)]})

    with caplog.at_level(logging.INFO):
        cached = run(tiny("Flux"), counting(predict, conds), patch=answering_by_prompt, target_speedup=4.0)
    said = "more than it allows, as prompts or latents that take turns have a budget each" in log_of(caplog)[-1]
    assert said == (prompts > 1) == (cached.report["computed"] > STEPS / 4)
    assert ("8 prompts or latents take turns in 16" in log_of(caplog)[-1]) == (prompts == 8)
    cached = run(tiny("Flux"), counting(predict, conds), patch=answering_by_prompt, threshold=0.15)
    assert ("too few for each" in (cached.report["reason"] or "")) == (prompts == 8)


def without_layers(layer_at, weight=0.5):
    """predict: guidance away from the positive without a layer, as SLG and STG have it, in a call of its own.
    layer_at(step): which one, from 0; None: that call is left out.
    """
    from comfy.model_patcher import create_model_options_clone, set_model_options_patch_replace

    def skip(args, extra):
        return args

    def predict(guider, step, x, timestep, options):
        cond, uncond = ask(guider, ["positive", "negative"], x, timestep, options)
        denoised = uncond + 4.0 * (cond - uncond)
        layer = layer_at(step)
        if layer is None:
            return denoised
        weakened = create_model_options_clone(options)
        set_model_options_patch_replace(weakened, skip, "dit", "double_block", layer)
        (weak,) = ask(guider, ["positive"], x, timestep, weakened)
        return denoised + weight * (cond - weak)

    return predict


def weakening(model):
    """By how much an answer without a layer is another one: trained networks differ little without one of theirs."""

    def wrapper(network, given):
        output = network(given["input"], given["timestep"], **given["c"])
        layers = given["c"]["transformer_options"].get("patches_replace", {}).get("dit", {})
        return output * (0.85 + 0.01 * next(iter(layers))[1]) if layers else output

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def two_frames(scene):
    latent = {"samples": scene.latent["samples"][:, :, :2].clone()}
    return Scene(scene.model, scene.positive, scene.negative, latent)


DRAWN = (3, 7, 1, 0, 5, 2, 6, 1, 4, 0, 7, 2, 5, 3, 6, 0, 4, 2, 7, 1)
LAYERS = {  # which layer is skipped at a step; dB of a half, and of a threshold
    "every other step": (lambda step: None if step % 2 else 3, 21, 18),
    "every third step": (lambda step: None if step % 3 else 3, 20, 20),
    "two layers in turn": (lambda step: 3 + 2 * (step % 2), 22, 20),
    "another one at each step": (DRAWN.__getitem__, 15, 20),
    "three ranges": (lambda step: (2, 3, 5)[min(2, step // 7)], 21, 19),
    "from step 7 on": (lambda step: 3 if step >= 7 else None, 25, 28),
}


@pytest.mark.parametrize("layers", LAYERS)
def test_layers_are_skipped_at_some_steps_or_others_in_turn(comfy, demo_scene, run, caplog, layers):
    """Catches a budget that is spent before the last steps on answers that could not be predicted (2 to 3 dB for a
    layer at every other step, or for two in turn; 11 for three ranges), and evaluations that count as computed while
    most of their answers are predicted.
    """
    layer_at, *dB = LAYERS[layers]
    scene, make_guider = two_frames(demo_scene), counting(without_layers(layer_at), pair(demo_scene))
    sigmas = schedule(comfy, scene, 20)
    plain = run(scene, make_guider, sigmas=sigmas, patch=weakening)
    for widgets, least in zip((HALF, dict(threshold=0.15, warmup_steps=2)), dB, strict=True):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cached = run(scene, make_guider, sigmas=sigmas, patch=weakening, **widgets)
        assert psnr(cached.latent, plain.latent) > least, widgets
        assert cached.report["computed"] <= (16 if "threshold" in widgets else 11), widgets
        assert "Nothing was skipped" not in log_of(caplog)[-1]
    reused = run(scene, make_guider, sigmas=sigmas, patch=weakening, **HALF, predictor="reuse")
    half = run(scene, make_guider, sigmas=sigmas, patch=weakening, **HALF)
    fewer = run(scene, make_guider, sigmas=schedule(comfy, scene, 10), patch=weakening)
    closeness = [psnr(one.latent, plain.latent) for one in (half, reused, fewer)]
    assert closeness[0] > max(closeness[1] - 1, closeness[2]), closeness


def test_layers_that_stand_in_for_others_leave_no_estimate(comfy, demo_scene, run):
    """Catches a closeness that is told although nothing tells how far off the answer of other layers is."""
    scene, make_guider = two_frames(demo_scene), counting(without_layers(DRAWN.__getitem__), pair(demo_scene))
    cached = run(scene, make_guider, sigmas=schedule(comfy, scene, 20), patch=weakening, **HALF)
    assert cached.report["skipped"] and cached.report["closeness"] is None


def test_what_is_predicted_in_part_is_told(comfy, demo_scene, run, caplog):
    """Where a further prompt begins, it alone is computed. Catches a log by which all of that evaluation was, or by
    which nothing was skipped although some calls were predicted.
    """
    further = comfy.node("EasyCacheDemoModel", "owl", "meadow", "zoom-out", 1)[1]

    def predict(guider, step, x, timestep, options):
        denoised = both(guider, x, timestep, options)
        if step < 7:
            return denoised
        return denoised + 0.1 * (ask(guider, ["further"], x, timestep, options)[0] - denoised)

    scene, make_guider = two_frames(demo_scene), counting(predict, {**pair(demo_scene), "further": further})
    with caplog.at_level(logging.INFO):
        run(scene, make_guider, sigmas=schedule(comfy, scene, 20), **HALF)
    assert "of 1 of those computed a part was predicted" in log_of(caplog)[-1]


def changing(comfy, scene, sampler, at):
    """sample(**widgets): 20 steps with a prompt that changes on the way, by ranges, and strong guidance."""
    second = comfy.node("EasyCacheDemoModel", "rocket", "meadow", "zoom-out", 1)[1]
    parts = [(scene.positive, 0.0, at), (second, at, 1.0)]
    prompts = [comfy.node("ConditioningSetTimestepRange", *part)[0] for part in parts]
    positive = comfy.node("ConditioningCombine", *prompts)[0]
    short = {"samples": scene.latent["samples"][:, :, :2]}

    def sample(**widgets):
        model = comfy.cached(scene.model, **widgets) if widgets else scene.model
        inputs = dict(steps=20, cfg=5.0, positive=positive, latent_image=short, sampler_name=sampler)
        return comfy.sample(scene, model, **inputs)

    return sample


@pytest.mark.parametrize(
    ("sampler", "at", "speedup"),
    [("dpmpp_2m", 0.6, 3.0), ("dpmpp_2m", 0.6, 1.5), ("euler", 0.35, 3.0), ("euler", 0.35, 2.0)],
    ids=str,
)
def test_a_prompt_that_changes_on_the_way(comfy, demo_scene, sampler, at, speedup):
    """Catches a gain that was learnt before the change: up to 6 dB less, and further off than `reuse` by as much."""
    sample = changing(comfy, demo_scene, sampler, at)
    plain = sample()
    closeness = [
        psnr(sample(target_speedup=speedup, predictor=predictor), plain) for predictor in ("forecast", "reuse")
    ]
    assert closeness[0] > closeness[1] - 2, closeness


@pytest.mark.parametrize(("at", "dB"), [(0.35, 28), (0.6, 29)])
def test_a_budget_foresees_where_a_prompt_changes(comfy, demo_scene, at, dB):
    """Catches evaluations that are spent right before the change, or are missing after it: 19 dB for 33 at 0.6."""
    sample = changing(comfy, demo_scene, "euler", at)
    assert psnr(sample(target_speedup=1.5), sample()) > dB
