"""The engine on a smooth toy network, an Euler flow-matching loop of 30 steps."""

import functools
import gc
import logging
import math

import pytest
import torch
from memory import Allocations
from torch.utils._python_dispatch import TorchDispatchMode

from easycache_core import CacheConfig, CacheController, euler_response
from easycache_core.predictors import PREDICTORS
from easycache_core.storage import is_out_of_memory

Settings = functools.partial(CacheConfig, predictor="reuse")  # forecasts: test_forecast.py
STEPS = 30
SHAPE = (1, 4, 2, 8, 8)


def velocity(x, sigma, pull):
    """A smooth network: the velocity towards a data point that depends a little on x."""
    return (x - pull * torch.tanh(x)) / (0.3 + sigma)


def sample(config, *, dtype=torch.float32, steps=STEPS, per_step=1, after_begin=None, shape=SHAPE, force=False):
    """Run the loop; returns (controller, x, computed flags by evaluation)."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    sigmas = torch.linspace(1, 0, steps + 1)
    controller = CacheController(config, total_steps=steps)
    flags = []
    for step in range(steps):
        for _ in range(per_step):
            sigma = sigmas[step]
            computed = controller.begin(x, sigma=sigma, step=step, force=force)
            flags.append(computed)
            if after_begin is not None:
                after_begin()
            if computed:
                cond, uncond = velocity(x, sigma, 0.8), velocity(x, sigma, 0.5)
                controller.store("cond", cond)
                controller.store("uncond", uncond)
            else:
                cond, uncond = controller.predict("cond"), controller.predict("uncond")
            x = x + ((sigmas[step + 1] - sigma) / per_step).to(dtype) * (uncond + 2 * (cond - uncond))
    return controller, x, flags


def test_threshold_zero_computes_everything():
    _, _, flags = sample(Settings(threshold=0.0, warmup_steps=1))
    assert all(flags)


def test_warmup_and_the_last_step_are_computed():
    _, _, flags = sample(Settings(threshold=1.0, warmup_steps=7))
    assert all(flags[:7]) and flags[-1]
    assert not any(flags[7:-1]), "with the highest threshold everything between should be reused here"


def test_a_higher_threshold_skips_more_and_moves_further_away():
    """Catches a threshold that is compared the wrong way round."""
    exact = sample(Settings(threshold=0.0))[1]
    skipped, distances = [], []
    for threshold in (0.02, 0.1, 0.5):
        controller, x, _ = sample(Settings(threshold=threshold, warmup_steps=3))
        skipped.append(controller.skipped)
        distances.append((x - exact).abs().mean().item())
    assert skipped == sorted(set(skipped)), skipped
    assert distances == sorted(distances), distances


@pytest.mark.parametrize("force", [False, torch.tensor(False)])
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("rule", [dict(threshold=0.1), dict(threshold=0.0), dict(target_speedup=2.2)], ids=str)
def test_one_wait_for_the_device_per_evaluation(monkeypatch, rule, predictor, force):
    """Each read of a tensor's value makes the sampler wait for the GPU; one tolist() reads all numbers at once."""
    waits = []
    original = torch.Tensor.tolist

    def counted(self):
        waits.append(self.numel())
        return original(self)

    for name in ("item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *args, name=name: pytest.fail(f"Tensor.{name} waits for the device")
        )
    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    waits_by_evaluation = []
    config = CacheConfig(warmup_steps=6, predictor=predictor, **rule)
    sample(config, after_begin=lambda: waits_by_evaluation.append(len(waits)), force=force)
    assert waits_by_evaluation == list(range(1, STEPS + 1))


