"""Other packs beside this one: the figures of docs/works_with.md.

    python benchmarks/works_with.py --packs FOLDER [--only nag lanpaint ...]
    python benchmarks/works_with.py --table

FOLDER holds clones of the packs, each in a folder named as its repository. packs/ has a file per pack, and in it which
others that one NEEDS, and prepare(), where something has to be done before it can be loaded. Its cases are sampled
uncached, with threshold 0, and as SETTINGS say. Each pack has a process of its own, as some change ComfyUI. Its rows in
benchmarks/results/works_with.csv are replaced as they come; those of other packs stay.
"""

import argparse
import csv
import gc
import logging
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from host import ROOT, Host
from measures import latent_psnr

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "works_with.csv"
COLUMNS = (
    "pack", "commit", "comfyui", "case", "setting", "evaluations", "computed", "network_calls", "psnr", "alive", "log",
)  # fmt: skip
SETTINGS = {
    "budget": dict(target_speedup=2.0),
    "threshold": dict(threshold=0.1),
    "reuse at the budget's steps": dict(target_speedup=2.0, predictor="reuse"),
}
TOTALS = re.compile(r"computed (\d+) of (\d+) evaluations")
RUN_CLASSES = ("CacheController", "Run", "QuestionHistory", "Branch", "StepCounter", "Evaluation")  # live in a run only


class Case(NamedTuple):
    """One way to sample. model: without the cache. sample(model): the final latent, the same each time."""

    name: str
    model: object
    sample: Callable


class Log(logging.Handler):
    """What our node said."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def alive() -> int:
    """How many objects of a sampling run are left."""
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]
    return sum(kind.__name__ in RUN_CLASSES and "easycache" in kind.__module__.lower() for kind in kinds)


def measure(host: Host, case: Case, log: Log):
    """A row per setting, without the columns of the pack."""
    calls = []
    hook = case.model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))

    def sampled(model):
        calls.clear()
        log.lines.clear()
        return case.sample(model).clone(), len(calls)

    try:
        sampled(case.model)  # loading a model draws random numbers, which some samplers then lack
        plain, uncached_calls = sampled(case.model)
        yield dict(setting="uncached", network_calls=uncached_calls)
        for setting, widgets in {"threshold 0": dict(threshold=0.0), **SETTINGS}.items():
            cached = host.node("EasyCacheAdaptive", case.model, **widgets)[0]
            latent, network_calls = sampled(cached)
            counts = [found.groups() for found in map(TOTALS.search, log.lines) if found]
            yield dict(
                setting=setting,
                evaluations=sum(int(evaluations) for _, evaluations in counts),
                computed=sum(int(computed) for computed, _ in counts),
                network_calls=network_calls,
                psnr="identical" if torch.equal(plain, latent) else round(latent_psnr(plain, latent), 1),
                alive=alive(),
                log=" | ".join(dict.fromkeys(log.lines)),
            )
    finally:
        hook.remove()


def measure_pack(name: str, packs: Path):
    """The rows of one pack, in this process."""
    pack = import_module(f"packs.{name}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host = Host(Path(base))
        getattr(pack, "prepare", lambda: None)()
        for folder in (*getattr(pack, "NEEDS", ()), pack.FOLDER):
            if folder is not None:
                host.load(packs / folder)
        import comfyui_version

        log = Log()
        logging.getLogger("easycache").addHandler(log)
        logging.getLogger("easycache").setLevel(logging.INFO)
        for case in pack.cases(host):
            try:
                for row in measure(host, case, log):
                    print(f"{name}, {case.name}: {row}", flush=True)
                    yield {
                        "pack": pack.FOLDER or "none", "commit": commit(packs, pack.FOLDER),
                        "comfyui": comfyui_version.__version__, "case": case.name, **row,
                    }  # fmt: skip
            except Exception:
                print(f"{name}, {case.name}:\n{traceback.format_exc()}", flush=True)


def commit(packs: Path, folder: str | None) -> str:
    if folder is None:
        return ""
    found = subprocess.run(["git", "-C", packs / folder, "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip()[:8]


def replace(rows: list[dict], path: Path) -> None:
    """Put rows into the file, in place of those of the same pack in the same ComfyUI."""
    kept = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            replaced = {(row["pack"], row["comfyui"]) for row in rows}
            kept = [row for row in csv.DictReader(file) if (row["pack"], row["comfyui"]) not in replaced]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept + rows, key=lambda row: (row["pack"].lower(), row["comfyui"])))


def table(path: Path) -> str:
    """The figures as docs/works_with.md has them."""
    cases: dict[tuple, dict] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            cases.setdefault((row["pack"], row["comfyui"], row["case"]), {})[row["setting"]] = row
    lines = [
        "| pack, ComfyUI | case | skipped, budget | dB (reuse) | skipped, threshold | dB |",
        "|---|---|---|---|---|---|",
    ]
    before = None
    for (pack, comfyui, case), found in cases.items():
        if not SETTINGS.keys() <= found.keys():  # not measured to the end
            continue
        budget, threshold, reuse = (found[setting] for setting in SETTINGS)
        skipped = [int(one["evaluations"]) - int(one["computed"]) for one in (budget, threshold)]
        where = "" if (pack, comfyui) == before else f"{pack}, {comfyui}"
        before = pack, comfyui
        lines.append(
            f"| {where} | {case} | {skipped[0]} of {budget['evaluations']} | {budget['psnr']} ({reuse['psnr']}) | "
            f"{skipped[1]} of {threshold['evaluations']} | {threshold['psnr']} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, help="folder with the packs' clones")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table of what is there")
    everything = sorted(path.stem for path in (HERE / "packs").glob("[!_]*.py"))
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.table:
        print(table(args.results))
        return
    if args.packs is None:
        parser.error("--packs is missing")
    if len(args.only) > 1:
        for name in args.only:
            command = [sys.executable, __file__, "--packs", args.packs, "--results", args.results, "--only", name]
            subprocess.run(command, check=False)
        return
    sys.path.append(str(ROOT / "tests" / "support"))  # tiny_models
    rows = []
    for row in measure_pack(args.only[0], args.packs.resolve()):
        rows.append(row)
        replace(rows, args.results)


if __name__ == "__main__":
    main()
