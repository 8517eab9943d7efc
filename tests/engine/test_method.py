"""docs/method.md: its example in numbers, computed by the engine."""

import re
from pathlib import Path

import pytest
import torch

from easycache_core import CacheConfig, CacheController

PAGE = Path(__file__).resolve().parents[2] / "docs" / "method.md"
HALF_A_DIGIT = 5.1e-5


def example():
    """Rows of the page's last table: the column's name to its text."""
    heads, _, *rows = re.findall(r"^\|.*\|$", PAGE.read_text(encoding="utf-8").split("## An example")[1], re.M)
    names, *cells = ([cell.strip() for cell in row.split("|")[1:-1]] for row in (heads, *rows))
    return [dict(zip(names, row, strict=True)) for row in cells]


def test_the_example_in_numbers():
    """Catches formulas on the page, or in the engine, that are not the other's: each number can be had by hand."""
    rows = example()
    sigmas = [float(row["sigma"]) for row in rows]
    assert len(rows) == 8 and sum(row["computed"] == "no" for row in rows) == 3
    controller = CacheController(CacheConfig(target_speedup=2.0), total_steps=8, denoised=True)
    controller._budget.should_compute = lambda step, urgent: rows[step]["computed"] == "yes"
    x = torch.tensor([2.0], dtype=torch.float64)
    for step, (row, sigma) in enumerate(zip(rows, sigmas, strict=True)):
        found = {"x": float(x)}
        predictor = controller._predictor
        if controller.begin(x, sigma=sigma, step=step):
            denoised = torch.tensor([float(row["D"])], dtype=torch.float64)
            controller.store("cond", denoised)
            defect = predictor._branches["cond"].defect
            if defect is not None:
                found["d"] = float(defect)
        else:
            denoised = controller.predict("cond")
            gains = predictor._gains
            found |= {"r": predictor._steps.ratios.step_ratio, "g": gains.gain, "theta": gains.theta, "c": predictor._c}
            found["D"] = float(denoised)
        found["t"] = predictor._steps._t(-1)
        for name in ("x", "t", "D", "r", "g", "theta", "c", "d"):
            expected = float(row[name]) if row[name] else None
            value = found.get(name, expected if name == "D" else None)
            assert value == (None if expected is None else pytest.approx(expected, abs=HALF_A_DIGIT)), (step, name)
        x = x + (sigmas[step + 1] - sigma) * (x - denoised) / sigma if step < 7 else x
