"""Tiny image models that draw handwritten digits, for the benchmark: FLUX's architecture and Stable Diffusion 1.5's.

One predicts a flow's velocity, the other noise, so that between them they cover both common ranges of noise levels.
Pictures are scikit-learn's 1,797 digits of 8 x 8 pixels, enlarged to 32 x 32. A latent has 16 channels of 8 x 8 cells
(trained.py).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import trained
from trained import CHANNELS, FOLDER

CELL, SIZE = 4, 32
COMPONENTS = 6  # beyond them there is next to nothing in enlarged pictures
TOKENS, WIDTH, POOLED = 4, 48, 32  # of a prompt

FLUX = dict(hidden_size=192, num_heads=6, mlp_ratio=4.0, depth=2, depth_single_blocks=4, qkv_bias=True,
            context_in_dim=WIDTH, in_channels=CHANNELS, out_channels=CHANNELS, vec_in_dim=POOLED,
            axes_dim=[8, 12, 12], theta=10000, patch_size=2, guidance_embed=False, txt_ids_dims=[])  # fmt: skip
UNET = dict(image_size=8, in_channels=CHANNELS, out_channels=CHANNELS, model_channels=64, num_res_blocks=[2, 1],
            channel_mult=[1, 2], transformer_depth=[1] * 3, transformer_depth_middle=1,
            transformer_depth_output=[1] * 5, context_dim=WIDTH, use_spatial_transformer=True, use_checkpoint=False,
            legacy=False)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """family: ComfyUI's class of such models. spread: of the latents' first component; sixteen channels share it.

    steps: how long it is trained.
    """

    family: str
    sizes: dict
    weights: Path
    spread: float
    steps: int


ARCHITECTURES = {
    "flux": Architecture("FluxSchnell", FLUX, FOLDER / "digits.safetensors", spread=2.0, steps=2000),
    # All components together then have unit variance, for which the schedule of noise levels was made.
    "unet": Architecture("SD15", UNET, FOLDER / "digits_unet.safetensors", spread=3.5, steps=1200),
}


def real_pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """(1797, 32, 32) pictures in [0, 1] and the digit that each shows."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    large = torch.nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    return large[:, 0].clamp(0, 1), torch.tensor(digits.target)


def codec(pictures: torch.Tensor, spread: float) -> dict[str, torch.Tensor]:
    return trained.codec(trained.cells(pictures[..., None], CELL).flatten(0, 2), COMPONENTS, spread)


def encode(pictures: torch.Tensor, maps: dict) -> torch.Tensor:
    """(b, 32, 32) pictures in [0, 1] to (b, 16, 8, 8) latents."""
    return trained.encode(pictures[..., None], maps, CELL)


def decode(latents: torch.Tensor, maps: dict) -> torch.Tensor:
    """(b, 16, 8, 8) latents in the network's scale to (b, 32, 32) pictures in [0, 1]."""
    return trained.decode(latents, maps, CELL)[..., 0]


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt for each digit, and an eleventh, empty one: context (11, 4, 48) and pooled (11, 32)."""
    rng = torch.Generator().manual_seed(2)
    context = torch.randn(11, TOKENS, WIDTH, generator=rng)
    pooled = torch.randn(11, POOLED, generator=rng)
    context[10], pooled[10] = 0, 0
    return context, pooled


def build(architecture: str):
    """ComfyUI's model of that size, without weights."""
    return trained.build(ARCHITECTURES[architecture].family, ARCHITECTURES[architecture].sizes)


def load(architecture: str):
    """The trained model for ComfyUI's samplers, and the codec's maps."""
    chosen = ARCHITECTURES[architecture]
    return trained.load(chosen.family, chosen.sizes, chosen.weights)
