"""Train the digits models from nothing: about forty minutes each on a CPU core.

    python3 -m nox -s digits
    python3 -m nox -s digits -- --architecture unet

Flow matching or noise prediction on scikit-learn's digits; every random number comes from --seed. Each run keeps a
checkpoint in --work and goes on from it when started again, and writes its weights, which no user of the pack needs, to
output/training.
"""

import argparse
import sys
from pathlib import Path

import model
import torch
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import comfy_host  # noqa: E402
from training import Stage, flow_matching_loss, muon_and_adamw, noise_prediction_loss  # noqa: E402

SHIFT = 2.0
GUIDANCE_DROPOUT = 0.12
BLOCKS = ("double_blocks", "single_blocks", "input_blocks", "middle_block", "output_blocks")
FIRST_ZERO = ("final_layer.linear", ".lin.", "adaLN", ".out_layers.3.", ".proj_out.", "out.2.")


class OutOfPlace(TorchFunctionMode):
    """Blocks add in place, which is fine for sampling, but not for gradients."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ == "add_":
            return args[0] + args[1]
        return function(*args, **(kwargs or {}))


def initialise(network):
    """ComfyUI's layers skip their own initialisation."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.constant_(parameter, 1.0 if name.endswith(("scale", "weight")) else 0.0)
        elif any(part in name for part in FIRST_ZERO):
            torch.nn.init.zeros_(parameter)  # blocks start as identities
        else:
            torch.nn.init.xavier_uniform_(parameter)


def is_matrix(name, parameter):
    """Whether Muon trains it."""
    return parameter.ndim == 2 and name.startswith(BLOCKS)


def train(architecture, args):
    from safetensors.torch import save_file

    torch.manual_seed(args.seed)
    chosen = model.ARCHITECTURES[architecture]
    args = argparse.Namespace(**{**vars(args), "steps": args.steps or chosen.steps})
    built = model.build(architecture)
    network = built.diffusion_model
    initialise(network)
    stage = Stage(chosen.weights.stem, network, muon_and_adamw([network], is_matrix), args)
    rng = torch.Generator().manual_seed(args.seed + 1 + stage.step)
    pictures, labels = model.real_pictures()
    maps = model.codec(pictures, chosen.spread)
    latents = model.encode(pictures, maps)
    context, pooled = model.prompts()

    def loss_of_next_batch():
        picked = torch.randint(len(latents), (args.batch,), generator=rng)
        dropped = torch.rand(args.batch, generator=rng) < GUIDANCE_DROPOUT
        label = torch.where(dropped, 10, labels[picked])
        prompt = (context[label], pooled[label]) if architecture == "flux" else (context[label],)

        def answer(x, level):
            with OutOfPlace():
                return network(x, level, *prompt)

        if architecture == "flux":
            return flow_matching_loss(answer, latents[picked], SHIFT, rng)
        return noise_prediction_loss(answer, latents[picked], built.model_sampling, rng)

    stage.run(loss_of_next_batch)
    weights = {f"network.{name}": value.half().contiguous() for name, value in stage.average.items()}
    weights |= {f"codec.{name}": value.contiguous() for name, value in maps.items()}
    save_file(weights, chosen.weights, metadata={"license": "Apache-2.0", "trained_by": "benchmarks/digits/train.py"})
    print(f"{chosen.weights.name}: {chosen.weights.stat().st_size / 1e6:.1f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = list(model.ARCHITECTURES)
    parser.add_argument("--architecture", nargs="+", choices=known, default=known, help="default: all of them")
    parser.add_argument("--steps", type=int, help="default: each architecture's own")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=2507)
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "training")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    comfy_host.import_comfy(args.work / "comfyui")
    for architecture in args.architecture:
        train(architecture, args)


if __name__ == "__main__":
    main()
