"""The tables of docs/figures.md out of the runs.

A field holds PSNR in dB as the mean (and the least) over the seeds, SSIM, and LPIPS where its weights were there.
Seconds are in the rows, but not here: they depend on what else the machine does. Methods whose knob is not the number
of evaluations are interpolated linearly in it, between the two neighbouring settings of one family (means over seeds);
where a method has several families, the best one at that count is shown. Outside of the range of its settings a
method's field is empty.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import methods
import numpy as np
from configurations import DEVELOPMENT_SEEDS, HELD_OUT_SEEDS, IN_FULL, MEDIUM, SHORT, SPEEDUPS, VERY_SHORT
from records import Run

OWN_TABLE = MEDIUM, SHORT, *VERY_SHORT, "held out"


@dataclass(frozen=True)
class Point:
    """A setting's means over its seeds; least: the lowest PSNR among them."""

    evaluations: float
    psnr: float
    least: float
    ssim: float
    lpips: float

    def __add__(self, other: "Point") -> "Point":
        return Point(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    def __mul__(self, factor: float) -> "Point":
        return Point(*(value * factor for value in self.values))

    @property
    def values(self) -> tuple:
        return self.evaluations, self.psnr, self.least, self.ssim, self.lpips

    @property
    def text(self) -> str:
        lpips = "" if np.isnan(self.lpips) else f", {self.lpips:.4f}"
        return f"**{self.psnr:.1f}** ({self.least:.1f}), {self.ssim:.4f}{lpips}"


def point(runs: list[Run]) -> Point:
    def mean(name):
        values = [getattr(run, name) for run in runs]
        return float("nan") if None in values else float(np.mean(values))

    return Point(mean("evaluations"), mean("psnr"), min(run.psnr for run in runs), mean("ssim"), mean("lpips"))


def families(runs: list[Run]) -> dict[str, list[Point]]:
    """A method's curves: points of each family by ascending evaluations."""
    settings = defaultdict(list)
    for run in runs:
        settings[run.setting].append(run)
    curves = defaultdict(list)
    for setting, own in settings.items():
        curves[setting.rpartition(", ")[0]].append(point(own))
    return {family: sorted(points, key=lambda p: p.evaluations) for family, points in curves.items()}


def interpolated(points: list[Point], evaluations: float) -> Point | None:
    points = [p for p in points if np.isfinite(p.psnr)]  # where nothing was skipped, pictures are identical
    for p in points:
        if abs(p.evaluations - evaluations) < 1e-9:
            return p
    for low, high in pairwise(points):
        if low.evaluations < evaluations < high.evaluations:
            part = (evaluations - low.evaluations) / (high.evaluations - low.evaluations)
            return low * (1 - part) + high * part
    return None


def best(runs: list[Run], evaluations: float) -> Point | None:
    """Of all families of a method, at that number of evaluations."""
    found = [interpolated(points, evaluations) for points in families(runs).values()]
    return max((p for p in found if p), key=lambda p: p.psnr, default=None)


def by_method(runs: list[Run]) -> dict[str, list[Run]]:
    groups = defaultdict(list)
    for run in sorted(runs, key=lambda run: (methods.ORDER.index(run.method), run.dtype != "fp32")):
        groups[run.method if run.dtype == "fp32" else f"{run.method}, in {run.dtype}"].append(run)
    return groups


def methods_table(runs: list[Run], counted) -> str:
    """runs: of one subject, configuration and set of seeds."""
    lines = ["| method | " + " | ".join(f"{n} evaluations" for n in counted) + " |", "|---" * (len(counted) + 1) + "|"]
    alone = []
    for name, own in by_method(runs).items():
        cells = [best(own, n) for n in counted]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(p.text if p else "" for p in cells) + " |")
        elif len({run.setting for run in own}) == 1:
            p = point(own)
            alone.append(f"{name}, {own[0].setting}: {p.evaluations:.1f} evaluations, {p.psnr:.1f} dB ({p.least:.1f})")
    return "\n".join([*lines, "", *alone])


def variations_table(runs: list[Run]) -> str:
    """runs: of one subject and the development seeds. PSNR at the evaluations of the budgeted runs."""
    compared = {
        "forecast": methods.OURS,
        "reuse, same steps": methods.SAME_STEPS,
        "paper's rule": methods.PAPER,
        "fewer steps": methods.FEWER,
    }
    head = [f"{speedup:g}x: {name}" for speedup in SPEEDUPS for name in compared]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for configuration in dict.fromkeys(run.configuration for run in runs if run.configuration not in OWN_TABLE):
        here = [run for run in runs if run.configuration == configuration and run.dtype == "fp32"]
        cells = []
        for speedup in SPEEDUPS:
            budgeted = [run for run in here if run.method == methods.OURS and run.setting.endswith(f" {speedup:g}")]
            if not budgeted:
                continue
            count = point(budgeted).evaluations
            points = [best([run for run in here if run.method == name], count) for name in compared.values()]
            cells += [f"{p.psnr:.1f}" if p else "" for p in points]
        lines.append(f"| {configuration} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def everything(runs: list[Run]) -> str:
    """All tables as Markdown."""
    parts = []
    for subject in dict.fromkeys(run.subject for run in runs):
        for configuration, seeds, title in (
            ("base", DEVELOPMENT_SEEDS, "development seeds"),
            ("base", HELD_OUT_SEEDS, "held-out seeds"),
            (MEDIUM, DEVELOPMENT_SEEDS, "development seeds"),
            (SHORT, DEVELOPMENT_SEEDS, "development seeds"),
            (SHORT, HELD_OUT_SEEDS, "held-out seeds"),
            *((name, DEVELOPMENT_SEEDS, "development seeds") for name in VERY_SHORT),
            ("held out", HELD_OUT_SEEDS, "held-out seeds"),
        ):
            here = [
                run
                for run in runs
                if (run.subject, run.configuration) == (subject, configuration) and run.seed in seeds
            ]
            if here:
                counted = sorted({run.evaluations for run in here if run.method == methods.OURS}, reverse=True)
                n = len({run.seed for run in here})
                parts += [f"### {subject}, {described(here[0])}, {n} {title}", methods_table(here, counted)]
        here = [run for run in runs if run.subject == subject and run.seed in DEVELOPMENT_SEEDS]
        if {run.configuration for run in here} - {*IN_FULL, *OWN_TABLE}:
            parts += [f"### {subject}, other configurations, development seeds", variations_table(here)]
    return "\n\n".join(parts) + "\n"


def described(run: Run) -> str:
    shift = f"shift {run.shift:g}" if run.shift else ""
    scheduler = "" if shift and run.scheduler == "simple" else run.scheduler
    parts = f"{run.steps} steps", run.sampler, scheduler, shift, f"CFG {run.cfg:g}"
    return ", ".join(part for part in parts if part)
