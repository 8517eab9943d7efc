"""How good the node's estimate of its closeness is: estimated against measured dB.

    python benchmarks/closeness.py
    python benchmarks/closeness.py --described    measures nothing, describes the rows that are there

Tiny models are sampled with a mix of samplers, schedulers, lengths, guidance and settings, drawn by the seed; closeness
is the PSNR of the final latent against the uncached run's, with the latent's own peak-to-peak. SCALE and GUIDANCE of
easycache_core/closeness.py are fitted anew, for comparison, on the bundled video model and the digits in FLUX's
architecture, over seeds below CHECK_FROM. Other seeds, and the models of CHECKED, are the check. Rows go to
benchmarks/results/closeness.csv.
"""

import argparse
import csv
import dataclasses
import json
import math
import random
import statistics
import tempfile
from pathlib import Path

import numpy as np
from host import Host
from measures import latent_psnr

RESULTS = Path(__file__).resolve().parent / "results" / "closeness.csv"
CHECK_FROM = 24
SUBJECTS = {"video": 48, "digits": 48, "sheet": 60, "digits-unet": 36}  # seeds of each
CHECKED = ("sheet", "digits-unet")  # nothing is fitted on these
SAMPLERS = ("euler", "euler", "dpmpp_2m", "res_multistep", "heun", "dpm_2")
STEPS, GUIDANCE = (12, 16, 20, 25, 30, 50), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.9)
SCHEDULERS = ("simple", "simple", "normal", "beta", "karras")
SETTINGS = [dict(target_speedup=speedup) for speedup in (1.4, 2.0, 2.5, 3.4)]
SETTINGS += [dict(threshold=threshold, warmup_steps=3) for threshold in (0.05, 0.1, 0.15, 0.2)]
COLUMNS = ("subject", "seed", "sampler", "scheduler", "steps", "cfg", "settings", "computed", "evaluations",
           "estimated", "measured")  # fmt: skip


def measure(host: Host, name: str, seeds: int):
    """Rows of one subject."""
    from subjects import WITH_SHEET  # it imports ComfyUI, which the host makes importable

    subject = WITH_SHEET[name](host)
    for seed in range(seeds):
        draw = random.Random(seed)
        sampler, scheduler, steps, cfg = map(draw.choice, (SAMPLERS, SCHEDULERS, STEPS, GUIDANCE))
        configuration = dataclasses.replace(
            subject.configurations[0], sampler=sampler, scheduler=scheduler, steps=steps, cfg=cfg
        )
        scene, model = subject.small_scene(seed), subject.prepared(configuration, "fp32")
        exact = subject.latent(model, scene, configuration, seed)
        for settings in draw.sample(SETTINGS, 4):
            cached = host.node("EasyCacheAdaptive", model, predictor="forecast", **settings)[0]
            result = subject.latent(cached, scene, configuration, seed)
            report = json.loads(host.node("EasyCacheReport", cached, {"samples": result})[2])
            measured = latent_psnr(exact, result)
            if report["closeness"] is None or math.isinf(measured):
                continue
            shown = " ".join(f"{key}={value}" for key, value in settings.items())
            yield (name, seed, sampler, scheduler, steps, cfg, shown, report["computed"], report["evaluations"],
                   round(report["closeness"], 2), round(measured, 2))  # fmt: skip
        print(f"{name}, seed {seed}", flush=True)


def read(path: Path):
    """Rows as `measure` yields them."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            kinds = {"seed": int, "steps": int, "computed": int, "evaluations": int}
            kinds |= dict.fromkeys(("cfg", "estimated", "measured"), float)
            yield tuple(kinds.get(name, str)(row[name]) for name in COLUMNS)


def fit(rows: list[tuple], constants) -> tuple[float, float]:
    """SCALE and GUIDANCE by least squares in dB, large misses counting less."""
    guidance = np.array([20 * math.log10(row[5]) for row in rows])
    unscaled = np.array([row[9] for row in rows]) + 20 * math.log10(constants.SCALE) + constants.GUIDANCE * guidance
    measured = np.array([row[10] for row in rows])
    columns = np.stack([-np.ones(len(rows)), -guidance], 1)
    weights = np.ones(len(rows))
    for _ in range(20):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(columns * root, (measured - unscaled)[:, None] * root, rcond=None)[0][:, 0]
        weights = 1 / np.maximum(np.abs(columns @ solution - (measured - unscaled)), 1.0)
    return 10 ** (solution[0] / 20), solution[1]


def describe(title: str, rows: list[tuple]) -> None:
    misses = sorted(row[9] - row[10] for row in rows)
    good, half = sum(miss > 8 for miss in misses) / len(misses), statistics.median(map(abs, misses))
    print(
        f"{title}: {len(misses)} runs, {share(misses, 3):.0%} within 3 dB, {share(misses, 6):.0%} within 6, half in "
        f"{half:.1f}, mean {statistics.mean(misses):+.1f}; {good:.0%} more than 8 dB too good, {misses[-1]:.1f} at most"
    )


def share(misses: list[float], limit: float) -> float:
    return sum(abs(miss) < limit for miss in misses) / len(misses)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--described", action="store_true", help="measure nothing, describe the rows that are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host = Host(Path(base))
        constants = host.module("easycache_core.closeness")
        if args.described:
            rows = list(read(args.results))
        else:
            rows = [row for name in args.subjects for row in measure(host, name, SUBJECTS[name])]
            with args.results.open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows])
    calibration = [row for row in rows if row[0] not in CHECKED and row[1] < CHECK_FROM]
    if calibration:
        scale, guidance = fit(calibration, constants)
        print(f"fitted: SCALE {scale:.2f} ({constants.SCALE}), GUIDANCE {guidance:.2f} ({constants.GUIDANCE})")
        describe("calibration", calibration)
    for name in args.subjects:
        check = [row for row in rows if row[0] == name and row not in calibration]
        if check:
            describe(f"check, {name}", check)


if __name__ == "__main__":
    main()
