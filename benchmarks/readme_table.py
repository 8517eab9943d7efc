"""The READMEs' small table, out of the runs: python benchmarks/readme_table.py

PSNR in dB and speed-up of the video model's runs, means over the development seeds. Where a method's knob is
not the number of evaluations, both are interpolated between its two neighbouring settings, of its best family of
settings.
"""

import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import records
from configurations import DEVELOPMENT_SEEDS

PACK = Path(__file__).resolve().parents[1]
PAGES = [PACK / "README.md", PACK / "README.zh-CN.md"]
COUNTS = (23, 15, 11)  # evaluations, of 50
ROWS = {  # the name in the table, and the method and the numbers that it computes with
    "**EasyCache (Adaptive)**, `target_speedup`": ("EasyCache (Adaptive), budget", "fp32"),
    "the paper's rule (`reuse`)": ("the paper's rule", "fp32"),
    "Spectrum": ("Spectrum", "fp32"),
    "TeaCache": ("TeaCache", "fp32"),
    "MagCache": ("MagCache", "fp32"),
    "built-in EasyCache": ("built-in EasyCache", "bf16"),
    "fewer steps, the best of all solvers": ("fewer steps, best solver", "fp32"),
}
BETWEEN = re.compile(r"\| \| 23 of 50 .*?\n(?=\n)", re.S)  # from the head of the table to the empty line after it


def curves(runs: list[records.Run]) -> list[list[tuple[float, float, float]]]:
    """(evaluations, PSNR, speed-up) per setting, by evaluations; those that differ in the last number are a curve."""
    settings, found = defaultdict(list), defaultdict(list)
    for run in runs:
        settings[run.setting].append(run)
    for setting, own in settings.items():
        faster = sum(run.reference_seconds for run in own) / sum(run.seconds for run in own)
        found[setting.rpartition(", ")[0]].append(
            (fmean(run.evaluations for run in own), fmean(run.psnr for run in own), faster)
        )
    return [sorted(points) for points in found.values()]


def at(count: float, points: list[tuple[float, float, float]]) -> tuple[float, float] | None:
    """(PSNR, speed-up) on a curve at that many evaluations; None out of its range."""
    for low, high in pairwise([*points, points[-1]]):
        if low[0] <= count <= high[0]:
            part = (count - low[0]) / (high[0] - low[0]) if high[0] > low[0] else 0.0
            _, psnr, faster = (a + part * (b - a) for a, b in zip(low, high, strict=True))
            return psnr, faster
    return None


def cell(count: float, found: list) -> str:
    best = max(filter(None, (at(count, points) for points in found)), default=None)
    return f"{best[0]:.1f} dB, {best[1]:.1f}x" if best else ""


def table(runs: list[records.Run]) -> str:
    lines = ["| | " + " | ".join(f"{count} of 50" for count in COUNTS) + " |", "|---" * (len(COUNTS) + 1) + "|"]
    for name, (method, dtype) in ROWS.items():
        own = [
            run
            for run in runs
            if (run.subject, run.configuration, run.method, run.dtype) == ("video", "base", method, dtype)
            and run.seed in DEVELOPMENT_SEEDS
        ]
        lines.append(f"| {name} | " + " | ".join(cell(count, curves(own)) for count in COUNTS) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    made = table(records.read(PACK / "benchmarks" / "results" / "fidelity.csv"))
    for page in PAGES:
        page.write_text(BETWEEN.sub(lambda _: made, page.read_text("utf-8"), count=1), encoding="utf-8")
