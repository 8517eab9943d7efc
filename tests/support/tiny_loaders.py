"""Nodes that load tiny models where ComfyUI's loaders would read files: of the same outputs, for a real server.

MODEL is the family's own network (tiny_models), VAE a real video VAE of Wan's or a real TAESD, all with random weights.
CLIP and CLIP_VISION answer with random numbers of the right shapes, the same ones for the same text.
"""

import zlib

import comfy.sd
import tiny_models
import torch
from comfy.ldm.wan.vae import WanVAE
from comfy.taesd.taesd import TAESD

import nodes

LOADERS = ("UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader", "CLIPVisionLoader", "CheckpointLoaderSimple")


class Text:
    """Stands in for a text encoder."""

    def __init__(self, recipe: tiny_models.Recipe):
        self._recipe = recipe

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        rng = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        pooled = {name: shape for name, shape in self._recipe.cond.items() if name == "pooled_output"}
        return [tiny_models.draw([self._recipe.text, pooled], rng)]


class Vision:
    """Stands in for an image encoder."""

    def encode_image(self, image, crop=True):
        return tiny_models.draw(tiny_models.CLIP_IMAGE["clip_vision_output"], torch.Generator().manual_seed(1))


@torch.no_grad()
def vae(recipe: tiny_models.Recipe) -> comfy.sd.VAE:
    channels, is_video = recipe.latent[1], len(recipe.latent) == 5
    if is_video:
        network = WanVAE(dim=8, z_dim=channels, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                         temperal_downsample=[False, True, True])  # fmt: skip
    else:
        network = TAESD(latent_channels=channels)
    tiny_models.fill(network, torch.Generator().manual_seed(2))
    return comfy.sd.VAE(sd=network.state_dict())


MAKE = {
    "MODEL": lambda family, seed: tiny_models.build(family, seed).model,
    "CLIP": lambda family, seed: Text(tiny_models.RECIPES[family]),
    "CLIP_VISION": lambda family, seed: Vision(),
    "VAE": lambda family, seed: vae(tiny_models.RECIPES[family]),
}


class TinyLoader:
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION, CATEGORY = "load", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"family": ("STRING", {}), "seed": ("INT", {})}}

    def load(self, family, seed):
        return tuple(MAKE[kind](family, seed) for kind in self.RETURN_TYPES)


NODE_CLASS_MAPPINGS = {
    f"Tiny{name}": type(f"Tiny{name}", (TinyLoader,), {"RETURN_TYPES": nodes.NODE_CLASS_MAPPINGS[name].RETURN_TYPES})
    for name in LOADERS
}
