"""The bundled demo model: what its words promise must be seen in the pictures."""

import sys
from importlib import import_module

import comfy_host
import pytest
import torch

NAMES = ["subject", "background", "camera"]


@pytest.fixture(scope="module")
def demo():
    pack = comfy_host.load_pack()
    for part in ("scenes", "codec", "words"):
        import_module(f"{pack.__name__}.demo.{part}")
    return sys.modules[f"{pack.__name__}.demo"]


@pytest.fixture(scope="module")
def drawn(demo):
    """drawn(words): (17, 3, 128, 128), what training shows for a prompt."""
    renderer = demo.scenes.Renderer("cpu")

    def drawn(words):
        torch.manual_seed(0)
        return renderer.render(demo.scenes.scene_of(words)[None])[0]

    return drawn


def video_of(comfy, *words, seed=3):
    """(17, 3, 128, 128) pictures of a prompt."""
    model, positive, negative, latent = comfy.node("EasyCacheDemoModel", *words, 1)
    shifted = comfy.node("ModelSamplingSD3", model, 5.0)[0]
    sampled = comfy.node("KSampler", shifted, seed, 20, 4.0, "euler", "simple", positive, negative, latent)[0]
    return comfy.node("EasyCacheDemoDecode", sampled)[0].movedim(-1, 1)


def test_comfyui_takes_it_for_a_wan_model(comfy):
    model, _, _, latent = comfy.node("EasyCacheDemoModel", "rocket", "night", "zoom-out", 2)
    assert type(model.model).__name__ == "WAN21"
    assert latent["samples"].shape == (2, 16, 5, 16, 16)


@pytest.mark.parametrize("words", [("fox", "meadow", "still"), ("penguin", "dots", "still")], ids=" ".join)
def test_the_picture_shows_what_was_asked_for(comfy, demo, drawn, words):
    """Of all emoji and backgrounds, those asked for are nearest. Catches a decoder for another latent scale, and words
    that stand for others than in training.
    """
    video = video_of(comfy, *words)
    assert video.shape == (17, 3, 128, 128) and video.min() >= 0 and video.max() <= 1
    for place, kind in enumerate((demo.words.SUBJECTS, demo.words.BACKGROUNDS)):
        prompts = {word: (*words[:place], word, *words[place + 1 :]) for word in kind}
        errors = {word: (video - drawn(prompt)).abs().mean().item() for word, prompt in prompts.items()}
        assert min(errors, key=errors.get) == words[place], errors


def test_the_camera_moves_as_asked(comfy):
    """Pans go opposite ways, so that a still video cannot make caching look better than it is."""
    column = torch.linspace(-1, 1, 128)
    for camera, direction in (("pan-left", 1), ("pan-right", -1)):
        video = video_of(comfy, "heart", "mint", camera)
        red = (video[:, 0] - video[:, 1] > 0.3).float()
        centre = (red.sum(1) * column).sum(1) / red.sum((1, 2))
        assert direction * (centre[-1] - centre[0]) > 0.3, camera


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("subject", ("Rocket", "night", "still")),
        ("background", ("rocket", "rocket", "still")),
        ("camera", ("rocket", "night", None)),
    ],
)
def test_words_that_it_does_not_know_are_refused(comfy, name, words):
    """Catches a bare KeyError, and a word of another kind that is taken: some versions of ComfyUI check none."""
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got {words[NAMES.index(name)]!r}"):
        comfy.node("EasyCacheDemoModel", *words, 1)


def test_latents_of_another_model_are_refused(comfy):
    with pytest.raises(ValueError, match="takes latents of the EasyCache Demo Model"):
        comfy.node("EasyCacheDemoDecode", {"samples": torch.zeros(1, 4, 16, 16)})
