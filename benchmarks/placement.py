"""What it is worth to place a budget by how far D is supposed to move, too, and not by time alone; and to see in the
run where it hardly moves yet.

    python benchmarks/placement.py

Tiny models are sampled under budgets, in schedules that begin at various noise levels: PSNR of the final latent against
the uncached run's, with the latent's own peak-to-peak. MOVES of easycache_core/placement.py and CALM of budget.py are 0
where they are left out. On these seeds nothing was chosen. Rows go to benchmarks/results/placement.csv; the table is
printed at the end.
"""

import contextlib
import csv
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest import mock

import study
from host import Host
from measures import latent_psnr

RESULTS = Path(__file__).resolve().parent / "results" / "placement.csv"
COLUMNS = ("subject", "shift", "scheduler", "sampler", "steps", "target_speedup", "placed", "seed", "psnr")
# Subject, shifts, schedulers.
SCHEDULES = (
    ("video", (1.0, 2.0, 3.0, 5.0, 8.0), ("simple",)),
    ("digits", (1.0, 2.0, 4.0), ("simple",)),
    ("digits-unet", (0.0,), ("normal", "karras")),
    ("sheet", (0.0,), ("simple",)),
)
SAMPLERS, STEPS, SPEEDUPS, SEEDS, CFG = ("euler", "dpmpp_2m"), (20, 50), (1.4, 2.0, 3.0), (60, 61), 3.0

# By what, and what is 0 then.
PLACED = {"time": ("MOVES", "CALM"), "moves": ("CALM",), "moves and calm": ()}


def measure(host: Host) -> Iterator[tuple]:
    for schedule in SCHEDULES:
        yield from measure_one(host, *schedule)


def measure_one(host: Host, name: str, shifts, schedulers) -> Iterator[tuple]:
    """Rows of one subject."""
    from subjects import WITH_SHEET  # it imports ComfyUI, which the host makes importable

    subject = WITH_SHEET[name](host)
    owners = {"MOVES": host.module("easycache_core.placement"), "CALM": host.module("easycache_core.budget")}
    schedules = product(shifts, schedulers, STEPS, SAMPLERS)
    for (shift, scheduler, steps, sampler), seed in product(schedules, SEEDS):
        chosen = dict(shift=shift, scheduler=scheduler, sampler=sampler, steps=steps)
        configuration = replace(subject.configurations[0], cfg=CFG, **chosen)
        model, scene = subject.prepared(configuration, "fp32"), subject.small_scene(seed)
        exact = subject.latent(model, scene, configuration, seed)
        for speedup, (placed, left_out) in product(SPEEDUPS, PLACED.items()):
            cached = host.node("EasyCacheAdaptive", model, target_speedup=speedup)[0]
            with contextlib.ExitStack() as stack:
                for constant in left_out:
                    stack.enter_context(mock.patch.object(owners[constant], constant, 0.0))
                latent = subject.latent(cached, scene, configuration, seed)
            yield name, *chosen.values(), speedup, placed, seed, round(latent_psnr(exact, latent), 2)
        print(f"{name}, {', '.join(map(str, chosen.values()))}, seed {seed}", flush=True)


def table(path: Path) -> str:
    """Mean dB by time alone -> by all; over samplers and seeds."""
    found: dict[tuple, dict] = {}
    for row in csv.DictReader(path.open(encoding="utf-8")):
        shift = f", shift {float(row['shift']):g}" if float(row["shift"]) else ""
        place = f"{row['subject']}{shift}, {row['scheduler']}"
        cell = found.setdefault(place, {}).setdefault((int(row["steps"]), float(row["target_speedup"])), {})
        cell.setdefault(row["placed"], []).append(float(row["psnr"]))
    cells = [(steps, speedup) for steps in STEPS for speedup in SPEEDUPS]
    titles = ["", *(f"{steps} steps, {speedup:g}x" for steps, speedup in cells)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for place, by_cell in found.items():
        first, *_, last = PLACED
        means = [" -> ".join(f"{statistics.mean(by_cell[cell][by]):.1f}" for by in (first, last)) for cell in cells]
        lines.append(f"| {place} | {' | '.join(means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    study.run(__doc__, RESULTS, COLUMNS, measure, table)
