"""Faults that users reported of caching nodes, and what this one does in the same place.

A test names the report that it goes by. They sample with ComfyUI's own nodes, on tiny models.
"""

import asyncio
import inspect
import logging

import pytest
import torch
from closeness import psnr

pytestmark = pytest.mark.usefixtures("one_thread")


def summaries(caplog):
    """What the log says of each run."""
    return [line for line in caplog.messages if line.startswith("EasyCache: computed")]


def sampling_three_times(model):
    """As iterations in another pack: a wrapper around the run samples from new noise, and from that once more."""
    from comfy.patcher_extension import WrappersMP

    def iterate(executor, noise, latent, *args, **kwargs):
        for turn in range(3):
            rng = torch.Generator().manual_seed(turn)
            latent = executor(torch.randn(noise.shape, generator=rng), 0.3 * latent, *args, **kwargs)
        return latent

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "iterations", iterate)
    return model


@pytest.mark.parametrize("widgets", [dict(threshold=0.3), dict(target_speedup=2.0)], ids=["threshold", "budget"])
def test_a_pack_that_samples_several_times_in_one_run(comfy, tiny, caplog, widgets):
    """AnimateDiff-Evolved's FreeInit. Catches a budget and a warm-up that are spent in the first iteration, so that
    the result depends on which node comes first.
    """
    scene = tiny("SD15")
    plain = comfy.sample(scene, sampling_three_times(scene.model))
    results = []
    for cache_first in (False, True):

        def sample(cache_first=cache_first, **given):
            if cache_first:
                return comfy.sample(scene, sampling_three_times(comfy.cached(scene.model, **given)))
            return comfy.sample(scene, comfy.cached(sampling_three_times(scene.model), **given))

        assert torch.equal(sample(threshold=0.0), plain)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            results.append(sample(**widgets))
        lines = summaries(caplog)
        assert len(lines) == 3 and all(" of 16 evaluations, skipped " in line for line in lines), lines
        assert psnr(results[-1], plain) > 15
    assert torch.equal(*results)


FORECAST = dict(threshold=0.5, warmup_steps=3)
SETTINGS = [FORECAST, dict(FORECAST, predictor="reuse"), dict(target_speedup=2.5)]
EVERY_SETTING = pytest.mark.parametrize("widgets", SETTINGS, ids=["threshold", "reuse", "budget"])


class Guidance:
    """CFG as another pack's guider has it: a scale for each step, and none where it is 1."""

    def __init__(self, model, scene, scales):
        from comfy.samplers import CFGGuider, sampling_function

        steps = iter(scales)

        class PerStep(CFGGuider):
            def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
                negative, positive = self.conds["negative"], self.conds["positive"]
                return sampling_function(self.inner_model, x, timestep, negative, positive, next(steps), model_options)

        self.guider = PerStep(model)
        self.guider.set_conds(scene.positive, scene.negative)


@EVERY_SETTING
@pytest.mark.parametrize("scales", [[1.0] * 6 + [4.0] * 10, [4.0] * 6 + [1.0] * 10], ids=["later", "at first"])
def test_guidance_that_begins_or_ends_on_the_way(comfy, tiny, scales, widgets):
    """KJNodes #262. Catches a negative that is answered from an earlier picture's, as at first nobody asks for it."""
    scene = tiny("Flux")
    sigmas = comfy.node("BasicScheduler", scene.model, "simple", 16, 1.0)[0]
    euler = comfy.node("KSamplerSelect", "euler")[0]

    def sample(model, seed=5):
        noise, guider = comfy.node("RandomNoise", seed)[0], Guidance(model, scene, scales).guider
        return comfy.node("SamplerCustomAdvanced", noise, guider, euler, sigmas, scene.latent)[0]["samples"]

    plain = sample(scene.model)
    assert torch.equal(sample(comfy.cached(scene.model, threshold=0.0)), plain)
    model = comfy.cached(scene.model, **widgets)
    first, levels = scene.counting(lambda: sample(model))
    assert len(levels) < 16
    assert scales[0] > 1 or float(sigmas[6]) in levels, "there the negative is asked for the first time"
    assert psnr(first, plain) > 15
    sample(model, seed=6)
    assert torch.equal(sample(model), first), "another picture in between must leave no trace"


@EVERY_SETTING
def test_prompts_that_are_asked_apart_as_memory_is_short(comfy, tiny, monkeypatch, widgets):
    """Comfy-WaveSpeed #57: ComfyUI then asks for positive and negative in two calls, at some steps only. Catches the
    positive's past as the negative's answer, and steps that are counted twice.
    """
    scene, calls = tiny("SD15"), []

    def short_of_memory(*args, **kwargs):
        calls.append(None)
        return 1e18 if len(calls) % 3 else 0

    together, levels = scene.counting(lambda: comfy.sample(scene, comfy.cached(scene.model, **widgets)))
    assert {kinds for _, _, kinds in scene.calls} == {(1, 0)} and len(levels) < 16
    monkeypatch.setattr(scene.model.model, "memory_required", short_of_memory)
    apart, same_levels = scene.counting(lambda: comfy.sample(scene, comfy.cached(scene.model, **widgets)))
    assert {(0,), (1,)} < {kinds for _, _, kinds in scene.calls}
    assert same_levels == levels and psnr(apart, together) > 60


