"""Train the digits model from nothing: about twenty minutes on a CPU core.

    python3 -m nox -s digits

Flow matching on scikit-learn's digits; every random number comes from --seed. It keeps a checkpoint in --work and
goes on from it when started again, and writes output/training/digits.safetensors, which no user of the pack needs.
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
from training import Stage, flow_matching_loss, muon_and_adamw  # noqa: E402

SHIFT = 2.0
GUIDANCE_DROPOUT = 0.12


class OutOfPlace(TorchFunctionMode):
    """FLUX's blocks add in place, which is fine for sampling, but not for gradients."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ == "add_":
            return args[0] + args[1]
        return function(*args, **(kwargs or {}))


def initialise(network):
    """ComfyUI's layers skip their own initialisation."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.constant_(parameter, 1.0 if name.endswith("scale") else 0.0)
        elif name.startswith("final_layer.linear") or ".lin." in name or "adaLN" in name:
            torch.nn.init.zeros_(parameter)  # blocks start as identities
        else:
            torch.nn.init.xavier_uniform_(parameter)


def train(args):
    from safetensors.torch import save_file

    torch.manual_seed(args.seed)
    network = model.build().diffusion_model
    initialise(network)
    stage = Stage("digits", network, muon_and_adamw(network, ("double_blocks", "single_blocks")), args)
    rng = torch.Generator().manual_seed(args.seed + 1 + stage.step)
    pictures, labels = model.real_pictures()
    maps = model.codec(pictures)
    latents = model.encode(pictures, maps)
    context, pooled = model.prompts()

    def loss_of_next_batch():
        chosen = torch.randint(len(latents), (args.batch,), generator=rng)
        dropped = torch.rand(args.batch, generator=rng) < GUIDANCE_DROPOUT
        label = torch.where(dropped, 10, labels[chosen])

        def velocity(x, sigma):
            with OutOfPlace():
                return network(x, sigma, context[label], pooled[label])

        return flow_matching_loss(velocity, latents[chosen], SHIFT, rng)

    stage.run(loss_of_next_batch)
    weights = {f"network.{name}": value.half().contiguous() for name, value in stage.average.items()}
    weights |= {f"codec.{name}": value.contiguous() for name, value in maps.items()}
    save_file(weights, model.WEIGHTS, metadata={"license": "Apache-2.0", "trained_by": "benchmarks/digits/train.py"})
    print(f"{model.WEIGHTS.name}: {model.WEIGHTS.stat().st_size / 1e6:.1f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=2507)
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "training")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    comfy_host.import_comfy(args.work / "comfyui")
    train(args)


if __name__ == "__main__":
    main()
