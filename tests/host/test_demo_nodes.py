"""The bundled demo model: what its words promise must be seen in the pictures."""

import sys
from importlib import import_module

import comfy_host
import pytest
import torch


@pytest.fixture(scope="module")
def demo():
    pack = comfy_host.load_pack()
    for part in ("scenes", "codec", "words"):
        import_module(f"{pack.__name__}.demo.{part}")
    return sys.modules[f"{pack.__name__}.demo"]


def video_of(comfy, *words, seed=3):
    """(17, 128, 128, 3) pictures of a prompt."""
    model, positive, negative, latent = comfy.node("EasyCacheDemoModel", *words, 1)
    shifted = comfy.node("ModelSamplingSD3", model, 5.0)[0]
    sampled = comfy.node("KSampler", shifted, seed, 20, 4.0, "euler", "simple", positive, negative, latent)[0]
    return comfy.node("EasyCacheDemoDecode", sampled)[0]


def shape_mask(video, channel):
    """Where a pixel is clearly of the primary colour of that channel (0 red, 2 blue)."""
    others = [c for c in range(3) if c != channel]
    return video[..., channel] - video[..., others].amax(-1) > 0.25


def test_comfyui_takes_it_for_a_wan_model(comfy):
    model, _, _, latent = comfy.node("EasyCacheDemoModel", "red", "ring", "up", "paper", 2)
    assert type(model.model).__name__ == "WAN21"
    assert latent["samples"].shape == (2, 16, 5, 16, 16)
    weights = comfy_host.PACK / "demo" / "weights"
    assert sum(file.stat().st_size for file in weights.iterdir()) <= 16_000_000


def test_the_colour_is_the_one_asked_for(comfy):
    red = video_of(comfy, "red", "square", "right", "paper")
    blue = video_of(comfy, "blue", "square", "right", "paper")
    assert red.shape == (17, 128, 128, 3) and red.min() >= 0 and red.max() <= 1
    for video, channel, other in ((red, 0, 2), (blue, 2, 0)):
        pixels, wrong = shape_mask(video, channel).sum(), shape_mask(video, other).sum()
        assert pixels / 17 > 500, "a shape of a decent size in every frame"
        assert wrong < 0.1 * pixels


def test_the_shape_moves_as_asked(comfy):
    """The centre of the shape travels; a still video would make caching look better than it is."""
    column = torch.arange(128.0)
    for motion, direction in (("right", 1), ("left", -1)):
        mask = shape_mask(video_of(comfy, "red", "circle", motion, "paper"), 0).float()
        centre = (mask.sum(1) * column).sum(1) / mask.sum((1, 2))
        assert direction * (centre[-1] - centre[0]) > 25, motion


def test_the_decoder_undoes_the_encoder(comfy, demo):
    """Catches a decoder for another latent scale: it is exported for latents as ComfyUI's sampler hands them out."""
    import comfy.latent_formats as formats
    from safetensors.torch import load_file

    rng = torch.Generator().manual_seed(11)
    videos = demo.scenes.render([demo.scenes.random_scene(rng) for _ in range(6)], rng)
    encoder = load_file(comfy_host.PACK / "demo" / "weights" / "easycache_demo_encoder.safetensors")
    latent = formats.Wan21().process_out(demo.codec.encode(videos, encoder["mean"], encoder["projection"]))
    painted = comfy.node("EasyCacheDemoDecode", {"samples": latent})[0]
    expected = videos.flatten(0, 1).movedim(1, -1)
    psnr = -10 * torch.log10((painted - expected).square().mean())
    assert psnr > 28, f"{psnr:.1f} dB"


def test_latents_of_another_model_are_refused(comfy):
    with pytest.raises(ValueError, match="takes latents of the EasyCache Demo Model"):
        comfy.node("EasyCacheDemoDecode", {"samples": torch.zeros(1, 4, 16, 16)})
