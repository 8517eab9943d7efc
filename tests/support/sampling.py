"""Guiders, prompts and counts for tests of sampling as other packs do it, on tiny models."""

import copy
import functools
from collections import Counter
from typing import NamedTuple

import pytest
import torch

STEPS = 16
MIDWAY = STEPS // 2
THRESHOLD, BUDGET = dict(threshold=1.0, warmup_steps=3), dict(target_speedup=4.0)
HALF = dict(target_speedup=2.0)
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


def both(guider, x, timestep, options, conds=None, cfg=4.0):
    """As ComfyUI's own guider, with the conditionings "positive" and "negative". conds: in place of the guider's."""
    from comfy.samplers import sampling_function

    conds = conds or guider.conds
    return sampling_function(guider.inner_model, x, timestep, conds["negative"], conds["positive"], cfg, options)


guided = functools.partial(both, cfg=2.0)


def away_from(answer, others):
    """Guidance, weak enough that the latent does not run away."""
    return answer + sum(0.1 * (answer - other) for other in others)


@torch.no_grad()
def asking_twice(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's steps, at each of which the same latent is asked about twice."""
    one = x.new_ones([len(x)])
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = sum(model(x, sigma * one, **extra_args) for _ in range(2)) / 2
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


@torch.no_grad()
def renewing_the_noise(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """As consistency models are sampled."""
    rng, one = torch.Generator().manual_seed(3), x.new_ones([len(x)])
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma * one, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = (1 - following) * denoised + following * torch.randn(x.shape, generator=rng)
    return x


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


def direct(model, scene, predict=both, past_predict_noise=True):
    """A guider whose predict_noise the sampler calls itself, as with normalised attention guidance."""
    guider = guiding(model, pair(scene), predict)
    if past_predict_noise:
        type(guider).__call__ = lambda self, *args, **kwargs: self.predict_noise(*args, **kwargs)
    return guider


def plain_prompt(value):
    """A conditioning that `answering_by_prompt` adds to the denoised latent."""
    return [[torch.full((1, 6, 48), float(value)), {"pooled_output": torch.zeros(1, 32)}]]


PROMPTS = {"positive": plain_prompt(0.5), "negative": plain_prompt(-0.5)}


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
