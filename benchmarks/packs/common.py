"""What cases of several packs share: the models that are sampled, and ComfyUI's own sampling nodes."""

from typing import NamedTuple

import torch
from torch.nn import functional

STEPS, CFG, SEED = 20, 4.0, 5


class Scene(NamedTuple):
    """In ComfyUI's terms."""

    model: object
    positive: list
    negative: list
    latent: dict


def video(host) -> Scene:
    """The trained demo model, in Wan 2.1's architecture, with a shift of 5."""
    model, *rest = host.node("EasyCacheDemoModel", "rocket", "night", "zoom-out", 1)
    return Scene(host.node("ModelSamplingSD3", model, 5.0)[0], *rest)


def tiny(family: str) -> Scene:
    """A family's own architecture at a tiny size, with random weights."""
    import tiny_models

    built = tiny_models.build(family)
    built.leave_alone()
    return Scene(built.model, built.positive, built.negative, built.latent)


def full_unet() -> Scene:
    """SD15 with as many blocks as in full size, for packs that name them; 32 channels in each."""
    import tiny_models

    known = tiny_models.RECIPES["SD15"]
    sizes = dict(
        num_res_blocks=[2] * 4, channel_mult=[1] * 4, transformer_depth=[1] * 6 + [0] * 2,
        transformer_depth_output=[1] * 9 + [0] * 3,
    )  # fmt: skip
    tiny_models.RECIPES["SD15"] = known.__class__(**{**vars(known), "sizes": known.sizes | sizes})
    scene = answering(tiny("SD15"))
    tiny_models.RECIPES["SD15"] = known
    for weight in scene.model.model.diffusion_model.parameters():
        if weight.ndim > 1:
            weight.data.mul_(2)  # else attention has next to no effect
    return scene._replace(latent={"samples": torch.zeros(1, 4, 16, 16)})


def half_and_prompt(size: int, channels: int) -> tuple[torch.Tensor, list]:
    """The mask of a square picture's left half, and a conditioning for one half. size: of the mask. channels: of the
    text encoder's tokens.
    """
    left, rng = torch.zeros(1, size, size), torch.Generator().manual_seed(9)
    left[..., : size // 2] = 1
    return left, [[torch.randn(1, 6, channels, generator=rng), {}]]


def ksampler(host, scene: Scene, sampler="euler", patch=lambda model: model, **widgets):
    """(model, sample) of a Case: the node KSampler."""
    widgets = dict(seed=SEED, steps=STEPS, cfg=CFG, scheduler="simple", denoise=1.0) | widgets

    def sample(model):
        return host.node(
            "KSampler", patch(model), sampler_name=sampler, positive=scene.positive, negative=scene.negative,
            latent_image=scene.latent, **widgets,
        )[0]["samples"]  # fmt: skip

    return scene.model, sample


def custom(host, scene: Scene, make_guider=None, sampler="euler", sigmas=None, latent=None):
    """(model, sample) of a Case: the node SamplerCustomAdvanced.

    make_guider(model): of CFG if it is left out. sampler: a name, or a SAMPLER. sigmas: of the scheduler "simple".
    """

    def cfg_guider(model):
        return host.node("CFGGuider", model, scene.positive, scene.negative, CFG)[0]

    def sample(model):
        levels = host.node("BasicScheduler", model, "simple", STEPS, 1.0)[0] if sigmas is None else sigmas
        kind = host.node("KSamplerSelect", sampler)[0] if isinstance(sampler, str) else sampler
        noise, guider = host.node("RandomNoise", SEED)[0], (make_guider or cfg_guider)(model)
        return host.node("SamplerCustomAdvanced", noise, guider, kind, levels, latent or scene.latent)[0]["samples"]

    return scene.model, sample


def edited(host, model, make_sampler, sigmas, make_guider, *, latent, noise=False):
    """(model, sample) of a Case: the node SamplerCustomAdvanced on a latent, with noise or without.

    make_sampler(): a new SAMPLER each time, as some keep a generator. make_guider(model).
    """

    def sample(model):
        given = host.node("RandomNoise", SEED)[0] if noise else host.node("DisableNoise")[0]
        return host.node("SamplerCustomAdvanced", given, make_guider(model), make_sampler(), sigmas, dict(latent))[0][
            "samples"
        ]

    return model, sample


def answering(scene: Scene, share: float = 0.3) -> Scene:
    """The same with a network whose answer follows its input, as a trained one's does, and says this share itself."""

    def follow(network, args, kwargs, answer):
        x = args[0]
        if isinstance(x, list):  # streams
            return [(1 - share) * one + share * said for one, said in zip(x, answer, strict=True)]
        return (1 - share) * x[:, : answer.shape[1]] + share * answer

    scene.model.model.diffusion_model.register_forward_hook(follow, with_kwargs=True)
    return scene


class PixelVAE:
    """Pictures from latents of four channels and back, without a network: for nodes that work on both."""

    def encode(self, pixels):
        latent = functional.avg_pool2d(pixels[..., :3].movedim(-1, 1), 8)
        return torch.cat([latent, latent.mean(1, keepdim=True)], 1) * 4 - 2

    def decode(self, latent):
        pixels = ((latent[:, :3] + 2) / 4).clamp(0, 1)
        return functional.interpolate(pixels, scale_factor=8, mode="bilinear").movedim(1, -1)

    def spacial_compression_encode(self):
        return 8


def second_model(host, model, other, nodes: int):
    """For samplers of two models: the other one as a run with `model` has it. nodes: 1 if it has been through the same
    node of ours, 2 if it has been through one of its own, with the same settings.
    """
    if nodes == 1:
        return model.clone()
    own = host.module("nodes.own_wrappers").own_wrappers(model)
    return host.module("nodes.patch").with_cache(other, own[0].settings) if own else other


def seeded(sample):
    """For what draws from torch's own generator."""

    def run(model):
        torch.manual_seed(1)
        return sample(model)

    return run
