"""Train the bundled demo model from scratch: a tiny text-to-video network in Wan 2.1's architecture, and its decoder.

    python demo/train.py      six minutes on one H100 with the times below; writes demo/weights/*.safetensors

Three stages, each with a budget of time within which its learning rate falls to zero:

1. codec      an encoder and a decoder between 17 pictures of 128 x 128 and latents of 16 x 5 x 16 x 16
2. latents    many scenes (demo/scenes.py) are drawn and encoded once; they stay in the device's memory
3. denoiser   flow matching with ComfyUI's own network class, so that ComfyUI's loader recognises the exported file

It runs on a CPU, too, which does about a hundredth of the steps in the same time: give each stage hours there.
"""

import argparse
import copy
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import comfy_host  # noqa: E402
from training import (  # noqa: E402
    Trainer,
    compile_blocks,
    eager,
    flow_matching_loss,
    half_precision,
    muon_and_adamw,
)

HERE = Path(__file__).resolve().parent
WAN = dict(dim=256, ffn_dim=704, num_heads=2, num_layers=7, in_dim=16, out_dim=16)
SHIFT = 5.0  # of the noise levels towards the noisy end, as in sampling
UNIFORM = 1 / 8  # of the noise levels; without them hardly any are low, and the last steps are learnt badly
GUIDANCE_DROPOUT = 0.12
LATENT_NOISE = 0.35  # up to so much is added before decoding, so that sampled latents decode as well as encoded ones


def import_demo(work: Path):
    """(the pack's demo as a package, so that its relative imports work, ComfyUI's module with the Wan network)."""
    comfy_host.import_comfy(work / "comfyui")
    pack = comfy_host.load_pack()
    for part in ("scenes", "codec", "words"):
        import_module(f"{pack.__name__}.demo.{part}")
    import comfy.ldm.wan.model as wan

    return sys.modules[f"{pack.__name__}.demo"], wan


def save(module: nn.Module, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous().cpu() for name, value in module.state_dict().items()}, file)
    print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")


