"""A diffusers transformer whose sequence is split over two processes, with the cache attached in each."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from closeness import psnr
from processes import run_together

WORKER = Path(__file__).resolve().parents[1] / "support" / "sequence_parallel_worker.py"
PATIENCE = 240  # seconds


@pytest.mark.timeout(PATIENCE + 60)
def test_both_ranks_skip_the_same_evaluations(tmp_path):
    """Catches a rank that runs its part of the network alone: it would wait for the other's keys and values."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    commands = [[sys.executable, str(WORKER), str(rank), str(store.port), str(tmp_path)] for rank in range(2)]
    codes = run_together(commands, logs, PATIENCE)
    assert not any(codes), "\n".join(log.read_text() for log in logs)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second, "the same calls and the same latent on both"
    latents = {name: torch.tensor(run["latent"]) for name, run in first.items()}
    torch.testing.assert_close(latents["parallel"], latents["alone"])
    assert first["parallel"]["calls"] == 16
    for name in ("threshold", "budget"):
        assert first[name]["calls"] < 16
        assert first[name]["speedup"] == pytest.approx(16 / first[name]["calls"])
        assert psnr(latents[name], latents["parallel"]) > 20
    assert first["budget"]["calls"] == 8
