"""Habits of guiders and samplers that a cache must not trip over: the order in which they ask, what they make anew,
exchange or overwrite between evaluations, and what they leave out.
"""

import copy
import functools
import json
import logging
import threading
import uuid
from collections.abc import Callable
from typing import NamedTuple

import pytest
import tiny_models
import torch
from closeness import psnr
from sampling import (
    STEPS,
    THRESHOLD,
    THRESHOLD_OR_BUDGET,
    answering_by_prompt,
    ask,
    away_from,
    both,
    check_counts,
    direct,
    guiding,
    log_of,
    pair,
    plain_prompt,
    schedule,
    uncached,
)

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = dict(target_speedup=2.0)
PROMPTS = {"positive": plain_prompt(0.5), "negative": plain_prompt(-0.5)}
AT = STEPS // 2  # where something is exchanged


def counting(predict, conds=PROMPTS):
    """make_guider for guiders whose predict(guider, step, x, timestep, options) knows the step, from 0."""

    def make_guider(model):
        def numbered(guider, x, timestep, options):
            guider.step += 1
            return predict(guider, guider.step, x, timestep, options)

        guider = guiding(model, copy.deepcopy(conds), numbered)
        guider.step = -1
        return guider

    return make_guider


def guided(guider, x, timestep, options, conds=None):
    from comfy.samplers import sampling_function

    conds = conds or guider.conds
    return sampling_function(guider.inner_model, x, timestep, conds["negative"], conds["positive"], 2.0, options)


def test_positive_and_negative_change_places(tiny, run):
    """Each is asked in a call of its own, at every other step in the other order. Catches two histories of half the
    evaluations each: as many are computed, and the result is far off.
    """
    scene = tiny("Flux")

    def predict(names_at):
        def predict(guider, step, x, timestep, options):
            answers = {name: ask(guider, [name], x, timestep, options)[0] for name in names_at(step)}
            return answers["negative"] + 2.0 * (answers["positive"] - answers["negative"])

        return counting(predict)

    in_order = predict(lambda step: ["positive", "negative"])
    in_turn = predict(lambda step: ["positive", "negative"][:: -1 if step % 2 else 1])
    for widgets in (dict(threshold=0.15, warmup_steps=2), HALF, dict(HALF, predictor="reuse")):
        ordered = run(scene, in_order, patch=answering_by_prompt, **widgets)
        turned = run(scene, in_turn, patch=answering_by_prompt, **widgets)
        assert turned.calls == ordered.calls and turned.calls.total() < 2 * STEPS * 0.7
        assert psnr(turned.latent, ordered.latent) > 60, widgets


@pytest.mark.parametrize("anew", ["their holders", "their tensors", "all but their values"])
def test_conditionings_are_made_anew_for_each_call(tiny, run, anew):
    """With the same values. Catches a speed-up of nothing, a budget that is not kept, and a log that blames the
    settings for it.
    """
    scene = tiny("Flux")

    def again(part):
        held = {name: copy.copy(one) for name, one in part["model_conds"].items()}
        for one in held.values() if anew != "their holders" else ():
            one.cond = one.cond.clone() if isinstance(one.cond, torch.Tensor) else one.cond
        return {**part, "model_conds": held, "uuid": uuid.uuid4() if anew == "all but their values" else part["uuid"]}

    def predict(guider, step, x, timestep, options):
        conds = {name: [again(part) for part in cond] for name, cond in guider.conds.items()}
        return guided(guider, x, timestep, options, conds)

    plain = uncached(run, scene, counting(predict), patch=answering_by_prompt)
    for widgets in (dict(threshold=0.3, warmup_steps=2), HALF):
        cached = run(scene, counting(predict), patch=answering_by_prompt, **widgets)
        check_counts(cached, plain.calls)
        assert len(cached.levels) <= STEPS * 0.7 and psnr(cached.latent, plain.latent) > 10
    assert len(cached.levels) == STEPS / 2


