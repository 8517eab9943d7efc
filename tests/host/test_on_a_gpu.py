"""The node on a GPU, as far as can be told without one (support/pretended_gpu.py)."""

import copy
import importlib

import comfy_host
import numpy as np
import pytest
import torch
from host_source import sampler_names
from pretended_gpu import GPU, PretendedGpu, on_gpu
from streams import streams

pytestmark = pytest.mark.usefixtures("one_thread")

# One of each way to parametrise, and of each kind of latent.
FAMILIES = ["SD15", "SD20", "SD21UnclipL", "SDXL", "SD_X4Upscaler", "Stable_Cascade_C", "StableAudio", "Flux", "LTXV",
            "HunyuanVideo", "CosmosT2V", "CosmosI2VPredict2", "WAN21_I2V", "Hunyuan3Dv2", "ACEStep", "ChromaRadiance",
            "SVD_img2vid"]  # fmt: skip
STEPS = 16
WAYS = {
    "budget": dict(target_speedup=2.0),
    "threshold": dict(threshold=0.15, warmup_steps=2),
    "reuse": dict(threshold=0.1, warmup_steps=2, predictor="reuse"),
    "on the CPU": dict(target_speedup=2.0, cache_device="cpu"),
    "start_percent": dict(threshold=0.1, warmup_steps=2, start_percent=0.3, end_percent=0.8),
}


@pytest.fixture
def gpu(comfy, monkeypatch):
    import comfy.model_management as management

    free = management.get_free_memory

    def enough(device=None, torch_free_too=False):
        if device is None or device.type != GPU.type:
            return free(device, torch_free_too)
        return (1 << 40, 1 << 40) if torch_free_too else 1 << 40

    monkeypatch.setattr(management, "get_free_memory", enough)
    return PretendedGpu()


def check_both(comfy, scene, gpu, widgets, **options):
    """Sample on the CPU and on the GPU: the latents are the same, and so is the number of calls of the network."""

    def sampled(model, patch=lambda model: comfy.cached(model, **widgets)):
        torch.manual_seed(0)  # for samplers that draw noise as they please
        scene.calls.clear()
        latent = comfy.sample(scene, patch(model), **options)
        return streams(latent), len(scene.calls)

    def both(*patch):
        here = sampled(scene.model, *patch)
        with gpu:
            there = sampled(on_gpu(scene.model), *patch)
        close = all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(here[0], there[0], strict=True))
        return close, here[1], there[1]

    close, calls, calls_on_gpu = both()
    if close:
        assert calls_on_gpu == calls
    else:
        assert not both(lambda model: model)[0], "it is not the noise, which newer ComfyUIs draw otherwise on a GPU"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.in_turn("way")
def test_models_on_a_gpu(comfy, tiny, gpu, name, way):
    """Catches tensors of the CPU among those of the GPU: the run would end in an error there, and here in none."""
    check_both(comfy, tiny(name), gpu, WAYS[way], steps=6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sampler", sampler_names(comfy_host.find()))
@pytest.mark.in_turn("way")
def test_samplers_on_a_gpu(comfy, tiny, gpu, sampler, way):
    """As above, in what is learnt about samplers."""
    check_both(comfy, tiny("Flux"), gpu, WAYS[way], steps=6, sampler_name=sampler)


@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_levels_of_a_model_on_a_gpu(tiny, name):
    """Catches samplers of which nothing is learnt where the model's noise levels are on the GPU, as they are once it
    is loaded: budgets would be placed worse there, and nobody told.
    """
    import comfy.samplers as samplers

    response_of = importlib.import_module(f"{comfy_host.load_pack().__name__}.nodes.sampler_response").response_of
    sampling = tiny(name).model.get_model_object("model_sampling")
    sigmas, known = samplers.calculate_sigmas(sampling, "simple", 8), 0
    with PretendedGpu():
        loaded = copy.deepcopy(sampling)
        for module in loaded.modules():
            module._buffers.update({key: one.to(GPU) for key, one in module._buffers.items()})
        for sampler in map(samplers.sampler_object, samplers.SAMPLER_NAMES):
            here, there = (response_of(sampler, sigmas, one) for one in (sampling, loaded))
            assert (here is None) == (there is None)
            if here is not None:
                assert there.lengths == here.lengths and np.array_equal(there.weights, here.weights)
                known += 1
    assert known > len(samplers.SAMPLER_NAMES) / 2


@pytest.fixture
def between_callbacks(comfy, gpu):
    """between_callbacks(scene, **widgets): of each span of a run, from one of the sampler's callbacks to the next:
    (whether the network ran, the places of the pack that made the host wait, how many operations the GPU was given).
    """

    def run(scene, widgets, mode, cfg=4.0, patch=lambda model: None):
        from comfy.patcher_extension import WrappersMP

        spans = []

        def span():
            waits = [place for place in gpu.reads if place.startswith(("nodes/", "easycache_core/"))]
            spans.append((bool(scene.calls), waits, len(gpu.launches)))
            scene.calls.clear(), gpu.reads.clear(), gpu.launches.clear()

        def count(executor, guider, sigmas, extra_args, callback, *args, **kwargs):
            def note(*state):
                callback(*state)
                span()

            gpu.reads.clear(), gpu.launches.clear()
            return executor(guider, sigmas, extra_args, note, *args, **kwargs)

        with gpu, mode():
            model = on_gpu(scene.model)
            model = comfy.cached(model, **widgets) if widgets else model
            model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "count", count)
            patch(model)
            comfy.sample(scene, model, steps=STEPS, cfg=cfg)
        assert len(spans) == STEPS
        return spans

    return run


def making_anew(model):
    """The tensors of conditionings, large and small ones, are made anew for each evaluation."""
    from comfy.patcher_extension import WrappersMP

    def make_anew(executor, x, *args, **kwargs):
        for conds in executor.class_obj.conds.values():
            for held in conds[0]["model_conds"].values():
                held.cond = held.cond.clone() if isinstance(held.cond, torch.Tensor) else held.cond
            conds[0]["note"] = x.new_ones(3)
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "anew", make_anew)


@pytest.mark.parametrize("patch", [lambda model: None, making_anew], ids=["", "tensors made anew"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "on the CPU"])
def test_one_wait_per_evaluation(tiny, between_callbacks, way, mode, patch):
    """Catches a comparison of tensors that is taken for a flag, and anything else that lets the GPU run dry in each
    step.
    """
    (_, first, _), *others = between_callbacks(tiny("SD15"), WAYS[way], mode, patch=patch)
    assert len(first) <= 2, f"the schedule is looked at once per run: {first}"
    assert all(len(waits) == 1 for _, waits, _ in others), others


@pytest.mark.parametrize(("cfg", "computed"), [(1.0, 55), (4.0, 80)])
@pytest.mark.parametrize("way", ["budget", "threshold", "reuse"])
def test_few_operations_per_evaluation(tiny, between_callbacks, way, cfg, computed):
    """What the node adds to an evaluation of one branch, and of two. computed: where the network runs, at most; where
    it does not, no more than is spared around it. Each operation takes the host some 5 microseconds.

    Catches looks at latents and answers that cost more than they are worth: there were 200.
    """
    *_, (_, _, plain) = between_callbacks(tiny("Flux"), None, torch.inference_mode, cfg)
    added = {True: [], False: []}
    for ran, _, operations in between_callbacks(tiny("Flux"), WAYS[way], torch.inference_mode, cfg)[2:]:
        added[ran].append(operations - plain)
    assert 0 < max(added[True]) <= computed and max(added[False]) <= 3
