"""Train the bundled demo model from nothing: a tiny Wan-architecture text-to-video network and its decoder.

    python demo/train.py denoiser     an hour on two CPU cores
    python demo/train.py decoder      twenty minutes
    python demo/train.py export       writes demo/weights/*.safetensors

Data are drawn as they are needed (demo/scenes.py); every random number comes from --seed. Each stage keeps a
checkpoint in --work and goes on from it when started again. The network class is ComfyUI's own, so that
ComfyUI's loader recognises the exported file as a Wan 2.1 text-to-video model.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import comfy_host  # noqa: E402

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "weights"

WAN = dict(dim=256, ffn_dim=768, num_heads=2, num_layers=6, in_dim=16, out_dim=16)
POOL = 1024  # videos held ready as latents; REFRESH of them are drawn anew each step
REFRESH = 3
GUIDANCE_DROPOUT = 0.12
SHIFT = 5.0  # training noise levels lean towards the noisy end as sampling does
EMA = 0.998


class Latents:
    """Endless (latent, text embedding) batches from a pool of procedural videos."""

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


class Stage:
    """One resumable training run: a module, its optimiser, its step and its moving average on disk."""

    def __init__(self, name, module, optimisers, args):
        self.module, self.optimisers, self.args = module, optimisers, args
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
        self.file = args.work / f"{name}.pt"
        self.average = {k: v.clone() for k, v in module.state_dict().items()}
        self.step = 0
        if self.file.exists():
            saved = torch.load(self.file, weights_only=True)
            module.load_state_dict(saved["module"])
            for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)
            self.average, self.step = saved["average"], saved["step"]
            print(f"{name}: going on from step {self.step}")

    def run(self, loss_of_next_batch):
        started, recent = time.time(), []
        while self.step < self.args.steps:
            warm, done = min(1.0, (self.step + 1) / 100), self.step / self.args.steps
            for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
                optimiser.param_groups[0]["lr"] = rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            loss = loss_of_next_batch()
            self.module.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            for optimiser in self.optimisers:
                optimiser.step()
            self.step += 1
            keep = min(EMA, self.step / (self.step + 10))
            with torch.no_grad():
                for name, value in self.module.state_dict().items():
                    self.average[name].lerp_(value, 1 - keep)
            recent.append(loss.item())
            if self.step % 50 == 0:
                print(
                    f"step {self.step} loss {sum(recent) / len(recent):.4f} {time.time() - started:.0f} s", flush=True
                )
                recent.clear()
            if self.step % 200 == 0 or self.step == self.args.steps:
                self._save()

    def _save(self):
        saved = {
            "module": self.module.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "step": self.step,
        }
        partial = self.file.with_suffix(".partial")
        torch.save(saved, partial)
        partial.replace(self.file)


def codec_of(demo, args):
    """Mean and projection of the latent space, from 256 videos; made once, the same for both stages."""
    file = args.work / "codec.pt"
    if not file.exists():
        rng = torch.Generator().manual_seed(args.seed)
        videos = demo.scenes.render([demo.scenes.random_scene(rng) for _ in range(256)], rng)
        mean, projection = demo.codec.principal_components(demo.codec.blocks(videos).flatten(0, 3), rng)
        torch.save({"mean": mean, "projection": projection}, file)
    saved = torch.load(file, weights_only=True)
    return saved["mean"], saved["projection"]


def adamw(parameters, rate):
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)


def train_denoiser(demo, args):
    """Flow matching: x = (1 - sigma) z + sigma noise; the network learns noise - z."""
    torch.manual_seed(args.seed)
    network = wan_network()
    # Muon learns faster than AdamW alone: a loss of 0.25 against 0.30 after 300 steps.
    matrices, others = [], []
    for name, parameter in network.named_parameters():
        (matrices if name.startswith("blocks") and parameter.ndim == 2 else others).append(parameter)
    optimisers = [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        adamw(others, rate=1e-3),
    ]
    stage = Stage("denoiser", network, optimisers, args)
    if args.compile:
        network.compile()
    rng = torch.Generator().manual_seed(args.seed + 1 + stage.step)
    data = Latents(demo, codec_of(demo, args), rng)

    def loss_of_next_batch():
        latent, text = data.batch(args.batch)
        # Noise levels are logit-normal, shifted, and spread evenly over each batch.
        places = (torch.arange(args.batch) + torch.rand(args.batch, generator=rng)) / args.batch
        uniform = torch.special.ndtri(places.clamp(1e-4, 1 - 1e-4)).sigmoid()
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noise = torch.randn(latent.shape, generator=rng)
        level = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = network((1 - level) * latent + level * noise, sigma * 1000, text)
        return (velocity.float() - (noise - latent)).square().mean()

    stage.run(loss_of_next_batch)


def train_decoder(demo, args):
    """Pictures from their latents, a little disturbed so that sampled latents decode as well as encoded ones."""
    torch.manual_seed(args.seed)
    decoder = demo.codec.Decoder()
    stage = Stage("decoder", decoder, [adamw(decoder.parameters(), rate=2e-3)], args)
    rng = torch.Generator().manual_seed(args.seed + 2 + stage.step)
    codec = codec_of(demo, args)

    def loss_of_next_batch():
        video = demo.scenes.render([demo.scenes.random_scene(rng) for _ in range(args.batch)], rng)
        latent = demo.codec.encode(video, *codec)
        latent = latent + 0.1 * torch.randn(latent.shape, generator=rng)
        with torch.autocast("cpu", torch.bfloat16):
            painted = decoder(latent)
        error = painted.float() - video
        return error.abs().mean() + 4 * error.square().mean()

    stage.run(loss_of_next_batch)


def export(demo, args):
    """Write the networks in fp16 and the encoder's numbers in fp32.

    The decoder takes latents as ComfyUI hands them out, in Wan's scale.
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
    # Through the pack, so that the demo's relative imports work.
    demo = importlib_demo(pack)
    {"denoiser": train_denoiser, "decoder": train_decoder, "export": export}[args.stage](demo, args)


def importlib_demo(pack):
    from importlib import import_module

    for part in ("scenes", "codec", "words"):
        import_module(f"{pack.__name__}.demo.{part}")
    return sys.modules[f"{pack.__name__}.demo"]


if __name__ == "__main__":
    main()
