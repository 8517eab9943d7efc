"""Forecasts against reuse and against fewer steps, in every sampler, scheduler, number of steps and CFG scale.

    python benchmarks/grid.py --pairwise       91 cells in which every two values meet: a minute of one idle core
    python benchmarks/grid.py                  all 1,638 cells: twenty minutes (0.7 s per cell and seed)
    python benchmarks/grid.py --shard 1/2      half of them, and `--shard 2/2` in another process
    python benchmarks/grid.py --pairwise --subject video    the 91 cells of a trained model: an hour
    python benchmarks/grid.py --publish        only the page, of what is there, and the rows in the cells' order

In each cell the node is sampled at four target speed-ups with `forecast`, with `reuse`, and without the node in as many
steps as take no more evaluations. Closeness is the PSNR of the pictures against the uncached run, in dB. Everything
goes through ComfyUI's KSampler node. Rows go to benchmarks/results/grid.csv as they come; cells that are there are not
measured again. The model is a perceptron (sheet/), with which an evaluation takes a few milliseconds, nearly all of it
ComfyUI's and the node's; `--subject` takes one of the others. At the end docs/grid.md is written, with a picture.
"""

import argparse
import csv
import itertools
import math
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from configurations import Configuration
from host import ROOT, Host

RESULTS = Path(__file__).resolve().parent / "results" / "grid.csv"
DOCS = ROOT / "docs"
PAGE = """# Every sampler, scheduler, number of steps and CFG scale

Written by `python benchmarks/grid.py`. {cells} of {all_cells} cells, {seeds} per cell, of the model `{subject}`.

A cell is a sampler, a scheduler, a number of steps and a CFG scale. In each, `forecast` with a target speed-up is held
against `reuse` with the same, and against the same sampler without the node in as many steps as take no more
evaluations. Closeness is the PSNR of the pictures against the uncached run. A cell is below another method if its
forecast is more than {tolerance:g} dB further from the uncached run; the margin is the difference to the better one.

![How much closer forecasts are than the better of reuse and fewer steps](grid.png)

{summary}

{lost}
"""
ANOTHER = """
## The model `{subject}`

{cells} of {all_cells} cells, {seeds} per cell: `python benchmarks/grid.py --subject {subject}`, with `--pairwise` those
in which every two values meet.

{summary}

{lost}
"""
LOST = """Why forecasts are the further ones in {all} of {cells} cells, by more than {tolerance:g} dB:

- {noisy}: the sampler adds noise, which nobody can forecast. The mean over all cells of such samplers is {mean:+.1f} dB
  against reuse.
- {short}: 15 steps or fewer. With a few evaluations far apart, what the last two say of the next is little.
- {close}: forecasts have {far:g} dB or more, where no difference can be seen.
- {others}: others.

In {below} of them the better one has less than 25 dB: at so few evaluations no method is close there."""
FAR = 45.0  # dB
SPEEDUPS = (1.3, 1.5, 2.0, 3.0)
ADD_NOISE = {"euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "er_sde", "sa_solver", "lcm"}
TOLERANCE = 0.3  # dB by which a cell may be below the better of the others
MOST = 100.0  # dB; beyond it is float32's rounding


class Cell(NamedTuple):
    sampler: str
    scheduler: str
    steps: int
    cfg: float


FACTORS = Cell(
    ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "uni_pc", "res_multistep", "deis",
     "ipndm", "er_sde", "sa_solver", "lcm"),
    ("simple", "normal", "beta", "sgm_uniform", "karras", "linear_quadratic", "kl_optimal"),
    (8, 12, 15, 20, 30, 50),
    (1.0, 4.0, 7.0),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One cell, seed and target speed-up.

    evaluations: of the uncached run; forecast_, reuse_ and fewer_evaluations: of the others. fewer_steps: steps of the
    run without the node. forecast, reuse, fewer: PSNR in dB.
    """

    subject: str
    sampler: str
    scheduler: str
    steps: int
    cfg: float
    seed: int
    target_speedup: float
    evaluations: int
    forecast_evaluations: int
    reuse_evaluations: int
    fewer_steps: int
    fewer_evaluations: int
    forecast: float
    reuse: float
    fewer: float

    @property
    def cell(self) -> Cell:
        return Cell(self.sampler, self.scheduler, self.steps, self.cfg)


def product(factors: Cell = FACTORS) -> list[Cell]:
    return [Cell(*values) for values in itertools.product(*factors)]


def pairwise(cells: list[Cell]) -> list[Cell]:
    """A part of the cells in which every two values meet that meet anywhere.

    Each time the cell with most new pairs is taken, of several the one whose values were taken least often.
    """

    def pairs(cell):
        return set(itertools.combinations(enumerate(cell), 2))

    by_cell = {cell: pairs(cell) for cell in cells}
    left, taken, chosen = set().union(*by_cell.values()), Counter(), []

    def worth(cell):
        return len(by_cell[cell] & left), -sum(taken[place] for place in enumerate(cell))

    while left:
        chosen.append(max(by_cell, key=worth))
        left -= by_cell.pop(chosen[-1])
        taken.update(enumerate(chosen[-1]))
    return chosen


def most_steps(evaluations: int, steps: int, affordable: int) -> int:
    """How many steps take no more than the affordable evaluations, if so many steps take so many evaluations.

    Heun's kind evaluates twice per step, but once in the last one.
    """
    per_step = math.ceil(evaluations / steps)
    saved = per_step * steps - evaluations
    return max(1, (affordable + saved) // per_step)


def measure(subject, cell: Cell, seed: int) -> Iterator[Row]:
    import measures

    configuration = Configuration("grid", cell.steps, cell.sampler, cell.scheduler, subject.shift, cell.cfg)
    model, scene = subject.prepared(configuration, "fp32"), subject.scene(seed)

    def sampled(patched, steps=cell.steps):
        return subject.sample(patched, scene, replace(configuration, steps=steps), seed)

    def cached(predictor, speedup):
        widgets = dict(predictor=predictor, target_speedup=speedup)
        return sampled(subject.host.node("EasyCacheAdaptive", model, **widgets)[0])

    exact = sampled(model)

    def closeness(candidate):
        found = measures.psnr(exact.pictures, candidate.pictures)
        return min(MOST, found) if math.isfinite(float(candidate.pictures.sum())) else 0.0

    for speedup in SPEEDUPS:
        forecast, reuse = cached("forecast", speedup), cached("reuse", speedup)
        fewer_steps = most_steps(exact.evaluations, cell.steps, forecast.evaluations)
        fewer = sampled(model, fewer_steps)
        yield Row(
            subject.name, *cell, seed, speedup, exact.evaluations, forecast.evaluations, reuse.evaluations, fewer_steps,
            fewer.evaluations, closeness(forecast), closeness(reuse), closeness(fewer),
        )  # fmt: skip


def read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**{f.name: f.type(row[f.name]) for f in fields(Row)}) for row in csv.DictReader(file)]


def append(path: Path, rows: list[Row]) -> None:
    """Other processes may append to the file, too: what belongs together is written at once."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(",".join(f.name for f in fields(Row)) + "\n")
    except FileExistsError:
        pass
    lines = []
    for row in rows:
        values = (f"{v:.5g}" if isinstance(v, float) else str(v) for v in asdict(row).values())
        lines.append(",".join(values) + "\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def arrange(path: Path) -> None:
    """The file's rows in the order in which one process measures them; no other one may append meanwhile."""
    cells, rows = {cell: n for n, cell in enumerate(product())}, read(path)
    arranged = sorted(rows, key=lambda row: (row.subject, row.seed, cells[row.cell], row.target_speedup))
    if arranged != rows:
        path.unlink()
        append(path, arranged)


class Compared(NamedTuple):
    """Means over the seeds, in dB."""

    forecast: float
    reuse: float
    fewer: float

    @property
    def margin(self) -> float:
        """How much closer forecasts are than the better of the others."""
        return self.forecast - max(self.reuse, self.fewer)


def compared(rows: list[Row]) -> dict[tuple[Cell, float], Compared]:
    """By cell and target speed-up."""
    found = defaultdict(list)
    for row in rows:
        found[row.cell, row.target_speedup].append((row.forecast, row.reuse, row.fewer))
    return {place: Compared(*map(statistics.mean, zip(*values, strict=True))) for place, values in found.items()}


def summary(rows: list[Row], shown: int = 20) -> str:
    """How many cells are below the others, by speed-up and by sampler, and the worst of them."""
    found = {place: values for place, values in compared(rows).items() if math.isfinite(values.margin)}
    lines = ["| | cells | below reuse | below fewer steps | median margin, dB | least |", "|---|---|---|---|---|---|"]

    def line(name, values):
        below = [sum(v.forecast < getattr(v, other) - TOLERANCE for v in values) for other in ("reuse", "fewer")]
        margins = [v.margin for v in values]
        cells = name, len(values), *below, f"{statistics.median(margins):+.1f}", f"{min(margins):+.1f}"
        return f"| {' | '.join(map(str, cells))} |"

    for speedup in SPEEDUPS:
        values = [v for (_, s), v in found.items() if s == speedup]
        lines += [line(f"{speedup:g}x", values)] if values else []
    for i, factor in enumerate(Cell._fields):
        for value in FACTORS[i]:
            values = [v for (cell, _), v in found.items() if cell[i] == value]
            lines += [line(f"{value:g} {factor}" if factor in ("steps", "cfg") else value, values)] if values else []
    worst = sorted(found.items(), key=lambda item: item[1].margin)[:shown]
    lines += ["", "The worst cells:", ""]
    for (cell, speedup), v in worst:
        lines.append(
            f"- {cell.sampler}, {cell.scheduler}, {cell.steps} steps, CFG {cell.cfg:g}, {speedup:g}x: "
            f"{v.margin:+.1f} dB ({v.forecast:.1f}; reuse {v.reuse:.1f}, fewer steps {v.fewer:.1f})"
        )
    return "\n".join(lines)


def reasons(found: dict[tuple[Cell, float], Compared]) -> str:
    """Of the cells in which forecasts are below another method."""
    noisy = {place: v for place, v in found.items() if place[0].sampler in ADD_NOISE}
    lost = {place: v for place, v in found.items() if v.margin < -TOLERANCE}
    close = {place for place, v in lost.items() if v.forecast >= FAR}
    with_noise = lost.keys() & noisy.keys() - close
    short = {place for place in lost if place[0].steps <= 15} - close - with_noise
    return LOST.format(
        all=len(lost), cells=len(found), tolerance=TOLERANCE, far=FAR, noisy=len(with_noise), short=len(short),
        mean=statistics.mean(v.forecast - v.reuse for v in noisy.values()) if noisy else 0.0, close=len(close),
        others=len(lost) - len(close) - len(with_noise) - len(short),
        below=sum(max(v.reuse, v.fewer) < 25 for v in lost.values()),
    )  # fmt: skip


def chosen(args) -> list[Cell]:
    factors = Cell(*(getattr(args, name) or values for name, values in zip(Cell._fields, FACTORS, strict=True)))
    cells = product(factors)
    if args.pairwise:
        cells = pairwise(cells)
    if args.cells is not None:
        cells = random.Random(0).sample(cells, min(args.cells, len(cells)))
    part, parts = map(int, args.shard.split("/"))
    return cells[part - 1 :: parts]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, values in zip(Cell._fields, FACTORS, strict=True):
        parser.add_argument(f"--{name}", nargs="+", type=type(values[0]), help=f"of {', '.join(map(str, values))}; all")
    parser.add_argument("--pairwise", action="store_true", help="only cells in which every two values meet")
    parser.add_argument("--cells", type=int, help="only so many, drawn at random, the same ones each time")
    parser.add_argument("--shard", default="1/1", help="which part of them, as 1/4")
    parser.add_argument("--seeds", type=int, default=1, help="how many per cell")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--subject", default="sheet", help="sheet, or a model of run.py")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--publish", action="store_true", help="measure nothing")
    return parser.parse_args()


def run(args) -> None:
    done = {(row.subject, row.cell, row.seed) for row in read(args.results)}
    seeds = range(args.first, args.first + args.seeds)
    wanted = [(cell, seed) for seed in seeds for cell in chosen(args) if (args.subject, cell, seed) not in done]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host = Host(Path(base))
        from subjects import WITH_SHEET  # it imports ComfyUI, which the host makes importable

        subject_class = WITH_SHEET[args.subject]
        subject_class.require_weights()
        subject = subject_class(host)
        for number, (cell, seed) in enumerate(wanted, 1):
            rows = list(measure(subject, cell, seed))
            append(args.results, rows)
            margins = [Compared(row.forecast, row.reuse, row.fewer).margin for row in rows]
            seconds = (time.monotonic() - started) / number
            print(
                f"{number} of {len(wanted)}, {seconds:.1f} s each: {', '.join(map(str, cell))}, seed {seed}: "
                + ", ".join(f"{row.target_speedup:g}x {m:+.1f}" for row, m in zip(rows, margins, strict=True)),
                flush=True,
            )


def of_subject(rows: list[Row], subject: str) -> list[Row]:
    return [row for row in rows if row.subject == subject]


def page(rows: list[Row]) -> str:
    """Of the first model, with a section for each other one."""

    def filled(text: str, rows: list[Row], **options) -> str:
        seeds = len({row.seed for row in rows})
        return text.format(
            cells=len({row.cell for row in rows}), all_cells=len(product()), seeds=f"{seeds} seed{'s' * (seeds > 1)}",
            subject=rows[0].subject, tolerance=TOLERANCE, summary=summary(rows, **options),
            lost=reasons(compared(rows)),
        )  # fmt: skip

    first, *others = (of_subject(rows, subject) for subject in dict.fromkeys(row.subject for row in rows))
    return filled(PAGE, first) + "".join(filled(ANOTHER, other, shown=5) for other in others)


def publish(rows: list[Row], folder: Path) -> None:
    """The page, and a picture of the first model."""
    import grid_plot

    text = page(rows)
    (folder / "grid.md").write_text(text, encoding="utf-8")
    grid_plot.draw(compared(of_subject(rows, rows[0].subject)), folder / "grid.png")
    print(text)


def main():
    args = arguments()
    if args.publish:
        arrange(args.results)
    else:
        run(args)
    rows = read(args.results)
    if rows:
        publish(rows, DOCS if args.results == RESULTS else args.results.parent)


if __name__ == "__main__":
    main()
