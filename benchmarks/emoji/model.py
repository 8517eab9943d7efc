"""An image model of real pictures with text, for the benchmark: Noto's emoji by their names, in FLUX's architecture.

Pictures are the 1,911 of the npm package emoji-datasource-google, 64 x 64 pixels on white. A latent has 16 channels of
16 x 16 cells (trained.py). Of a prompt the words count, not their order: each is a random vector that its own hash
seeds, so that nothing is stored, and the network's text embedding learns what it means.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import trained
from trained import CHANNELS

CELL, SIZE = 4, 64
SPREAD = 2.7  # of the latents' first component; all together then have unit variance
TOKENS, WIDTH = 8, 128  # of a prompt


def sizes(hidden: int, heads: int, axes: list[int], double: int, single: int) -> dict:
    return dict(hidden_size=hidden, num_heads=heads, mlp_ratio=4.0, depth=double, depth_single_blocks=single,
                qkv_bias=True, context_in_dim=WIDTH, in_channels=CHANNELS, out_channels=CHANNELS, vec_in_dim=WIDTH,
                axes_dim=axes, theta=10000, patch_size=2, guidance_embed=False, txt_ids_dims=[])  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """sizes: of the network. categories: of emoji that it is shown; empty for all. seconds: how long it is trained."""

    sizes: dict
    categories: tuple[str, ...]
    seconds: float


VARIANTS = {
    "large": Variant(sizes(768, 12, [16, 24, 24], 2, 6), (), 170),  # 98 M parameters, for a GPU
    "small": Variant(sizes(128, 4, [8, 12, 12], 2, 4), ("Smileys & Emotion",), 1500),  # 2 M, for a CPU
    "tiny": Variant(sizes(48, 2, [8, 8, 8], 1, 1), (), 20),  # for tests
}


def weights(variant: str, folder: Path) -> Path:
    return folder / f"emoji_{variant}.safetensors"


def prompts(names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each name: context (n, 8, 128) and pooled (n, 128). "" is the empty prompt."""
    context = torch.zeros(len(names), TOKENS, WIDTH)
    for row, name in zip(context, names, strict=True):
        words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
        for token, word in zip(row, words, strict=False):
            token.copy_(torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(word.encode()))))
    counts = context.any(-1).sum(-1, keepdim=True).clamp(min=1)
    return context, context.sum(1) / counts.sqrt()


def codec(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of (n, 64, 64, 3) pictures in 0..255."""
    return trained.codec(trained.cells(pictures.float() / 255, CELL).flatten(0, 2), CHANNELS, SPREAD)


def encode(pictures: torch.Tensor, maps: dict) -> torch.Tensor:
    """(b, 64, 64, 3) pictures in [0, 1] to (b, 16, 16, 16) latents."""
    return trained.encode(pictures, maps, CELL)


def decode(latents: torch.Tensor, maps: dict) -> torch.Tensor:
    """Latents in the network's scale to pictures in [0, 1]."""
    return trained.decode(latents, maps, CELL)


def build(variant: str):
    """ComfyUI's model, without weights."""
    return trained.build("FluxSchnell", VARIANTS[variant].sizes)


def load(variant: str, folder: Path):
    """The trained model for ComfyUI's samplers, the codec's maps, and the names that it knows."""
    from safetensors import safe_open

    file = weights(variant, folder)
    with safe_open(file, "pt") as opened:
        names = json.loads(opened.metadata()["names"])
    return *trained.load("FluxSchnell", VARIANTS[variant].sizes, file), names
