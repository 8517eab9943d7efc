"""What docs/method.md and docs/development.md show of the engine is so."""

import re
from pathlib import Path

import pytest
import torch
from places import compute_where

from easycache_core import CacheConfig, CacheController, attach, euler_response
from easycache_core.predictors import PREDICTORS

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
    sigmas = [*(float(row["sigma"]) for row in rows), 0.2, 0.1]
    assert len(rows) == 8 and sum(row["computed"] == "no" for row in rows) == 3
    config, response = CacheConfig(target_speedup=2.0), euler_response(sigmas)
    controller = CacheController(config, total_steps=9, denoised=True, response=response)
    compute_where(controller, lambda step: rows[step]["computed"] == "yes")
    x = torch.tensor([2.0], dtype=torch.float64)
    for step, row in enumerate(rows):
        found = {"x": float(x)}
        predictor = controller._predictor
        if controller.begin(x, sigma=sigmas[step], step=step):
            denoised = torch.tensor([float(row["D"])], dtype=torch.float64)
            controller.store("cond", denoised)
            answer = controller.corrected("cond", denoised)
            defects = predictor._branches["cond"].defects
            if defects:
                found["d"] = float(defects[0])
        else:
            denoised = answer = controller.predict("cond")
            gains = predictor._gains
            found |= {"r": predictor._steps.ratios.step_ratio, "g": gains.gain, "theta": gains.theta}
        found |= {"t": predictor._steps._t(-1), "D": float(denoised), "answer": float(answer)}
        if payments := predictor._correction.pay():
            found["c"] = payments[0]
        for name in ("x", "t", "D", "r", "g", "theta", "c", "d", "answer"):
            expected = float(row[name]) if row[name] else None
            assert found.get(name) == (None if expected is None else pytest.approx(expected, abs=HALF_A_DIGIT)), name
        x = x + (sigmas[step + 1] - sigmas[step]) * (x - answer) / sigmas[step]


def test_the_predictor_of_the_development_page_is_all_it_takes(monkeypatch):
    """Catches a predictor whose name more than the table has to know, and a base class that does not declare all that
    is called.
    """
    page = (PAGE.parent / "development.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {}
    exec(compile(code.replace("from .", "from easycache_core."), "development.md", "exec"), names)
    monkeypatch.setitem(PREDICTORS, "hold", names["Hold"])
    config = CacheConfig(predictor="hold", target_speedup=2.0)
    controller = CacheController(config, total_steps=9, denoised=True)
    x, stored, flags = torch.randn(1, 4, 8, 8), None, []
    for step in range(9):
        flags.append(controller.begin(x, sigma=1 - step / 9, step=step))
        if flags[-1]:
            stored = x * 0.5
            controller.store("cond", stored)
        else:
            assert torch.equal(controller.predict("cond"), stored)
        x = x * 0.9
    assert sum(flags) == 5 and all(record["output_norm"] for record in controller.trace)
    network = torch.nn.Bilinear(4, 1, 4).eval()
    with torch.no_grad(), attach(network, config, total_steps=6, sigma_of=float) as cache:
        for step in range(6):
            assert network(torch.ones(2, 4) * step, torch.full((2, 1), 1 - step / 6)).shape == (2, 4)
    assert cache.skipped == 3
