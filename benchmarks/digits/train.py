"""Train the digits models from nothing: about forty minutes each on a CPU core.

    python3 -m nox -s digits
    python3 -m nox -s digits -- --architecture unet

Flow matching or noise prediction on scikit-learn's digits; every random number comes from --seed. A training that
is cut off goes on from a checkpoint in --work when started again. The weights, which no user of the pack needs, are
written to output/training.
"""

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]
import comfy_host  # noqa: E402
import model  # noqa: E402
from trained import OutOfPlace, initialise, save  # noqa: E402
from training import Trainer, flow_matching_loss, muon_and_adamw, noise_prediction_loss  # noqa: E402

SHIFT = 2.0
GUIDANCE_DROPOUT = 0.12
BLOCKS = ("double_blocks", "single_blocks", "input_blocks", "middle_block", "output_blocks")


def is_matrix(name, parameter):
    """Whether Muon trains it."""
    return parameter.ndim == 2 and name.startswith(BLOCKS)


def train(architecture, args):
    torch.manual_seed(args.seed)
    chosen = model.ARCHITECTURES[architecture]
    built = model.build(architecture)
    network = built.diffusion_model
    initialise(network)
    name = chosen.weights.stem
    optimisers, steps = muon_and_adamw([network], is_matrix), args.steps or chosen.steps
    trainer = Trainer(name, [network], optimisers, steps=steps, file=args.work / f"{name}.pt")
    rng = torch.Generator().manual_seed(args.seed + 1 + trainer.step)
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

    trainer.run(loss_of_next_batch)
    save(network.state_dict(), maps, chosen.weights, trained_by="benchmarks/digits/train.py")


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
