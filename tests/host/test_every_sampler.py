"""Every sampler of the host: they differ in evaluations a step, in when they call back, and some inject noise."""

import functools
import importlib
import math
from typing import NamedTuple

import comfy_host
import pytest
import torch
from closeness import psnr
from host_source import assigned, sampler_names

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 8
MODELS = {"Flux": 1.0, "SD15": 2.5}  # CFG; flow matching without guidance, and eps with it
CALLS_BACK_AFTER_THE_STEP = "dpm_adaptive"  # all others do so after its first evaluation


SAMPLERS = sampler_names(comfy_host.find())
SCHEDULERS = [
    key.value
    for table in assigned(comfy_host.find() / "comfy" / "samplers.py", "SCHEDULER_HANDLERS")
    for key in table.keys
]


class Run(NamedTuple):
    """latent: the result. levels: noise level of each network call. reports: calls made at each of the callbacks."""

    latent: torch.Tensor
    levels: list[float]
    reports: list[int]

    def calls_before(self, step, sampler):
        """How many network calls belong to the steps before `step`, which counts from 0."""
        if sampler == CALLS_BACK_AFTER_THE_STEP:
            step, first = step - 1, 0
        else:
            first = 1
        return self.reports[step] - first if step < len(self.reports) else len(self.levels)


@pytest.mark.parametrize(
    ("sampler", "adds_noise"),
    [("euler", False), ("res_multistep", False), ("gradient_estimation", False), ("euler_ancestral", True),
     ("res_multistep_ancestral", True), ("dpmpp_2m_sde", True), ("er_sde", True), ("lcm", True)],
)  # fmt: skip
def test_samplers_that_draw_noise_and_add_none_are_known(tiny, sampler, adds_noise):
    """Catches forecasts that expect added noise where there is none: res_multistep draws it and leaves it out."""
    import comfy.samplers

    nodes = importlib.import_module(f"{comfy_host.load_pack().__name__}.nodes.sampler_response")
    model_sampling = tiny("Flux").model.get_model_object("model_sampling")
    found = nodes.response_of(comfy.samplers.sampler_object(sampler), torch.linspace(1, 0, 9), model_sampling)
    assert found.adds_noise is adds_noise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_comfyuis_samplers_are_its_own(comfy, sampler):
    """Catches a sampler of another pack that bears their names, and one of theirs that is not recognised."""
    import comfy.samplers

    nodes = importlib.import_module(f"{comfy_host.load_pack().__name__}.nodes.sampler_response")
    own = comfy.samplers.sampler_object(sampler)

    def another(model, x, sigmas, **options):
        return x

    assert nodes.is_own(own)
    for function in (another, torch.no_grad()(another), functools.partial(another)):
        named = functools.wraps(own.sampler_function)(function)
        assert not nodes.is_own(comfy.samplers.KSAMPLER(named))


def sample(comfy, scene, sampler, scheduler, cfg, steps=STEPS, **widgets) -> Run:
    """A KSampler run; without widgets uncached."""
    from comfy.patcher_extension import WrappersMP

    reports = []

    def count_at_callbacks(executor, guider, sigmas, extra_args, callback, *args, **kwargs):
        def report(*state):
            reports.append(len(scene.calls))
            callback(*state)

        return executor(guider, sigmas, extra_args, report, *args, **kwargs)

    model = comfy.cached(scene.model, **widgets) if widgets else scene.model.clone()
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "reports", count_at_callbacks)
    latent, _ = scene.counting(
        lambda: comfy.sample(scene, model, sampler_name=sampler, scheduler=scheduler, steps=steps, cfg=cfg)
    )
    return Run(latent, [sigma for _, sigma, _ in scene.calls], reports)


@pytest.fixture(scope="module")
def uncached(comfy, tiny):
    """uncached(name, sampler, scheduler): that Run; skips the test where ComfyUI itself cannot sample in this way."""

    @functools.cache
    def attempt(name, sampler, scheduler):
        try:
            return sample(comfy, tiny(name), sampler, scheduler, MODELS[name])
        except Exception as error:
            return f"ComfyUI itself fails here: {error!r}"

    def uncached(name, sampler, scheduler="simple"):
        run = attempt(name, sampler, scheduler)
        if isinstance(run, str):
            pytest.skip(run)
        if not run.latent.isfinite().all():
            pytest.skip("ComfyUI itself samples NaN or inf here")
        return run

    return uncached


def test_no_sampler_is_left_out(comfy):
    """Catches a host whose lists are no longer found in its source."""
    import comfy.samplers

    assert SAMPLERS == comfy.samplers.KSampler.SAMPLERS
    assert SCHEDULERS == comfy.samplers.KSampler.SCHEDULERS


