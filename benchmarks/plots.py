"""PSNR against network evaluations, one picture per subject."""

from pathlib import Path

import methods
import numpy as np
import tables
from records import Run

# Evaluations by steps: the fewest and the most, and how finely lines are drawn. Of 20, knobs reach whole numbers only.
SHOWN = {50: (8, 30, 0.25), 28: (7, 22, 1), 20: (6, 17, 1)}
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
    fewest, most, apart = SHOWN[runs[0].steps]
    counts = np.arange(fewest, most + 0.01, apart)
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
    lines = lines[np.isfinite(lines)]  # not where nothing was skipped
    axes.set_ylim(lines.min() - 1, lines.max() + 1)
    axes.xaxis.set_major_locator(pyplot.MultipleLocator(2))
    axes.grid(color=GRID)
    axes.tick_params(colors=INK)
    for side in axes.spines.values():
        side.set_color(GRID)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=INK)
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
