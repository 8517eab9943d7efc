"""What the benchmark's own image models share: ComfyUI's model classes at other sizes, and latents of pictures.

A latent's cell covers a square of pixels by its principal components, turned so that they spread over all channels.
"""

import sys
from pathlib import Path

import torch
from einops import rearrange
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "output" / "training"  # where weights are written
CHANNELS = 16
# Whitening would make faint detail as loud as all else.
WHITENING = 0.35  # 0.5 is all of it

FIRST_ZERO = ("final_layer.linear", ".lin.", "adaLN", ".out_layers.3.", ".proj_out.", "out.2.")


def cells(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """(b, h, w, colours) pictures in [0, 1] to (b, h / size, w / size, pixels of a cell) in [-1, 1]."""
    return rearrange(pictures * 2 - 1, "b (h q) (w r) c -> b h w (q r c)", q=size, r=size)


def codec(samples: torch.Tensor, components: int, spread: float) -> dict[str, torch.Tensor]:
    """Linear maps between cells (n, pixels) and latents: mean (pixels,), encode and decode.

    spread: standard deviation of the first component, which all channels share.
    """
    mean = samples.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((samples - mean).T))
    values, vectors = values[-components:], vectors[:, -components:]
    deviations = spread * (values / values[-1]) ** WHITENING
    turn, _ = torch.linalg.qr(torch.randn(CHANNELS, components, generator=torch.Generator().manual_seed(1)))
    scale = deviations / values.sqrt()
    return {"mean": mean, "encode": (vectors * scale) @ turn.T, "decode": turn @ (vectors / scale).T}


def encode(pictures: torch.Tensor, maps: dict, size: int) -> torch.Tensor:
    """(b, h, w, colours) pictures in [0, 1] to (b, 16, h / size, w / size) latents."""
    return ((cells(pictures, size) - maps["mean"]) @ maps["encode"]).movedim(-1, 1)


def decode(latents: torch.Tensor, maps: dict, size: int) -> torch.Tensor:
    """Latents in the network's scale to pictures in [0, 1]."""
    values = latents.movedim(1, -1) @ maps["decode"] + maps["mean"]
    return rearrange((values + 1) / 2, "b h w (q r c) -> b (h q) (w r) c", q=size, r=size).clamp(0, 1)


def build(family: str, sizes: dict):
    """ComfyUI's model of that class and these sizes, without weights."""
    import comfy.latent_formats
    import comfy.supported_models

    sys.path.append(str(ROOT / "tests" / "support"))
    from tiny_models import known_arguments

    known = getattr(comfy.supported_models, family)
    config = known(known_arguments({**known.unet_config, **sizes}))
    config.latent_format = comfy.latent_formats.Flux()  # Stable Diffusion's has 4 channels
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    model.concat_keys = ()  # Stable Diffusion with more than 4 channels would pass for an inpainting model
    return model


def load(family: str, sizes: dict, file: Path):
    """The trained model for ComfyUI's samplers, and the codec's maps.

    Samplers hand latents out in ComfyUI's scale: decode(patcher.model.process_latent_in(latents), maps, size).
    """
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher
    from safetensors.torch import load_file

    weights = load_file(file)
    maps = {part: weights[f"codec.{part}"] for part in ("mean", "encode", "decode")}
    model = build(family, sizes).load_model_weights(weights, "network.")
    return ModelPatcher(model, management.get_torch_device(), management.unet_offload_device()), maps


def save(network: dict[str, torch.Tensor], maps: dict, file: Path, **metadata: str) -> None:
    from safetensors.torch import save_file

    weights = {f"network.{name}": value.half().contiguous().cpu() for name, value in network.items()}
    weights |= {f"codec.{name}": value.contiguous().cpu() for name, value in maps.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file, metadata={"license": "Apache-2.0", **metadata})
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


def initialise(network) -> None:
    """For training: ComfyUI's layers skip their own initialisation, and in newer versions want no gradients."""
    network.requires_grad_(True)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.constant_(parameter, 1.0 if name.endswith(("scale", "weight")) else 0.0)
        elif any(part in name for part in FIRST_ZERO):
            torch.nn.init.zeros_(parameter)  # blocks start as identities
        else:
            torch.nn.init.xavier_uniform_(parameter)


class OutOfPlace(TorchFunctionMode):
    """Blocks add in place, which is fine for sampling, but not for gradients."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ == "add_":
            return args[0] + args[1]
        return function(*args, **(kwargs or {}))