def test_prompts_of_words_that_are_made_anew_for_each_call(comfy, demo_scene, run):
    """The demo model's words are vectors of one number and 4095 zeros, and two prompts take turns. Catches two prompts
    that look alike, as samples of both are zero and their sums are equal: 7 dB, and nothing skipped by a threshold.
    """
    other = comfy.node("EasyCacheDemoModel", "rocket", "meadow", "zoom-out", 1)[1]

    def predict(guider, step, x, timestep, options):
        conds = {name: [{**part, "uuid": uuid.uuid4()} for part in cond] for name, cond in guider.conds.items()}
        conds["positive"] = conds["other"] if step % 2 else conds["positive"]
        return guided(guider, x, timestep, options, conds)

    make_guider = counting(predict, {**pair(demo_scene), "other": other})
    plain = run(demo_scene, make_guider)
    for widgets in (dict(threshold=0.2, warmup_steps=3), HALF):
        cached = run(demo_scene, make_guider, **widgets)
        assert cached.report["skipped"] and psnr(cached.latent, plain.latent) > 15, widgets


def exchanged(kind):
    """(patch, predict): from step AT on the network is asked something else, which only `kind` tells."""

    class Strength:
        def __init__(self, strength):
            self.strength = strength

        def __call__(self, network, given):
            return inner(network, given) * self.strength

    def inner(network, given):
        answer = network(given["input"], given["timestep"], **given["c"])
        return answer * getattr(given["c"]["transformer_options"].get("factor"), "mean", lambda: 1.0)()

    factors = [torch.tensor([1.0]), torch.tensor([3.0])]
    wrappers = [Strength(1.0), Strength(3.0)]

    def patch(model):
        if kind.startswith("a prompt"):
            return answering_by_prompt(model)
        model = model.clone()
        model.set_model_unet_function_wrapper(Strength(1.0))
        return model

    def predict(guider, step, x, timestep, options):
        late = step >= AT
        held = guider.conds["positive"][0]["model_conds"]["c_crossattn"]
        if kind == "a tensor in the options":
            factor = {"factor": factors[late]}
            options = {**options, "transformer_options": {**options["transformer_options"], **factor}}
        elif kind == "the wrapper's closure":
            options = {**options, "model_function_wrapper": wrappers[late]}
        elif kind == "the wrapper's strength":
            options["model_function_wrapper"].strength = 3.0 if late else 1.0
        elif kind == "a prompt in its holder" and step == AT:
            held.cond = held.cond * -2
        elif kind == "a prompt, overwritten" and step == AT:
            held.cond = held.cond.mul_(-2)
        return guided(guider, x, timestep, options)

    return patch, predict


KINDS = [
    "a tensor in the options", "the wrapper's closure", "the wrapper's strength", "a prompt in its holder",
    "a prompt, overwritten",
]  # fmt: skip


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_something_is_exchanged_between_evaluations(tiny, run, kind, mode):
    """Catches the step after that, predicted from before; also in the mode that ComfyUI's server samples in, in which
    no version of a tensor tells that it was overwritten.
    """
    with mode():
        check_exchanged(tiny("Flux"), run, *exchanged(kind))


def check_exchanged(scene, run, patch, predict):
    plain = uncached(run, scene, counting(predict), patch=patch)
    for widgets in (dict(threshold=1.0, warmup_steps=2), HALF):
        cached = run(scene, counting(predict), patch=patch, **widgets)
        assert plain.levels[AT] in cached.levels, widgets
        assert len(cached.levels) <= STEPS * 0.7


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_prompt_that_is_overwritten_in_each_step(tiny, run, mode):
    """By noise of its own, say. Catches a speed-up of nothing where a prompt only moves on."""
    scene = tiny("Flux")

    def predict(guider, step, x, timestep, options):
        guider.conds["positive"][0]["model_conds"]["c_crossattn"].cond.mul_(1.01)
        return guided(guider, x, timestep, options)

    with mode():
        plain = uncached(run, scene, counting(predict), patch=answering_by_prompt)
        for widgets in (dict(threshold=0.3, warmup_steps=2), HALF):
            cached = run(scene, counting(predict), patch=answering_by_prompt, **widgets)
            assert len(cached.levels) <= STEPS * 0.7 and psnr(cached.latent, plain.latent) > 15, widgets


