"""How far forecasts follow a latent to which the sampler adds noise: by theta, by its root, or as `reuse` does.

    python benchmarks/noise.py

Tiny models are sampled under budgets with samplers that add noise: PSNR of the final latent against the uncached run's,
with the latent's own peak-to-peak. The power of theta is NOISE_POWER of easycache_core/forecast.py. On these seeds
nothing was chosen. Rows go to benchmarks/results/noise.csv; the table is printed at the end.
"""

import csv
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest import mock

import study
from grid import ADD_NOISE, FACTORS
from host import Host
from measures import latent_psnr

RESULTS = Path(__file__).resolve().parent / "results" / "noise.csv"
COLUMNS = ("subject", "sampler", "target_speedup", "followed", "seed", "psnr")
SUBJECTS = "video", "digits", "digits-unet", "sheet"
SAMPLERS = [sampler for sampler in FACTORS.sampler if sampler in ADD_NOISE]
STEPS, CFG, SPEEDUPS, SEEDS = 20, 3.0, (1.5, 2.0, 3.0), (60, 61, 62)
# How, with which predictor and power of theta.
FOLLOWED = {"reuse": ("reuse", 1.0), "theta": ("forecast", 1.0), "its root": ("forecast", 0.5)}


def measure(host: Host) -> Iterator[tuple]:
    for name in SUBJECTS:
        yield from measure_one(host, name)


def measure_one(host: Host, name: str) -> Iterator[tuple]:
    """Rows of one subject."""
    from subjects import WITH_SHEET  # it imports ComfyUI, which the host makes importable

    subject, forecast = WITH_SHEET[name](host), host.module("easycache_core.forecast")
    for sampler, seed in product(SAMPLERS, SEEDS):
        configuration = replace(subject.configurations[0], sampler=sampler, scheduler="simple", steps=STEPS, cfg=CFG)
        model, scene = subject.prepared(configuration, "fp32"), subject.small_scene(seed)
        exact = subject.latent(model, scene, configuration, seed)
        for speedup, (followed, (predictor, power)) in product(SPEEDUPS, FOLLOWED.items()):
            cached = host.node("EasyCacheAdaptive", model, target_speedup=speedup, predictor=predictor)[0]
            with mock.patch.object(forecast, "NOISE_POWER", power):
                latent = subject.latent(cached, scene, configuration, seed)
            yield name, sampler, speedup, followed, seed, round(latent_psnr(exact, latent), 2)
        print(f"{name}, {sampler}, seed {seed}", flush=True)


def table(path: Path) -> str:
    """Mean dB over seeds, and over samplers and seeds."""
    found: dict[tuple, dict] = {}
    for row in csv.DictReader(path.open(encoding="utf-8")):
        column = float(row["target_speedup"]), row["followed"]
        for sampler in (row["sampler"], "mean"):
            found.setdefault((row["subject"], sampler), {}).setdefault(column, []).append(float(row["psnr"]))
    titles = ["", *(f"{speedup:g}x: {', '.join(FOLLOWED)}" for speedup in SPEEDUPS)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for (subject, sampler), cells in found.items():
        means = [", ".join(f"{statistics.mean(cells[speedup, how]):.1f}" for how in FOLLOWED) for speedup in SPEEDUPS]
        lines.append(f"| {subject}, {sampler} | {' | '.join(means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    study.run(__doc__, RESULTS, COLUMNS, measure, table)
