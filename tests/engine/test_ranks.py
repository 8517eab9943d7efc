"""Several processes that decide together, over gloo on this machine: what each of them saw (support/rank_worker.py)."""

import json
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from processes import run_together

from easycache_core import CacheConfig, CacheController, Ranks

WORKER = Path(__file__).resolve().parents[1] / "support" / "rank_worker.py"
PATIENCE = 150  # seconds for all scenarios of one number of ranks, start-up included

pytestmark = pytest.mark.timeout(PATIENCE + 60)


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def ranks(request, tmp_path_factory):
    """By rank: what it saw in each scenario. A rank that hangs is ended, and fails whatever asks for this."""
    folder = tmp_path_factory.mktemp("ranks")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    files = [folder / f"{rank}.json" for rank in range(request.param)]
    commands = [
        [sys.executable, str(WORKER), str(rank), str(request.param), str(store.port), str(file)]
        for rank, file in enumerate(files)
    ]
    logs = [file.with_suffix(".log") for file in files]
    codes = run_together(commands, logs, PATIENCE)
    assert codes == [0] * (len(files) - 1) + [3], "\n".join(log.read_text() for log in logs)
    return [json.loads(file.read_text()) for file in files]


def same(values):
    """The one value that all ranks have."""
    values = list(values)
    assert all(value == values[0] for value in values), values
    return values[0]


def by_case(ranks, scenario):
    """Cases of a scenario, each with what all ranks saw."""
    return {case: [seen[scenario][case] for seen in ranks] for case in ranks[0][scenario]}


def test_ranks_that_agree_anyway_decide_as_one_process_does(ranks):
    """Catches an agreement that changes decisions, forecasts or the trace where there is nothing to agree on."""
    for case, seen in by_case(ranks, "identical_latents").items():
        alone, together, same_result, same_trace = same(seen)
        assert alone == together and not all(together), case
        assert same_result and same_trace, case


def test_latents_that_differ_in_the_last_bits_split_ranks_that_decide_alone_but_not_together(ranks):
    """The deadlock: below the threshold on one rank and above it on another, and the network needs both."""
    for case, seen in by_case(ranks, "last_bits").items():
        assert len({tuple(alone) for alone, _ in seen}) > 1, f"{case}: alone they would agree as well"
        together = same(flags for _, flags in seen)
        assert 0 < sum(together) < len(together)


def test_slices_of_a_latent_are_judged_as_the_whole(ranks):
    """Each slice moves at its own pace; only norms of the whole give the decisions of a single process."""
    for case, seen in by_case(ranks, "slices").items():
        single, together = same(rank["single"] for rank in seen), same(rank["together"] for rank in seen)
        assert together == single, case
        if "threshold" in case:
            assert any(rank["alone"] != single for rank in seen), f"{case}: a slice alone would do"
        for rank in seen:
            assert rank["off"] < 1e-5, case
            for what in ("error", "rate"):
                expected, judged = ([value or 0 for value in values] for values in rank[what])
                assert judged == pytest.approx(expected, rel=1e-4), case
        if "forecast" in case:
            assert max(rank["off_alone"] for rank in seen) > 1e-5, f"{case}: theta of a slice would do"


def test_slices_of_several_streams(ranks):
    """Catches norms of streams that are mixed up on the way."""
    for seen in ranks:
        assert seen["slices_of_streams"]["together"] == seen["slices_of_streams"]["single"]


def test_what_rules_out_reuse_on_one_rank_does_so_on_all(ranks):
    """Forced, asked something new, NaN: a rank that knew of it alone would run the network alone."""
    for case, seen in by_case(ranks, "one_rank_says_so").items():
        flags = same(seen)
        assert flags[10], case
        if "nan" in case:
            assert flags[11], f"{case}: what was stored last is not to be reused"
        assert not all(flags[12:]), f"{case}: caching must resume"


def test_a_cache_that_one_rank_has_lost_is_lost_for_all(ranks):
    """Out of memory on one rank: it must compute, so all must, and a budget must still hold."""
    for case, seen in by_case(ranks, "no_memory").items():
        flags = same(seen)
        assert not all(flags[12:]), f"{case}: caching must resume"
        if "budget" in case:
            assert sum(flags) <= 10