class Dispatched(TorchDispatchMode):
    """Counts the operations that torch hands to a device while it is entered: launches, on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", [dict(threshold=1.0), dict(target_speedup=2.2)], ids=str)
@pytest.mark.parametrize(
    ("settings", "computed", "skipped"),
    [(dict(predictor="reuse"), 25, 15), (dict(predictor="forecast"), 60, 25)],
    ids=lambda value: value["predictor"] if isinstance(value, dict) else None,
)
def test_few_operations_per_evaluation(settings, computed, skipped, rule):
    """Pins the engine's own work for two branches of the bundled model's latent. On a GPU each operation is a launch of
    some microseconds; scalars that live on the device once made it 168 and 103.
    """
    controller = CacheController(CacheConfig(warmup_steps=3, **settings, **rule), total_steps=STEPS)
    x, counts = torch.randn(1, 16, 5, 16, 16), {True: [], False: []}
    for step in range(STEPS):
        sigma, operations = torch.tensor([1 - step / STEPS]), Dispatched()
        with operations:
            running = controller.begin(x, sigma=sigma, step=step)
        outputs = [velocity(x, sigma, pull) for pull in (0.8, 0.5)]
        for branch, output in zip(("cond", "uncond"), outputs, strict=True):
            with operations:
                controller.store(branch, output) if running else controller.predict(branch)
        counts[running].append(operations.count)
        x = x - outputs[0] / STEPS
    assert counts[False] and max(counts[True]) <= computed and max(counts[False]) <= skipped, counts


def test_out_of_memory_is_known_by_all_its_names():
    """Catches a run that dies because a driver or a backend says it in another way than torch's allocator."""
    errors = [
        torch.cuda.OutOfMemoryError("no room"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory"),
        accelerator_error(2),
    ]
    assert all(map(is_out_of_memory, errors))
    others = [accelerator_error(700), RuntimeError("shape mismatch"), ValueError("out of memory"), KeyboardInterrupt()]
    assert not any(map(is_out_of_memory, others))


def accelerator_error(code):
    """As a driver raises it."""
    error = torch.AcceleratorError("CUDA error")
    error.error_code = code
    return error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_measures_as_float32(dtype):
    """Sums over a latent taken in half precision would stall at 256 or overflow; the rate would be garbage."""
    shape = (1, 16, 4, 32, 32)
    config = Settings(threshold=0.0)
    reference, half = sample(config, shape=shape)[0], sample(config, dtype=dtype, shape=shape)[0]
    for name, tolerance in (("output_norm", 0.05), ("input_change", 0.1), ("rate", 0.2)):
        for a, b in zip(half.trace, reference.trace, strict=True):
            assert a[name] == (None if b[name] is None else pytest.approx(b[name], rel=tolerance)), name

    controller, x, _ = sample(Settings(threshold=0.1, warmup_steps=4), dtype=dtype, shape=shape)
    assert controller.skipped > 5
    assert x.dtype is controller.predict("cond").dtype is dtype and x.isfinite().all()


def test_cached_tensors_do_not_alias_the_callers():
    """Samplers and networks write into their tensors; a cache that shared them would predict rubbish."""
    controller = CacheController(Settings(threshold=1.0, warmup_steps=1), total_steps=10)
    x = torch.randn(SHAPE)
    for step in range(2):
        assert controller.begin(x, step=step)
        controller.store("cond", output := 2 * x)
        x = x * 0.99
    expected = x + (output - x / 0.99)
    fresh = x.clone()
    assert not controller.begin(fresh, step=2)
    fresh.fill_(7)
    output.fill_(7)
    first = controller.predict("cond")
    torch.testing.assert_close(first, expected)
    first.fill_(7)
    torch.testing.assert_close(controller.predict("cond"), expected)


def test_memory_is_one_tensor_per_branch_and_two_inputs():
    """Pins what a run costs, in latents: at video sizes each one more is tens of megabytes.

    held: while the network runs, which is when memory is short. most: at any moment, predictions handed out included.
    """
    controller = CacheController(Settings(threshold=1.0, warmup_steps=2), total_steps=20)
    memory, latent = Allocations(), torch.zeros(SHAPE).nbytes
    held, most = [], []
    for step in range(6):
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 0.98**step
        memory.peak = 0
        with memory:
            computed = controller.begin(x, step=step, force=step == 4)
        held.append(memory.live // latent)
        outputs = [velocity(x, 0.5, pull) for pull in (0.8, 0.5)]
        with memory:
            for branch, output in zip(("cond", "uncond"), outputs, strict=True):
                if computed:
                    controller.store(branch, output)
                else:
                    output.set_(controller.predict(branch))
        most.append(memory.peak // latent)
        del output, outputs
    assert controller.computed == 3 and controller.skipped == 3
    assert held == [1, 4, 4, 4, 4, 4], "a branch's output each, the input of these, and the one before"
    assert max(most) == 6
    controller.release()
    assert memory.live < latent


def test_release_lets_go_of_every_tensor_and_keeps_the_trace():
    memory = Allocations()
    with memory:
        controller, x, flags = sample(Settings(threshold=0.1))
        del x
        assert memory.live > 0
        controller.release()
    gc.collect()
    assert memory.live == 0
    assert [record["computed"] for record in controller.trace] == flags


def test_trace_tells_what_happened():
    controller, _, flags = sample(Settings(threshold=0.1, warmup_steps=4))
    trace = controller.trace
    names = {"step", "sigma", "computed", "input_change", "rate", "error", "output_norm"}
    assert len(trace) == STEPS and all(set(record) == names for record in trace)
    assert [record["step"] for record in trace] == list(range(STEPS))
    assert trace[3]["sigma"] == pytest.approx(1 - 3 / STEPS)
    assert trace[0]["rate"] is None and trace[0]["input_change"] is None
    assert all(0 < record["error"] < 0.1 for record in trace if not record["computed"])
    assert controller.computed == sum(flags) and controller.skipped == STEPS - sum(flags)


def test_several_evaluations_a_step():
    """Second-order samplers: warm-up counts steps, so all evaluations of the first R steps are computed."""
    _, _, flags = sample(Settings(threshold=1.0, warmup_steps=4), per_step=2)
    assert all(flags[:8]) and all(flags[-2:])
    assert not any(flags[8:-2])


def test_an_input_that_does_not_move_is_no_division_by_zero():
    """Repeated noise levels: ||x_i - x_j|| = 0 must not make the rate infinite or NaN for good."""
    controller = CacheController(Settings(threshold=0.5, warmup_steps=4), total_steps=20)
    x = torch.randn(SHAPE)
    for step, factor in enumerate((1.0, 0.95, 0.95, 0.9, 0.85, 0.8)):
        if controller.begin(x * factor, step=step):
            controller.store("cond", velocity(x * factor, 0.5, 0.8))
    assert not controller.trace[-1]["computed"]
    assert controller.trace[2]["rate"] == controller.trace[1]["rate"]


def test_limit_on_consecutive_skips():
    _, _, flags = sample(Settings(threshold=1.0, warmup_steps=2, max_consecutive_skips=3))
    runs = "".join("c" if flag else "s" for flag in flags).split("c")
    assert max(map(len, runs)) == 3


@pytest.mark.parametrize("known", [bool, torch.tensor], ids=["on the host", "on the device"])
def test_forced_evaluations_are_computed_and_start_the_error_anew(known):
    controller = CacheController(Settings(threshold=1.0, warmup_steps=2), total_steps=20)
    x = torch.randn(SHAPE)
    flags = []
    for step in range(10):
        flags.append(controller.begin(x, step=step, force=known(step == 6)))
        if flags[-1]:
            controller.store("cond", velocity(x, 0.5, 0.8))
        x = x * 0.98
    assert flags == [True, True, False, False, False, False, True, False, False, False]
    assert controller.trace[6]["error"] == 0 and controller.trace[7]["error"] < controller.trace[5]["error"]


def test_a_latent_of_another_shape_starts_from_nothing():
    """Catches a crash, or worse a broadcast, when the latent changes within a run."""
    controller, _, _ = sample(Settings(threshold=1.0, warmup_steps=2), steps=10)
    assert controller.begin(torch.randn(1, 4, 2, 16, 16), step=5)
    assert not controller.has("cond")
    with pytest.raises(KeyError):
        controller.predict("cond")


@pytest.mark.parametrize("predictor", ["reuse", "forecast"])
def test_nothing_is_predicted_before_or_after_a_run(predictor):
    """Catches an error that speaks of the engine's inside in place of the documented one."""
    for controller in (CacheController(Settings(predictor=predictor), 5), sample(Settings(), steps=5)[0]):
        controller.release()
        for x in (None, torch.randn(1, 4)):
            with pytest.raises(KeyError):
                controller.predict("cond", x)
    with pytest.raises(KeyError):
        CacheController(Settings(predictor=predictor), 5).predict("cond")


def test_a_branch_that_is_no_longer_computed_is_forgotten():
    """Its old output belongs to another noise level; predicting from it would bring back a stale picture."""
    controller = CacheController(Settings(warmup_steps=1), total_steps=9)
    for step, branches in enumerate((("cond", "uncond"), ("cond",))):
        controller.begin(torch.randn(SHAPE), step=step)
        for branch in branches:
            controller.store(branch, torch.randn(SHAPE))
    assert controller.has("cond") and not controller.has("uncond")


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_runs_shorter_than_the_warmup(steps):
    controller, _, flags = sample(Settings(threshold=1.0, warmup_steps=50), steps=steps)
    assert flags == [True] * steps and controller.trace == controller.trace


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["latent", "cond", "uncond"])
def test_nan_and_inf_are_recomputed_and_told_once(poison, where, caplog):
    """A NaN that got into E would freeze the decision; one that got into the cache would be repeated."""
    controller = CacheController(Settings(threshold=1.0, warmup_steps=3), total_steps=40)
    x = torch.randn(SHAPE)
    flags = []
    with caplog.at_level(logging.WARNING):
        for step in range(30):
            bad = step in (8, 9, 18)
            shown = x.clone()
            if bad and where == "latent":
                shown[0, 0, 0, 0, 0] = poison
            # Poisoned outputs come from evaluations that are computed, so force those.
            flags.append(controller.begin(shown, step=step, force=bad and where != "latent"))
            if flags[-1]:
                for branch in ("cond", "uncond"):
                    output = velocity(x, 0.5, 0.8)
                    if bad and branch == where:
                        output[0, 0, 0, 0, 0] = poison
                    controller.store(branch, output)
            else:
                assert controller.predict("cond").isfinite().all()
                assert controller.predict("uncond").isfinite().all()
            x = x * 0.99
    assert flags[8] and flags[9] and flags[18] and flags[19], "NaN or inf must be computed, and the step after it"
    assert not any(flags[13:18]) and not any(flags[23:]), "once the numbers are sound the cache must work again"
    assert all(record["error"] is not None for record in controller.trace)
    warnings = [record.message for record in caplog.records if "NaN or inf" in record.message]
    assert len(warnings) == 1


def test_reading_the_trace_in_the_middle_of_an_evaluation_hides_no_nan():
    """Catches a NaN of one branch that is forgotten as somebody looks before the other is stored."""
    controller = CacheController(Settings(threshold=1.0, warmup_steps=2), total_steps=20)
    x = torch.randn(SHAPE)
    for step in range(8):
        computed = controller.begin(x, step=step, force=step == 5)
        if computed:
            controller.store("cond", velocity(x, 0.5, 0.8) * (math.nan if step == 5 else 1))
            assert len(controller.trace) == step + 1
            controller.store("uncond", velocity(x, 0.5, 0.5))
        x = x * 0.98
    assert [record["computed"] for record in controller.trace[4:7]] == [False, True, True]


def test_cache_in_main_memory_gives_the_same_run():
    near = sample(Settings(threshold=0.1))
    far = sample(Settings(threshold=0.1, cache_device="cpu"))
    assert near[2] == far[2] and torch.equal(near[1], far[1])


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("no room"), accelerator_error(2)], ids=type)
@pytest.mark.parametrize("moment", range(20, 26))
def test_no_memory_for_the_cache_costs_the_cache_not_the_run(monkeypatch, caplog, moment, error):
    """Wherever a copy fails to find room, the run goes on computing, and caches again once it can."""
    from easycache_core import controller as module

    copies = []

    def copy_for_cache(tensor, cache_device):
        copies.append(None)
        if len(copies) == moment:
            raise error
        return tensor.clone()

    monkeypatch.setattr(module, "copy_for_cache", copy_for_cache)
    with caplog.at_level(logging.WARNING):
        controller, x, flags = sample(Settings(threshold=0.1, warmup_steps=4))
    assert len(caplog.messages) == 1 and "no memory left for the cache" in caplog.text
    assert len(flags) == STEPS == controller.computed + controller.skipped and x.isfinite().all()
    assert not all(flags[STEPS // 2 :]), "caching must resume"


# Streams: latents of different kinds, packed along the last axis.

PICTURE, SOUND = 4096, 64


def sample_packed(**settings):
    """A large calm stream and a small lively one, denoised together; returns (controller, x, computed flags)."""
    x = torch.randn(1, 1, PICTURE + SOUND, generator=torch.Generator().manual_seed(0))
    return denoise(x, CacheController(Settings(threshold=0.03, warmup_steps=3), total_steps=STEPS, **settings))


def denoise(x, controller):
    flags = []
    for step in range(STEPS):
        flags.append(controller.begin(x, step=step))
        if flags[-1]:
            calm, lively = x[..., :-SOUND], x[..., -SOUND:]
            controller.store("cond", torch.cat([1 + 0.1 * calm, velocity(lively, 1 - step / STEPS, 0.9)], -1))
        x = x - controller.predict("cond") / STEPS
    return controller, x, flags


def test_the_worst_stream_decides():
    """Catches sound that a picture of a hundred times its size outvotes (ComfyUI issue 15326)."""
    together, _, by_each = sample_packed(streams=(PICTURE, SOUND))
    _, _, by_all = sample_packed()
    start = torch.randn(1, 1, PICTURE + SOUND, generator=torch.Generator().manual_seed(0))[..., -SOUND:]
    alone, _, by_sound = denoise(start, CacheController(together.config, total_steps=STEPS))
    assert by_each == by_sound, "the lively stream is the worst at every step"
    assert sum(by_each) > sum(by_all) + 2
    reused = [n for n, computed in enumerate(by_each) if not computed]
    assert reused
    for n in reused:
        assert together.trace[n] == pytest.approx(alone.trace[n]), "the trace shows the stream that decides"


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_hard_picture_of_a_batch_decides(predictor):
    """Catches a batch that is measured by its mean: among seven easy pictures a hard one would be computed less often,
    and look worse, than alone.
    """
    rng = torch.Generator().manual_seed(0)
    start, way = (torch.randn(8, 4, 8, 8, generator=rng) for _ in range(2))
    hardness = torch.tensor([0.8] + [0.05] * 7).reshape(-1, 1, 1, 1)

    def decisions(rows, by_row):
        config = CacheConfig(threshold=0.05, warmup_steps=5, predictor=predictor)
        controller, x, flags = CacheController(config, total_steps=STEPS, by_row=by_row), start[rows], []
        for step in range(STEPS):
            sigma = 1 - step / STEPS
            flags.append(controller.begin(x, sigma=sigma, step=step))
            v = (x - hardness[rows] * torch.cos(6 * sigma + way[rows]) * way[rows]) / sigma
            if flags[-1]:
                controller.store("cond", v)
            else:
                v = controller.predict("cond")
            x = x - v / STEPS
        return flags

    alone, together = decisions(slice(0, 1), True), decisions(slice(0, 8), True)
    as_a_whole, not_told = decisions(slice(0, 8), False), decisions(slice(0, 8), None)
    assert sum(together) >= sum(alone) > sum(as_a_whole)
    assert not_told == (as_a_whole if predictor == "reuse" else together)


def test_a_stream_that_stands_still_keeps_nobody_from_being_reused():
    """A given soundtrack: its rate is 0 / 0."""
    controller = CacheController(Settings(threshold=1.0, warmup_steps=2), total_steps=20, streams=(PICTURE, SOUND))
    sound, flags = torch.randn(1, 1, SOUND), []
    for step in range(6):
        x = torch.cat([torch.full((1, 1, PICTURE), 0.95**step), sound], -1)
        flags.append(controller.begin(x, step=step))
        if flags[-1]:
            controller.store("cond", velocity(x, 0.5, 0.8))
    assert flags == [True, True, False, False, False, False]


def test_a_budget_is_placed_by_what_is_supposed_of_a_sampler():
    """Catches an even spread where the last steps count most, and a supposition that is kept though it is wrong: a
    budget that was planned for other evaluations is then not spent, or more than spent.
    """
    sigmas = torch.cat([torch.linspace(1, 0.5, STEPS), torch.zeros(1)])  # as with a large shift
    supposed = euler_response(sigmas.tolist())._replace(adds_noise=True)

    def run(levels, **options):
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        with CacheController(CacheConfig(target_speedup=3.0), STEPS, denoised=True, **options) as controller:
            for step, sigma in enumerate(levels[:-1]):
                if controller.begin(x, sigma=sigma, step=step):
                    controller.store("cond", torch.tanh(x))
            return [record["computed"] for record in controller.trace]

    assert run(sigmas, supposed=supposed) == run(sigmas, response=supposed) != run(sigmas)
    wrong = run(sigmas * 0.9, supposed=supposed)
    assert wrong == run(sigmas * 0.9) and sum(wrong) == STEPS / 3
