"""What it is worth to place a budget by how far D is supposed to move, too, and not by time alone.

    python benchmarks/placement.py

Tiny models are sampled under budgets, in schedules that begin at various noise levels: PSNR of the final latent against
the uncached run's, with the latent's own peak-to-peak, with the committed MOVES of easycache_core/placement.py and with
0. On these seeds nothing was chosen. Rows go to benchmarks/results/placement.csv; the table is printed at the end.
"""

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from unittest import mock

from host import Host
from measures import latent_psnr

RESULTS = Path(__file__).resolve().parent / "results" / "placement.csv"
COLUMNS = ("subject", "shift", "scheduler", "sampler", "steps", "target_speedup", "moves", "seed", "psnr")
# Subject, shifts, schedulers.
SCHEDULES = (
    ("video", (1.0, 2.0, 3.0, 5.0, 8.0), ("simple",)),
    ("digits", (1.0, 2.0, 4.0), ("simple",)),
    ("digits-unet", (0.0,), ("normal", "karras")),
    ("sheet", (0.0,), ("simple",)),
)
SAMPLERS, STEPS, SPEEDUPS, SEEDS, CFG = ("euler", "dpmpp_2m"), (20, 50), (1.4, 2.0, 3.0), (60, 61), 3.0
FRAMES, PICTURES = 2, 4


def small(subjects, subject, seed: int):
    """What the seed asks for, with few frames and pictures."""
    scene = subject.scene(seed)
    latent = scene.latent["samples"]
    latent = latent[:, :, :FRAMES] if latent.ndim == 5 else latent[:PICTURES]

    def first(value):
        return value[: len(latent)] if hasattr(value, "shape") else value

    sides = [
        [[first(cond), {key: first(value) for key, value in rest.items()}] for cond, rest in side] for side in scene[:2]
    ]
    return subjects.Scene(*sides, {"samples": latent})


def measure(host: Host, name: str, shifts, schedulers) -> Iterator[tuple]:
    """Rows of one subject."""
    import subjects

    subject = {"sheet": subjects.Sheet, **subjects.SUBJECTS}[name](host)
    package = sys.modules[host.node_class("EasyCacheAdaptive").__module__].__name__.removesuffix(".nodes.adaptive")
    placement = import_module(f"{package}.easycache_core.placement")
    for shift in shifts:
        for scheduler in schedulers:
            for steps in STEPS:
                for sampler in SAMPLERS:
                    configuration = replace(
                        subject.configurations[0],
                        shift=shift,
                        scheduler=scheduler,
                        steps=steps,
                        sampler=sampler,
                        cfg=CFG,
                    )
                    model = subject.prepared(configuration, "fp32")
                    for seed in SEEDS:
                        scene = small(subjects, subject, seed)
                        exact = subject.latent(model, scene, configuration, seed)
                        for speedup in SPEEDUPS:
                            cached = host.node("EasyCacheAdaptive", model, target_speedup=speedup)[0]
                            for moves in (0.0, placement.MOVES):
                                with mock.patch.object(placement, "MOVES", moves):
                                    got = subject.latent(cached, scene, configuration, seed)
                                psnr = round(latent_psnr(exact, got), 2)
                                yield name, shift, scheduler, sampler, steps, speedup, moves, seed, psnr
            print(f"{name}, shift {shift:g}, {scheduler}", flush=True)


def table(path: Path) -> str:
    """Mean dB by time alone -> by moves, too; over samplers and seeds."""
    found: dict[tuple, dict] = {}
    for row in csv.DictReader(path.open(encoding="utf-8")):
        shift = f", shift {float(row['shift']):g}" if float(row["shift"]) else ""
        place = f"{row['subject']}{shift}, {row['scheduler']}"
        by_moves = found.setdefault(place, {}).setdefault((int(row["steps"]), float(row["target_speedup"])), {})
        by_moves.setdefault(float(row["moves"]), []).append(float(row["psnr"]))
    cells = [(steps, speedup) for steps in STEPS for speedup in SPEEDUPS]
    lines = [f"| | {' | '.join(f'{steps} steps, {speedup:g}x' for steps, speedup in cells)} |", "|---" * 7 + "|"]
    for place, by_cell in found.items():
        means = [[statistics.mean(psnrs) for _, psnrs in sorted(by_cell[cell].items())] for cell in cells]
        lines.append(f"| {place} | {' | '.join(f'{before:.1f} -> {after:.1f}' for before, after in means)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host = Host(Path(base))
        with args.results.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for schedule in SCHEDULES:
                rows.writerows(measure(host, *schedule))
    print(table(args.results))


if __name__ == "__main__":
    main()
