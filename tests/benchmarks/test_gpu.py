"""The benchmark for GPUs, rehearsed on the CPU: whoever has a card for ten minutes must not lose them to a slip."""

import csv
import subprocess
import sys

import comfy_host
import pytest


@pytest.mark.timeout(600)
def test_a_rehearsal_measures_everything(tmp_path):
    """Catches a column that stays empty, a way that fails, and a table that does not name where it was measured."""
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--networks", "flux", "hunyuan", "bundled",
               "--compiled", "flux", "--repeats", "1", "--results", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, cwd=comfy_host.PACK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["card"] for row in rows} == {"a CPU (a rehearsal)"}
    empty = [name for name in rows[0] if not any(row[name] for row in rows)]
    assert not empty, f"never measured: {empty}"
    cached = next(row for row in rows if row["way"] == "target_speedup 2.2" and "FLUX" in row["network"])
    assert int(cached["computed"]) < int(cached["evaluations"])
    (compiled,) = (row for row in rows if row["recompilations"])
    assert (compiled["recompilations"], compiled["graph_breaks"]) == ("0", "0")
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert page.startswith("# Measured on a CPU (a rehearsal)") and "built-in EasyCache" in page
