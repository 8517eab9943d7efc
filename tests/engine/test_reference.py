"""The paper's rule against recorded runs of the authors' released code (tests/reference)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from easycache_core import CacheConfig, CacheController

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
RUNS = sorted(REFERENCE.glob("*.npz"))


def test_the_recorded_runs_are_there():
    """Catches a checkout without the recordings, with which the next test would vanish instead of failing."""
    assert len(RUNS) == 4


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_decisions_rates_errors_and_outputs_are_the_authors(file):
    """Catches any departure from the published rule: another norm, another x to compare with, E reset wrongly."""
    run = np.load(file)
    steps = len(run["sigma"])
    config = CacheConfig(
        threshold=round(float(run["threshold"]), 6), warmup_steps=int(run["warmup"]), predictor="reuse"
    )
    controller = CacheController(config, total_steps=steps)
    branches = [name for name in ("cond", "uncond") if f"out_{name}" in run]
    decisions = []
    for n in range(steps):
        computed = controller.begin(torch.from_numpy(run["x"][n]), sigma=float(run["sigma"][n]), step=n)
        decisions.append(computed)
        for branch in branches:
            recorded = torch.from_numpy(run[f"out_{branch}"][n])
            if computed:
                controller.store(branch, recorded)
            else:
                torch.testing.assert_close(controller.predict(branch), recorded, rtol=1e-5, atol=1e-6)

    assert decisions == run["computed"].tolist()
    assert 0 < controller.skipped < steps, "a run without skipped steps would prove nothing"
    trace = controller.trace
    rate = np.array([np.nan if record["rate"] is None else record["rate"] for record in trace])
    np.testing.assert_allclose(rate, run["k"], rtol=1e-5)
    np.testing.assert_allclose([record["error"] for record in trace], run["E"], rtol=1e-4, atol=1e-7)
