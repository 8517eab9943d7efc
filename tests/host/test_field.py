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

    sampler: a name, a function as k-diffusion has them, or a SAMPLER.
    """

    def run(scene, make_guider, sampler="euler", sigmas=None, latent=None, patch=None, **widgets):
        import comfy.samplers as samplers

        model = patch(scene.model) if patch else scene.model
        model = comfy.cached(model, **widgets) if widgets else model
        sigmas = schedule(comfy, scene) if sigmas is None else sigmas
        if not isinstance(sampler, samplers.Sampler):
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


def uncached(run, *args, **options):
    """The run without the node, which is bit-identical to one with threshold 0."""
    plain = run(*args, **options)
    exact = run(*args, **options, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent)
    return plain


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


# What is asked changes on the way.


def plain_prompt(value):
    """A conditioning that `answering_by_prompt` adds to the denoised latent."""
    return [[torch.full((1, 6, 48), float(value)), {"pooled_output": torch.zeros(1, 32)}]]


def answering_by_prompt(model):
    """Networks this small hardly listen to a prompt. With this, answers to two prompts lie far apart."""

    def wrapper(network, given):
        output = network(given["input"], given["timestep"], **given["c"])
        return output + given["c"]["c_crossattn"].mean((1, 2)).view(-1, *[1] * (output.ndim - 1))

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


class Asking:
    """Asks for a guider, and notes the answers that came without the network beside what it would have answered."""

    def __init__(self, scene):
        self._scene = scene
        self.predicted = []  # (name, its answer, the network's answers to all names by name)

    def __call__(self, guider, names, x, timestep, options):
        calls = self._scene.calls
        before = len(calls)
        answers = ask(guider, names, x, timestep, options)
        if len(calls) == before:
            truths = {name: ask_past_the_cache(guider, [name], x, timestep, options)[0] for name in guider.conds}
            del calls[before:]
            self.predicted += [(name, answer, truths) for name, answer in zip(names, answers, strict=True)]
        return answers

    def check(self, *names):
        """Each of these was predicted at times, always near to its own answer, and nearer to that than to another."""
        assert {name for name, _, _ in self.predicted} == set(names)
        for name, answer, truths in self.predicted:
            errors = {other: relative(answer, truth) for other, truth in truths.items()}
            assert min(errors, key=errors.get) == name and errors[name] < 0.5, errors


@pytest.mark.parametrize("at_high_noise", [True, False])
@pytest.mark.parametrize("order", ["positive negative perturbed", "negative perturbed positive"])
def test_a_question_that_comes_or_goes_on_the_way(comfy, tiny, run, order, at_high_noise):
    """The negative is asked at high noise only, or at low noise only, in between the others. Catches questions
    that are told apart by the order in which they come: one is then answered with another one's past.
    """
    scene, sigmas = tiny("Flux"), schedule(comfy, tiny("Flux"))
    conds = {"positive": plain_prompt(0), "negative": plain_prompt(2), "perturbed": plain_prompt(-2)}
    middle = float(sigmas[8] + sigmas[9]) / 2
    asking = Asking(scene)

    def predict(guider, x, timestep, options):
        names = [n for n in order.split() if n != "negative" or (timestep[0] > middle) == at_high_noise]
        answers = {name: asking(guider, [name], x, timestep, options)[0] for name in names}
        return away_from(answers.pop("positive"), answers.values())

    make_guider = functools.partial(guiding, conds=conds, predict=predict)
    plain = uncached(run, scene, make_guider, patch=answering_by_prompt)
    cached = run(scene, make_guider, patch=answering_by_prompt, **SHORT_GAPS)
    asking.check(*conds)
    assert cached.calls.total() < 0.85 * plain.calls.total()
    assert len(cached.levels) <= cached.report["computed"] + 1, "it comes once"


@pytest.mark.parametrize("perturbed_by", ["a switch of its guider", "a switch in the options", "patched layers"])
def test_the_positive_is_asked_once_more_with_a_patched_network(comfy, tiny, run, perturbed_by):
    """The negative comes between the two at high noise only. Catches the perturbed answer in place of the other."""
    scene, sigmas = tiny("Flux"), schedule(comfy, tiny("Flux"))
    conds = {"positive": plain_prompt(1), "negative": plain_prompt(-1)}
    middle, asking, on = float(sigmas[8] + sigmas[9]) / 2, Asking(scene), []

    def patch(model):
        def wrapper(network, given):
            return inner(network, given) * (3.0 if on else 1.0)

        model = answering_by_prompt(model)
        inner = model.model_options["model_function_wrapper"]
        model.set_model_unet_function_wrapper(wrapper)
        return model

    def predict(guider, x, timestep, options):
        def perturbed():
            other = options["transformer_options"]
            if perturbed_by == "a switch in the options":
                other = {**other, "perturbing": True}
            elif perturbed_by == "patched layers":
                other = {**other, "patches_replace": {"attn1": {("middle", 0): lambda q, k, v, extra: v}}}
            on.append(1)
            answer = asking(guider, ["positive"], x, timestep, {**options, "transformer_options": other})[0]
            on.clear()
            return answer

        answers = [asking(guider, ["positive"], x, timestep, options)[0]]
        if timestep[0] > middle:
            answers += asking(guider, ["negative"], x, timestep, options)
        answers.append(perturbed())
        return away_from(answers[0], answers[1:])

    make_guider = functools.partial(guiding, conds=conds, predict=predict)
    plain, exact = run(scene, make_guider, patch=patch), run(scene, make_guider, patch=patch, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent)
    cached = run(scene, make_guider, patch=patch, **SHORT_GAPS)
    asking.check(*conds)
    check_counts(cached, plain.calls)
    assert len(cached.levels) < STEPS - 3


@pytest.mark.parametrize("names", [("positive", "negative", "empty"), ("one", "two", "three")], ids=str)
def test_a_list_in_another_order_in_each_step(tiny, run, names):
    """Three prompts in one call. Catches an answer for each place in the list, and not for each prompt."""
    scene = tiny("Flux")
    conds = dict(zip(names, map(plain_prompt, (0, 2, -2)), strict=True))
    asking, evaluations = Asking(scene), []

    def predict(guider, x, timestep, options):
        evaluations.append(1)
        turn = len(evaluations) % 3
        listed = names[turn:] + names[:turn]
        answers = dict(zip(listed, asking(guider, listed, x, timestep, options), strict=True))
        return away_from(answers[names[0]], [answers[name] for name in names[1:]])

    make_guider = functools.partial(guiding, conds=conds, predict=predict)
    plain = uncached(run, scene, make_guider, patch=answering_by_prompt)
    cached = run(scene, make_guider, patch=answering_by_prompt, **SHORT_GAPS)
    asking.check(*names)
    check_counts(cached, plain.calls)
    assert psnr(cached.latent, plain.latent) > 10


def test_the_same_question_to_two_networks(comfy, tiny, run):
    """The positive to a weak network, at high noise only, and then to the network itself. Catches the weak one's past
    as the answer of the other.
    """
    scene, weak = tiny("Flux"), tiny_models.build("Flux", seed=1)
    sigmas, conds = schedule(comfy, scene), {"positive": plain_prompt(1)}
    middle, asking = float(sigmas[8] + sigmas[9]) / 2, Asking(scene)

    def patch(model):
        def wrapper(network, given):
            answer = network(given["input"], given["timestep"], **given["c"])
            return answer + (1.0 if network.__self__ is scene.model.model else -3.0)

        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return model

    def predict(guider, x, timestep, options):
        from comfy.samplers import calc_cond_batch

        answers = []
        if timestep[0] > middle:
            weak.model.pre_run()
            answers += calc_cond_batch(weak.model.model, [guider.conds["positive"]], x, timestep, options)
            weak.model.cleanup()
        answers += asking(guider, ["positive"], x, timestep, options)
        return away_from(answers[-1], answers[:-1])

    make_guider = functools.partial(guiding, conds=conds, predict=predict)
    plain, exact = run(scene, make_guider, patch=patch), run(scene, make_guider, patch=patch, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent)
    weak.calls.clear()
    cached = run(scene, make_guider, patch=patch, **SHORT_GAPS)
    check_counts(cached, plain.calls)
    assert len(weak.calls) < 9, "it is cached, too"
    asking.check("positive")
    assert psnr(cached.latent, plain.latent) > 10


def test_a_prompt_that_is_made_anew_in_each_step(tiny, run, caplog):
    """Nothing known is asked, so all is computed. Catches an answer to what nobody asks any longer, and a log that
    blames the threshold.
    """
    scene = tiny("SD15")

    def predict(guider, x, timestep, options):
        for name, parts in guider.conds.items():
            guider.conds[name] = [{**part, "uuid": uuid.uuid4()} for part in parts]
        return away_from(
            *ask(guider, ["positive"], x, timestep, options), ask(guider, ["negative"], x, timestep, options)
        )

    make_guider = functools.partial(guiding, conds=pair(scene), predict=predict)
    plain = run(scene, make_guider)
    for widgets in (THRESHOLD, BUDGET):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cached = run(scene, make_guider, **widgets)
        assert torch.equal(cached.latent, plain.latent)
        check_counts(cached, plain.calls)
        (line,) = [line for line in log_of(caplog) if line.startswith("EasyCache: computed")]
        assert "Nothing was skipped" in line
        assert "raise threshold" not in line and "allows each of them" not in line, line


def test_a_negative_that_is_made_anew_in_each_step(tiny, run):
    """The positive stays. Catches steps that are reported as skipped and in which the network ran all the same."""
    scene = tiny("SD15")

    def predict(guider, x, timestep, options):
        guider.conds["negative"] = [{**part, "uuid": uuid.uuid4()} for part in guider.conds["negative"]]
        positive, negative = ask(guider, ["positive", "negative"], x, timestep, options)
        return away_from(positive, [negative])

    make_guider = functools.partial(guiding, conds=pair(scene), predict=predict)
    plain, cached = run(scene, make_guider), run(scene, make_guider, **THRESHOLD)
    assert torch.equal(cached.latent, plain.latent)
    check_counts(cached, plain.calls)


def test_more_sets_of_questions_than_are_kept(tiny, run, no_run_left):
    """Seven pairs of prompts take turns at each noise level. Catches a cache that grows with each of them, and an
    answer to one prompt from another one's past.
    """
    scene = tiny("Flux")
    conds = {f"prompt {i}": plain_prompt(i - 3) for i in range(7)}
    asking = Asking(scene)

    def predict(guider, x, timestep, options):
        name = f"prompt {guider.turn % 7}"
        guider.turn += 1
        return asking(guider, [name], x, timestep, options)[0]

    def make_guider(model):
        guider = guiding(model, conds, predict)
        guider.turn = 0
        return guider

    @torch.no_grad()
    def seven_per_level(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = sum(model(x, sigma * x.new_ones([len(x)]), **extra_args) for _ in range(7)) / 7
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    everything = dict(sampler=seven_per_level, patch=answering_by_prompt)
    plain, exact = run(scene, make_guider, **everything), run(scene, make_guider, **everything, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent) and exact.calls == plain.calls
    for widgets in (SHORT_GAPS, BUDGET):
        cached = run(scene, make_guider, **everything, **widgets)
        assert cached.report["evaluations"] == 7 * STEPS
        assert cached.report["computed"] == cached.calls.total()
        assert psnr(cached.latent, plain.latent) > 10
        assert no_run_left() == []
    for name, answer, truths in asking.predicted:
        errors = {other: relative(answer, truth) for other, truth in truths.items()}
        assert min(errors, key=errors.get) == name, errors


# Editing: two prompts take turns at one noise level.


def edit_in_turns(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The latent's picture is carried from the prompt "source" to the prompt "target", along the difference between
    what the two make of one noise, as flow-based editing does.
    """
    rng, start, options = torch.Generator().manual_seed(3), model.latent_image.clone(), extra_args["model_options"]
    edited, one = start.clone(), x.new_ones([len(x)])
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        source = (1 - sigma) * start + sigma * torch.randn(x.shape, generator=rng)
        points = {"source": source, "target": edited + source - start}
        towards = {}
        for name, point in points.items():
            options["transformer_options"]["prompt in turn"] = name
            towards[name] = (point - model(point, sigma * one, **extra_args)) / sigma
        edited = edited + (following - sigma) * (towards["target"] - towards["source"])
        if callback is not None:
            callback({"x": edited, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": edited})
    return edited


def test_two_prompts_that_take_turns(comfy, demo_scene, run):
    """Catches one past for both: the second prompt is then hardly ever asked, and the edit is lost."""
    from comfy.samplers import cfg_function

    scene, asked = demo_scene, Counter()
    _, target, target_negative, _ = comfy.node("EasyCacheDemoModel", "fox", "meadow", "still", 1)
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
        return run(scene, make_guider, torch.no_grad()(edit_in_turns), sigmas, latent, **widgets), dict(asked)

    sigmas = schedule(comfy, scene, 30)[4:]
    plain, everywhere = edit(sigmas)
    cached, computed = edit(sigmas, target_speedup=2.5)
    assert everywhere == {"source": 26, "target": 26}
    assert computed == {"source": 11, "target": 11}, "26 / 2.5, rounded up"
    assert cached.report["evaluations"] == 52 and cached.report["computed"] == 22
    assert psnr(cached.latent, plain.latent) > 20
    cached, computed = edit(sigmas, threshold=0.2, warmup_steps=5)
    assert 5 < computed["target"] < 26 and computed["target"] >= computed["source"] - 2
    assert psnr(cached.latent, plain.latent) > 10
    short = sigmas[::5]
    assert torch.equal(edit(short, threshold=0.0)[0].latent, edit(short)[0].latent)


# Parts of the latent.


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


@pytest.mark.parametrize(("cache_first", "past_predict_noise"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("moving", [False, True], ids=["fixed", "moving"])
def test_windows_of_another_pack(comfy, tiny, run, moving, cache_first, past_predict_noise):
    """Catches a window that is answered with another one's past, and windows under which nothing is skipped."""
    scene, latent = tiny("SD15"), {"samples": torch.zeros(8, 4, 8, 8)}

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


# A guider within a guider.


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


# Samplers with noise levels of their own.


@THRESHOLD_OR_BUDGET
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_a_sampler_with_a_schedule_of_its_own(comfy, tiny, run, caplog, name, widgets):
    """It is given [0, 0]. Catches a cache that takes this for the schedule: nothing is skipped, and the log blames the
    settings.
    """
    from comfy.k_diffusion.sampling import sample_euler

    scene = tiny(name)
    own = schedule(comfy, scene)

    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) * own[0]
        return sample_euler(model, x, own, extra_args, callback, disable)

    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain, exact = (run(scene, make_guider, sampler, torch.zeros(2), **given) for given in ({}, dict(threshold=0.0)))
    assert torch.equal(exact.latent, plain.latent)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, sampler, torch.zeros(2), **widgets)
    check_counts(cached, plain.calls)
    assert len(cached.levels) <= (math.ceil(STEPS / 4) if widgets == BUDGET else STEPS * 0.7)
    assert cached.report["steps"] == cached.report["evaluations"] == STEPS
    assert psnr(cached.latent, plain.latent) > 5
    assert sum("schedule of its own" in line for line in log_of(caplog)) == 1
    assert not any("Nothing was skipped" in line for line in log_of(caplog))


@torch.no_grad()
def restarting(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler steps; where the noise levels rise, noise is added and nothing is evaluated."""
    rng, one, step = torch.Generator().manual_seed(6), x.new_ones([len(x)]), 0
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        if following > sigma:
            kept = (1 - following) / (1 - sigma) if sigmas[0] <= 1 else 1.0
            added = (following**2 - (kept * sigma) ** 2).sqrt()
            x = kept * x + added * torch.randn(x.shape, generator=rng)
            continue
        denoised = model(x, sigma * one, **extra_args)
        step += 1
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


@pytest.mark.parametrize("widgets", [dict(threshold=0.1), BUDGET], ids=["threshold", "budget"])
@pytest.mark.parametrize("restarts", [1, 2, 4])
@pytest.mark.parametrize(("name", "low", "high"), [("SD15", 0.5, 2.0), ("Flux", 0.4, 0.7)])
def test_restarts(comfy, tiny, run, name, low, high, restarts, widgets):
    """The noise level rises again within a run. Catches rises that are counted as steps: the last evaluation, which
    draws the detail, is then predicted.
    """
    scene = tiny(name)
    sigmas = schedule(comfy, scene)
    at = int((sigmas > low).sum())
    sigmas = torch.cat([sigmas[: at + 1], *[torch.linspace(high, float(sigmas[at]), 4)] * restarts, sigmas[at + 1 :]])
    evaluations = STEPS + 3 * restarts
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain, cached = (run(scene, make_guider, restarting, sigmas, **given) for given in ({}, widgets))
    assert min(plain.levels) in cached.levels and cached.report["trace"][-1]["computed"]
    assert cached.report["steps"] == cached.report["evaluations"] == plain.calls.total() == evaluations
    assert cached.report["computed"] == cached.calls.total() < evaluations
    if widgets == BUDGET:
        assert math.ceil(evaluations / 4) - 1 <= cached.calls.total() <= math.ceil(evaluations / 4)
    else:
        assert psnr(cached.latent, plain.latent) > 10


# A schedule that is cut into several runs.


class Noise:
    """A NOISE node's output; None is no noise."""

    def __init__(self, seed):
        self.seed = seed or 0

    def generate_noise(self, latent):
        import comfy.sample

        samples = latent["samples"]
        if self.seed:
            return comfy.sample.prepare_noise(samples, self.seed)
        return comfy.sample.prepare_noise(samples, 0) * 0  # of whatever kind the latent is


@pytest.fixture
def run_pieces(comfy, caplog):
    """run_pieces(scene, model, pieces): runs one after the other. Returns (latent, noise levels computed, log lines).

    A piece is a dict: sigmas; seed (of its noise, None: no noise); output: what the next one gets, 0 for the noisy
    latent or 1 for the picture in it; between: what is done to that; positive; latent.
    """

    def run_pieces(scene, model, pieces, sampler="euler"):
        caplog.clear()
        scene.calls.clear()
        latent, sampler = scene.latent, comfy.node("KSamplerSelect", sampler)[0]
        with caplog.at_level(logging.INFO):
            for piece in pieces:
                guider = comfy.node("CFGGuider", model, piece.get("positive", scene.positive), scene.negative, 4.0)[0]
                latent = piece.get("latent", latent)
                noise = Noise(piece.get("seed"))
                outputs = comfy.node("SamplerCustomAdvanced", noise, guider, sampler, piece["sigmas"], latent)
                latent = outputs[piece.get("output", 0)]
                latent = {**latent, "samples": piece.get("between", lambda samples: samples)(latent["samples"])}
        return latent["samples"], {sigma for _, sigma, _ in scene.calls}, log_of(caplog)

    return run_pieces


def cut(sigmas, *ends, **of_each):
    """Pieces of a schedule: the first one with noise."""
    starts = [0, *ends[:-1]]
    pieces = [{"sigmas": sigmas[a : b + 1], **of_each} for a, b in zip(starts, ends, strict=True)]
    return [{"seed": 5, **pieces[0]}, *pieces[1:]]


def goes_on(lines):
    """For each run that was logged, the step at which it goes on, None if it does not."""
    seen = [line for line in lines if "evaluations, skipped" in line]
    return [int(line.split("at step ")[1].split()[0]) if "goes on" in line else None for line in seen]


def of_twenty_steps(comfy, scene):
    """Evenly for video models."""
    return schedule(comfy, scene, 20) if scene.latent["samples"].ndim == 4 else torch.linspace(1, 0, 21)


def rescale(samples):
    """As a sampler that keeps video and sound within bounds: each stream in its own way."""
    streams = getattr(samples, "tensors", [samples])
    streams = [samples * 0.25 + 0.1 if i else samples * 0.9 for i, samples in enumerate(streams)]
    if len(streams) == 1:
        return streams[0]
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(streams)


@pytest.mark.parametrize("handed_on", ["the noisy latent", "the picture, rescaled, with the same noise anew"])
@pytest.mark.parametrize("name", ["Flux", "LTXV", "LTXAV", "SD15"])
def test_a_schedule_cut_into_runs(comfy, tiny, run_pieces, name, handed_on):
    """Of 3, 3 and 14 steps. Catches a warm-up in each of them: half of what could be skipped is then computed."""
    from comfy import supported_models

    if not hasattr(supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    scene = tiny(name)
    sigmas = of_twenty_steps(comfy, scene)
    again = {} if handed_on == "the noisy latent" else dict(seed=5, output=1, between=rescale)
    pieces, widgets = cut(sigmas, 3, 6, 20, **again), dict(threshold=0.3, warmup_steps=5)
    plain, everywhere, _ = run_pieces(scene, scene.model, pieces)
    exact, _, lines = run_pieces(scene, comfy.cached(scene.model, threshold=0.0), pieces)
    streams = [getattr(samples, "tensors", [samples]) for samples in (plain, exact)]
    assert all(torch.equal(*pair) for pair in zip(*streams, strict=True)) and len(everywhere) == 20
    _, whole, _ = run_pieces(scene, comfy.cached(scene.model, **widgets), cut(sigmas, 20))
    _, computed, lines = run_pieces(scene, comfy.cached(scene.model, **widgets), pieces)
    assert goes_on(lines) == [None, 4, 7]
    assert 20 - len(computed) >= 0.75 * (20 - len(whole))
    levels = sorted(everywhere, reverse=True)
    assert {*levels[:5], *levels[6:8], levels[-1]} <= computed


def test_stages_of_a_schedule_and_their_report(comfy, tiny, run_pieces):
    """Two stages, the first one with noise left. The second one's report counts its own steps. Catches a stage of which
    the last step is taken for the picture's.
    """
    scene = tiny("SD15")
    sigmas = schedule(comfy, scene, 20)
    model = comfy.cached(scene.model, threshold=1.0, warmup_steps=6)
    latent, computed, lines = run_pieces(scene, model, cut(sigmas, 10, 20))
    assert goes_on(lines) == [None, 11]
    report = json.loads(comfy.node("EasyCacheReport", model, {"samples": latent})[2])
    assert report["steps"] == report["evaluations"] == 10 and report["warmup_steps"] == 6
    assert [record["step"] for record in report["trace"]] == list(range(10))
    assert [record["computed"] for record in report["trace"]][:3] == [True, True, False]
    assert report["trace"][-1]["computed"]
    levels = [round(float(sigma), 2) for sigma in sigmas]
    assert levels[9] not in [round(sigma, 2) for sigma in computed]


def test_one_step_at_a_time(comfy, tiny, run_pieces):
    """Runs of one step. The cache starts anew in each, so there is nothing to predict from. Catches a log that blames
    the threshold or the warm-up, which would not help.
    """
    scene = tiny("SD15")
    pieces = cut(schedule(comfy, scene, 12), *range(1, 13))
    plain, _, _ = run_pieces(scene, scene.model, pieces)
    cached, _, lines = run_pieces(scene, comfy.cached(scene.model, threshold=1.0), pieces)
    assert torch.equal(cached, plain)
    assert goes_on(lines) == [None, *range(2, 13)]
    assert all("each run starts with an empty cache" in line for line in lines[4:]), lines


def not_continued(sigmas, scene, what):
    first, second = cut(sigmas, 8, 16)
    if what == "another latent":
        second["latent"] = {"samples": torch.randn(scene.latent["samples"].shape)}
    elif what == "noise of another seed":
        first["output"], second["seed"] = 1, 6
    elif what == "more noise on what is noisy":
        second["seed"] = 5
    elif what == "another noise level":
        second["sigmas"] = sigmas[9:]
    elif what == "another prompt":
        second["positive"] = plain_prompt(1)
    elif what == "a picture that was finished in between":
        first["sigmas"] = torch.cat([first["sigmas"][:-1], torch.zeros(1)])
    elif what == "a crop":
        first["between"] = lambda samples: samples[..., :12]
    return [first, second]


@pytest.mark.parametrize(
    "what",
    ["another latent", "noise of another seed", "more noise on what is noisy", "another noise level", "another prompt",
     "a picture that was finished in between", "a crop"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_what_does_not_continue_a_run(comfy, tiny, run_pieces, name, what):
    """Catches a run without a warm-up that is none that goes on."""
    scene = tiny(name)
    pieces = not_continued(schedule(comfy, scene), scene, what)
    _, computed, lines = run_pieces(scene, comfy.cached(scene.model, threshold=1.0, warmup_steps=5), pieces)
    assert goes_on(lines) == [None, None]
    second = [round(float(sigma), 4) for sigma in pieces[1]["sigmas"]]
    assert set(second[:5]) <= {round(sigma, 4) for sigma in computed}


def test_a_stage_with_another_model(comfy, tiny, run_pieces, caplog):
    """One model for high and one for low noise, and a LoRA behind the node. Catches another one's warm-up."""
    high, low = tiny("WAN21_T2V"), tiny_models.build("WAN21_T2V", seed=1)
    first, second = cut(schedule(comfy, high), 8, 16)
    cached = comfy.cached(high.model, threshold=1.0)
    latent, _, lines = run_pieces(high, cached, [first])
    for other in (comfy.cached(low.model, threshold=1.0), comfy.cached(high.model, threshold=1.0), cached.clone()):
        if other.model is high.model.model:
            weight = next(key for key in other.model.state_dict() if key.endswith("ffn.0.weight"))
            other.add_patches({weight: ("diff", (torch.ones_like(other.model.state_dict()[weight]) * 1e-3,))})
        _, _, lines = run_pieces(high, other, [{**second, "latent": {"samples": latent}}])
        assert goes_on(lines) == [None]
    _, _, lines = run_pieces(high, cached, [{**second, "latent": {"samples": latent}}])
    assert goes_on(lines) == [9]


def test_stages_are_executed_again(comfy, tiny, run_pieces):
    """Twice in full; then the second stage alone, as ComfyUI has the first one's latent, after another seed's first
    stage. Catches a picture that depends on what ran in between.
    """
    scene = tiny("Flux")
    first, second = cut(schedule(comfy, scene), 8, 16)
    model = comfy.cached(scene.model, threshold=1.0, warmup_steps=5)
    noisy, _, _ = run_pieces(scene, model, [first])
    second["latent"] = {"samples": noisy}
    once, computed, lines = run_pieces(scene, model, [second])
    for pieces in ([first, second], [{**first, "seed": 6}, second], [second]):
        again, _, lines = run_pieces(scene, model, pieces)
        assert goes_on(lines)[-1] == 9 and goes_on(lines)[0] in (None, 9)
        assert torch.equal(again, once)


# What changes by itself at noise levels of its own.


def levels_and_what_held(record):
    """{noise level: what was in force at it}, of calls in order; the first call at a level counts."""
    held = {}
    for level, what in record:
        held.setdefault(level, what)
    return held


def check_held(everywhere, computed):
    """everywhere: as from levels_and_what_held, of the uncached run. computed: of the cached one.

    What is predicted is predicted from a computed evaluation at which the same was in force.
    """
    assert 3 < len(computed) < len(everywhere)
    last = None
    for level, what in everywhere.items():
        if level in computed:
            last = what
            assert computed[level] == what, level
        assert last == what, f"at noise level {level:.3f}"


class Keyframe:
    def __init__(self, start_percent, strength, guarantee_steps=1):
        self.start_percent, self.strength, self.guarantee_steps = start_percent, strength, guarantee_steps
        self.start_t = 0.0


class KeyframeGroup:
    def __init__(self, keyframes):
        self.keyframes = keyframes


@pytest.fixture
def controlled(comfy, tiny):
    """controlled(strength_at, **attributes): (positive, negative, net, record of (noise level, strength)).

    A ControlNet of another pack for the tiny SD 1.5, of which `strength_at(net, sigma)` is the strength in force.
    """
    import comfy.cldm.cldm as cldm
    import comfy.controlnet as controlnet
    import comfy.model_management as management

    scene, record = tiny("SD15"), []
    network = cldm.ControlNet(hint_channels=3, **scene.model.model.model_config.unet_config)
    tiny_models.fill(network, torch.Generator().manual_seed(7))
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))

    def controlled(strength_at=None, start=0.0, end=1.0, **attributes):
        class Controlled(controlnet.ControlNet):
            def __init__(self, network):
                super().__init__(network, load_device=management.get_torch_device())
                self.__dict__.update(attributes)

            def pre_run(self, model, percent_to_timestep_function):
                super().pre_run(model, percent_to_timestep_function)
                for group in attributes.values():
                    for keyframe in group.keyframes:
                        keyframe.start_t = percent_to_timestep_function(keyframe.start_percent)

            def copy(self):
                net = Controlled(None)
                net.control_model, net.control_model_wrapped = self.control_model, self.control_model_wrapped
                self.copy_to(net)
                return net

        if strength_at is not None:

            def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
                sigma = float(t[0])
                strength = strength_at(self, sigma)
                record.append((sigma, strength))
                answers = controlnet.ControlNet.get_control(self, x_noisy, t, cond, batched_number, transformer_options)
                return answers and {key: [None if one is None else one * strength for one in part]
                                    for key, part in answers.items()}  # fmt: skip

            Controlled.get_control = get_control
        net = Controlled(network)
        conds = comfy.node("ControlNetApplyAdvanced", scene.positive, scene.negative, net, picture, 1.0, start, end)
        return *conds, record

    return controlled


@pytest.mark.parametrize("at", [6, 9, 13])
def test_a_controlnet_that_switches_by_itself(comfy, tiny, controlled, caplog, at):
    """Nothing tells at which noise level. Catches a step after the switch that is predicted from before it, and a log
    that blames the threshold.
    """
    scene = tiny("SD15")
    sigmas = schedule(comfy, scene)
    switch = float(sigmas[at - 1] + sigmas[at]) / 2
    positive, negative, record = controlled(lambda net, sigma: float(sigma > switch))
    conds = dict(positive=positive, negative=negative)
    plain = comfy.sample(scene, **conds)
    assert not torch.equal(comfy.sample(scene), plain)
    with caplog.at_level(logging.INFO):
        cached, computed = scene.counting(lambda: comfy.sample(scene, comfy.cached(scene.model, **THRESHOLD), **conds))
    assert torch.equal(cached, plain) and len(computed) == STEPS
    warning, summary = log_of(caplog)
    assert "ControlNet (Controlled) decides by itself" in warning and "everything is computed" in warning
    assert "decides by itself" in summary and "raise threshold" not in summary
    caplog.clear()
    _, computed = scene.counting(lambda: comfy.sample(scene, comfy.cached(scene.model, **BUDGET), **conds))
    assert len(computed) <= math.ceil(STEPS / 4)
    assert "may still be predicted" in log_of(caplog)[0]


def test_a_controlnet_that_switches_by_itself_while_it_is_active(comfy, tiny, controlled):
    """Catches a run that is computed to its end for what acted at its beginning only."""
    scene = tiny("SD15")
    end = scene.model.get_model_object("model_sampling").percent_to_sigma(0.3)
    positive, negative, _ = controlled(lambda net, sigma: sigma, end=0.3)
    conds = dict(positive=positive, negative=negative)
    _, computed = scene.counting(lambda: comfy.sample(scene, comfy.cached(scene.model, **THRESHOLD), **conds))
    everywhere = [float(sigma) for sigma in schedule(comfy, scene)[:-1]]
    rounded = [round(sigma, 3) for sigma in computed]
    assert all(round(sigma, 3) in rounded for sigma in everywhere if sigma >= end) and len(computed) < STEPS


KEYFRAMES = {
    "two": [(0.0, 1.0, 0), (0.5, 0.0, 1)],
    "several in one step": [(0.0, 1.0, 0), (0.4, 0.2, 1), (0.401, 0.4, 1), (0.402, 0.6, 1), (0.403, 0.0, 1)],
    "guaranteed for longer": [(0.0, 1.0, 4), (0.1, 0.5, 3), (0.15, 0.0, 1), (0.9, 1.0, 1)],
}


@pytest.mark.parametrize("keyframes", KEYFRAMES)
def test_keyframes_of_a_controlnet(comfy, tiny, controlled, keyframes):
    """Catches a strength that lasts beyond its keyframe: in what is predicted, or as its count of steps missed some."""
    from comfy.hooks import HookKeyframeGroup

    scene, groups = tiny("SD15"), []

    def strength_at(net, sigma):
        groups[-1].prepare_current_keyframe(sigma, {"sample_sigmas": sigmas})
        return groups[-1].strength

    sigmas = schedule(comfy, scene, 24)
    given = KeyframeGroup([Keyframe(*one) for one in KEYFRAMES[keyframes]])
    for keyframe in given.keyframes:  # ComfyUI's own choice among them
        keyframe.get_effective_guarantee_steps = functools.partial(
            lambda one, highest: 0 if one.start_t > highest else one.guarantee_steps, keyframe
        )
    positive, negative, record = controlled(strength_at, schedule_of_strength=given)

    def sample(model):
        record.clear()
        groups.append(HookKeyframeGroup())
        groups[-1].keyframes = given.keyframes
        groups[-1].reset()
        comfy.sample(scene, model, steps=24, positive=positive, negative=negative)
        return levels_and_what_held(record)

    everywhere = sample(scene.model)
    assert len(everywhere) == 24 and len(set(everywhere.values())) > 1
    check_held(everywhere, sample(comfy.cached(scene.model, threshold=1.0, max_consecutive_skips=2)))


def test_a_keyframe_for_each_step(comfy, tiny, controlled, caplog):
    """Catches a log that blames the threshold, which would not help."""
    scene = tiny("SD15")
    group = KeyframeGroup([Keyframe(i / 48, 1 - i / 48) for i in range(48)])
    positive, negative, _ = controlled(lambda net, sigma: 1.0, schedule_of_strength=group)
    with caplog.at_level(logging.INFO):
        comfy.sample(scene, comfy.cached(scene.model, **THRESHOLD), positive=positive, negative=negative)
    (line,) = log_of(caplog)
    assert "skipped 0" in line and "keyframes or strengths" in line and "raise threshold" not in line


def test_keyframes_are_chosen_as_comfyui_does(comfy):
    """Catches a keyframe that is taken for over, or for begun, at any noise level of any schedule."""
    from comfy.hooks import HookKeyframe, HookKeyframeGroup

    switches = sys.modules[comfy.classes["EasyCacheAdaptive"].__module__.replace(".adaptive", ".schedule_switches")]
    rng = torch.Generator().manual_seed(1)

    def between(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=rng))

    for _ in range(200):
        group = HookKeyframeGroup()
        for _ in range(between(1, 5)):
            keyframe = HookKeyframe(1.0, 0.0, between(0, 3))
            keyframe.start_t = between(0, 24) / 20
            group.keyframes.append(keyframe)
        group.keyframes.sort(key=lambda keyframe: -keyframe.start_t)
        group.reset()
        sigmas = torch.linspace(1, 0, between(3, 21))
        ours = switches.Keyframes(group.keyframes, 0, 1.0)
        for sigma in sigmas[:-1].repeat_interleave(2).tolist():
            group.prepare_current_keyframe(sigma, {"sample_sigmas": sigmas})
            ours.observe(sigma)
            assert ours.index == group._current_index


def test_the_strength_of_a_controlnet_is_changed_from_outside(comfy, tiny, controlled):
    """By another pack's wrapper, at a noise level that only it knows. Catches a strength that is no longer set."""
    from comfy.patcher_extension import WrappersMP

    scene = tiny("SD15")
    middle = float(schedule(comfy, scene)[9])
    positive, negative, record = controlled(None)

    def set_strength(executor, x, timestep, *args, **kwargs):
        for entries in executor.class_obj.conds.values():
            for cond in entries:
                cond["control"].strength = 1.0 if timestep[0] > middle else 0.25
                record.append((float(timestep[0]), cond["control"].strength))
        return executor(x, timestep, *args, **kwargs)

    model = scene.model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "strength", set_strength)
    conds = dict(positive=positive, negative=negative)
    comfy.sample(scene, model, **conds)
    everywhere = levels_and_what_held(record)
    _, computed = scene.counting(lambda: comfy.sample(scene, comfy.cached(model, **THRESHOLD), **conds))
    ran = {level: what for level, what in everywhere.items() if any(abs(level - one) < 1e-3 for one in computed)}
    check_held(everywhere, ran)


def by_noise_level(kind, at):
    """A patch that acts at this noise level and above, as other packs write them; it knows the level by a name."""

    def patch(model):
        model = model.clone()
        start_sigma = at

        def wrapper(network, given):
            output = network(given["input"], given["timestep"], **given["c"])
            return output * 3.0 if given["timestep"][0] >= start_sigma else output

        class Attention:
            def __init__(self):
                self.sigma_end = at

            def __call__(self, q, k, v, extra):
                return q, k, v * 3.0 if extra["sigmas"][0] >= self.sigma_end else v

        if kind == "a wrapper":
            model.set_model_unet_function_wrapper(wrapper)
        elif kind == "a wrapper around another one":
            model.set_model_unet_function_wrapper(lambda network, given: wrapper(network, given))
        else:
            model.set_model_attn1_patch(Attention())
        return model

    return patch


@pytest.mark.parametrize("at", [5, 8, 11])
@pytest.mark.parametrize("kind", ["a wrapper", "a wrapper around another one", "an attention patch"])
def test_a_patch_that_acts_by_noise_level(comfy, tiny, run, kind, at):
    """Catches the step after it, predicted from before."""
    scene = tiny("SD15")
    sigmas = schedule(comfy, scene)
    switch = float(sigmas[at - 1] + sigmas[at]) / 2
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    patch = by_noise_level(kind, switch)
    plain, exact = run(scene, make_guider, patch=patch), run(scene, make_guider, patch=patch, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent)
    cached = run(scene, make_guider, patch=patch, **THRESHOLD)
    assert max(level for level in plain.levels if level < switch) in cached.levels
    assert len(cached.levels) < STEPS


# Networks with a memory.


@torch.no_grad()
def block_by_block(model, x, sigmas, extra_args=None, callback=None, disable=None, blocks=1):
    """Each block of rows from noise to picture, then once more at no noise, for the network to remember it."""
    options = extra_args["model_options"]["transformer_options"]
    kept, done = [{"sums": [], "end": 0} for _ in range(2)], []
    try:
        for block in x.chunk(blocks, 2):
            options["state"] = {"start": len(done), "layers": kept}
            one = x.new_ones([len(x)])
            for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
                denoised = model(block, sigma * one, **extra_args)
                if callback is not None:
                    callback({"x": block, "i": 0, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
                block = block + (following - sigma) * (block - denoised) / sigma
            model(block, 0 * one + 1e-3, **extra_args)
            done.append(block)
    finally:
        options.pop("state", None)
    return torch.cat(done, 2)


def remembering(where):
    """A network that adds something of the calls before to each answer."""

    def patch(model):
        model = model.clone()

        def wrapper(network, given):
            output = network(given["input"], given["timestep"], **given["c"])
            if where == "options":
                memory = given["c"]["transformer_options"]["state"]["layers"][0]
                before = memory["sums"]
                memory["end"] += 1
            else:
                before = network.__self__.diffusion_model.__dict__.setdefault("kv_cache", [])
            output = output + 0.1 * sum(before[-4:])
            before.append(output.mean())
            return output

        model.set_model_unet_function_wrapper(wrapper)
        return model

    return patch


@pytest.mark.parametrize("widgets", [THRESHOLD, dict(target_speedup=2.0)], ids=["threshold", "budget"])
@pytest.mark.parametrize(("where", "blocks"), [("options", 1), ("options", 2), ("an attribute", 1)])
def test_a_network_that_remembers(tiny, run, caplog, where, blocks, widgets):
    """What a call leaves behind changes the next answer. Catches calls that are skipped, and a log that blames the
    settings. An attribute shows from the second computed step on, which a budget may leave out.
    """
    scene, network = tiny("SD15"), tiny("SD15").model.model.diffusion_model
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    sampler = functools.partial(block_by_block, blocks=blocks)

    def sample(**widgets):
        network.__dict__.pop("kv_cache", None)
        caplog.clear()
        try:
            with caplog.at_level(logging.INFO):
                return run(scene, make_guider, sampler, patch=remembering(where), **widgets)
        finally:
            network.__dict__.pop("kv_cache", None)

    plain, cached = sample(), sample(**widgets)
    lines = log_of(caplog)
    assert "the network keeps what one call leaves for the next" in lines[0] and "everything is computed" in lines[0]
    if where == "an attribute" and widgets != THRESHOLD:
        assert cached.calls.total() >= plain.calls.total() - 2
    else:
        assert torch.equal(cached.latent, plain.latent)
        assert cached.calls == plain.calls
        assert "for the next, in" in lines[-1] and "raise threshold" not in lines[-1]
        assert cached.report["skipped"] == 0


@pytest.mark.parametrize("widgets", [dict(threshold=1.0), dict(target_speedup=2.0)], ids=["threshold", "budget"])
@pytest.mark.parametrize("frames_per_block", [1, 2, 4])
def test_video_drawn_block_after_block(comfy, tiny, run, caplog, frames_per_block, widgets):
    """With ComfyUI's own sampler, which keeps keys and values of earlier blocks. Catches a call that is skipped."""
    from comfy import samplers, supported_models

    if not hasattr(supported_models, "WAN21_CausalAR_T2V"):
        pytest.skip("this ComfyUI has no video model that draws block after block")
    scene = tiny("WAN21_CausalAR_T2V")
    sampler = samplers.ksampler("ar_video", {"num_frame_per_block": frames_per_block})

    def predict(guider, x, timestep, options):
        return ask(guider, ["positive"], x, timestep, options)[0]

    make_guider = functools.partial(guiding, conds=pair(scene), predict=predict)
    sigmas = schedule(comfy, scene, 8)
    plain = run(scene, make_guider, sampler, sigmas)
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, sampler, sigmas, **widgets)
    assert torch.equal(cached.latent, plain.latent) and cached.calls == plain.calls
    assert "keeps what one call leaves for the next" in log_of(caplog)[0]


def test_notes_in_the_options_are_no_memory(tiny, run):
    """Another pack's windows note there which frames a call is about. Catches a cache that gives up for that."""
    from comfy.patcher_extension import WrappersMP

    scene = tiny("SD15")

    def patch(model):
        def note(executor, network, conds, x, timestep, options):
            notes = options["transformer_options"]["frames"]
            notes["now"], notes["calls"] = [len(notes["now"])] * (notes["calls"] % 3), notes["calls"] + 1
            return executor(network, conds, x, timestep, options)

        model = model.clone()
        model.model_options["transformer_options"]["frames"] = {"now": [], "calls": 0, "mask": (torch.ones(1),)}
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "windows", note)
        return model

    cached = run(scene, functools.partial(guiding, conds=pair(scene), predict=both), patch=patch, **THRESHOLD)
    assert len(cached.levels) < STEPS - 3


def test_a_cache_of_what_never_changes_is_no_memory(tiny, run):
    """A network keeps the keys of its prompt, from the first evaluation on. Catches a cache that gives up for that."""
    scene = tiny("SD15")

    def patch(model):
        kept = []

        def wrapper(network, given):
            network.__self__.diffusion_model.__dict__["kv_cache_of_prompts"] = kept
            if not kept:
                kept.append({"keys": torch.ones(2)})
            return network(given["input"], given["timestep"], **given["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return model

    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    try:
        cached = run(scene, make_guider, patch=patch, **THRESHOLD)
    finally:
        scene.model.model.diffusion_model.__dict__.pop("kv_cache_of_prompts", None)
    assert len(cached.levels) < STEPS - 3


# Evaluations in which nothing is asked.


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


# Other caches.


def foreign(name, module="custom_nodes.another", qualname=None):
    """A function of another pack that fits wherever a wrapper does and changes nothing."""

    def function(call, *args, **kwargs):
        if args and isinstance(args[0], dict):
            return call(args[0]["input"], args[0]["timestep"], **args[0]["c"])
        return call(*args, **kwargs)

    function.__name__, function.__qualname__, function.__module__ = name, qualname or name, module
    return function


def wrapper(level, key, function=None):
    def add(model):
        from comfy.patcher_extension import WrappersMP

        model.add_wrapper_with_key(getattr(WrappersMP, level), key, function or foreign("around"))

    return add


def option(key, value=0.1):
    return lambda model: model.model_options["transformer_options"].__setitem__(key, value)


def around_the_network(function):
    return lambda model: model.set_model_unet_function_wrapper(function)


class MagCacheWrapper:
    """Packs put objects there as well as functions."""

    def __call__(self, network, given):
        return network(given["input"], given["timestep"], **given["c"])


OTHER_CACHES = {
    "a wrapper's key, around the network": (wrapper("DIFFUSION_MODEL", "teacache"), "TeaCache"),
    "a wrapper's key, around the model": (wrapper("APPLY_MODEL", "MagCache_v2"), "MagCache"),
    "a wrapper's key, around the guider": (wrapper("PREDICT_NOISE", "spectrum_forecaster"), "Spectrum"),
    "a wrapper's key, around the sampler": (wrapper("SAMPLER_SAMPLE", "dbcache"), "CacheDiT"),
    "a wrapper's key, around the run": (wrapper("OUTER_SAMPLE", "cache-dit"), "CacheDiT"),
    "a wrapper's name": (wrapper("DIFFUSION_MODEL", "patch", foreign("taylorseer_forward")), "TaylorSeer"),
    "TeaCache's option": (option("rel_l1_thresh"), "TeaCache"),
    "an option": (option("magcache_K", 2), "MagCache"),
    "a function within another": (
        around_the_network(foreign("wrapper", qualname="ApplyTeaCache.patch.<locals>.wrapper")),
        "TeaCache",
    ),
    "first-block cache": (
        around_the_network(foreign("wrapper", qualname="ApplyFBCacheOnModel.patch.<locals>.wrapper")),
        "WaveSpeed",
    ),
    "a module": (around_the_network(foreign("wrapper", module="custom_nodes.magcache")), "MagCache"),
    "a pack's folder": (
        around_the_network(foreign("wrapper", module="/srv/ComfyUI/custom_nodes/ComfyUI-TeaCache.nodes")),
        "TeaCache",
    ),
    "an object": (around_the_network(MagCacheWrapper()), "MagCache"),
    "a bound method": (around_the_network(MagCacheWrapper().__call__), "MagCache"),
    "a partial function": (around_the_network(functools.partial(foreign("teacache_forward"))), "TeaCache"),
}


def warnings_of(comfy, scene, caplog, model):
    """What the cache warns of in two steps of this model."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        latent = comfy.sample(scene, model, steps=2)
    assert latent.isfinite().all()
    return log_of(caplog)


@pytest.mark.parametrize("cache_first", [False, True])
@pytest.mark.parametrize("other", OTHER_CACHES)
def test_another_cache_is_warned_of_by_name(comfy, tiny, caplog, other, cache_first):
    """Catches two caches whose errors add up without a word."""
    scene, (add, name) = tiny("SD15"), OTHER_CACHES[other]
    model = comfy.cached(scene.model) if cache_first else scene.model.clone()
    add(model)
    (warning,) = warnings_of(comfy, scene, caplog, model if cache_first else comfy.cached(model))
    assert f"also goes through {name}" in warning


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_the_built_in_caches_are_warned_of_by_name(comfy, tiny, caplog, kind):
    """Catches an option of theirs that has another name in another version of ComfyUI."""
    scene = tiny("SD15")
    built_in = comfy.node(kind, scene.model, 0.2, 0.15, 0.95, False)[0]
    (warning,) = warnings_of(comfy, scene, caplog, comfy.cached(built_in))
    assert "built-in EasyCache or LazyCache" in warning


HARMLESS = {
    "wrappers": wrapper("DIFFUSION_MODEL", "another pack"),
    "a wrapper without a key": wrapper("APPLY_MODEL", None),
    "a wrapper around the network": around_the_network(foreign("scale")),
    "options": option("cfg_scale"),
    "our own option": option("easycache_ranks", None),
    "a user's folder": around_the_network(foreign("scale", module="/home/teacache/ComfyUI/custom_nodes/another.nodes")),
    "a cache of text": wrapper("OUTER_SAMPLE", "prompt cache", foreign("cache_prompts")),
    "patches": lambda model: model.set_model_attn2_patch(lambda query, context, value, extra: (query, context, value)),
    "functions of guidance": lambda model: model.set_model_sampler_post_cfg_function(lambda given: given["denoised"]),
}


@pytest.mark.parametrize("patch", HARMLESS)
def test_a_harmless_patch_is_not_warned_of(comfy, tiny, caplog, patch):
    """Catches a warning that says nothing: users then overlook the one that does."""
    model = tiny("SD15").model.clone()
    HARMLESS[patch](model)
    assert warnings_of(comfy, tiny("SD15"), caplog, comfy.cached(model)) == []


def test_nodes_that_cache_nothing_are_not_warned_of(comfy, tiny, caplog):
    """Catches a name of ComfyUI's own that is taken for that of a cache."""
    scene = tiny("SD15")
    model = comfy.node("FreeU_V2", scene.model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)[0]
    model = comfy.node("PerturbedAttentionGuidance", model, scale=3.0)[0]
    model = comfy.node("FreSca", model, scale_low=1.0, scale_high=1.25, freq_cutoff=20)[0]
    model = comfy.node("RescaleCFG", model, multiplier=0.7)[0]
    assert warnings_of(comfy, scene, caplog, comfy.cached(comfy.cached(model))) == [], "not even of itself"


# What was right, and stays so.


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


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "heunpp2"])
def test_nearly_everything_is_skipped_with_two_evaluations_per_step(tiny, run, sampler):
    """Catches steps that are counted twice, and a division by zero where hardly anything is computed."""
    scene = tiny("SD15")
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain = run(scene, make_guider, sampler)
    cached = run(scene, make_guider, sampler, target_speedup=10.0)
    evaluations = plain.calls.total()
    assert cached.report["evaluations"] == evaluations
    assert cached.report["computed"] == cached.calls.total() <= math.ceil(evaluations / 10)
    assert cached.report["speedup"] == pytest.approx(evaluations / cached.calls.total())


def test_a_budget_of_any_size_is_drawn(comfy):
    """Catches a report that ends the prompt with an error: at some sizes a line of the plot lies between two pixels."""
    plot = sys.modules[comfy.classes["EasyCacheReport"].__module__.replace(".report", ".plot")]
    record = dict(step=0, sigma=1.0, computed=True, input_change=0.1, rate=0.5, error=0.0, output_norm=1.0)
    for size in range(1, 41):
        report = dict(steps=2 * size, evaluations=2 * size, computed=size, skipped=size, speedup=2.0, threshold=0.05,
                      warmup_steps=5, predictor="forecast", target_speedup=2.0,
                      trace=[{**record, "computed": i < size} for i in range(2 * size)])  # fmt: skip
        assert plot.draw_report(report).size == (1024, 768), size
