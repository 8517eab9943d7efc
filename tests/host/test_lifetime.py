"""Nothing of a run outlives it, and runs do not disturb each other."""

import contextlib
import copy
import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_models
import torch
from memory import Allocations

SOME_WEIGHTS = 4096  # bytes


def test_nothing_is_left_after_a_run(comfy, small_scene, no_run_left):
    model = comfy.cached(small_scene.model)
    comfy.sample(small_scene, model)
    assert no_run_left() == []
    assert small_scene.model.wrappers.get("outer_sample", {}) == {}, "the input model must stay untouched"


@pytest.mark.parametrize("kind", ["interrupt", "exception"])
def test_nothing_is_left_after_a_failed_run(comfy, small_scene, no_run_left, kind):
    """An interrupted or failed run must pass its exception on, free its tensors and leave the next run alone."""
    import comfy.model_management as management

    model = comfy.cached(small_scene.model)
    expected = comfy.sample(small_scene, model)
    fault = management.InterruptProcessingException if kind == "interrupt" else ZeroDivisionError
    kept = []

    def fail(module, args, kwargs):
        if len(small_scene.calls) == 5:
            kept.append(weakref.ref(args[0]))
            raise fault

    handle = small_scene.model.model.diffusion_model.register_forward_pre_hook(fail, with_kwargs=True)
    small_scene.calls.clear()
    try:
        with pytest.raises(fault):
            comfy.sample(small_scene, model)
    finally:
        handle.remove()
    assert no_run_left() == []
    gc.collect()
    assert kept[0]() is None
    assert torch.equal(expected, comfy.sample(small_scene, model))


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("no room"), RuntimeError("CUDA error: out of memory")], ids=type
)
def test_out_of_memory_in_the_network_costs_the_cache_not_the_run(comfy, small_scene, caplog, no_run_left, error):
    """The evaluation is done again, and then without the cache; catches a run that dies for the sake of a few latents,
    and one that gives up the cache where memory was short for a moment (38.4 instead of 51 dB with three of them).
    """
    plain = comfy.sample(small_scene)
    failures = [9, 10, 11]

    def fail(module, args, kwargs):
        if len(small_scene.calls) in failures:
            failures.remove(len(small_scene.calls))
            raise type(error)(*error.args)  # a new one: it holds the frames it went through

    handle = small_scene.model.model.diffusion_model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        small_scene.calls.clear()
        with pytest.raises(type(error)):  # there is nothing left to free the third time
            comfy.sample(small_scene, comfy.cached(small_scene.model, threshold=0.0))
        failures[:] = [9, 10, 15]  # the last one, as it was too much before, with the cache freed at once
        small_scene.calls.clear()
        again = comfy.sample(small_scene, comfy.cached(small_scene.model, threshold=0.0))
        assert torch.equal(again, plain) and not failures
        assert caplog.text.count("out of memory; the cache is freed") == 3
        smooth = comfy.sample(small_scene, comfy.cached(small_scene.model, target_speedup=2.0))
        failures[:] = [2, 5, 8]
        small_scene.calls.clear()
        again = comfy.sample(small_scene, comfy.cached(small_scene.model, target_speedup=2.0))
    finally:
        handle.remove()
    assert torch.equal(again, smooth) and not failures
    assert no_run_left() == []


def test_a_run_that_fails_at_its_first_decision_leaves_nothing(comfy, tiny, one_thread, monkeypatch, no_run_left):
    """Catches tensors, and ranks that wait, of a history whose first evaluation was never decided."""
    controller = comfy.module("easycache_core").CacheController
    released, release = [], controller.release
    monkeypatch.setattr(controller, "begin", lambda *args, **kwargs: 1 / 0)
    monkeypatch.setattr(controller, "release", lambda self: (released.append(1), release(self)))
    with pytest.raises(ZeroDivisionError):
        comfy.sample(tiny("SD15"), comfy.cached(tiny("SD15").model), steps=3)
    assert released and no_run_left() == []


@pytest.mark.parametrize(
    "failing",
    ["run.Run.finish", "continuation.Piece.finish", "account.Account.report", "run_history.RunHistory.add"],
)
def test_a_run_that_is_through_is_not_lost(comfy, tiny, one_thread, monkeypatch, caplog, failing):
    """Catches minutes of sampling that end with an error of what is looked at afterwards."""
    module, kind, method = failing.split(".")
    scene = tiny("SD15")
    plain = comfy.sample(scene, comfy.cached(scene.model, threshold=0.0), steps=3)
    monkeypatch.setattr(getattr(comfy.module(f"nodes.{module}"), kind), method, lambda *args: 1 / 0)
    assert torch.equal(comfy.sample(scene, comfy.cached(scene.model, threshold=0.0), steps=3), plain)
    assert "ZeroDivisionError" in caplog.text


