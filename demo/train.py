"""Train the bundled demo model from scratch: a tiny text-to-video network in Wan's architecture, and its decoder.

    python demo/train.py denoiser     an hour on two CPU cores
    python demo/train.py decoder      twenty minutes
    python demo/train.py export       writes demo/weights/*.safetensors

Data are generated during training (demo/scenes.py); every random number comes from --seed. Each stage keeps a
checkpoint in --work and resumes from it. The network class is ComfyUI's own, so that ComfyUI's loader recognises the
exported file as a Wan 2.1 text-to-video model.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import comfy_host  # noqa: E402
from training import Stage, adamw, flow_matching_loss, half_precision, muon_and_adamw  # noqa: E402

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "weights"

WAN = dict(dim=256, ffn_dim=768, num_heads=2, num_layers=6, in_dim=16, out_dim=16)
POOL = 1024  # latents kept in memory; REFRESH of them are replaced per step
REFRESH = 3
GUIDANCE_DROPOUT = 0.12
SHIFT = 5.0  # of the noise levels towards the noisy end, as in sampling


class Latents:
    """An endless supply of batches, (latents, text embeddings), from a pool of procedural videos."""

    def __init__(self, demo, codec, rng):
        self.demo, self.codec, self.rng = demo, codec, rng
        self.latents, self.scenes = [], []
        while len(self.latents) < POOL:
            self._draw(64)
        self.oldest = 0

    def _draw(self, count, at=None):
        scenes = [self.demo.scenes.random_scene(self.rng) for _ in range(count)]
        latents = self.demo.codec.encode(self.demo.scenes.render(scenes, self.rng), *self.codec).half()
        if at is None:
            self.latents += list(latents)
            self.scenes += scenes
            return
        for i, (latent, scene) in enumerate(zip(latents, scenes, strict=True)):
            self.latents[(at + i) % POOL], self.scenes[(at + i) % POOL] = latent, scene

    def batch(self, size):
        self._draw(REFRESH, at=self.oldest)
        self.oldest = (self.oldest + REFRESH) % POOL
        chosen = torch.randint(POOL, (size,), generator=self.rng).tolist()
        dropped = (torch.rand(size, generator=self.rng) < GUIDANCE_DROPOUT).tolist()
        text = [
            self.demo.words.unconditional() if drop else self.demo.words.embed(self.scenes[i].words)
            for i, drop in zip(chosen, dropped, strict=True)
        ]
        return torch.stack([self.latents[i] for i in chosen]).float(), torch.cat(text)


def wan_network():
    """ComfyUI's Wan network, initialised for training (its layers skip initialisation)."""
    import comfy.ldm.wan.model
    import comfy.ops

    network = comfy.ldm.wan.model.WanModel(
        **WAN, operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="cpu"
    )
    for name, parameter in network.named_parameters():
        if name.endswith("modulation"):
            torch.nn.init.normal_(parameter, std=WAN["dim"] ** -0.5)
        elif parameter.ndim == 1:
            torch.nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif name.startswith(("text_embedding", "time_embedding", "time_projection")):
            torch.nn.init.normal_(parameter, std=0.02)
        elif name == "head.head.weight":
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.xavier_uniform_(parameter.flatten(1))
    return network


def codec_of(demo, args):
    """Mean and projection of the encoder, computed once from 256 videos and kept for both stages."""
    file = args.work / "codec.pt"
    if not file.exists():
        rng = torch.Generator().manual_seed(args.seed)
        videos = demo.scenes.render([demo.scenes.random_scene(rng) for _ in range(256)], rng)
        mean, projection = demo.codec.principal_components(demo.codec.blocks(videos).flatten(0, 3), rng)
        torch.save({"mean": mean, "projection": projection}, file)
    saved = torch.load(file, weights_only=True)
    return saved["mean"], saved["projection"]


