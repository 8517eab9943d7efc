"""Tiny image models that draw handwritten digits, for the benchmark: FLUX's architecture and Stable Diffusion 1.5's.

One predicts a flow's velocity, the other noise, so that between them they cover both common ranges of noise levels.
Pictures are scikit-learn's 1,797 digits of 8 x 8 pixels, enlarged to 32 x 32. A latent has 16 channels of 8 x 8 cells,
a cell covering 4 x 4 pixels by their principal components, turned so that they spread over all channels.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange

TRAINED = Path(__file__).resolve().parents[2] / "output" / "training"  # where train.py writes

CHANNELS, CELL, SIZE = 16, 4, 32
COMPONENTS = 6  # beyond them there is next to nothing in enlarged pictures
TOKENS, WIDTH, POOLED = 4, 48, 32  # of a prompt

FLUX = dict(hidden_size=192, num_heads=6, mlp_ratio=4.0, depth=2, depth_single_blocks=4, qkv_bias=True,
            context_in_dim=WIDTH, in_channels=CHANNELS, out_channels=CHANNELS, vec_in_dim=POOLED,
            axes_dim=[8, 12, 12], theta=10000, patch_size=2, guidance_embed=False)  # fmt: skip
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
    "flux": Architecture("FluxSchnell", FLUX, TRAINED / "digits.safetensors", spread=2.0, steps=2000),
    # All components together then have unit variance, for which the schedule of noise levels was made.
    "unet": Architecture("SD15", UNET, TRAINED / "digits_unet.safetensors", spread=3.5, steps=1200),
}


def real_pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """(1797, 32, 32) pictures in [0, 1] and the digit that each shows."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    large = torch.nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    return large[:, 0].clamp(0, 1), torch.tensor(digits.target)


def cells(pictures: torch.Tensor) -> torch.Tensor:
    return rearrange(pictures * 2 - 1, "b (h q) (w r) -> b h w (q r)", q=CELL, r=CELL)


def codec(pictures: torch.Tensor, spread: float) -> dict[str, torch.Tensor]:
    """Linear maps between cells and latents: mean (16,), encode (16, 16), decode (16, 16)."""
    samples = cells(pictures).flatten(0, 2)
    mean = samples.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((samples - mean).T))
    values, vectors = values[-COMPONENTS:], vectors[:, -COMPONENTS:]
    deviations = spread * (values / values[-1]) ** 0.35  # full whitening would make faint detail as loud
    turn, _ = torch.linalg.qr(torch.randn(CHANNELS, COMPONENTS, generator=torch.Generator().manual_seed(1)))
    scale = deviations / values.sqrt()
    return {"mean": mean, "encode": (vectors * scale) @ turn.T, "decode": turn @ (vectors / scale).T}


def encode(pictures: torch.Tensor, maps: dict) -> torch.Tensor:
    """(b, 32, 32) pictures in [0, 1] to (b, 16, 8, 8) latents."""
    return ((cells(pictures) - maps["mean"]) @ maps["encode"]).movedim(-1, 1)


def decode(latents: torch.Tensor, maps: dict) -> torch.Tensor:
    """(b, 16, 8, 8) latents in the network's scale to (b, 32, 32) pictures in [0, 1]."""
    values = latents.movedim(1, -1) @ maps["decode"] + maps["mean"]
    return rearrange((values + 1) / 2, "b h w (q r) -> b (h q) (w r)", q=CELL, r=CELL).clamp(0, 1)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt for each digit, and an eleventh, empty one: context (11, 4, 48) and pooled (11, 32)."""
    rng = torch.Generator().manual_seed(2)
    context = torch.randn(11, TOKENS, WIDTH, generator=rng)
    pooled = torch.randn(11, POOLED, generator=rng)
    context[10], pooled[10] = 0, 0
    return context, pooled


def build(architecture: str):
    """ComfyUI's model of that size, without weights."""
    import comfy.latent_formats
    import comfy.supported_models

    chosen = ARCHITECTURES[architecture]
    family = getattr(comfy.supported_models, chosen.family)
    config = family({**family.unet_config, **chosen.sizes})
    config.latent_format = comfy.latent_formats.Flux()  # Stable Diffusion's has 4 channels
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    model.concat_keys = ()  # Stable Diffusion with more than 4 channels would pass for an inpainting model
    return model


def load(architecture: str):
    """The trained model for ComfyUI's samplers, and the codec's maps.

    Samplers hand latents out in ComfyUI's scale: decode(patcher.model.process_latent_in(latents), maps).
    """
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher
    from safetensors.torch import load_file

    weights = load_file(ARCHITECTURES[architecture].weights)
    maps = {part: weights[f"codec.{part}"] for part in ("mean", "encode", "decode")}
    model = build(architecture).load_model_weights(weights, "network.")
    return ModelPatcher(model, management.get_torch_device(), management.unet_offload_device()), maps
