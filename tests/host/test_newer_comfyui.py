"""What only newer versions of ComfyUI have; skipped in others."""

import json

import pytest
import tiny_models
import torch
from closeness import psnr

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_report_finds_its_run_with_fp16_intermediates(comfy, tiny, monkeypatch):
    """What a sampler returns is cast then. Catches a report of another run, or of none."""
    from comfy.cli_args import args

    if not hasattr(args, "fp16_intermediates"):
        pytest.skip("this ComfyUI has no --fp16-intermediates")
    monkeypatch.setattr(args, "fp16_intermediates", True)
    scene, latents = tiny("SD15"), {}
    model = comfy.cached(scene.model, target_speedup=2.0)
    for steps in (8, 12):
        latents[steps] = comfy.sample(scene, model, steps=steps)
    for steps, latent in latents.items():
        assert latent.dtype == torch.float16
        report = json.loads(comfy.node("EasyCacheReport", model, {"samples": latent})[2])
        assert report["steps"] == steps


@pytest.mark.parametrize("cache_first", [False, True])
def test_cfg_split_over_two_devices(comfy, monkeypatch, cache_first):
    """Cond and uncond in threads of their own, below the cache; two names of the CPU stand for two GPUs. Catches a
    clone's network that runs where nothing is to be computed, and answers that are mixed up.
    """
    import comfy.model_management as management

    if not hasattr(management, "get_all_torch_devices"):
        pytest.skip("this ComfyUI has no MultiGPU CFG Split")
    management.current_loaded_models.clear()  # it stumbles over those of other tests that are gone
    first, second = torch.device("cpu"), torch.device("cpu", 0)
    monkeypatch.setattr(management, "get_all_torch_devices", lambda *args, **kwargs: [first, second])
    scene, other = tiny_models.build("SD15"), tiny_models.build("SD15")
    scene.model.cached_patcher_init = (lambda: other.model, ())  # as ComfyUI's loaders set it
    alone = comfy.sample(scene)

    def split(model):
        return comfy.node("MultiGPU_WorkUnits", model, 2)[0]

    def sample(model):
        other.calls.clear()
        latent, _ = scene.counting(lambda: comfy.sample(scene, model))
        return latent, len(scene.calls), len(other.calls)

    plain, *calls = sample(split(scene.model))
    assert calls == [16, 16], "both networks run, each with one of the conditionings"
    assert psnr(plain, alone) > 60
    for widgets in (dict(threshold=0.0), dict(threshold=0.3), dict(target_speedup=2.0)):
        if cache_first:
            model = split(comfy.cached(scene.model, **widgets))
        else:
            model = comfy.cached(split(scene.model), **widgets)
        latent, here, there = sample(model)
        assert here == there
        if widgets.get("threshold") == 0.0:
            assert torch.equal(latent, plain) and here == 16
        else:
            assert here < 16 and psnr(latent, plain) > 20