def train_denoiser(demo, args):
    """Flow matching on procedural videos."""
    torch.manual_seed(args.seed)
    network = wan_network()
    stage = Stage("denoiser", network, muon_and_adamw(network, blocks=("blocks",)), args)
    if args.compile:
        network.compile()
    rng = torch.Generator().manual_seed(args.seed + 1 + stage.step)
    data = Latents(demo, codec_of(demo, args), rng)

    def loss_of_next_batch():
        latent, text = data.batch(args.batch)
        return flow_matching_loss(lambda x, sigma: network(x, sigma * 1000, text), latent, SHIFT, rng)

    stage.run(loss_of_next_batch)


def train_decoder(demo, args):
    """Reconstruction from latents with a little noise, so that sampled latents decode as well as encoded ones."""
    torch.manual_seed(args.seed)
    decoder = demo.codec.Decoder()
    stage = Stage("decoder", decoder, [adamw(decoder.parameters(), rate=2e-3)], args)
    rng = torch.Generator().manual_seed(args.seed + 2 + stage.step)
    codec = codec_of(demo, args)

    def loss_of_next_batch():
        video = demo.scenes.render([demo.scenes.random_scene(rng) for _ in range(args.batch)], rng)
        latent = demo.codec.encode(video, *codec)
        latent = latent + 0.1 * torch.randn(latent.shape, generator=rng)
        with half_precision():
            painted = decoder(latent)
        error = painted.float() - video
        return error.abs().mean() + 4 * error.square().mean()

    stage.run(loss_of_next_batch)


def export(demo, args):
    """Write the networks in fp16 and the encoder's mean and projection in fp32.

    The exported decoder takes latents as ComfyUI's samplers return them, in Wan's scale.
    """
    import comfy.latent_formats
    from safetensors.torch import save_file

    WEIGHTS.mkdir(exist_ok=True)
    denoiser = torch.load(args.work / "denoiser.pt", weights_only=True)["average"]
    save_file(
        {k: v.half().contiguous() for k, v in denoiser.items()},
        WEIGHTS / "easycache_demo_wan.safetensors",
        metadata={"license": "Apache-2.0", "trained_by": "demo/train.py", "seed": str(args.seed)},
    )
    decoder = demo.codec.Decoder()
    decoder.load_state_dict(torch.load(args.work / "decoder.pt", weights_only=True)["average"])
    wan = comfy.latent_formats.Wan21()
    mean, std = wan.latents_mean.flatten(), wan.latents_std.flatten()
    with torch.no_grad():  # the sampler's latents are z * std + mean
        inlet = decoder.inlet
        inlet.bias -= (inlet.weight[:, :, 0, 0, 0] @ (mean / std)).view_as(inlet.bias)
        inlet.weight /= std.view(1, -1, 1, 1, 1)
    save_file(
        {k: v.half().contiguous() for k, v in decoder.state_dict().items()},
        WEIGHTS / "easycache_demo_decoder.safetensors",
    )
    mean, projection = codec_of(demo, args)
    save_file({"mean": mean, "projection": projection.contiguous()}, WEIGHTS / "easycache_demo_encoder.safetensors")
    for file in sorted(WEIGHTS.glob("*.safetensors")):
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("denoiser", "decoder", "export"))
    parser.add_argument("--steps", type=int, help="default: 3000 for the denoiser, 1000 for the decoder")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--seed", type=int, default=2507)
    parser.add_argument("--compile", action="store_true", help="compile the network first; needs a C++ compiler")
    parser.add_argument("--work", type=Path, default=HERE.parent / "output" / "training")
    args = parser.parse_args()
    if args.steps is None:
        args.steps = 1000 if args.stage == "decoder" else 3000
    args.work.mkdir(parents=True, exist_ok=True)
    comfy_host.import_comfy(args.work / "comfyui")
    pack = comfy_host.load_pack()
    # As a part of the pack, so that the demo's relative imports work.
    demo = importlib_demo(pack)
    {"denoiser": train_denoiser, "decoder": train_decoder, "export": export}[args.stage](demo, args)


def importlib_demo(pack):
    from importlib import import_module

    for part in ("scenes", "codec", "words"):
        import_module(f"{pack.__name__}.demo.{part}")
    return sys.modules[f"{pack.__name__}.demo"]


if __name__ == "__main__":
    main()
