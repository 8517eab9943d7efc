"""What it costs that ranks decide together: time and bytes per evaluation, over a TCPStore on this machine.

python benchmarks/ranks.py [--ranks 2 4] writes results/ranks.csv. Ranks are processes on one machine without a GPU,
so with more ranks than cores they wait for each other's turn; a real network is left out, as its time is not the
cache's. What is timed is `begin`, with the others (together) and without them (alone), for a latent so small that
measuring it costs next to nothing; and an all_reduce over gloo of as many numbers, for comparison: the median of a run,
of the best of five, as other work on the machine only adds to it. Bytes are those of a rank's row and of what it reads.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from easycache_core import CacheConfig, CacheController, Ranks  # noqa: E402
from easycache_core.ranks import ALL_RANKS, RankGroup  # noqa: E402

STEPS, SETTLED, RUNS = 200, 20, 5
RESULTS = ROOT / "benchmarks" / "results" / "ranks.csv"


def begin_seconds(predictor: str, ranks: Ranks | None) -> list[float]:
    """Of each evaluation once it has settled, all of them computed."""
    x, seconds = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)), []
    config = CacheConfig(predictor=predictor, threshold=1e-9, warmup_steps=1)
    with CacheController(config, total_steps=STEPS, ranks=ranks) as controller:
        for step in range(STEPS):
            sigma = 1 - step / STEPS
            started = time.perf_counter()
            controller.begin(x, sigma=sigma, step=step)
            seconds.append(time.perf_counter() - started)
            controller.store("cond", x * 0.5)
            x = x * 0.995
    return seconds[SETTLED:]


def all_reduce_seconds(numbers: int) -> list[float]:
    row, seconds = torch.zeros(numbers, dtype=torch.float64), []
    for _ in range(STEPS):
        started = time.perf_counter()
        dist.all_reduce(row)
        seconds.append(time.perf_counter() - started)
    return seconds[SETTLED:]


def row_bytes() -> list[int]:
    """Lengths of the rows that a run of a few steps writes."""
    lengths, exchange = [], RankGroup._all_gather

    def noted(group, row):
        lengths.append(1 + 8 * len(row))
        return exchange(group, row)

    RankGroup._all_gather = noted
    try:
        begin_seconds("forecast", ALL_RANKS)
    finally:
        RankGroup._all_gather = exchange
    return lengths


def measure(rank: int, ranks: int, port: int) -> None:
    """One rank; the first prints a row of the table for each predictor."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    length = max(row_bytes())
    reduced = min(statistics.median(all_reduce_seconds(length // 8)) for _ in range(RUNS))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for predictor in ("reuse", "forecast"):
        timed = {}
        for name, choice in (("alone", None), ("together", ALL_RANKS)):
            dist.barrier()
            timed[name] = min(statistics.median(begin_seconds(predictor, choice)) for _ in range(RUNS))
        if rank == 0:
            microseconds = (f"{1e6 * seconds:.0f}" for seconds in (*timed.values(), reduced))
            writer.writerow([ranks, predictor, length, length * ranks, *microseconds])
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--worker", type=int, nargs=3, metavar=("RANK", "RANKS", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        measure(*arguments.worker)
        return
    rows = []
    for ranks in arguments.ranks:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        command = [sys.executable, __file__, "--worker"]
        processes = [
            subprocess.Popen([*command, str(rank), str(ranks), str(store.port)], stdout=subprocess.PIPE, text=True)
            for rank in range(ranks)
        ]
        printed = [process.communicate(timeout=300)[0] for process in processes]
        rows += list(csv.reader(printed[0].splitlines()))
        print(*rows[-2:], sep="\n", flush=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["ranks", "predictor", "bytes_written_by_a_rank", "bytes_read_by_a_rank", "begin_alone_us",
             "begin_together_us", "gloo_all_reduce_us"]
        )  # fmt: skip
        writer.writerows(rows)


if __name__ == "__main__":
    main()
