"""Train the sheet of digits anew; some minutes on one core (in the environment of `nox -s benchmark`).

python benchmarks/sheet/train.py
"""

import argparse
import copy
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from host import ROOT, Host

DROPOUT = 0.15  # of labels, for guidance
EMA = 0.999


def real_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """(1797, 8, 8) pictures of mean 0 and standard deviation 1, and what they show."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = torch.tensor(digits.images, dtype=torch.float32)
    return (pictures - pictures.mean()) / pictures.std(), torch.tensor(digits.target)


def varied(pictures: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Each turned, moved, stretched and brightened a little: 1,797 pictures are learnt by heart otherwise."""
    turn, across, down = (torch.rand(3, len(pictures), generator=rng) - 0.5) * torch.tensor([[0.4], [0.2], [0.2]])
    stretch = 1 + 0.2 * (torch.rand(len(pictures), generator=rng) - 0.5)
    maps = torch.stack([turn.cos() * stretch, -turn.sin(), across, turn.sin(), turn.cos() * stretch, down], 1)
    grid = torch.nn.functional.affine_grid(maps.view(-1, 2, 3), (len(pictures), 1, 8, 8), align_corners=False)
    background = pictures.min()
    moved = torch.nn.functional.grid_sample(pictures[:, None] - background, grid, align_corners=False)[:, 0]
    return moved * (0.9 + 0.2 * torch.rand(len(pictures), 1, 1, generator=rng)) + background


def train(model, steps: int, batch: int):
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network, (pictures, labels) = model.Network(), real_digits()
    average, optimizer = copy.deepcopy(network), torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    running = 0.0
    for step in range(steps):
        chosen = torch.randint(len(pictures), (batch,), generator=rng)
        data = varied(pictures[chosen], rng).view(batch, 1, 8, 8)
        untold = torch.rand(batch, generator=rng) < DROPOUT
        told = torch.where(untold, model.LABELS - 1, labels[chosen])
        context = torch.nn.functional.one_hot(told, model.LABELS).float()[:, None]
        t = torch.rand(batch, generator=rng)
        sigma = model.SHIFT * t / (1 + (model.SHIFT - 1) * t)
        noise = torch.randn(data.shape, generator=rng)
        levels = sigma.view(-1, 1, 1, 1)
        predicted = network((1 - levels) * data + levels * noise, 1000 * sigma, context)
        loss = (predicted - (noise - data)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), network.parameters(), strict=True):
                ours.lerp_(theirs, 1 - min(EMA, step / (step + 10)))
        running += (loss.item() - running) / min(step + 1, 500)
        if (step + 1) % 1000 == 0:
            print(f"step {step + 1}: loss {running:.4f}", flush=True)
    return average


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        Host(Path(base))
        import model  # it imports ComfyUI, which the host makes importable
        from safetensors.torch import save_file

        trained = train(model, args.steps, args.batch)
        save_file({name: w.half().contiguous() for name, w in trained.state_dict().items()}, model.WEIGHTS)
        print(f"{sum(w.numel() for w in trained.parameters())} parameters, {model.WEIGHTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