@pytest.mark.parametrize("apart", [False, True], ids=["in one call", "in a call each"])
@pytest.mark.parametrize("past_predict_noise", [False, True])
def test_a_sampler_that_overwrites_its_latent_and_its_noise_level(tiny, run, past_predict_noise, apart):
    """Catches a run of one evaluation, to which all calls belong, and in which nothing is skipped."""
    scene = tiny("Flux")

    @torch.no_grad()
    def in_place(model, x, sigmas, extra_args=None, callback=None, disable=None):
        x, timestep = x.clone(), x.new_ones([len(x)])
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = model(x, timestep.fill_(float(sigma)), **extra_args)
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x.add_((following - sigma) * (x - denoised) / sigma)
        return x

    def predict(guider, x, timestep, options):
        calls = [["positive"], ["negative"]] if apart else [["positive", "negative"]]
        cond, uncond = [answer for names in calls for answer in ask(guider, names, x, timestep, options)]
        return uncond + 4.0 * (cond - uncond)

    make_guider = functools.partial(direct, scene=scene, predict=predict, past_predict_noise=past_predict_noise)
    plain, cached = uncached(run, scene, make_guider, in_place), run(scene, make_guider, in_place, **HALF)
    check_counts(cached, plain.calls)
    assert cached.report["evaluations"] == STEPS and cached.report["computed"] == STEPS / 2
    assert psnr(cached.latent, plain.latent) > 20


@pytest.mark.parametrize("by", ["x", "what x is made of", "the prompt"])
@pytest.mark.parametrize("at", [range(STEPS), range(0, STEPS, 3)], ids=["always", "every third step"])
def test_a_guider_that_differentiates_through_the_network(tiny, run, caplog, at, by):
    """Catches the gradient of a prediction in place of the network's, and a run that dies as a prediction has none."""
    scene, gradients = tiny("SD15"), []

    def predict(guider, step, x, timestep, options):
        if step not in at:
            return guided(guider, x, timestep, options)
        before = len(scene.calls)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_(by != "the prompt")
            text = guider.conds["positive"][0]["model_conds"]["c_crossattn"]
            given, text.cond = text.cond, text.cond.detach().clone().requires_grad_(by == "the prompt")
            denoised = guided(guider, 1.0 * x if by == "what x is made of" else x, timestep, options)
            (gradient,) = torch.autograd.grad(denoised.square().mean(), text.cond if by == "the prompt" else x)
            text.cond = given
        gradients.append(len(scene.calls) > before)
        if by == "the prompt":
            return (denoised + gradient.mean()).detach()
        return (denoised - 0.05 * x.numel() * gradient).detach()

    make_guider = counting(predict, pair(scene))
    plain = uncached(run, scene, make_guider)
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, **HALF)
    assert all(gradients) and psnr(cached.latent, plain.latent) > 20
    assert any("differentiates through" in line for line in log_of(caplog))
    assert len(cached.levels) == len(at) + (STEPS - len(at)) // 2