@pytest.mark.verifies("samplers", "threshold 0 is bit-identical")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_threshold_0_changes_nothing(comfy, tiny, uncached, name, sampler):
    """Catches a clock or a cache that disturbs a sampler, its noise or its callbacks."""
    plain = uncached(name, sampler)
    same = sample(comfy, tiny(name), sampler, "simple", MODELS[name], threshold=0.0)
    assert torch.equal(same.latent, plain.latent)
    assert (same.levels, same.reports) == (plain.levels, plain.reports)


@pytest.mark.verifies("samplers", "in bounds, {scheduler}")
@pytest.mark.in_turn("scheduler")
@pytest.mark.parametrize("scheduler", ["simple", "karras", "beta"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_result_stays_in_bounds(comfy, tiny, uncached, name, sampler, scheduler):
    """Catches a sampler that a reused step makes diverge, and noise that is taken for a change of the output."""
    plain = uncached(name, sampler)
    try:
        cached = sample(comfy, tiny(name), sampler, scheduler, MODELS[name], threshold=0.1, warmup_steps=2)
    except Exception:
        uncached(name, sampler, scheduler)
        raise
    assert cached.latent.shape == plain.latent.shape and cached.latent.isfinite().all()
    assert cached.latent.std() < 2 * plain.latent.std()


@pytest.mark.verifies("samplers", "warm-up of {warmup}")
@pytest.mark.parametrize("warmup", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_warmup_counts_sampler_steps(comfy, tiny, uncached, sampler, warmup):
    """A warm-up counted in evaluations would end too early. Up to the first reused step both runs are the same.

    With "reuse", as forecasts do not trust themselves where a sampler injects much noise.
    """
    plain = uncached("Flux", sampler)
    widgets = dict(threshold=1.0, warmup_steps=warmup, predictor="reuse")
    cached = sample(comfy, tiny("Flux"), sampler, "simple", MODELS["Flux"], **widgets)
    calls = plain.calls_before(warmup, sampler)
    assert cached.levels[:calls] == plain.levels[:calls]
    if len(plain.levels) > calls + 4:
        assert len(cached.levels) < len(plain.levels), "nothing was reused"


@pytest.mark.verifies("samplers", "a budget of {speedup} is kept")
@pytest.mark.in_turn("speedup")
@pytest.mark.parametrize("speedup", [2, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_budget_is_kept(comfy, tiny, uncached, sampler, speedup):
    """At most one in so many of the evaluations there are, and nearly as many. Catches a sampler whose number of
    evaluations is not foreseen."""
    uncached("Flux", sampler)
    model, asked = comfy.cached(tiny("Flux").model, target_speedup=float(speedup)), []

    def note(executor, *args, **kwargs):
        asked.append(None)
        return executor(*args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "note", note)
    _, levels = tiny("Flux").counting(lambda: comfy.sample(tiny("Flux"), model, sampler_name=sampler, cfg=1.0))
    calls = len(tiny("Flux").calls)
    assert calls <= math.ceil(len(asked) / speedup)
    assert calls >= math.ceil(len(asked) / speedup) - 1


@pytest.mark.verifies("schedulers", "{model}, {settings}")
@pytest.mark.parametrize("settings", ["a budget of 2", "threshold 0.3"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler(comfy, tiny, model, scheduler, settings):
    """Catches a schedule on which nothing is skipped, or whose steps lead a forecast astray."""
    given = comfy, tiny(model), "euler", scheduler, MODELS[model], 2 * STEPS
    widgets = {"a budget of 2": dict(target_speedup=2.0), "threshold 0.3": dict(threshold=0.3, warmup_steps=2)}
    plain, cached = sample(*given), sample(*given, **widgets[settings])
    assert len(cached.levels) < len(plain.levels), "nothing was skipped"
    assert psnr(cached.latent, plain.latent) > 20


@pytest.mark.parametrize(
    "model, scheduler, late",
    [("Flux", "simple", 3), ("Flux", "linear_quadratic", 6), ("SD15", "simple", 2), ("SD15", "linear_quadratic", 6)],
)
def test_a_budget_follows_the_schedule(comfy, tiny, model, scheduler, late):
    """Computed evaluations among the last 16 of 32 steps, at least. Half the steps of linear_quadratic lead from noise
    level 1 to 0.975 of the highest; spread evenly over steps, half a budget is lost on those.
    """
    from comfy.samplers import calculate_sigmas

    scene = tiny(model)
    cached = comfy.cached(scene.model, target_speedup=4.0)
    schedule = calculate_sigmas(scene.model.get_model_object("model_sampling"), scheduler, 32)
    scene.counting(lambda: comfy.sample(scene, cached, scheduler=scheduler, steps=32, cfg=1.0))
    levels = [sigma for _, sigma, _ in scene.calls]
    assert len(levels) == 8
    assert sum(sigma <= schedule[16] * 1.001 for sigma in levels) >= late
