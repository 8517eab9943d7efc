"""Nodes that load tiny models where ComfyUI's loaders would read files: of the same outputs, for a real server.

MODEL is the family's own network (tiny_models), VAE a real video VAE of Wan's or a real TAESD, all with random weights.
Where a family's VAE has sizes that cannot be chosen, something of its shapes stands in. CLIP and CLIP_VISION answer
with random numbers of the right shapes, the same ones for the same text.
"""

import zlib
from types import SimpleNamespace

import comfy.sd
import tiny_models
import torch
from comfy.ldm.wan.vae import WanVAE
from comfy.taesd.taesd import TAESD

import nodes

LOADERS = ("UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader", "CLIPVisionLoader", "CheckpointLoaderSimple",
           "LTXAVTextEncoderLoader", "LTXVAudioVAELoader")  # fmt: skip
COMPRESSION = {"Flux2": (1, 16), "HunyuanVideo15": (4, 16), "WAN22_T2V": (4, 16), "LTXAV": (8, 32)}  # of time, of space


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


class Decoder:
    """Stands in for a VAE that compresses time and space by these factors."""

    def __init__(self, time: int, space: int):
        self._time, self._space = time, space

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        grey = latent.mean(1, keepdim=True).sigmoid()
        for axis in range(latent.ndim - 2, latent.ndim):
            grey = grey.repeat_interleave(self._space, axis)
        if latent.ndim == 5:
            grey = grey.repeat_interleave(self._time, 2)[:, :, self._time - 1 :]
        return grey.movedim(1, -1).expand(*grey.movedim(1, -1).shape[:-1], 3)

    def decode_tiled(self, latent: torch.Tensor, **tiles) -> torch.Tensor:
        return self.decode(latent)

    def spacial_compression_decode(self) -> int:
        return self._space

    def temporal_compression_decode(self) -> int:
        return self._time


class Sound:
    """Stands in for LTX-2's VAE of sound."""

    latent_channels = 8
    first_stage_model = SimpleNamespace(
        latent_frequency_bins=16,
        num_of_latents_from_frames=lambda frames, rate: max(1, round(25 * frames / rate)),
        output_sample_rate=16000,
    )

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return latent.mean((1, 3)).tanh().repeat_interleave(640, 1)[..., None].expand(-1, -1, 2)


@torch.no_grad()
def vae(family: str) -> comfy.sd.VAE | Decoder:
    if family in COMPRESSION:
        return Decoder(*COMPRESSION[family])
    recipe = tiny_models.RECIPES[family]
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
    "VAE": lambda family, seed: vae(family),
}


class TinyLoader:
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION, CATEGORY = "load", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"family": ("STRING", {}), "seed": ("INT", {})}}

    def load(self, family, seed):
        if "Audio" in type(self).__name__ and self.RETURN_TYPES == ["VAE"]:
            return (Sound(),)
        return tuple(MAKE[kind](family, seed) for kind in self.RETURN_TYPES)


NODE_CLASS_MAPPINGS = {
    f"Tiny{name}": type(f"Tiny{name}", (TinyLoader,), {"RETURN_TYPES": nodes.NODE_CLASS_MAPPINGS[name].RETURN_TYPES})
    for name in LOADERS
    if name in nodes.NODE_CLASS_MAPPINGS
}