def reconstruction_loss(painted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Errors of colours, of edges and of changes in time; the latter two keep the pictures sharp."""
    error = painted - true
    edges = sum(error.diff(dim=dim).abs().mean() for dim in (-1, -2))
    return error.abs().mean() + edges + 0.5 * error.diff(dim=1).abs().mean() + 2 * error.square().mean()


def train_codec(demo, renderer, args):
    """Encoder and decoder, for latents of zero mean and unit variance per channel."""
    device, codec = args.device, demo.codec
    encoder, decoder = codec.Encoder().to(device), codec.Decoder().to(device)
    networks, rng = [encoder, decoder], np.random.default_rng(args.seed)
    optimisers = muon_and_adamw(
        networks, lambda name, weight: weight.ndim >= 2 and not name.startswith(("inlet", "outlet")), 6e-3, 3e-3
    )

    def loss_of_next_batch():
        video = renderer.render(demo.scenes.random_scenes(args.codec_batch, rng))
        with half_precision(device):
            latent = encoder(video)
        latent = latent.float()
        mean, std = latent.mean((0, 2, 3, 4), keepdim=True), latent.std((0, 2, 3, 4), keepdim=True)
        level = LATENT_NOISE * torch.rand(len(latent), 1, 1, 1, 1, device=device)
        latent = (latent - mean) / (std + 1e-4) + level * torch.randn_like(latent)
        with half_precision(device):
            painted = decoder(latent)
        return reconstruction_loss(painted.float(), video)

    if args.compile:
        blocks = [part for network in networks for part in network.modules() if isinstance(part, codec.Residual)]
        compile_blocks(blocks, loss_of_next_batch)
    Trainer("codec", networks, optimisers, args.codec_seconds).run(loss_of_next_batch)
    with torch.no_grad(), eager():
        scenes = demo.scenes.random_scenes(args.check, rng)
        latent = encode(renderer, encoder, scenes)
        mean, std = latent.mean((0, 2, 3, 4)), latent.std((0, 2, 3, 4))
        encoder.outlet.weight.div_(std[:, None])
        encoder.outlet.bias.sub_(mean).div_(std)
    return encoder, decoder


def encode(renderer, encoder, scenes: np.ndarray) -> torch.Tensor:
    """Latents of scenes, a few at a time."""
    return torch.cat([encoder(renderer.render(part)) for part in np.array_split(scenes, max(1, len(scenes) // 16))])


def in_wan_scale(decoder):
    """The decoder for latents as ComfyUI's samplers return them: z * std + mean."""
    import comfy.latent_formats

    wan, decoder = comfy.latent_formats.Wan21(), copy.deepcopy(decoder)
    mean, std = (numbers.flatten().to(decoder.inlet.weight.device) for numbers in (wan.latents_mean, wan.latents_std))
    decoder.inlet.bias -= decoder.inlet.weight @ (mean / std)
    decoder.inlet.weight /= std
    return decoder


@torch.no_grad()
def check_codec(demo, renderer, encoder, exported, args) -> None:
    """How well the exported decoder restores combinations of words that no training saw."""
    import comfy.latent_formats

    rng, psnr = np.random.default_rng(args.seed + 1), []
    with eager():
        for _ in range(max(1, args.check // 16)):
            video = renderer.render(demo.scenes.random_scenes(8, rng, held_out=True))
            latent = encoder(video).cpu()
            painted = exported(comfy.latent_formats.Wan21().process_out(latent).to(args.device))
            psnr += (-10 * (painted.clamp(0, 1) - video).square().mean((1, 2, 3, 4)).log10()).tolist()
    print(f"codec: {np.mean(psnr):.2f} dB on unseen combinations, at worst {min(psnr):.2f} dB")


def make_latents(demo, renderer, encoder, args) -> tuple[torch.Tensor, torch.Tensor]:
    """Word numbers (count, 3) and latents (count, 16, 5, 16, 16) in fp16."""
    rng, size, numbers, latents = np.random.default_rng(args.seed + 2), min(64, args.pool), [], []
    started = time.perf_counter()
    with torch.no_grad(), half_precision(args.device), eager():
        while not latents or (size * len(latents) < args.pool and time.perf_counter() - started < args.pool_seconds):
            scenes = demo.scenes.random_scenes(size, rng)
            numbers.append(renderer.put(demo.scenes.word_numbers(scenes)))
            latents.append(encoder(renderer.render(scenes)).half())
            if args.device == "cuda" and len(latents) % 8 == 0:
                torch.cuda.synchronize()  # otherwise the clock is ahead of the GPU
    print(f"latents: {size * len(latents)}")
    return torch.cat(numbers), torch.cat(latents)


def wan_network(wan, device: str):
    """ComfyUI's Wan network, with torch's own layers, initialised for training."""

    def attention(q, k, v, heads, transformer_options=None):
        q, k, v = (rearrange(x.to(v.dtype), "b s (n d) -> b n s d", n=heads) for x in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b n s d -> b s (n d)")

    def rotate(x, frequencies):
        pairs = x.to(frequencies.dtype).unflatten(-1, (-1, 1, 2))
        return (frequencies[..., 0] * pairs[..., 0] + frequencies[..., 1] * pairs[..., 1]).flatten(-2).type_as(x)

    # Newer ComfyUIs have kernels here that know no gradients.
    wan.optimized_attention, wan.apply_rope1, wan.WanFeedForward = attention, rotate, nn.Sequential
    network = wan.WanModel(**WAN, operations=nn, dtype=torch.float32, device=device)
    for name, parameter in network.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(parameter, std=WAN["dim"] ** -0.5)
        elif parameter.ndim == 1:
            nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif name.startswith(("text_embedding", "time_embedding", "time_projection")):
            nn.init.normal_(parameter, std=0.02)
        elif name == "head.head.weight":
            nn.init.zeros_(parameter)
        else:
            nn.init.xavier_uniform_(parameter.flatten(1))
    return network.to(device)


def denoising_loss(demo, network, latent: torch.Tensor, numbers: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    text = demo.words.embed_numbers(numbers)
    return flow_matching_loss(lambda x, sigma: network(x, sigma * 1000, text), latent, SHIFT, rng, UNIFORM)


def train_denoiser(demo, network, numbers, latents, args) -> None:
    rng = torch.Generator(args.device).manual_seed(args.seed)

    def loss_of_next_batch():
        rows = torch.randint(len(latents), (args.batch,), generator=rng, device=args.device)
        dropped = torch.rand(args.batch, 1, generator=rng, device=args.device) < GUIDANCE_DROPOUT
        return denoising_loss(demo, network, latents[rows].float(), numbers[rows].masked_fill(dropped, 0), rng)

    if args.compile:
        compile_blocks(network.blocks, loss_of_next_batch)
    optimisers = muon_and_adamw(
        [network], lambda name, weight: weight.ndim == 2 and name.startswith("blocks."), 4e-3, 1e-3
    )
    Trainer("denoiser", [network], optimisers, args.denoiser_seconds).run(loss_of_next_batch)


@torch.no_grad()
def check_denoiser(demo, renderer, encoder, network, args) -> None:
    """The loss on combinations of words it never saw together, beside the same on seen ones."""
    rng = np.random.default_rng(args.seed + 3)
    with eager():
        for name, held_out in (("seen", False), ("unseen", True)):
            scenes = demo.scenes.random_scenes(args.check, rng, held_out)
            latent = encode(renderer, encoder, scenes)
            numbers = renderer.put(demo.scenes.word_numbers(scenes))
            loss = denoising_loss(demo, network, latent, numbers, torch.Generator(args.device).manual_seed(args.seed))
            print(f"denoiser: loss {loss.item():.4f} on {name} combinations")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec-seconds", type=float, default=95)
    parser.add_argument("--codec-batch", type=int, default=12)
    parser.add_argument("--pool", type=int, default=49152, help="latents for the denoiser; 41 kB each")
    parser.add_argument("--pool-seconds", type=float, default=25, help="make do with fewer after this time")
    parser.add_argument("--denoiser-seconds", type=float, default=140)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--check", type=int, default=256, help="scenes for statistics and checks")
    parser.add_argument("--seed", type=int, default=2507)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--out", type=Path, default=HERE / "weights")
    parser.add_argument("--work", type=Path, default=HERE.parent / "output" / "training")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.compile is None:
        args.compile = args.device == "cuda"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True

    demo, wan = import_demo(args.work)
    network = wan_network(wan, args.device)
    renderer = demo.scenes.Renderer(args.device)
    encoder, decoder = train_codec(demo, renderer, args)
    save(encoder, args.work / "encoder.safetensors")  # to go on training with; no node encodes
    exported = in_wan_scale(decoder)
    save(exported, args.out / "easycache_demo_decoder.safetensors")
    check_codec(demo, renderer, encoder, exported, args)
    train_denoiser(demo, network, *make_latents(demo, renderer, encoder, args), args)
    file = args.out / "easycache_demo_wan.safetensors"
    save(network, file)
    network.load_state_dict(load_file(file))  # check what was saved
    check_denoiser(demo, renderer, encoder, network, args)


if __name__ == "__main__":
    main()