def test_a_network_that_is_spread_over_the_ranks_is_never_run_by_some_of_them(ranks):
    """Attention over gathered tokens and an all-reduced layer: a rank that ran it alone would wait for ever."""
    for case, seen in by_case(ranks, "spread_network").items():
        flags = same(rank["together"] for rank in seen)
        assert len({tuple(rank["alone"]) for rank in seen}) > 1, f"{case}: alone they would agree as well"
        assert same(rank["calls"] for rank in seen) == sum(flags) and not all(flags)
        assert max(rank["off"] for rank in seen) < 1e-5, "the spread network is the network"


@pytest.mark.parametrize("name, culprit, told", [("error", 1, "ValueError: no such layer"), ("interrupt", 0, "Keyb")])
def test_when_one_rank_raises_the_others_are_told_who_and_why_at_once(ranks, name, culprit, told):
    """The next scenario runs in the same processes, so this also shows that a run that failed leaves nothing over."""
    for rank, seen in enumerate(ranks):
        failed = seen["raises"][name]
        if rank == culprit:
            assert failed["kind"] in ("ValueError", "KeyboardInterrupt")
        else:
            assert failed["kind"] == "RankLost"
            assert f"rank {culprit}: {told}" in failed["message"]
            assert failed["seconds"] < 3.0, "it waited for the time-out"


def test_a_rank_that_ends_early_is_named(ranks):
    for rank, seen in enumerate(ranks):
        failed = seen["ends_early"]
        assert failed is None if rank == 1 else "rank 1: it has finished" in failed["message"]


@pytest.mark.parametrize("absent", [1, 0])
def test_a_rank_that_does_not_come_at_all_is_waited_for_as_long_as_was_said(ranks, absent):
    for rank, seen in enumerate(ranks):
        failed = seen["does_not_come"][0 if absent == 1 else 1]
        if rank != absent:
            assert f": rank {absent}." in failed["message"]


def test_a_rank_that_was_killed_is_missed_after_the_time_out(ranks):
    for seen in ranks[:-1]:
        assert f"rank {len(ranks) - 1}." in seen["killed"]["message"]


def test_ranks_with_other_settings_or_at_other_steps_are_refused(ranks):
    """They would not decide alike, and the first to differ would hang."""
    settings = same(seen["other_settings"]["message"] for seen in ranks)
    assert "rank 1 has" in settings and "threshold=0.06" in settings and "threshold=0.05" in settings
    assert "at steps" in same(seen["other_steps"]["message"] for seen in ranks)


def test_groups_do_not_wait_for_each_other_nor_decide_alike(ranks):
    replicas = [same(seen["groups"]["flags"] for seen in ranks[first : first + 2]) for first in range(0, len(ranks), 2)]
    assert len({tuple(flags) for flags in replicas}) == len(replicas)
    if len(replicas) > 1:
        assert all("not in the group" in seen["groups"]["stranger"]["message"] for seen in ranks)


def test_a_run_leaves_nothing_in_the_store(ranks):
    """A worker that lives for thousands of runs would fill up the memory of the first rank."""
    before, after = same(seen["leaves_nothing"] for seen in ranks)
    assert before == after


def test_one_look_at_the_device_an_evaluation(ranks):
    """Whatever there is to say goes in one read: flags on the device, norms, what the trace waits for."""
    for case, seen in by_case(ranks, "looks").items():
        counts = same(seen)
        assert counts == list(range(len(counts))), case


def test_a_released_controller_says_so(ranks):
    assert all("released" in seen["after_release"]["message"] for seen in ranks)


def test_without_torch_distributed_there_is_nobody_to_ask():
    """The default must cost a single process nothing, not even an error."""
    assert not CacheController(CacheConfig(), total_steps=3).shared
    assert not CacheController(CacheConfig(), total_steps=3, ranks=Ranks(sharded=True)).shared


def test_a_time_out_must_be_positive():
    with pytest.raises(ValueError, match="timeout must be"):
        Ranks(timeout=0)


def test_attached_modules_decide_together(ranks):
    """Catches an attached network that hangs since ranks parted, a second run that they never come to, and a rank that
    goes without a word when its network raises."""
    first, second = same(seen["attached"][0] for seen in ranks)
    assert first == second and 0 < sum(first) < len(first)
    *others, failed = [seen["attached"][1] for seen in ranks]
    assert failed["kind"] == "ValueError"
    assert all(one["kind"] == "RankLost" and "gave up" in one["message"] and one["seconds"] < 3 for one in others)