def test_options_of_other_packs_may_have_any_names(comfy, tiny, one_thread):
    """Catches a run that dies as names of another pack's options do not compare."""
    scene = tiny("SD15")
    model = scene.model.clone()
    model.model_options["transformer_options"] |= {("a", 1): True, 7: False, "word": "b"}
    same = comfy.sample(scene, comfy.cached(model, threshold=0.0), steps=4)
    assert torch.equal(same, comfy.sample(scene, model, steps=4))


@pytest.mark.parametrize("method", ["calculate_input", "calculate_denoised"])
@pytest.mark.parametrize("moment", range(10, 18))
def test_out_of_memory_between_sampler_and_network_costs_the_cache_not_the_run(
    comfy, tiny, one_thread, caplog, no_run_left, method, moment
):
    """There the node makes latents of its own for "reuse", which works with the network's own input and output."""
    from comfy.model_management import OOM_EXCEPTION

    scene = tiny("SD15")
    scarce = scene.model.clone()
    sampling = copy.copy(scene.model.get_model_object("model_sampling"))
    calls, moments = [], [moment, moment + 1]

    def fail(*args):
        calls.append(None)
        if len(calls) in moments:
            raise OOM_EXCEPTION("no room")
        return getattr(type(sampling), method)(sampling, *args)

    setattr(sampling, method, fail)
    scarce.add_object_patch("model_sampling", sampling)
    exact = comfy.sample(scene, comfy.cached(scarce, threshold=0.0, predictor="reuse"), steps=10)
    assert torch.equal(exact, comfy.sample(scene, steps=10))
    assert "the cache is freed" in caplog.text
    calls.clear()
    moments.pop()
    reusing = comfy.cached(scarce, threshold=1.0, predictor="reuse")
    cached, levels = scene.counting(lambda: comfy.sample(scene, reusing, steps=10))
    assert cached.isfinite().all() and len(levels) < 10
    assert no_run_left() == []


@pytest.mark.parametrize(("predictor", "of_a_branch"), [("reuse", 1), ("forecast", 4)])
@pytest.mark.parametrize(("cfg", "branches"), [(4.0, 2), (1.0, 1)])
def test_memory_is_pinned(comfy, tiny, one_thread, monkeypatch, cfg, branches, predictor, of_a_branch):
    """What the node takes while the network runs, when memory is short, and at the run's worst moment; beside samples
    of some 65,000 elements and of 256 of each answer, which are next to nothing of a large latent, and a few of the
    network's weights.
    """
    for module in ("easycache_core.norms", "nodes.other_caches"):
        monkeypatch.setattr(comfy.module(module), "SAMPLE_SIZE", 1)
    scene = tiny("WAN21_T2V")
    memory, live = Allocations(), {}

    def note(module, args, kwargs):
        live[float(kwargs["transformer_options"]["sigmas"][0])] = memory.live

    def sample(model):
        live.clear()
        memory.peak = memory.live = 0
        with memory:
            comfy.sample(scene, model, cfg=cfg, steps=10)
        return dict(live), memory.peak

    hook = scene.model.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        plain, plain_peak = sample(scene.model)
        cached, cached_peak = sample(comfy.cached(scene.model, predictor=predictor))
    finally:
        hook.remove()
    assert len(cached) < len(plain)
    latent = scene.latent["samples"].nbytes
    while_the_network_runs = max(live - plain[sigma] for sigma, live in cached.items())
    for held in (while_the_network_runs, cached_peak - plain_peak):
        assert 0 <= held - (of_a_branch * branches + 2) * latent < SOME_WEIGHTS


def test_tensors_go_even_if_somebody_holds_the_run(comfy, small_scene):
    """A debugger, a traceback or another pack's wrapper may keep the run object; not the latents in it."""
    from comfy.patcher_extension import WrappersMP

    model = comfy.cached(small_scene.model)
    held = []

    def spy(executor, model, conds, x, timestep, model_options):
        (wrapper,) = model_options["transformer_options"]["wrappers"]["calc_cond_batch"]["easycache_adaptive"]
        held[:] = [wrapper.__self__]
        return executor(model, conds, x, timestep, model_options)

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "spy", spy)
    comfy.sample(small_scene, model)
    assert type(held[0]).__name__ == "Run"
    pack = comfy.classes["EasyCacheAdaptive"].__module__.rsplit(".", 2)[0]
    todo, seen, tensors = [held[0]], [], []
    while todo:
        thing = todo.pop()
        if any(thing is one for one in seen):
            continue
        seen.append(thing)
        if isinstance(thing, torch.Tensor):
            tensors.append(thing)
        elif isinstance(thing, dict):
            todo += thing.values()
        elif isinstance(thing, list | tuple | set):
            todo += thing
        elif type(thing).__module__.startswith(pack):
            todo += vars(thing).values()
    assert len([one for one in seen if type(one).__module__.startswith(pack)]) > 10, "the search goes nowhere"
    assert not tensors