@torch.no_grad()
def by_its_derivative(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Steps of second order: the derivative of the answer along the step is carried through the network with it."""
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma * x.new_ones([len(x)]), **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        slope, step, change = (x - denoised) / sigma, following - sigma, 0.0
        if following > 0:

            def answer(latent, level):
                return model(latent, level * latent.new_ones([len(latent)]), **extra_args)

            _, change = torch.func.jvp(answer, (x, sigma), (slope, torch.ones_like(sigma)))
        x = x + step * slope - 0.5 * step**2 * change / sigma
    return x


@pytest.mark.parametrize("past_predict_noise", [False, True])
@THRESHOLD_OR_BUDGET
def test_a_sampler_that_carries_a_derivative_through_the_network(tiny, run, caplog, widgets, past_predict_noise):
    """With torch.func.jvp, where no tensor asks for a gradient. Catches the derivative of a prediction in place of the
    network's, and tensors of torch.func that outlive it.
    """
    scene = tiny("SD15")
    make_guider = functools.partial(direct, scene=scene, past_predict_noise=past_predict_noise)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # others have no forward mode
        plain = uncached(run, scene, make_guider, by_its_derivative)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cached = run(scene, make_guider, by_its_derivative, **widgets)
    assert plain.calls.total() == 2 * STEPS - 1
    assert f"{STEPS - 1} calls that the guider or sampler differentiates through were computed" in log_of(caplog)[-1]
    assert cached.report["evaluations"] == STEPS and cached.report["skipped"] > 0
    assert cached.calls.total() == STEPS - 1 + cached.report["computed"]
    assert psnr(cached.latent, plain.latent) > (40 if widgets == THRESHOLD else 15)


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


@pytest.mark.parametrize("cfg", [[4.0] * (STEPS // 2) + [2.0] * (STEPS // 2), torch.tensor([4.0, 2.0])], ids=type)
def test_guidance_of_other_strengths(tiny, run, cfg):
    """The guider's `cfg` is no number but one for each step, or a tensor. Catches a run that fails at its end, when
    all has been sampled.
    """
    scene = tiny("Flux")

    def make_guider(model):
        guider = counting(lambda guider, step, *asked: guided(guider, *asked))(model)
        guider.cfg = cfg
        return guider

    plain, cached = uncached(run, scene, make_guider), run(scene, make_guider, **HALF)
    assert cached.report["computed"] == STEPS / 2 and cached.report["closeness"] is None
    assert psnr(cached.latent, plain.latent) > 20


@pytest.mark.parametrize("windows", [False, True], ids=["whole", "in windows"])
@pytest.mark.parametrize("widgets", [dict(threshold=0.15, warmup_steps=2), HALF], ids=["threshold", "budget"])
def test_options_that_are_copied_deeply(comfy, tiny, run, windows, widgets):
    """A patch asks the positive once more, with a deep copy of the options. Catches a copy of the whole run, network
    and cache, which knows of nothing; one of all reports before; and with windows a RecursionError.
    """
    scene, latent = tiny("WAN21_T2V"), {"samples": torch.zeros(1, 16, 7, 8, 8)}

    def again(given):
        from comfy.samplers import calc_cond_batch

        options = copy.deepcopy(given["model_options"])
        assert options["transformer_options"]["wrappers"] == given["model_options"]["transformer_options"]["wrappers"]
        options["transformer_options"]["again"] = True
        (more,) = calc_cond_batch(given["model"], given["conds"][:1], given["input"], given["timestep"], options)
        return [given["conds_out"][0] * 1.2 - more * 0.2, *given["conds_out"][1:]]

    def patch(model):
        model = model.clone()
        model.set_model_sampler_pre_cfg_function(again)
        given = dict(context_length=4, context_overlap=2, context_schedule="standard_static", context_stride=1,
                     closed_loop=False, fuse_method="pyramid", dim=2)  # fmt: skip
        return comfy.node("ContextWindowsManual", model, **given)[0] if windows else model

    make_guider = functools.partial(direct, scene=scene, past_predict_noise=False)
    try:
        copy.deepcopy(scene.model.model.model_config)
    except TypeError:
        if windows:  # ComfyUI's handler holds it
            pytest.skip("this ComfyUI's own windows cannot be copied")
    plain = uncached(run, scene, make_guider, patch=patch, latent=latent)
    cached = run(scene, make_guider, patch=patch, latent=latent, **widgets)
    check_counts(cached, plain.calls)
    assert cached.report["evaluations"] == STEPS and cached.report["computed"] < STEPS * 0.7
    assert psnr(cached.latent, plain.latent) > 20


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


@torch.no_grad()
def with_a_clean_row(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's method; the first row of the batch is a picture for reference, and stays at a low noise level."""
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        x = torch.cat([torch.zeros_like(x[:1]), x[1:]])
        denoised = model(x, torch.stack([sigmas[-2] / 10, *[sigma] * (len(x) - 1)]), **extra_args)
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


@THRESHOLD_OR_BUDGET
def test_rows_with_noise_levels_of_their_own(tiny, run, widgets):
    """Catches every step taken for the last one, as one row is at the end already: a speed-up of nothing."""
    scene = tiny("Flux")
    latent = {"samples": torch.cat([scene.latent["samples"]] * 2)}
    make_guider = functools.partial(direct, scene=scene, past_predict_noise=False)
    plain = uncached(run, scene, make_guider, with_a_clean_row, latent=latent)
    cached = run(scene, make_guider, with_a_clean_row, latent=latent, **widgets)
    assert len(cached.report["trace"]) == STEPS and cached.report["computed"] <= STEPS * 0.7
    assert cached.report["trace"][-1]["computed"] and psnr(cached.latent, plain.latent) > 15


@pytest.mark.parametrize("habit", ["calls back twice per step", "takes more steps than it is given"])
def test_a_sampler_whose_steps_are_not_the_schedules(tiny, run, habit):
    """Catches the second half of a run that is computed, as its steps seem to be over."""
    scene = tiny("Flux")

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        if habit.startswith("takes"):
            sigmas = torch.cat([torch.linspace(float(sigmas[0]), float(sigmas[-2]), 3 * STEPS), sigmas[-1:]])
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = model(x, sigma * x.new_ones([len(x)]), **extra_args)
            for _ in range(1 + habit.startswith("calls")):
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    make_guider = functools.partial(direct, scene=scene, past_predict_noise=False)
    plain = uncached(run, scene, make_guider, sampler)
    cached = run(scene, make_guider, sampler, threshold=0.15, warmup_steps=2)
    assert cached.calls.total() < 0.7 * plain.calls.total() and cached.report["trace"][-1]["computed"]
    assert psnr(cached.latent, plain.latent) > 15


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
    """A sampler's way to turn its latent: there(x, step), and back again; None: for good. frames, width: of the latent;
    in those that it is rolled along it is not back within the run.
    """

    there: Callable
    back: Callable | None = None
    frames: int = 1
    width: int = STEPS + 2

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
    latent = {"samples": torch.zeros(1, channels, sampler.frames, 8, sampler.width)}
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


def test_a_patch_that_is_made_anew_for_each_call(tiny, run):
    """The network is asked once more with a layer that a function of the guider's own answers for. Catches another
    question at each step: a budget pays for the perturbed answer alone, and says that it computed a step.
    """
    scene = tiny("SD15")

    def perturbed(strength):
        def attention(q, k, v, extra_options, mask=None):
            return strength * v

        return attention

    def predict(guider, step, x, timestep, options):
        plain, layers = guided(guider, x, timestep, options), {"attn1": {("middle", 0): perturbed(0.5)}}
        given = {**options, "transformer_options": {**options["transformer_options"], "patches_replace": layers}}
        return away_from(plain, ask(guider, ["positive"], x, timestep, given))

    make_guider = counting(predict, pair(scene))
    plain, cached = uncached(run, scene, make_guider), run(scene, make_guider, **HALF)
    check_counts(cached, plain.calls)
    assert plain.calls.total() == 2 * STEPS and cached.calls.total() == STEPS


@pytest.mark.parametrize("often", [False, True], ids=["once", "at each step"])
def test_weights_are_changed_between_evaluations(tiny, run, caplog, often):
    """As by a callback that alters the strength of a LoRA. Catches the step after that, predicted from before, and a
    log that blames the threshold.
    """
    scene = tiny("Flux")
    weights = [one for one in scene.model.model.diffusion_model.parameters() if one.ndim > 1]
    before = [one.detach().clone() for one in weights]

    def scale(factor):
        for one, kept in zip(weights, before, strict=True):
            one.data.copy_(factor * kept)

    def predict(guider, step, x, timestep, options):
        scale(1 + 0.02 * step if often else 1.5 if step >= AT else 1)
        return guided(guider, x, timestep, options)

    try:
        plain = uncached(run, scene, counting(predict), patch=answering_by_prompt)
        with caplog.at_level(logging.INFO):
            cached = run(scene, counting(predict), patch=answering_by_prompt, threshold=1.0, warmup_steps=2)
        said = log_of(caplog)
        budget = run(scene, counting(predict), patch=answering_by_prompt, **HALF)
    finally:
        scale(1)
    if often:
        assert cached.report["skipped"] == 0 and "weights change at nearly every step" in said[-1]
    else:
        assert cached.report["skipped"] > 0
        for one in (cached, budget):
            assert plain.levels[AT] in one.levels


def test_weights_that_are_there_only_while_the_network_runs(tiny, run):
    """As where each block's are fetched for its call. Catches a run that ends in an error, as somebody looks at them
    meanwhile.
    """
    scene = tiny("Flux")
    network = scene.model.model.diffusion_model
    weights = [one for one in network.parameters() if one.ndim > 1]
    kept = [one.detach().clone() for one in weights]

    def fetch(*_):
        for one, whole in zip(weights, kept, strict=True):
            one.untyped_storage().resize_(whole.untyped_storage().size())
            one.data.copy_(whole)

    def drop(*_):
        for one in weights:
            one.untyped_storage().resize_(0)

    make_guider = counting(lambda guider, step, *call: guided(guider, *call))
    always = run(scene, make_guider, patch=answering_by_prompt, **HALF)
    hooks = network.register_forward_pre_hook(fetch), network.register_forward_hook(drop)
    try:
        at_times = run(scene, make_guider, patch=answering_by_prompt, **HALF)
        assert at_times.report["skipped"] > 0 and torch.equal(at_times.latent, always.latent)
    finally:
        fetch()
        for hook in hooks:
            hook.remove()


class Packed(torch.Tensor):
    """Quantised weights as packs hold them: bytes, under the shape of what they stand for."""

    @property
    def shape(self):
        return self.stands_for


def test_weights_that_are_packed(tiny, run):
    """And are unpacked for each call. Catches an error where somebody looks at them, and a change of weights that is
    none, as they lie elsewhere each time.
    """
    scene = tiny("Flux")
    owners = [(one, name) for one in scene.model.model.diffusion_model.modules()
              for name, weight in one.named_parameters(recurse=False) if weight.ndim > 1]  # fmt: skip
    kept = [owner._parameters[name] for owner, name in owners]

    def pack():
        for (owner, name), one in zip(owners, kept, strict=True):
            packed = one.detach().clone().view(-1).view(torch.uint8).as_subclass(Packed)
            packed.stands_for = one.shape
            owner._parameters[name] = torch.nn.Parameter(packed, requires_grad=False)

    def unpack():
        for (owner, name), one in zip(owners, kept, strict=True):
            owner._parameters[name] = one

    def patch(model):
        def wrapper(network, given):
            unpack()
            answer = inner(network, given)
            pack()
            return answer

        model = answering_by_prompt(model)
        inner = model.model_options["model_function_wrapper"]
        model.set_model_unet_function_wrapper(wrapper)
        return model

    make_guider = counting(lambda guider, step, *call: guided(guider, *call))
    plain = run(scene, make_guider, patch=answering_by_prompt, **HALF)
    try:
        pack()
        packed = run(scene, make_guider, patch=patch, **HALF)
    finally:
        unpack()
    assert packed.report["skipped"] and packed.calls == plain.calls and torch.equal(packed.latent, plain.latent)


def test_a_guider_that_asks_from_threads(tiny, run):
    """One for the positive, one for the negative, at once. Catches a run that fails as each finds what the other one
    has half done.
    """
    scene = tiny("Flux")

    def predict(guider, step, x, timestep, options):
        answers = {}

        def answer(name):
            with torch.inference_mode():
                answers[name] = ask(guider, [name], x, timestep, options)[0]

        threads = [threading.Thread(target=answer, args=(name,)) for name in ("positive", "negative")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers["negative"] + 2.0 * (answers["positive"] - answers["negative"])

    plain = uncached(run, scene, counting(predict), patch=answering_by_prompt)
    for widgets in (HALF, dict(HALF, predictor="reuse")):
        cached = run(scene, counting(predict), patch=answering_by_prompt, **widgets)
        check_counts(cached, plain.calls)
        assert cached.report["computed"] == STEPS / 2 and psnr(cached.latent, plain.latent) > 10


def test_a_sampler_whose_latent_changes_its_type(tiny, run):
    """From step to step. Catches a cache that starts anew each time, and a log that blames the threshold for it."""
    scene = tiny("Flux")

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            given = x.double() if i % 2 else x
            denoised = model(given, sigma * x.new_ones([len(x)]), **extra_args).to(x.dtype)
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    make_guider = functools.partial(direct, scene=scene, past_predict_noise=False)
    plain = uncached(run, scene, make_guider, sampler)
    for predictor in ("forecast", "reuse"):
        cached = run(scene, make_guider, sampler, predictor=predictor, threshold=0.15, warmup_steps=2)
        assert cached.report["computed"] <= STEPS * 0.7 and psnr(cached.latent, plain.latent) > 10


@pytest.mark.parametrize("widgets", [HALF, dict(HALF, predictor="reuse"), dict(threshold=0.15, warmup_steps=2)])
def test_calls_that_a_number_tells_apart(tiny, run, widgets):
    """The positive is asked twice, and only a number in the options says which time it is. Catches answers that are not
    found at the second evaluation, when that is known: it is computed off the plan (1 to 3 dB on the demo model).
    """
    scene = tiny("Flux")

    def asking(marks):
        def predict(guider, step, x, timestep, options):
            def marked(name, x, mark):
                given = {**options, "transformer_options": {**options["transformer_options"], **mark}}
                return ask(guider, [name], x, timestep, given)[0]

            names, latents = ["positive", "negative", "positive"], [x, x, 0.9 * x]
            cond, uncond, other = map(marked, names, latents, marks)
            return uncond + 2.0 * (cond - uncond) + 0.5 * (cond - other)

        return counting(predict)

    by_switch, by_number = (run(scene, asking(marks), patch=answering_by_prompt, **widgets)
                            for marks in ([{}, {}, {"weak": True}], [{"call": i} for i in range(3)]))  # fmt: skip
    assert by_number.report == by_switch.report and by_number.report["skipped"] > 0
    assert torch.equal(by_number.latent, by_switch.latent)


@pytest.mark.parametrize("phase", [lambda step: step == 0, lambda step: "late" if step > AT else "early"],
                         ids=["at the first step", "in the second half"])  # fmt: skip
@pytest.mark.parametrize("predictor", ["forecast", "reuse"])
def test_a_switch_in_the_options_that_changes_for_good(tiny, run, phase, predictor):
    """Catches another beginning from there on, with a budget of its own: one evaluation more than it allows, and where
    they are is not where they are worth most (5 to 8 dB on the demo model).
    """
    scene = tiny("Flux")

    def asking(mark):
        def predict(guider, step, x, timestep, options):
            given = {**options, "transformer_options": {**options["transformer_options"], "phase": mark(step)}}
            return guided(guider, x, timestep, given)

        return counting(predict)

    plain = uncached(run, scene, asking(phase), patch=answering_by_prompt)
    cached = run(scene, asking(phase), patch=answering_by_prompt, **HALF, predictor=predictor)
    check_counts(cached, plain.calls)
    assert cached.report["computed"] == STEPS / 2 and psnr(cached.latent, plain.latent) > 10


def test_a_switch_in_the_options_that_changes_to_and_fro(tiny, run):
    """At every step. Catches two questions that are taken for one that changes: nothing is skipped."""
    scene = tiny("Flux")

    def predict(guider, step, x, timestep, options):
        given = {**options, "transformer_options": {**options["transformer_options"], "odd": bool(step % 2)}}
        return guided(guider, x, timestep, given)

    plain = uncached(run, scene, counting(predict), patch=answering_by_prompt)
    cached = run(scene, counting(predict), patch=answering_by_prompt, threshold=1.0, warmup_steps=2)
    check_counts(cached, plain.calls)
    assert cached.report["computed"] < STEPS * 0.8 and psnr(cached.latent, plain.latent) > 10


def test_a_latent_in_bfloat16(comfy, tiny, run):
    """The sampler's noise levels are then rounded, by up to one in 256. Catches a plan and a correction that are given
    up, as if it did not keep to its schedule (heun on the demo model: 46.5 dB for 51.9), and no estimate of closeness.
    """
    scene, patterns = tiny("Flux"), []
    samples = torch.randn(scene.latent["samples"].shape, generator=torch.Generator().manual_seed(2))

    def make_guider(model):
        return comfy.node("CFGGuider", model, scene.positive, scene.negative, 4.0)[0]

    for dtype in (torch.float32, torch.bfloat16):
        cached = run(scene, make_guider, "heun", latent={"samples": samples.to(dtype)}, **HALF)
        assert cached.report["closeness"] is not None
        patterns.append([record["computed"] for record in cached.report["trace"]])
    assert patterns[0] == patterns[1]


def test_a_callback_that_writes_to_what_it_is_given(comfy, tiny):
    """As some previews do. Catches an estimate of closeness by what they left of the picture."""
    import comfy.samplers as samplers

    scene = tiny("SD15")

    def writing(step, denoised, x, steps):
        denoised.mul_(0.01)

    reports = []
    for callback in (None, writing):
        model = comfy.cached(scene.model, **HALF)
        guider = comfy.node("CFGGuider", model, scene.positive, scene.negative, 4.0)[0]
        noise = comfy.node("RandomNoise", 5)[0].generate_noise(scene.latent)
        sampler, sigmas = samplers.sampler_object("euler"), schedule(comfy, scene)
        latent = guider.sample(noise, scene.latent["samples"], sampler, sigmas, callback=callback, seed=5)
        reports.append(json.loads(comfy.node("EasyCacheReport", model, {"samples": latent})[2]))
    assert reports[0]["closeness"] is not None
    assert reports[0] == reports[1]


@pytest.mark.parametrize("widgets", [dict(threshold=0.15, warmup_steps=2), HALF], ids=["threshold", "budget"])
@pytest.mark.parametrize("ours", ["after it", "before it"])
@pytest.mark.parametrize("held", ["options", "model"])
def test_options_that_a_patch_copied_before_the_run(comfy, tiny, caplog, held, ours, widgets):
    """It asks the positive once more with them, in another way, and guidance amplifies the difference. Catches an
    answer that is computed beside one that is predicted, without a word where our node comes after the patch.
    """
    from comfy.model_patcher import set_model_options_patch_replace

    scene = tiny("SD15")

    def patch(model):
        model = model.clone()
        options = copy.deepcopy(model.model_options)

        def double(q, k, v, extra):
            from comfy.ldm.modules.attention import optimized_attention

            return 2 * optimized_attention(q, k, v, extra["n_heads"])

        def again(given):
            from comfy.samplers import calc_cond_batch

            asked = copy.deepcopy(options if held == "options" else model.model_options)
            asked = set_model_options_patch_replace(asked, double, "attn1", "middle", 0)
            (more,) = calc_cond_batch(given["model"], [given["input_cond"]], given["input"], given["timestep"], asked)
            return given["input"] - (given["cond_denoised"] + 12 * (given["cond_denoised"] - more))

        model.set_model_sampler_cfg_function(again)
        return model

    def sample(**widgets):
        model = comfy.cached(scene.model, **widgets) if widgets and ours == "before it" else scene.model
        model = patch(model)
        model = comfy.cached(model, **widgets) if widgets and ours == "after it" else model
        return scene.counting(lambda: comfy.sample(scene, model, steps=STEPS)), model

    ((plain, everywhere), _), asked = sample(), len(scene.calls)
    assert torch.equal(sample(threshold=0.0)[0][0], plain)
    (cached, computed), model = sample(**widgets)
    assert asked == 2 * STEPS == 2 * len(everywhere)
    assert len(scene.calls) == 2 * len(computed) < 2 * STEPS
    assert psnr(cached, plain) > 25
    assert not any("past" in line for line in log_of(caplog))
    assert "calc_cond_batch" not in model.model_options["transformer_options"]["wrappers"], "the run has ended"


def test_options_that_a_patch_holds_are_used_for_another_run(comfy, tiny, run):
    """A patch holds a second model, and somebody samples with that one between two evaluations. Catches an answer to
    one run that is given to the other.
    """
    scene, second, others = tiny("SD15"), tiny_models.build("SD15", seed=1), []

    def patch(model):
        held = second.model

        def guide(given):
            assert held is second.model
            return given["input"] - (given["cond_denoised"] + 3 * (given["cond_denoised"] - given["uncond_denoised"]))

        model = model.clone()
        model.set_model_sampler_cfg_function(guide)
        return model

    @torch.no_grad()
    def sampler(network, x, sigmas, extra_args=None, callback=None, disable=None):
        one = x.new_ones([len(x)])
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = network(x, sigma * one, **extra_args)
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            others.append(comfy.sample(second, steps=2, seed=i))
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    make_guider = functools.partial(direct, scene=scene, past_predict_noise=False)
    plain = run(scene, make_guider, sampler, patch=patch)
    alone = [*others]
    others.clear()
    cached = run(scene, make_guider, sampler, patch=patch, **HALF)
    assert all(map(torch.equal, others, alone)) and cached.report["evaluations"] == STEPS
    assert psnr(cached.latent, plain.latent) > 15
