"""Networks of real size with random weights, in the architectures that ComfyUI knows, for gpu.py.

A rehearsal takes the same architectures at the sizes of the tests.
"""

import sys
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from host import ROOT

sys.path.append(str(ROOT / "tests" / "support"))
import tiny_models  # noqa: E402

FLUX = tiny_models.FLUX | dict(
    hidden_size=3072, num_heads=24, mlp_ratio=4.0, depth=19, depth_single_blocks=38, context_in_dim=4096,
    vec_in_dim=768, axes_dim=[16, 56, 56], guidance_embed=True,
)  # fmt: skip
WAN = dict(dim=1536, ffn_dim=8960, freq_dim=256, text_dim=4096, num_heads=12, num_layers=30, in_dim=16, out_dim=16)
SDXL = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4],
    num_classes="sequential", adm_in_channels=2816, transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10,
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], context_dim=2048, use_spatial_transformer=True,
    use_linear_in_transformer=True, num_head_channels=64, num_heads=-1, use_checkpoint=False, legacy=False,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One network and how it is sampled. sizes: its arguments. latent, text: shapes. cond: further entries of a
    conditioning; tuples are shapes. shown: what it is, for the table.
    """

    name: str
    shown: str
    family: str
    sizes: dict
    latent: tuple
    text: tuple
    cond: dict
    steps: int
    cfg: float


CASES = [
    Case("flux", "FLUX.1 dev, 11.9 B, 1024 x 1024", "Flux", FLUX, (1, 16, 128, 128), (1, 512, 4096),
         dict(pooled_output=(1, 768), guidance=3.5), steps=28, cfg=1.0),
    Case("sdxl", "SDXL, 2.6 B, 1024 x 1024, CFG 7", "SDXL", SDXL, (1, 4, 128, 128), (1, 77, 2048),
         dict(pooled_output=(1, 1280)), steps=30, cfg=7.0),
    Case("wan", "Wan 2.1, 1.4 B, 832 x 480, 49 frames, CFG 5", "WAN21_T2V", WAN, (1, 16, 13, 60, 104), (1, 512, 4096),
         {}, steps=20, cfg=5.0),
]  # fmt: skip
# Only its latent counts: the network is not run.
LARGE_LATENT = Case(
    "hunyuan", "latent of HunyuanVideo at 720p, 129 frames", "WAN21_T2V", tiny_models.WAN, (1, 16, 33, 90, 160),
    tiny_models.TEXT, {}, steps=20, cfg=1.0,
)  # fmt: skip


def small(case: Case) -> Case:
    """The case at a size that a CPU samples in a second."""
    recipe = tiny_models.RECIPES[case.family]
    latent = recipe.latent if case is not LARGE_LATENT else (1, 16, 3, 16, 16)
    return replace(case, sizes=recipe.sizes, latent=latent, text=recipe.text, cond=recipe.cond, steps=10)


class Network(NamedTuple):
    """model: a ModelPatcher. positive, negative: conditionings."""

    model: object
    positive: list
    negative: list


@torch.no_grad()
def build(case: Case, device: torch.device, weights: torch.dtype) -> Network:
    import comfy.model_patcher
    import comfy.supported_models

    family = getattr(comfy.supported_models, case.family)
    config = family(tiny_models.known_arguments({**family.unet_config, **case.sizes}))
    config.set_inference_dtype(weights, None)
    model = config.get_model({}, "", device=device)
    model.to(device)
    for name, weight in model.diffusion_model.state_dict().items():
        if weight.ndim == 1 and name.endswith(("weight", "scale", "gamma")):
            weight.fill_(1.0)
        else:
            weight.normal_(std=0.02)
    rng = torch.Generator().manual_seed(0)
    positive, negative = ([tiny_models.draw([case.text, case.cond], rng)] for _ in range(2))
    return Network(comfy.model_patcher.ModelPatcher(model, device, device), positive, negative)
