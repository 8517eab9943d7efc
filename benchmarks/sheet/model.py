"""A model that takes less than a millisecond: a sheet of 16 handwritten digits, for runs by the ten thousand (grid.py).

Its network is a perceptron that has learnt flow matching on scikit-learn's digits of 8 x 8 pixels (train.py). Each of a
latent's 16 channels is one digit, and the conditioning names it; so one run averages over 16 pictures. A velocity is
predicted, at noise levels with shift 3.
"""

import math
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).parent / "sheet.safetensors"
DIGITS, PIXELS, LABELS = 16, 64, 11  # the last label is none
WIDTH, DEPTH, FREQUENCIES = 192, 3, 16
SHIFT = 3.0
MEAN, DEVIATION = 0.305, 0.376  # of scikit-learn's digits in 0..1; latents have 0 and 1


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.body = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.modulation = nn.Linear(PIXELS, 3 * WIDTH)

    def forward(self, x, told):
        shift, scale, gate = self.modulation(told).chunk(3, -1)
        return x + gate * self.body(self.norm(x) * (1 + scale) + shift)


class Network(nn.Module):
    """ComfyUI's arguments: x (b, 16, 8, 8), timesteps (b,) from 0 to 1000, context (b, 16, 11) one-hot labels."""

    dtype = torch.float32

    def __init__(self, **_):
        super().__init__()
        self.label = nn.Linear(LABELS, PIXELS)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, PIXELS), nn.SiLU(), nn.Linear(PIXELS, PIXELS))
        self.inlet, self.outlet = nn.Linear(PIXELS, WIDTH), nn.Linear(WIDTH, PIXELS)
        self.blocks = nn.ModuleList(_Block() for _ in range(DEPTH))

    def forward(self, x, timesteps, context, **_):
        angles = timesteps[:, None] / 1000 * torch.exp(torch.linspace(0, 5, FREQUENCIES)).to(x) * math.pi / 2
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        told = nn.functional.silu(self.label(context) + time[:, None])
        hidden = self.inlet(x.flatten(2))
        for block in self.blocks:
            hidden = block(hidden, told)
        return self.outlet(hidden).view_as(x)


class _Config(comfy.supported_models_base.BASE):
    sampling_settings = {"shift": SHIFT}
    unet_extra_config = {}

    class latent_format(comfy.latent_formats.LatentFormat):
        latent_channels = DIGITS


def load():
    """A ModelPatcher, on the CPU."""
    cpu = torch.device("cpu")
    model = comfy.model_base.BaseModel(_Config({}), comfy.model_base.ModelType.FLOW, cpu, Network)
    model.diffusion_model.load_state_dict({name: w.float() for name, w in load_file(WEIGHTS).items()})
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def pictures(latent: torch.Tensor) -> torch.Tensor:
    """In 0..1."""
    return (latent * DEVIATION + MEAN).clamp(0, 1)


def scene(seed: int) -> tuple[list, list, dict]:
    """Positive and negative conditioning and an empty latent; the seed chooses the digits."""
    labels = torch.randint(LABELS - 1, (1, DIGITS), generator=torch.Generator().manual_seed(seed))
    told, untold = (nn.functional.one_hot(of, LABELS).float() for of in (labels, torch.full_like(labels, LABELS - 1)))
    return [[told, {}]], [[untold, {}]], {"samples": torch.zeros(1, DIGITS, 8, 8)}
