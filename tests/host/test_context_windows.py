"""ComfyUI's own context windows: a long latent is asked about window by window."""

import json
import logging

import pytest
import torch
from closeness import psnr
from sampling import log_of

LONG = 9  # latent frames, in windows of 5
DEFAULTS = dict(threshold=0.15, warmup_steps=2)


@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform"])
def test_context_windows_are_skipped_too(comfy, small_scene, schedule):
    """Fixed windows and moving ones. Catches a window that is answered with another window's latent."""
    windowed = comfy.node(
        "ContextWindowsManual", small_scene.model, context_length=3, context_overlap=1, context_schedule=schedule,
        context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2,
    )[0]  # fmt: skip
    latent = {"samples": torch.zeros(1, 16, 5, 8, 8)}

    def sample(model):
        return small_scene.counting(lambda: comfy.sample(small_scene, model, steps=20, latent_image=latent))

    plain, everywhere = sample(windowed)
    assert len(small_scene.calls) > len(everywhere) == 20, "in windows"
    cached, levels = sample(comfy.cached(windowed, threshold=0.15))
    assert len(levels) <= 15
    assert psnr(cached, plain) > 14
    assert torch.equal(plain, sample(comfy.cached(windowed, threshold=0.0))[0])


@pytest.fixture(scope="module")
def sampled(comfy, demo_scene):
    """sampled(schedule, **widgets): (latent, report) of 20 steps of the bundled video model in windows."""
    latent = {"samples": torch.zeros(1, 16, LONG, *demo_scene.latent["samples"].shape[3:])}

    def sampled(schedule, **widgets):
        windowed = comfy.node(
            "WanContextWindowsManual", demo_scene.model, context_length=17, context_overlap=5,
            context_schedule=schedule, context_stride=1, closed_loop=False, fuse_method="pyramid",
        )[0]  # fmt: skip
        model = comfy.cached(windowed, **widgets) if widgets else windowed
        samples = comfy.sample(demo_scene, model, steps=20, cfg=2.5, latent_image=latent)
        report = json.loads(comfy.node("EasyCacheReport", model, {"samples": samples})[2]) if widgets else None
        return samples, report

    return sampled


def test_windows_that_move(sampled, caplog):
    """What a frame is answered depends on the frames of its window. Catches steps that are predicted from windows that
    lay elsewhere, as a step with the same windows came out well (15 dB under a threshold), a budget that is spent where
    the windows moved furthest (3 dB below `reuse`), and an estimate that knows nothing of it.
    """
    plain, _ = sampled("standard_uniform")
    cached, report = sampled("standard_uniform", **DEFAULTS)
    assert psnr(cached, plain) > 25 and 0 < report["skipped"] < 5
    assert report["closeness"] is None
    closeness = {}
    for predictor in ("forecast", "reuse"):
        with caplog.at_level(logging.INFO):
            cached, report = sampled("standard_uniform", target_speedup=1.5, predictor=predictor)
        assert report["computed"] == 14 and report["closeness"] is None
        closeness[predictor] = psnr(cached, plain)
    assert closeness["forecast"] > closeness["reuse"], closeness
    assert "its context windows move from step to step" in log_of(caplog)[-1]


def test_why_nothing_is_skipped_of_windows_that_move(sampled):
    """Catches a log that blames the threshold."""
    _, report = sampled("looped_uniform", **DEFAULTS)
    assert not report["skipped"] and "context_schedule standard_static" in report["reason"]


def test_windows_that_stay(sampled, caplog):
    """Catches a log, or steps that are computed, as if they moved."""
    plain, _ = sampled("standard_static")
    with caplog.at_level(logging.INFO):
        cached, report = sampled("standard_static", **DEFAULTS)
    assert report["skipped"] > 7 and psnr(cached, plain) > 25
    assert report["closeness"] is not None and "windows" not in log_of(caplog)[-1]
