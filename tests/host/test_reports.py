"""Faults that users reported of caching nodes, and what this one does in the same place.

A test names the report that it goes by. They sample with ComfyUI's own nodes, on tiny models.
"""

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
    for order in ("cache last", "cache first"):
        def make(**given):
            if order == "cache first":
                return sampling_three_times(comfy.cached(scene.model, **given))
            return comfy.cached(sampling_three_times(scene.model), **given)

        assert torch.equal(comfy.sample(scene, make(threshold=0.0)), plain)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            latent, levels = scene.counting(lambda: comfy.sample(scene, make(**widgets)))
        lines = summaries(caplog)
        assert len(lines) == 3 and all(" of 16 evaluations, skipped " in line for line in lines), lines
        assert psnr(latent, plain) > 15
        results.append(latent)
    assert torch.equal(*results)
