"""Models, samplers, prompts, patches and settings in combinations that nobody chose."""

import math
import random

import pytest
import torch
from sampling import uncached

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("SD15", "SDXL", "Flux", "SD3", "LTXV", "WAN21_T2V")
SAMPLERS = ("euler", "dpmpp_2m", "uni_pc", "heun", "euler_ancestral", "dpmpp_2m_sde", "lcm", "sa_solver", "deis")
SCHEDULERS = ("simple", "karras", "beta", "linear_quadratic")
PATCHES = (None, "APG", "CFGZeroStar", "RescaleCFG", "Mahiro", "Epsilon Scaling")
GUIDERS = ("CFGGuider", "BasicGuider", "DualCFGGuider")
PROMPTS = ("one", "strengths", "areas", "ranges")
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


@pytest.mark.parametrize("seed", range(32))
def test_whatever_meets(comfy, tiny, run, seed):
    """Catches a threshold of 0 that changes a bit, something that one run leaves to the next, and a cache that asks the
    network where it says that it did not, or more often than its budget allows.
    """
    rng = random.Random(seed)
    scene, sampler, steps = tiny(rng.choice(FAMILIES)), rng.choice(SAMPLERS), rng.choice((5, 9, 14))
    guider, prompt, patch = rng.choice(GUIDERS), rng.choice(PROMPTS), rng.choice(PATCHES)
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
