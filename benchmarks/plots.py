"""PSNR against network evaluations, a picture per subject; and the grid of samplers and schedulers."""

from pathlib import Path

import methods
import numpy as np
import tables
from grid import FACTORS as GRID_FACTORS
from grid import SPEEDUPS as GRID_SPEEDUPS
from grid import TOLERANCE as GRID_TOLERANCE
from records import Run

GRID_SHOWN = 6  # dB
SHOWN = {50: (8, 30), 20: (6, 17)}  # evaluations, by steps
INK, GRID = "#333333", "#e4e4e4"
COLOURS = {
    methods.OURS: "#c2410c",
    methods.THRESHOLD: "#f59e0b",
    methods.PAPER: "#1d4ed8",
    methods.FEWER: "#111827",
    methods.BEST_SOLVER: "#6b7280",
    f"{methods.BUILT_IN}, in bf16": "#0891b2",
    f"{methods.LAZY}, in bf16": "#67b7c9",
    methods.TEACACHE: "#15803d",
    methods.MAGCACHE: "#84a83a",
    methods.SPECTRUM: "#9333ea",
    methods.FOCA: "#db2777",
    methods.VDE_NAME: "#0f766e",
}


def quality(runs: list[Run], path: Path) -> None:
    """runs: of one subject, configuration and set of seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=110)
    fewest, most = SHOWN[runs[0].steps]
    counts = np.arange(fewest, most + 0.01, 0.25)
    groups = tables.by_method(runs)
    for name, colour in COLOURS.items():
        own = groups.get(name)
        if not own:
            continue
        line = [tables.best(own, count) for count in counts]
        ours = name in (methods.OURS, methods.THRESHOLD)
        axes.plot(
            counts, [p.psnr if p else np.nan for p in line], label=name, color=colour,
            linewidth=2.4 if ours else 1.4, linestyle="--" if name in (methods.FEWER, methods.BEST_SOLVER) else "-",
        )  # fmt: skip
        points = [p for family in tables.families(own).values() for p in family]
        axes.plot([p.evaluations for p in points], [p.psnr for p in points], "o", color=colour, markersize=3, alpha=0.6)
    run = runs[0]
    axes.set_title(
        f"{run.subject}: {tables.described(run)}, mean of {len({r.seed for r in runs})} seeds", color=INK, fontsize=11
    )
    axes.set_xlabel(f"network evaluations (of {run.reference_evaluations})", color=INK)
    axes.set_ylabel("PSNR against the uncached run, dB", color=INK)
    axes.set_xlim(fewest, most)
    lines = np.concatenate([line.get_ydata() for line in axes.lines if len(line.get_xdata()) == len(counts)])
    axes.set_ylim(np.nanmin(lines) - 1, np.nanmax(lines) + 1)
    axes.xaxis.set_major_locator(pyplot.MultipleLocator(2))
    axes.grid(color=GRID)
    axes.tick_params(colors=INK)
    for side in axes.spines.values():
        side.set_color(GRID)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=INK)
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)


def grid(found: dict, path: Path) -> None:
    """How much closer forecasts are than the better of reuse and fewer steps: a square per cell, a panel per speed-up.

    found: as from grid.compared. Samplers are rows, three of them for the CFG scales; schedulers are columns, one of
    them per number of steps.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    samplers, schedulers, steps, scales = GRID_FACTORS
    figure, panels = pyplot.subplots(2, 2, figsize=(15, 13), dpi=90, layout="constrained")
    for axes, speedup in zip(panels.flat, GRID_SPEEDUPS, strict=True):
        values = np.full((len(samplers), len(scales), len(schedulers), len(steps)), np.nan)
        for (cell, of), compared in found.items():
            if of == speedup:
                place = [options.index(value) for options, value in zip(GRID_FACTORS, cell, strict=True)]
                sampler, scheduler, count, scale = place
                values[sampler, scale, scheduler, count] = compared.margin
        values = values.reshape(len(samplers) * len(scales), -1)
        colours = pyplot.get_cmap("RdBu").with_extremes(bad="#f0f0f0")
        image = axes.imshow(values, cmap=colours, vmin=-GRID_SHOWN, vmax=GRID_SHOWN, aspect="auto")
        lost = np.argwhere(values < -GRID_TOLERANCE)
        axes.plot(lost[:, 1], lost[:, 0], ".", color="black", markersize=3)
        known = np.isfinite(values)
        axes.set_title(f"{speedup:g}x: {len(lost)} of {known.sum()} cells lost", color=INK, fontsize=11)
        for ticks, names, size in ((axes.set_xticks, schedulers, len(steps)), (axes.set_yticks, samplers, len(scales))):
            ticks([size * i + (size - 1) / 2 for i in range(len(names))], names)
        for i in range(1, len(schedulers)):
            axes.axvline(len(steps) * i - 0.5, color="white", linewidth=2)
        for i in range(1, len(samplers)):
            axes.axhline(len(scales) * i - 0.5, color="white", linewidth=2)
        axes.tick_params(colors=INK, length=0, labelsize=9)
        for side in axes.spines.values():
            side.set_visible(False)
    bar = figure.colorbar(image, ax=panels, location="bottom", fraction=0.03, aspect=60, extend="both")
    bar.set_label("forecast's PSNR minus that of the better of reuse and fewer steps, dB", color=INK)
    figure.suptitle(
        f"Columns of each scheduler: {', '.join(map(str, steps))} steps. Rows of each sampler: CFG "
        f"{', '.join(f'{scale:g}' for scale in scales)}. A dot: lost by more than {GRID_TOLERANCE:g} dB. "
        "Grey: not measured.",
        color=INK, fontsize=10,
    )  # fmt: skip
    figure.savefig(path)
    pyplot.close(figure)
