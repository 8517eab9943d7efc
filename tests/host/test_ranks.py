"""Two real ComfyUI processes that sample together, as in a worker that spreads one model over several GPUs."""

import json
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from processes import run_together

WORKER = Path(__file__).resolve().parents[1] / "support" / "comfy_rank_worker.py"
PATIENCE = 240  # seconds


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """By rank: what it saw (support/comfy_rank_worker.py). A rank that hangs is ended."""
    folder = tmp_path_factory.mktemp("comfy ranks")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs = [folder / f"{rank}.log" for rank in range(2)]
    commands = [[sys.executable, str(WORKER), str(rank), str(store.port), str(folder)] for rank in range(2)]
    codes = run_together(commands, logs, PATIENCE)
    assert not any(codes), "\n".join(log.read_text() for log in logs)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize("predictor", ["reuse", "forecast"])
def test_two_processes_decide_alike_without_being_told_to(ranks, predictor):
    """The node notices torch.distributed by itself; a worker may also say that a process is on its own."""
    alone = [seen[f"{predictor} alone"]["flags"] for seen in ranks]
    together = [seen[f"{predictor} together"]["flags"] for seen in ranks]
    assert alone[0] != alone[1], "they would agree anyway"
    assert together[0] == together[1] and not all(together[0])


@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize(
    "case, error", [("stopped", "InterruptProcessingException"), ("out of memory", "OutOfMemoryError")]
)
def test_when_one_process_stops_the_other_is_told_and_the_next_run_works(ranks, case, error):
    """Out of memory is no exception: a rank that ran its network a second time would run it alone."""
    assert error in ranks[1][case]["failed"]
    assert ranks[0][case]["failed"].startswith("RankLost") and error in ranks[0][case]["failed"]
    flags = [seen["afterwards"]["flags"] for seen in ranks]
    assert flags[0] == flags[1] and sum(flags[0]) == 8
