"""One rank of several on this machine: goes through all scenarios, one after the other, and writes down what it saw.

python rank_worker.py RANK RANKS PORT RESULTS, with a TCPStore at that port. Every scenario is a function of the rank
and their number that returns what can be written as JSON; those that are to fail return what they failed with. So a
scenario also shows that the one before left nothing behind.
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).resolve().parents[2]))

from easycache_core import CacheConfig, CacheController, RankLost, Ranks, RanksDiffer, attach  # noqa: E402
from easycache_core import controller as engine  # noqa: E402

STEPS, SHAPE = 24, (2, 4, 8, 8)
PREDICTORS = ("reuse", "forecast")
SIGMAS = [3 * t / (1 + 2 * t) for t in torch.linspace(1, 0, STEPS + 1, dtype=torch.float64).tolist()]
SOON = Ranks(timeout=3.0)


def latent(shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def velocity(x, sigma, pull=0.8):
    """A smooth network: towards data that depend a little on x."""
    return (x - pull * torch.tanh(2 * x)) / (0.3 + sigma)


def sample(controller, x, network=velocity, steps=STEPS, before=lambda step: {}):
    """An Euler loop; (computed flags, x). before: what else `begin` is given at that step."""
    flags = []
    with controller:
        for step in range(steps):
            flags.append(controller.begin(x, sigma=SIGMAS[step], step=step, **before(step)))
            if flags[-1]:
                cond = network(x, SIGMAS[step])
                uncond = cond - 0.4 * torch.tanh(x)
                controller.store("cond", cond)
                controller.store("uncond", uncond)
            else:
                cond, uncond = controller.predict("cond"), controller.predict("uncond")
            x = x + (SIGMAS[step + 1] - SIGMAS[step]) * (uncond + 3 * (cond - uncond))
    return flags, x


def run(x, *, network=velocity, before=lambda step: {}, steps=STEPS, ranks=SOON, streams=(), **settings):
    """(flags, x, trace) of one run."""
    config = CacheConfig(**{"warmup_steps": 3, "threshold": 0.05, **settings})
    controller = CacheController(config, total_steps=steps, streams=streams, ranks=ranks)
    flags, x = sample(controller, x, network, steps, before)
    return flags, x, controller.trace


def failure(action, *kinds):
    """What action() raises of these kinds, and after how many seconds."""
    started = time.monotonic()
    try:
        action()
    except kinds as error:
        seconds = time.monotonic() - started
        return {"kind": type(error).__name__, "message": str(error), "seconds": seconds}
    return None


def parted(rank, ranks, predictor, network=velocity):
    """(this rank's latent, a threshold that lies between what the first and the last rank estimate at some step)."""
    latents = [latent() * (1 + 3e-7 * r) for r in range(ranks)]
    traces = [run(x, network=network, predictor=predictor, threshold=1.0, ranks=None)[2] for x in latents[:: ranks - 1]]
    highest, between = 0.0, []
    for pair in zip(*([record["error"] for record in trace] for trace in traces), strict=True):
        if min(pair) > highest and pair[0] != pair[1]:  # else an earlier step is computed, and it comes differently
            between.append(max(pair))
        highest = max(highest, *pair)
    return latents[rank], between[len(between) // 2]


# Scenarios


def identical_latents(rank, ranks):
    """As a single process: the same decisions, the same result bit for bit."""
    seen = {}
    for predictor in PREDICTORS:
        for speedup in (0, 2.5):
            alone = run(latent(), predictor=predictor, target_speedup=speedup, ranks=None)
            together = run(latent(), predictor=predictor, target_speedup=speedup)
            name = f"{predictor} {'budget' if speedup else 'threshold'}"
            seen[name] = [alone[0], together[0], torch.equal(alone[1], together[1]), _same_trace(alone, together)]
    return seen


def _same_trace(alone, together):
    """Of the last evaluation, which is computed, there is no next one to hear of."""
    return alone[2][:-1] == together[2][:-1]


def last_bits(rank, ranks):
    """Latents that differ in their last bits, and a threshold between what they lead to."""
    seen = {}
    for predictor in PREDICTORS:
        x, threshold = parted(rank, ranks, predictor)
        settings = dict(predictor=predictor, threshold=threshold)
        seen[predictor] = [run(x, ranks=choice, **settings)[0] for choice in (None, SOON)]
    return seen


def slices(rank, ranks):
    """Each rank has a part of the latent, of another size and another nature."""
    whole, seen = latent((2, 4, 8, 32)), {}
    edges = [0, *(32 * r // ranks + 3 for r in range(1, ranks)), 32]
    mine = slice(edges[rank], edges[rank + 1])
    gain = torch.linspace(0.1, 2, 32)

    def part(x, sigma):
        return velocity(x, sigma) * gain[mine]

    def all_of_it(x, sigma):
        return velocity(x, sigma) * gain

    for predictor in PREDICTORS:
        for speedup in (0, 2.5):
            settings = dict(predictor=predictor, target_speedup=speedup, threshold=0.05)
            single = run(whole, network=all_of_it, ranks=None, **settings)
            alone = run(whole[..., mine], network=part, ranks=None, **settings)
            together = run(whole[..., mine], network=part, ranks=Ranks(sharded=True, timeout=3.0), **settings)
            seen[f"{predictor} {'budget' if speedup else 'threshold'}"] = {
                "single": single[0],
                "alone": alone[0],
                "together": together[0],
                "off": float((together[1] - single[1][..., mine]).abs().max()),
                "off_alone": float((alone[1] - single[1][..., mine]).abs().max()),
                "error": [[record["error"] for record in trace] for trace in (single[2], together[2])],
                "rate": [[record["rate"] for record in trace[:-1]] for trace in (single[2], together[2])],
            }
    return seen


def slices_of_streams(rank, ranks):
    """Two streams of which each rank has a slice; the small one is the livelier."""
    picture, sound = 64, 16

    def network(x, sigma, size=picture):
        return torch.cat([1 + 0.1 * x[..., :size], velocity(x[..., size:], sigma, 0.95)], -1)

    whole = latent((1, 1, picture + sound))
    mine, heard = picture // ranks, sound // ranks
    part = torch.cat(
        [whole[..., mine * rank : mine * (rank + 1)], whole[..., picture:][..., heard * rank : heard * (rank + 1)]], -1
    )
    settings = dict(predictor="reuse", threshold=0.05)
    single = run(whole, network=network, streams=(picture, sound), ranks=None, **settings)
    together = run(
        part, network=lambda x, sigma: network(x, sigma, mine), streams=(mine, heard),
        ranks=Ranks(sharded=True, timeout=3.0), **settings,
    )  # fmt: skip
    return {"single": single[0], "together": together[0]}


def one_rank_says_so(rank, ranks):
    """Forced, or asked something new, or NaN, on the last rank alone."""
    last, seen = rank == ranks - 1, {}
    for predictor in PREDICTORS:
        for name in ("force", "changed"):
            for kind in (bool, torch.tensor):
                flags = run(
                    latent(), predictor=predictor, threshold=1.0,
                    before=lambda step, name=name, kind=kind: {name: kind(last and step == 10)},
                )[0]  # fmt: skip
                seen[f"{predictor} {name} {'tensor' if kind is torch.tensor else 'bool'}"] = flags
        for where in ("latent", "output"):
            seen[f"{predictor} nan in {where}"] = _poisoned(predictor, where if last else None)
    return seen


def _poisoned(predictor, where):
    """As test_controller's NaN: at step 10 in the latent that is shown, or in an output that all are forced to."""
    config = CacheConfig(warmup_steps=3, threshold=1.0, predictor=predictor)
    x, flags = latent(), []
    with CacheController(config, total_steps=STEPS, ranks=SOON) as controller:
        for step in range(STEPS):
            bad = step == 10
            shown = torch.where(torch.tensor(bad and where == "latent"), torch.nan, x)
            flags.append(controller.begin(shown, sigma=SIGMAS[step], step=step, force=bad))
            v = velocity(x, SIGMAS[step])
            if flags[-1]:
                controller.store("cond", v * (float("nan") if bad and where == "output" else 1))
            x = x + (SIGMAS[step + 1] - SIGMAS[step]) * v
    return flags


def no_memory(rank, ranks):
    """On the last rank a copy finds no room: in `begin`, and in `store`."""
    seen, keep = {}, engine.copy_for_cache
    for predictor in PREDICTORS:
        for speedup in (0, 2.5):
            for where in ("begin", "store"):
                calls = []

                def begin_fails(tensor, cache_device, calls=calls):
                    calls.append(None)
                    if len(calls) == 8:
                        raise torch.cuda.OutOfMemoryError("no room")
                    return keep(tensor, cache_device)

                def store_fails(x, sigma, calls=calls):
                    calls.append(None)
                    if len(calls) == 4:
                        return Unkeepable()
                    return velocity(x, sigma)

                settings = dict(predictor=predictor, target_speedup=speedup, threshold=0.01)
                last = rank == ranks - 1
                if last and where == "begin":
                    engine.copy_for_cache = begin_fails
                try:
                    network = store_fails if last and where == "store" else velocity
                    flags = _run_without_predicting(network, **settings)
                finally:
                    engine.copy_for_cache = keep
                seen[f"{predictor} {'budget' if speedup else 'threshold'} {where}"] = flags
    return seen


class Unkeepable:
    """An output for which there is no room."""

    def __getattr__(self, name):
        raise torch.cuda.OutOfMemoryError("no room")


def _run_without_predicting(network, **settings):
    x, flags = latent(), []
    controller = CacheController(CacheConfig(warmup_steps=3, **settings), total_steps=STEPS, ranks=SOON)
    with controller:
        for step in range(STEPS):
            flags.append(controller.begin(x, sigma=SIGMAS[step], step=step))
            if flags[-1]:
                controller.store("cond", network(x, SIGMAS[step]))
            elif not controller.has("cond"):
                raise AssertionError(f"step {step} was to be predicted from nothing")
            x = x + (SIGMAS[step + 1] - SIGMAS[step]) * velocity(x, SIGMAS[step])
    return flags


class SpreadNetwork:
    """Attention whose tokens are spread over the ranks, and a layer whose hidden units are.

    weights are the same on all ranks. alone: compute all of it here, without a collective.
    """

    def __init__(self, rank, ranks, alone=False):
        rng = torch.Generator().manual_seed(1)
        self.q, self.k, self.v = (torch.randn(8, 8, generator=rng) / 3 for _ in range(3))
        self.up, self.down = torch.randn(8, 32, generator=rng) / 3, torch.randn(32, 8, generator=rng) / 6
        self.rank, self.ranks, self.alone, self.calls = rank, ranks, alone, 0

    def __call__(self, x, sigma):
        self.calls += 1
        tokens = x.reshape(-1, 8)
        if self.alone:
            tokens = self._attention(tokens, tokens)
            hidden = torch.tanh(tokens @ self.up) @ self.down
        else:
            mine = tokens.chunk(self.ranks)[self.rank]
            parts = [torch.empty_like(mine) for _ in range(self.ranks)]
            dist.all_gather(parts, self._attention(mine, tokens))
            tokens = torch.cat(parts)
            up, down = self.up.chunk(self.ranks, 1)[self.rank], self.down.chunk(self.ranks, 0)[self.rank]
            hidden = torch.tanh(tokens @ up) @ down
            dist.all_reduce(hidden)
        return velocity(x, sigma) + 0.1 * (tokens + hidden).reshape(x.shape)

    def _attention(self, mine, tokens):
        return torch.softmax((mine @ self.q) @ (tokens @ self.k).T, -1) @ (tokens @ self.v)


def spread_network(rank, ranks):
    """Where one rank that runs the network alone would wait for ever."""
    seen = {}
    for predictor in PREDICTORS:
        whole = SpreadNetwork(rank, ranks, alone=True)
        x, threshold = parted(rank, ranks, predictor, whole)
        settings = dict(predictor=predictor, threshold=threshold)
        alone, _, _ = run(x, network=whole, ranks=None, **settings)
        spread = SpreadNetwork(rank, ranks)
        flags, _, _ = run(x, network=spread, **settings)
        seen[predictor] = {"alone": alone, "together": flags, "calls": spread.calls}
        seen[predictor]["off"] = float((spread(x, 0.5) - whole(x, 0.5)).abs().max())
    return seen


def raises(rank, ranks):
    """The network of rank 1 throws; then the user stops rank 0, which calls the others together."""
    seen = {}
    for name, culprit, error in (("error", 1, ValueError("no such layer")), ("interrupt", 0, KeyboardInterrupt())):

        def network(x, sigma, culprit=culprit, error=error):
            if rank == culprit and sigma < SIGMAS[6]:
                raise error
            return velocity(x, sigma)

        def action(network=network):
            run(latent(), network=network, threshold=0.0)

        seen[name] = failure(action, ValueError, KeyboardInterrupt, RankLost)
    return seen


def ends_early(rank, ranks):
    """Rank 1 has a shorter schedule than it said."""

    def action():
        controller = CacheController(CacheConfig(threshold=0.0), total_steps=STEPS, ranks=SOON)
        sample(controller, latent(), steps=STEPS - 4 * (rank == 1))

    return failure(action, RankLost)


def does_not_come(rank, ranks):
    """Rank 1 samples nothing, then rank 0 does not."""
    seen = []
    for absent in (1, 0):
        seen.append(None if rank == absent else failure(lambda: run(latent(), ranks=Ranks(timeout=0.5)), RankLost))
        dist.barrier()
    return seen


def other_settings(rank, ranks):
    return failure(lambda: run(latent(), threshold=0.05 + 0.01 * (rank == 1)), RanksDiffer)


def other_steps(rank, ranks):
    """Rank 1 begins its second step twice."""

    def action():
        with CacheController(CacheConfig(), total_steps=STEPS, ranks=SOON) as controller:
            for step in range(4):
                controller.begin(latent(), sigma=SIGMAS[step], step=1 if rank == 1 and step == 2 else step)

    return failure(action, RanksDiffer)


def groups(rank, ranks):
    """Replicas of two ranks sample something different each, the second with less patience and other settings."""
    pairs = [dist.new_group([r, r + 1]) for r in range(0, ranks, 2)]
    replica = rank // 2
    flags = run(
        latent() * (1 + 0.2 * replica), threshold=0.05 + 0.2 * replica, ranks=Ranks(group=pairs[replica], timeout=3.0)
    )[0]
    stranger = None
    if len(pairs) > 1:
        stranger = failure(lambda: run(latent(), ranks=Ranks(group=pairs[1 - replica])), ValueError)
    return {"flags": flags, "stranger": stranger}


def leaves_nothing(rank, ranks):
    """Keys in the store before and after a run."""
    store, counts = dist.distributed_c10d._get_default_store(), []
    for _ in range(2):
        dist.barrier()
        time.sleep(0.05)  # the last to leave clears up
        counts.append(store.num_keys())
        dist.barrier()
        run(latent())
    return counts


class OnDevice(torch.Tensor):
    """Stands for a tensor on a GPU, as does whatever is made of it; counts the looks at its values."""

    looks = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        reads = ("tolist", "item", "__bool__", "__float__", "__int__", "numpy", "cpu")
        OnDevice.looks += getattr(function, "__name__", "") in reads
        return super().__torch_function__(function, types, args, kwargs)


def looks(rank, ranks):
    """How often `begin` has looked at the device up to each evaluation."""
    seen = {}
    for predictor in PREDICTORS:
        for speedup in (0, 2.5):
            counts, OnDevice.looks = [], 0

            def before(step, counts=counts):
                counts.append(OnDevice.looks)
                return dict(force=OnDevice(torch.tensor(step == 12)))

            run(OnDevice(latent()), predictor=predictor, target_speedup=speedup, before=before)
            seen[f"{predictor} {'budget' if speedup else 'threshold'}"] = counts
    return seen


def after_release(rank, ranks):
    controller = CacheController(CacheConfig(), total_steps=STEPS, ranks=SOON)
    controller.release()
    return failure(lambda: controller.begin(latent(), sigma=1.0, step=0), RuntimeError)


class Spread(torch.nn.Module):
    """A network that waits for all ranks, and that may raise on one of them before it does."""

    def __init__(self, raises):
        super().__init__()
        self._raises = raises

    def forward(self, x, sigma, cond):
        if self._raises is None:
            dist.all_reduce(torch.zeros(1))
        elif self._raises and sigma < SIGMAS[6]:
            raise ValueError("gave up")
        return velocity(x, sigma) - (0 if cond else 0.4 * torch.tanh(x))


def attached(rank, ranks):
    """`attach`, two runs one after the other on latents that differ in their last bits; then one rank raises."""
    start, threshold = parted(rank, ranks, "reuse")
    config = CacheConfig(threshold=threshold, warmup_steps=3, predictor="reuse")

    def euler(network, runs):
        flags = []
        with attach(network, config, STEPS, ranks=SOON) as cache:
            for _ in range(runs):
                x = start
                for sigma, following in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
                    cond, uncond = network(x, sigma, True), network(x, sigma, False)
                    x = x + (following - sigma) * (uncond + 3 * (cond - uncond))
                flags.append([record["computed"] for record in cache.trace])
        return flags

    flags = euler(Spread(None), runs=2)
    return flags, failure(lambda: euler(Spread(rank == ranks - 1), runs=1), RankLost, ValueError)


def killed(rank, ranks):
    """The last rank is gone without a word."""

    def network(x, sigma):
        if rank == ranks - 1 and sigma < SIGMAS[6]:
            os._exit(3)
        return velocity(x, sigma)

    return failure(lambda: run(latent(), network=network, threshold=0.0, ranks=Ranks(timeout=1.0)), RankLost)


SCENARIOS = (
    identical_latents, last_bits, slices, slices_of_streams, one_rank_says_so, no_memory, spread_network, raises,
    ends_early, does_not_come, other_settings, other_steps, groups, leaves_nothing, looks, after_release, attached,
)  # fmt: skip


def main(rank, ranks, port, results):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=30))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=20))
    seen = {}
    for scenario in SCENARIOS:
        seen[scenario.__name__] = scenario(rank, ranks)
        dist.barrier()
    results.write_text(json.dumps(seen))
    seen["killed"] = killed(rank, ranks)
    results.write_text(json.dumps(seen))
    os._exit(0)  # gloo would wait for the one that was killed


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
