"""Models, samplers, prompts, patches, settings and habits in combinations that nobody chose."""

import copy
import math
import random

import pytest
import torch
from sampling import PROMPTS, answering_by_prompt, ask, counting, pair, uncached

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("SD15", "SDXL", "Flux", "SD3", "LTXV", "WAN21_T2V")
SAMPLERS = ("euler", "dpmpp_2m", "uni_pc", "heun", "euler_ancestral", "dpmpp_2m_sde", "lcm", "sa_solver", "deis")
SCHEDULERS = ("simple", "karras", "beta", "linear_quadratic")
PATCHES = (None, "APG", "CFGZeroStar", "RescaleCFG", "Mahiro", "Epsilon Scaling")
GUIDERS = ("CFGGuider", "BasicGuider", "DualCFGGuider")
PROMPT_KINDS = ("one", "strengths", "areas", "ranges")
SETTINGS = (
    dict(threshold=0.1, warmup_steps=2),
    dict(threshold=0.3, warmup_steps=1, max_consecutive_skips=2),
    dict(threshold=1.0, warmup_steps=1, start_percent=0.1, end_percent=0.9),
    dict(threshold=0.2, warmup_steps=3, predictor="reuse", cache_device="cpu"),
    dict(target_speedup=1.5),
    dict(target_speedup=2.0, end_percent=0.7, cache_device="cpu"),
    dict(target_speedup=3.0, start_percent=0.3, max_consecutive_skips=3),
    dict(target_speedup=2.5, predictor="reuse"),
)


def prompts(comfy, given, kind):
    """The conditioning, or two of which the second is another one in part."""
    other = [[text.flip(-1), dict(options)] for text, options in given]
    if kind == "one":
        return given
    if kind == "strengths":
        return given + comfy.node("ConditioningSetAreaStrength", other, 0.4)[0]
    if kind == "areas":
        return given + comfy.node("ConditioningSetMask", other, torch.eye(8)[None], "default", 0.8)[0]
    first = comfy.node("ConditioningSetTimestepRange", given, 0.0, 0.6)[0]
    return first + comfy.node("ConditioningSetTimestepRange", other, 0.4, 1.0)[0]


def foreign(name):
    """A pack's sampler that does the same: what it makes of answers is not known beforehand."""
    import comfy.k_diffusion.sampling as sampling
    from comfy.extra_samplers.uni_pc import sample_unipc

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        function = sample_unipc if name == "uni_pc" else getattr(sampling, f"sample_{name}")
        return function(model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable)

    return sample


@pytest.mark.parametrize("seed", range(48))
def test_whatever_meets(comfy, tiny, run, seed):
    """Catches a threshold of 0 that changes a bit, something that one run leaves to the next, and a cache that asks the
    network where it says that it did not, or more often than its budget allows.
    """
    rng = random.Random(seed)
    scene, sampler, steps = tiny(rng.choice(FAMILIES)), rng.choice(SAMPLERS), rng.choice((5, 9, 14))
    guider, prompt, patch = rng.choice(GUIDERS), rng.choice(PROMPT_KINDS), rng.choice(PATCHES)
    shape = scene.latent["samples"].shape
    areas = len(shape) == 4  # of videos, some have no areas in time
    prompt = prompt if areas or prompt != "areas" else "one"
    positive, negative = prompts(comfy, scene.positive, prompt), prompts(comfy, scene.negative, "one")
    latent = {"samples": torch.randn(rng.choice((1, 1, 2)), *shape[1:], generator=torch.Generator().manual_seed(seed))}
    if areas and rng.random() < 0.2:
        latent["noise_mask"] = torch.eye(64)[None]
    sigmas = comfy.node("BasicScheduler", scene.model, rng.choice(SCHEDULERS), steps, 1.0)[0][rng.choice((0, 0, 2)) :]
    cfg, widgets = rng.choice((1.0, 4.0)), rng.choice(SETTINGS)

    def make_guider(model):
        if guider == "CFGGuider":
            return comfy.node("CFGGuider", model, positive, negative, cfg)[0]
        if guider == "BasicGuider":
            return comfy.node("BasicGuider", model, positive)[0]
        conds, scales = (positive, scene.positive, negative), (cfg, 2.0)
        return comfy.node("DualCFGGuider", model, *conds, *scales, "regular")[0]

    sampled = dict(
        sampler=foreign(sampler) if rng.random() < 0.4 else sampler, sigmas=sigmas, latent=latent,
        patch=patch and (lambda model: comfy.node(patch, model=model)[0]),
    )  # fmt: skip
    plain = uncached(run, scene, make_guider, **sampled)
    first, again = (run(scene, make_guider, **sampled, **widgets) for _ in range(2))
    assert torch.equal(first.latent, again.latent)
    assert first.calls <= plain.calls and (first.calls < plain.calls) == (first.report["skipped"] > 0)
    if "target_speedup" in widgets:
        evaluations, allowed = first.report["evaluations"], first.report["evaluations"] / widgets["target_speedup"]
        assert first.report["computed"] <= max(2, math.ceil(allowed - 1e-9)), f"of {evaluations} evaluations"


