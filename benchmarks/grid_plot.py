"""The picture of grid.py."""

from pathlib import Path

import numpy as np
from grid import FACTORS, SPEEDUPS, TOLERANCE

INK = "#333333"
SHOWN = 6  # dB; what is more has the colour of this


def draw(found: dict, path: Path) -> None:
    """How much closer forecasts are than the better of reuse and fewer steps: a square per cell, a panel per speed-up.

    found: as from grid.compared. Samplers are rows, three of them for the CFG scales; schedulers are columns, one of
    them per number of steps.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    samplers, schedulers, steps, scales = FACTORS
    figure, panels = pyplot.subplots(2, 2, figsize=(15, 13), dpi=90, layout="constrained")
    for axes, speedup in zip(panels.flat, SPEEDUPS, strict=True):
        values = np.full((len(samplers), len(scales), len(schedulers), len(steps)), np.nan)
        for (cell, of), compared in found.items():
            if of == speedup:
                place = [options.index(value) for options, value in zip(FACTORS, cell, strict=True)]
                sampler, scheduler, count, scale = place
                values[sampler, scale, scheduler, count] = compared.margin
        values = values.reshape(len(samplers) * len(scales), -1)
        colours = pyplot.get_cmap("RdBu").with_extremes(bad="#f0f0f0")
        image = axes.imshow(values, cmap=colours, vmin=-SHOWN, vmax=SHOWN, aspect="auto")
        lost = np.argwhere(values < -TOLERANCE)
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
        f"{', '.join(f'{scale:g}' for scale in scales)}. A dot: lost by more than {TOLERANCE:g} dB. "
        "Grey: not measured.",
        color=INK, fontsize=10,
    )  # fmt: skip
    figure.savefig(path)
    pyplot.close(figure)