def test_two_samplers_share_one_patched_model(comfy, small_scene):
    """Runs interleaved in one model must not see each other: here a run starts in the middle of another."""
    model = comfy.cached(small_scene.model)
    outer_alone = comfy.sample(small_scene, model, seed=1)
    inner_alone = comfy.sample(small_scene, model, seed=2, steps=11)
    inner = []

    def nested(executor, *args, **kwargs):
        if not inner:
            network = executor.class_obj.inner_model
            patcher = network.current_patcher
            inner.append(None)
            inner[0] = comfy.sample(small_scene, model, seed=2, steps=11)
            network.current_patcher = patcher  # ComfyUI clears it at the end of a run
        return executor(*args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    outer_model = model.clone()
    outer_model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "nested", nested)
    outer = comfy.sample(small_scene, outer_model, seed=1)
    assert torch.equal(inner[0], inner_alone)
    assert torch.equal(outer, outer_alone)


def test_runs_in_two_threads_share_nothing(comfy, one_thread):
    """Some servers execute prompts side by side. Both runs start together and meet again at every step."""
    from comfy.patcher_extension import WrappersMP
    from comfy.samplers import sampler_object

    def sample(seed, meet):
        """In the guider's terms, as ComfyUI's noise nodes seed a generator that threads share."""
        scene = tiny_models.build("SD15", seed)
        model = comfy.cached(scene.model)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "meet", meet)
        guider = comfy.node("CFGGuider", model, scene.positive, scene.negative, 4.0)[0]
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        sigmas = comfy.node("BasicScheduler", model, "simple", 16, 1.0)[0]
        with torch.inference_mode():
            latent = guider.sample(noise, torch.zeros_like(noise), sampler_object("euler"), sigmas)
        return latent, [sigma for _, sigma, _ in scene.calls]

    barrier = threading.Barrier(2, timeout=60)

    def meet(executor, *args, **kwargs):
        barrier.wait()
        return executor(*args, **kwargs)

    alone = [sample(seed, lambda executor, *args, **kwargs: executor(*args, **kwargs)) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: sample(seed, meet), (1, 2)))
    for (latent, levels), (expected, expected_levels) in zip(together, alone, strict=True):
        assert torch.equal(latent, expected) and levels == expected_levels
        assert len(levels) < 16, "nothing was reused"


def test_the_latent_may_change_shape_between_runs(comfy, small_scene):
    model = comfy.cached(small_scene.model)
    first = comfy.sample(small_scene, model)
    larger = {"samples": torch.zeros(1, 16, 3, 10, 6)}
    result, levels = small_scene.counting(lambda: comfy.sample(small_scene, model, latent_image=larger))
    assert result.shape == larger["samples"].shape and result.isfinite().all() and len(levels) < 16
    assert torch.equal(first, comfy.sample(small_scene, model))


def test_pieces_of_a_picture_are_drawn_anew_with_one_model(comfy, tiny, one_thread):
    """As detailers do: of any size and number of steps, from little noise, within a mask. Catches one that is drawn
    with what is left of another.
    """
    scene, widgets = tiny("SD15"), dict(target_speedup=2.0)

    def draw(model, size, steps):
        latent = {"samples": torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(size))}
        latent = comfy.node("SetLatentNoiseMask", latent, (torch.arange(size * size) % 5 > 0).view(1, size, size) * 1.0)
        return scene.counting(lambda: comfy.sample(scene, model, latent_image=latent[0], denoise=0.5, steps=steps))

    shared = comfy.cached(scene.model, **widgets)
    for size, steps in ((16, 12), (12, 8), (20, 12), (16, 4), (12, 8)):
        drawn, levels = draw(shared, size, steps)
        alone, levels_alone = draw(comfy.cached(scene.model, **widgets), size, steps)
        assert torch.equal(drawn, alone) and levels == levels_alone and len(levels) == steps // 2, (size, steps)


