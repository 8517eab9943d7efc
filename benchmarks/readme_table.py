"""The READMEs' small table, out of the runs: python benchmarks/run.py --parts tables

PSNR in dB of the video model's runs at so many evaluations, means over the development seeds, as in tables.py.
"""

import re
from pathlib import Path

import methods
import records
import tables
from configurations import DEVELOPMENT_SEEDS, SHORT

PACK = Path(__file__).resolve().parents[1]
PAGES = [PACK / "README.md", PACK / "README.zh-CN.md"]
COLUMNS = {  # the configuration, and how many of its evaluations are computed
    "14 of 20": (SHORT, 14),
    "10 of 20": (SHORT, 10),
    "23 of 50": ("base", 23),
    "11 of 50": ("base", 11),
}
ROWS = {  # the name in the table, and the method and the numbers that it computes with
    "**EasyCache (Adaptive)**, `target_speedup`": (methods.OURS, "fp32"),
    "the paper's rule (`reuse`)": (methods.PAPER, "fp32"),
    "FoCa": (methods.FOCA, "fp32"),
    "Spectrum": (methods.SPECTRUM, "fp32"),
    "TeaCache": (methods.TEACACHE, "fp32"),
    "MagCache": (methods.MAGCACHE, "fp32"),
    "built-in EasyCache": (methods.BUILT_IN, "bf16"),
    "fewer steps": (methods.FEWER, "fp32"),
}
BETWEEN = re.compile(r"\| \| 14 of 20 .*?\n(?=\n)", re.S)  # from the head of the table to the empty line after it


def table(runs: list[records.Run]) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    runs = [run for run in runs if run.subject == "video" and run.seed in DEVELOPMENT_SEEDS]
    for name, kind in ROWS.items():
        cells = []
        for configuration, count in COLUMNS.values():
            own = [run for run in runs if run.configuration == configuration and (run.method, run.dtype) == kind]
            found = tables.best(own, count)
            cells.append(f"{found.psnr:.1f} dB" if found else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(runs: list[records.Run]) -> None:
    """Into the READMEs."""
    made = table(runs)
    for page in PAGES:
        page.write_text(BETWEEN.sub(lambda _: made, page.read_text("utf-8"), count=1), encoding="utf-8")
