"""Train the emoji image models from nothing.

    python3 -m nox -s emoji                    98 M parameters, three minutes on an H100 (never tried there yet)
    python3 -m nox -s emoji -- --size small    2 M parameters and the faces alone, for a CPU: half an hour on a core

Flow matching with ComfyUI's own Flux class. Pictures (pictures.py) are shrunk and moved a little each time they are
shown. A training that was interrupted goes on when it is started again. It writes
output/training/emoji_SIZE.safetensors, which no user of the pack needs.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]
import comfy_host  # noqa: E402
import model  # noqa: E402
import pictures  # noqa: E402
from trained import FOLDER, OutOfPlace, initialise, save  # noqa: E402
from training import Trainer, compile_blocks, flow_matching_loss, muon_and_adamw  # noqa: E402

SHIFT = 2.0
UNIFORM = 1 / 8  # of the noise levels; without them hardly any are low, and the last steps are learnt badly
GUIDANCE_DROPOUT = 0.12
SMALLEST = 0.85  # what a picture is shrunk to at most


def varied(batch: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """(b, 64, 64, 3) pictures in 0..255, each at a size and a place of its own, in [0, 1] on white."""
    size, across, down = torch.rand(3, len(batch), generator=rng, device=batch.device)
    size = SMALLEST + (1 - SMALLEST) * size
    room = 1 / size - 1
    maps = torch.zeros(len(batch), 2, 3, device=batch.device)
    maps[:, 0, 0] = maps[:, 1, 1] = 1 / size
    maps[:, :, 2] = torch.stack([across, down], 1).mul(2).sub(1) * room[:, None]
    ink = 1 - batch.movedim(-1, 1).float() / 255
    moved = F.grid_sample(ink, F.affine_grid(maps, ink.shape, align_corners=False), align_corners=False)
    return 1 - moved.movedim(1, -1)


def train(args) -> None:
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    variant = model.VARIANTS[args.size]
    names, shown = pictures.read(args.pictures, variant.categories)
    shown = torch.from_numpy(shown)
    maps = model.codec(shown)
    network = model.build(args.size).diffusion_model
    initialise(network)
    network.to(device)
    shown, (context, pooled) = shown.to(device), (one.to(device) for one in model.prompts([*names, ""]))
    maps = {part: one.to(device) for part, one in maps.items()}
    rng = torch.Generator(device).manual_seed(args.seed + 1)

    def loss_of_next_batch():
        rows = torch.randint(len(shown), (args.batch,), generator=rng, device=device)
        dropped = torch.rand(args.batch, generator=rng, device=device) < GUIDANCE_DROPOUT
        prompt = torch.where(dropped, len(names), rows)
        latents = model.encode(varied(shown[rows], rng), maps)

        def answer(x, level):
            with OutOfPlace():
                return network(x, level, context[prompt], pooled[prompt])

        return flow_matching_loss(answer, latents, SHIFT, rng, UNIFORM)

    optimisers = muon_and_adamw([network], lambda name, weight: weight.ndim == 2 and "_blocks." in name, 4e-3, 1e-3)
    if args.compile if args.compile is not None else device == "cuda":
        compile_blocks([*network.double_blocks, *network.single_blocks], loss_of_next_batch)
    seconds = args.seconds or (math.inf if args.steps else variant.seconds)
    name = f"emoji_{args.size}"
    trainer = Trainer(name, [network], optimisers, seconds, args.steps or math.inf, args.work / f"{name}.pt")
    rng.manual_seed(args.seed + 1 + trainer.step)
    trainer.run(loss_of_next_batch)
    file = model.weights(args.size, args.out)
    save(network.state_dict(), maps, file, names=json.dumps(names), trained_by="benchmarks/emoji/train.py")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(model.VARIANTS), default="large")
    parser.add_argument("--seconds", type=float, help="default: each size's own, if --steps is not given")
    parser.add_argument("--steps", type=int, help="stop after so many")
    parser.add_argument("--batch", type=int, help="default: 256 on a GPU, 32 on a CPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--seed", type=int, default=2507)
    parser.add_argument("--pictures", type=Path, default=pictures.FILE, help="made by pictures.py if it is not there")
    parser.add_argument("--work", type=Path, default=FOLDER, help="for what is kept meanwhile")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.batch = args.batch or (256 if torch.cuda.is_available() else 32)
    args.work.mkdir(parents=True, exist_ok=True)
    pictures.ensure(args.pictures)
    comfy_host.import_comfy(args.work / "comfyui", ["--gpu-only"] if torch.cuda.is_available() else ["--cpu"])
    import comfy.model_management

    comfy.model_management.in_training = True  # newer ComfyUIs have kernels that know no gradients
    train(args)


if __name__ == "__main__":
    main()