def test_nodes_with_other_settings_on_one_model(comfy, tiny, one_thread):
    """Catches settings of one that hold for all of them, as they are kept on the model that they share."""
    scene, settings = tiny("SD15"), [dict(threshold=1.0), dict(target_speedup=4.0), dict(threshold=0.0)]

    def sample(model):
        return scene.counting(lambda: comfy.sample(scene, model))

    alone = [sample(comfy.cached(scene.model, **widgets)) for widgets in settings]
    models = [comfy.cached(scene.model, **widgets) for widgets in settings]
    for i in (1, 0, 2, 0, 1):
        latent, levels = sample(models[i])
        assert levels == alone[i][1] and torch.equal(latent, alone[i][0]), settings[i]
    assert len({len(levels) for _, levels in alone}) == 3 and torch.equal(alone[2][0], comfy.sample(scene))


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_what_it_was(comfy, small_scene, one_thread, fails):
    """Catches a cache that goes on without its node, as it is built into the network, or hides another pack's forward
    for good.
    """
    scene, calls = small_scene, []
    network = scene.model.model.diffusion_model
    forward = network.forward

    def anothers(*args, **kwargs):
        calls.append(1)
        if fails and len(calls) == 12:
            raise ZeroDivisionError
        return forward(*args, **kwargs)

    def held():
        return [
            (name, id(value) if callable(value) else len(value) if isinstance(value, dict) else None)
            for module in (*network.modules(), scene.model.model, scene.model)
            for name, value in vars(module).items()
        ]

    comfy.sample(scene)  # some things are made at the first run
    try:
        network.forward = anothers
        before = held()
        with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
            comfy.sample(scene, comfy.cached(scene.model, target_speedup=1.5), steps=20)
        assert held() == before and network.forward is anothers and calls
    finally:
        del network.forward


def test_an_error_that_the_latent_is_to_blame_for(comfy, small_scene, one_thread, no_run_left):
    """Packs that draw a second time try, and keep the first picture where noise and latent do not fit. Catches another
    error than the uncached run's, and a next run that goes on with the failed one.
    """
    scene, model = small_scene, comfy.cached(small_scene.model, target_speedup=2.0)
    first, levels = scene.counting(lambda: comfy.sample(scene, model))
    sampler, sigmas = (
        comfy.node("KSamplerSelect", "euler")[0],
        comfy.node("BasicScheduler", model, "simple", 16, 1.0)[0],
    )
    errors = []
    for failing in (scene.model, model):
        guider = comfy.node("CFGGuider", failing, scene.positive, scene.negative, 4.0)[0]
        with pytest.raises(RuntimeError) as caught:
            guider.sample(torch.zeros(1, 16, 2, 8, 6), scene.latent["samples"], sampler, sigmas)
        errors.append(str(caught.value))
        del caught  # which holds all that was alive
    assert errors[0] == errors[1] and not no_run_left()
    again, levels_again = scene.counting(lambda: comfy.sample(scene, model))
    assert torch.equal(again, first) and levels_again == levels


def test_two_nodes_in_a_row_the_last_one_counts(comfy, small_scene, caplog):
    with caplog.at_level(logging.INFO):
        twice = comfy.cached(comfy.cached(small_scene.model, threshold=1.0), threshold=0.0)
        result = comfy.sample(small_scene, twice)
    assert any("the last one counts" in message for message in caplog.messages)
    assert sum(message.startswith("EasyCache: computed") for message in caplog.messages) == 1
    assert torch.equal(result, comfy.sample(small_scene))


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("ours_first", [False, True])
def test_the_built_in_nodes_on_the_same_model_are_warned_of(comfy, small_scene, caplog, kind, ours_first):
    def built_in(model):
        return comfy.node(kind, model, 0.2, 0.15, 0.95, False)[0]

    both = built_in(comfy.cached(small_scene.model)) if ours_first else comfy.cached(built_in(small_scene.model))
    with caplog.at_level(logging.WARNING):
        result = comfy.sample(small_scene, both)
    assert sum("built-in EasyCache or LazyCache" in message for message in caplog.messages) == 1
    assert result.isfinite().all()


def test_the_network_is_not_asked_for_state(comfy, small_scene):
    """State on the network is what goes wrong in other packs: two runs in one would share it."""
    network = small_scene.model.model.diffusion_model
    before = set(vars(network)) | set(vars(small_scene.model.model))
    comfy.sample(small_scene, comfy.cached(small_scene.model))
    assert set(vars(network)) | set(vars(small_scene.model.model)) == before