@EVERY_SETTING
@pytest.mark.parametrize("where", ["pre_cfg", "cfg", "post_cfg"])
def test_functions_that_write_into_what_they_are_given(comfy, tiny, where, widgets):
    """Comfy-WaveSpeed #149, where the network itself does. Catches a cache that keeps what others write to."""
    scene = tiny("SD15")

    def patched(in_place):
        model = scene.model.clone()

        def keep(tensor):
            return tensor if in_place else tensor.clone()

        def pre_cfg(given):
            return [keep(answer).mul_(0.9) for answer in given["conds_out"]]

        def cfg(given):
            cond, uncond = keep(given["cond"]), keep(given["uncond"])
            return cond.mul_(3.0).sub_(uncond.mul_(2.0))

        def post_cfg(given):
            denoised, cond, uncond = (keep(given[n]) for n in ("denoised", "cond_denoised", "uncond_denoised"))
            return denoised.add_(cond.sub_(uncond).mul_(0.1))

        if where == "cfg":
            model.set_model_sampler_cfg_function(cfg)
        else:
            getattr(model, f"set_model_sampler_{where}_function")(locals()[where])
        return model

    careful, levels = scene.counting(lambda: comfy.sample(scene, comfy.cached(patched(False), **widgets)))
    assert len(levels) < 16
    assert torch.equal(comfy.sample(scene, comfy.cached(patched(True), **widgets)), careful)


@pytest.mark.parametrize("widgets", [{}, *SETTINGS], ids=["default", "threshold", "reuse", "budget"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_very_few_steps(comfy, tiny, caplog, steps, widgets):
    """MagCache #15 fails at 2 steps, as distilled models take them. Catches a run that dies, and one that a threshold
    changes although it is all warm-up.
    """
    scene = tiny("Flux")
    plain = comfy.sample(scene, steps=steps, cfg=1.0)
    with caplog.at_level(logging.INFO):
        cached, levels = scene.counting(
            lambda: comfy.sample(scene, comfy.cached(scene.model, **widgets), steps=steps, cfg=1.0)
        )
    assert f"computed {len(levels)} of {steps} evaluations" in summaries(caplog)[0]
    assert cached.isfinite().all()
    if "target_speedup" not in widgets:
        assert torch.equal(cached, plain)


@EVERY_SETTING
def test_a_pack_that_replaces_a_part_of_the_network(comfy, tiny, widgets):
    """ComfyUI-TeaCache #11: PuLID has no effect any longer, not even without the cache, until a restart. Catches a
    replaced method that the cache displaces, in one order of nodes or for good.
    """
    scene = tiny("Flux")
    network = scene.model.model.diffusion_model
    before = comfy.sample(scene)

    def replace(model):
        model = model.clone()

        def forward(*args, **kwargs):
            return 0.5 * type(network).forward_orig(network, *args, **kwargs)

        model.add_object_patch("diffusion_model.forward_orig", forward)
        return model

    plain = comfy.sample(scene, replace(scene.model))
    assert not torch.equal(plain, before)
    first = comfy.sample(scene, comfy.cached(replace(scene.model), **widgets))
    assert torch.equal(comfy.sample(scene, replace(comfy.cached(scene.model, **widgets))), first)
    assert psnr(first, plain) > 15
    assert torch.equal(comfy.sample(scene, replace(scene.model)), plain)
    assert torch.equal(comfy.sample(scene), before)


@pytest.mark.parametrize("saved", [{}, {"threshold": 0.2, "warmup_steps": 3, "predictor": "reuse"}], ids=str)
def test_a_prompt_that_was_saved_before_a_widget_was_there(comfy, saved):
    """SwarmUI #788: "missing 2 required positional arguments". Catches an input that saved prompts and other front ends
    cannot leave out, and one that then means something else than its widget shows.
    """
    import execution

    scene = dict(zip(widgets_of(comfy, "EasyCacheDemoModel"), ["rocket", "night", "zoom-out", 1], strict=True))
    prompt = {
        "1": {"class_type": "EasyCacheDemoModel", "inputs": scene},
        "2": {"class_type": "EasyCacheAdaptive", "inputs": {"model": ["1", 0], **saved}},
    }
    valid, errors, _ = asyncio.run(execution.validate_inputs("id", prompt, "2", {}))
    assert valid, errors
    arguments = inspect.signature(comfy.classes["EasyCacheAdaptive"].execute).parameters
    for name, widget in widgets_of(comfy, "EasyCacheAdaptive").items():
        assert arguments[name].default == widget.get("default", widget.get("options", [None])[0]), name


def widgets_of(comfy, node):
    """Options of a node's widgets, by name."""
    given = comfy.classes[node].INPUT_TYPES()
    inputs = given.get("required", {}) | given.get("optional", {})
    return {name: options[0] for name, (kind, *options) in inputs.items() if kind != "MODEL"}
