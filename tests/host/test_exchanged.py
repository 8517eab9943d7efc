"""What is asked, or what answers it, is exchanged, overwritten or made anew from evaluation to evaluation."""

import copy
import functools
import json
import types
import uuid

import numpy as np
import pytest
import torch
from closeness import psnr
from sampling import (
    HALF,
    MIDWAY,
    STEPS,
    answering_by_prompt,
    ask,
    away_from,
    check_counts,
    counting,
    direct,
    guided,
    pair,
    schedule,
    uncached,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
    """(patch, predict): from step MIDWAY on the network is asked something else, which only `kind` tells."""

    class Strength:
        def __init__(self, strength):
            self.strength = strength

        def __call__(self, network, given):
            return inner(network, given) * self.strength

    def inner(network, given):
        answer = network(given["input"], given["timestep"], **given["c"])
        factor = given["c"]["transformer_options"].get("factor", 1.0)
        factor = getattr(factor, "factor", factor)
        return answer * float(torch.as_tensor(factor).flatten()[0])

    factors = [torch.tensor([1.0]), torch.tensor([3.0])]
    wrappers = [Strength(1.0), Strength(3.0)]
    settings = types.SimpleNamespace()

    def in_the_options(step):
        settings.factor = 3.0 if step >= MIDWAY else 1.0
        return {
            "a tensor in the options": factors[step >= MIDWAY],
            "a number that was raised before": settings.factor + 0.02 * min(step, 3),
            "a tensor made anew": torch.full((3,), settings.factor),
            "a large tensor made anew": torch.full((1000,), settings.factor),
            "an array made anew": np.full(3, settings.factor, dtype="float32"),
            "a number for each frame": [settings.factor] * 81,
            "an object's attribute": settings,
        }[kind]

    def patch(model):
        if kind.startswith("a prompt"):
            return answering_by_prompt(model)
        model = model.clone()
        model.set_model_unet_function_wrapper(Strength(1.0))
        return model

    def predict(guider, step, x, timestep, options):
        late = step >= MIDWAY
        held = guider.conds["positive"][0]["model_conds"]["c_crossattn"]
        if kind in IN_THE_OPTIONS:
            factor = {"factor": in_the_options(step)}
            options = {**options, "transformer_options": {**options["transformer_options"], **factor}}
        elif kind == "the wrapper's closure":
            options = {**options, "model_function_wrapper": wrappers[late]}
        elif kind == "the wrapper's strength":
            options["model_function_wrapper"].strength = 3.0 if late else 1.0
        elif kind == "a prompt in its holder" and step == MIDWAY:
            held.cond = held.cond * -2
        elif kind == "a prompt made anew":
            held.cond = held.cond * (-2 if step == MIDWAY else 1)
        elif kind == "a prompt, overwritten" and step == MIDWAY:
            held.cond = held.cond.mul_(-2)
        return guided(guider, x, timestep, options)

    return patch, predict


KINDS = [
    "the wrapper's closure", "the wrapper's strength", "a prompt in its holder", "a prompt, overwritten",
    "a prompt made anew",
]  # fmt: skip
IN_THE_OPTIONS = [
    "a tensor in the options", "a number that was raised before", "a tensor made anew", "a large tensor made anew",
    "an array made anew", "a number for each frame", "an object's attribute",
]  # fmt: skip


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS + IN_THE_OPTIONS)
def test_something_is_exchanged_between_evaluations(tiny, run, kind, mode):
    """Catches the step after that, predicted from before; also in the mode that ComfyUI's server samples in, in which
    no version of a tensor tells that it was overwritten. What was made anew for each call, or moved before, tells it,
    too.
    """
    with mode():
        check_exchanged(tiny("Flux"), run, *exchanged(kind))


ODD = {
    "sparse": lambda: torch.eye(40).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(300), torch.ones(200)]),
    "complex": lambda: torch.ones(300, dtype=torch.complex64),
    "8 bits": lambda: torch.eye(40).to(torch.float8_e4m3fn),
    "quantised": lambda: torch.quantize_per_tensor(torch.eye(40), 0.1, 0, torch.quint8),
    "without memory": lambda: torch.empty(40, 40, device="meta"),
    "several in a byte": lambda: torch.empty(40, 40, dtype=torch.bits8),
}


@pytest.mark.parametrize("made", ODD)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*quantize:UserWarning")
def test_tensors_of_other_kinds_that_are_made_anew(tiny, run, made):
    """Catches a run that fails as some elements of what a pack keeps in the options are to be looked at."""

    def predict(guider, step, x, timestep, options):
        options = {**options, "transformer_options": {**options["transformer_options"], "mask": ODD[made]()}}
        return guided(guider, x, timestep, options)

    cached = run(tiny("Flux"), counting(predict), **HALF)
    assert len(cached.levels) <= STEPS * 0.7


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", [*ODD, "a dict that holds itself"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*quantize:UserWarning")
def test_what_a_conditioning_holds_of_other_kinds(tiny, run, kind, mode):
    """Parts that are prepared for each call are known by what they hold. Catches a run that fails as that cannot be
    read, or has no end.
    """
    with mode():
        held = ODD[kind]() if kind in ODD else {"strength": 1.0}
        if kind not in ODD:
            held["again"] = [held]

        def predict(guider, step, x, timestep, options):
            names = dict(guider.conds)
            conds = {name: [{**part, "pack": held, "uuid": uuid.uuid4()} for part in names[name]] for name in names}
            return guided(guider, x, timestep, options, conds)

        cached = run(tiny("Flux"), counting(predict), **HALF)
        assert len(cached.levels) <= STEPS * 0.7


def check_exchanged(scene, run, patch, predict):
    plain = uncached(run, scene, counting(predict), patch=patch)
    for widgets in (dict(threshold=1.0, warmup_steps=2), HALF):
        cached = run(scene, counting(predict), patch=patch, **widgets)
        assert plain.levels[MIDWAY] in cached.levels, widgets
        assert len(cached.levels) <= STEPS * 0.7


@pytest.mark.parametrize("how", ["overwritten", "made anew"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_prompt_that_is_overwritten_in_each_step(tiny, run, mode, how):
    """By noise of its own, say. Catches a speed-up of nothing where a prompt only moves on."""
    scene = tiny("Flux")

    def predict(guider, step, x, timestep, options):
        held = guider.conds["positive"][0]["model_conds"]["c_crossattn"]
        held.cond = held.cond.mul_(1.01) if how == "overwritten" else held.cond * 1.01
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


@pytest.mark.parametrize("phase", [lambda step: step == 0, lambda step: "late" if step > MIDWAY else "early"],
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


@pytest.mark.parametrize("matters", [False, True])
def test_a_number_in_the_options_that_alternates(tiny, run, matters):
    """From one evaluation to the next, as the number of a look within a step does. Catches a threshold that skips
    nothing where it only tells which look it is, or one that skips as much where the answer goes by it.
    """
    scene = tiny("Flux")

    def wrapper(network, given):
        look = given["c"]["transformer_options"].get("look", 0)
        return network(given["input"], given["timestep"], **given["c"]) * (1.0 + 0.5 * look * matters)

    def patch(model):
        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return model

    def predict(guider, step, x, timestep, options):
        given = {**options, "transformer_options": {**options["transformer_options"], "look": step % 2}}
        return guided(guider, x, timestep, given)

    plain = uncached(run, scene, counting(predict), patch=patch)
    cached = run(scene, counting(predict), patch=patch, threshold=0.15, warmup_steps=2)
    assert psnr(cached.latent, plain.latent) > 35
    assert (cached.report["skipped"] > STEPS / 4) == (not matters)