PROMPT_AT = {
    "one": lambda step: "positive",
    "two in turn": lambda step: ("positive", "other")[step % 2],
    "two by two": lambda step: ("positive", "other")[step // 2 % 2],
    "another one later": lambda step: ("positive", "other")[step >= 5],
}
NEGATIVE_AT = {
    "always": lambda step: True,
    "at every other step": lambda step: step % 2 == 0,
    "at first": lambda step: step < 5,
    "later": lambda step: step >= 4,
}
ANSWERED_BY_ITSELF = {"none": (), "the first ones": (0, 1), "every third one": range(2, 99, 3)}
CALLS = ("one", "one each", "one each, in changing order")


def numbered(options, step):
    return {**options, "transformer_options": {**options["transformer_options"], "at": step}}


OPTIONS = {
    "as they are": lambda options, step: options,
    "copied": lambda options, step: copy.deepcopy(options),
    "with a number": numbered,
}
LATENTS = {
    "the sampler's": lambda x, step: x,
    "rolled": lambda x, step: x.roll(step, -1),
    "scaled": lambda x, _: 0.99 * x,
}
STEPPING = ("euler", "twice", "ahead and back", "with noise", "back to an earlier level", "flipped")


def asking(rng):
    """A guider's habits: predict(guider, step, x, timestep, options)."""
    prompt, negative, itself, options, latent = (
        table[rng.choice((next(iter(table)), *table))]
        for table in (PROMPT_AT, NEGATIVE_AT, ANSWERED_BY_ITSELF, OPTIONS, LATENTS)
    )
    calls = rng.choice(CALLS)

    def predict(guider, step, x, timestep, given):
        if step in itself:
            return 0.9 * x
        names = [prompt(step), *["negative"] * negative(step)]
        names = names[::-1] if calls == "one each, in changing order" and step % 2 else names
        groups = [names] if calls == "one" else [[name] for name in names]
        given, x = options(given, step), latent(x, step)
        answers = {}
        for group in groups:
            answers |= zip(group, ask(guider, group, x, timestep, given), strict=True)
        cond = answers[prompt(step)]
        return cond + 2.0 * (cond - answers.get("negative", cond))

    return predict


def stepping(kind):
    """A sampler's habit."""

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        rng, one = torch.Generator().manual_seed(3), x.new_ones([len(x)])
        back = [*range(6), 3, 4, *range(5, len(sigmas))] if kind == "back to an earlier level" else range(len(sigmas))
        for i, (sigma, following) in enumerate(zip(sigmas[back][:-1], sigmas[back][1:], strict=True)):
            if following > sigma:
                x = x + (following - sigma) * torch.randn(x.shape, generator=rng)
                continue
            denoised = model(x, sigma * one, **extra_args)
            if kind == "twice":
                denoised = (denoised + model(x + 0.1 * (denoised - x), sigma * one, **extra_args)) / 2
            if kind == "ahead and back" and following > 0:
                ahead = x + (following - sigma) * (x - denoised) / sigma
                denoised = (denoised + model(ahead, following * one, **extra_args)) / 2
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
            x = x + 0.3 * following * torch.randn(x.shape, generator=rng) if kind == "with noise" else x
            x = x.flip(-1) if kind == "flipped" else x
        return x

    return sampler


@pytest.mark.parametrize("seed", range(24))
def test_whatever_a_guider_and_a_sampler_do(comfy, tiny, run, seed):
    """Catches the same as `test_whatever_meets`."""
    rng = random.Random(seed)
    scene, steps = tiny(rng.choice(("SD15", "Flux"))), rng.choice((8, 13))
    by_prompt = scene is tiny("Flux")
    prompts = PROMPTS if by_prompt else pair(scene)
    other = [[text.flip(-1) + 0.3, dict(options)] for text, options in prompts["positive"]]
    make_guider, widgets = counting(asking(rng), {**prompts, "other": other}), rng.choice(SETTINGS)
    sigmas = comfy.node("BasicScheduler", scene.model, rng.choice(SCHEDULERS), steps, 1.0)[0]
    patch = answering_by_prompt if by_prompt else None
    sampled = dict(sampler=stepping(rng.choice(STEPPING)), sigmas=sigmas, patch=patch)
    plain = uncached(run, scene, make_guider, **sampled)
    first, again = (run(scene, make_guider, **sampled, **widgets) for _ in range(2))
    assert torch.equal(first.latent, again.latent)
    assert first.calls.total() <= plain.calls.total(), "a negative that is left out at times may be asked along"
    assert len(first.levels) <= first.report["computed"]
