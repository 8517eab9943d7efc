"""Samplers whose noise levels are not those of a plain schedule, each evaluated once."""

import functools
import itertools
import json
import logging
import math

import pytest
import torch
from closeness import psnr
from sampling import (
    BUDGET,
    HALF,
    STEPS,
    THRESHOLD_OR_BUDGET,
    asking_twice,
    both,
    check_counts,
    guided,
    guiding,
    log_of,
    pair,
    schedule,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@THRESHOLD_OR_BUDGET
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_a_sampler_with_a_schedule_of_its_own(comfy, tiny, run, caplog, name, widgets):
    """It is given [0, 0]. Catches a cache that takes this for the schedule: nothing is skipped, and the log blames the
    settings.
    """
    from comfy.k_diffusion.sampling import sample_euler

    scene = tiny(name)
    own = schedule(comfy, scene)

    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) * own[0]
        return sample_euler(model, x, own, extra_args, callback, disable)

    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain, exact = (run(scene, make_guider, sampler, torch.zeros(2), **given) for given in ({}, dict(threshold=0.0)))
    assert torch.equal(exact.latent, plain.latent)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, sampler, torch.zeros(2), **widgets)
    check_counts(cached, plain.calls)
    assert len(cached.levels) <= (math.ceil(STEPS / 4) if widgets == BUDGET else STEPS * 0.7)
    assert cached.report["steps"] == cached.report["evaluations"] == STEPS
    assert psnr(cached.latent, plain.latent) > 5
    assert sum("schedule of its own" in line for line in log_of(caplog)) == 1
    assert not any("Nothing was skipped" in line for line in log_of(caplog))


@pytest.mark.parametrize("churn", [2.0, 40.0])
@pytest.mark.parametrize("name", ["SD15", "WAN21_T2V"])
def test_a_sampler_that_churns(tiny, run, caplog, name, churn):
    """It adds noise before each evaluation, which is then above the schedule's levels. Catches a schedule that is taken
    for one of the sampler's own: the last evaluation is predicted (1 to 6 dB on the demo model), and the log is wrong.
    """
    from comfy.samplers import ksampler

    scene = tiny(name)
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)

    def sampled(**widgets):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            return run(scene, make_guider, ksampler("euler", {"s_churn": churn}), **widgets)

    plain, exact = sampled(), sampled(threshold=0.0)
    assert torch.equal(exact.latent, plain.latent)
    cached = sampled(target_speedup=2.0)
    check_counts(cached, plain.calls)
    assert cached.report["computed"] == STEPS / 2 and cached.report["trace"][-1]["computed"]
    assert len(log_of(caplog)) == 1 and "own" not in caplog.text and "more than it allows" not in caplog.text
    assert psnr(cached.latent, plain.latent) > 10


def with_noise(x, sigma, following, rng, flow=True):
    """The latent at a higher noise level."""
    kept = (1 - following) / (1 - sigma) if flow else 1.0
    return kept * x + (following**2 - (kept * sigma) ** 2).sqrt() * torch.randn(x.shape, generator=rng)


def with_restarts(sigmas, low, high, restarts):
    """The schedule, with so many restarts of three steps from its first level that is no higher than `low`."""
    at = int((sigmas > low).sum())
    segment = torch.linspace(high, float(sigmas[at]), 4)
    return torch.cat([sigmas[: at + 1], *[segment] * restarts, sigmas[at + 1 :]])


@torch.no_grad()
def restarting(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler steps; where the noise levels rise, noise is added and nothing is evaluated."""
    rng, one, step = torch.Generator().manual_seed(6), x.new_ones([len(x)]), 0
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        if following > sigma:
            x = with_noise(x, sigma, following, rng, flow=bool(sigmas[0] <= 1))
            continue
        denoised = model(x, sigma * one, **extra_args)
        step += 1
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


@pytest.mark.parametrize("widgets", [dict(threshold=0.1), BUDGET], ids=["threshold", "budget"])
@pytest.mark.parametrize("restarts", [1, 2, 4])
@pytest.mark.parametrize(("name", "low", "high"), [("SD15", 0.5, 2.0), ("Flux", 0.4, 0.7)])
def test_restarts(comfy, tiny, run, name, low, high, restarts, widgets):
    """The noise level rises again within a run. Catches rises that are counted as steps: the last evaluation, which
    draws the detail, is then predicted.
    """
    scene = tiny(name)
    sigmas = with_restarts(schedule(comfy, scene), low, high, restarts)
    evaluations = STEPS + 3 * restarts
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain, cached = (run(scene, make_guider, restarting, sigmas, **given) for given in ({}, widgets))
    assert min(plain.levels) in cached.levels and cached.report["trace"][-1]["computed"]
    assert cached.report["steps"] == cached.report["evaluations"] == plain.calls.total() == evaluations
    assert cached.report["computed"] == cached.calls.total() < evaluations
    if widgets == BUDGET:
        assert math.ceil(evaluations / 4) - 1 <= cached.calls.total() <= math.ceil(evaluations / 4)
    else:
        assert psnr(cached.latent, plain.latent) > 10


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_budget_is_placed_around_restarts(comfy, demo_scene, run, restarts):
    """The schedule says where they are. Catches a budget that is spent evenly over all steps (8 dB less), or that
    skips the first look after noise was added.
    """
    sigmas = with_restarts(schedule(comfy, demo_scene, 20), 0.2, 0.5, restarts)
    latent = {"samples": demo_scene.latent["samples"][:, :, :2]}
    make_guider, evaluations = functools.partial(guiding, conds=pair(demo_scene), predict=guided), 20 + 3 * restarts
    plain, cached = (run(demo_scene, make_guider, restarting, sigmas, latent, **widgets) for widgets in ({}, HALF))
    trace = cached.report["trace"]
    assert cached.report["computed"] == math.ceil(evaluations / 2) and trace[-1]["computed"]
    rises = [after for before, after in itertools.pairwise(trace) if after["sigma"] > before["sigma"]]
    assert len(rises) == restarts and all(record["computed"] for record in rises)
    assert psnr(cached.latent, plain.latent) > {1: 26, 2: 20}[restarts]


@pytest.mark.parametrize("widgets", [HALF, dict(threshold=0.3, warmup_steps=2)], ids=["budget", "threshold"])
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_short_restarts(comfy, tiny, run, name, widgets):
    """Noise is added at the seventh and the eleventh level, back to the one that is two before. Catches a latent full
    of new noise that is answered from the one before, as the level is no higher than where the sampler just was.
    """
    scene = tiny(name)
    sigmas = schedule(comfy, scene)[[*range(8), 5, 6, *range(7, 12), 9, 10, *range(11, STEPS + 1)]]
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain = run(scene, make_guider, restarting, sigmas)
    cached = run(scene, make_guider, restarting, sigmas, **widgets)
    trace = cached.report["trace"]
    risen = [after for before, after in itertools.pairwise(trace) if after["sigma"] > before["sigma"]]
    assert len(trace) == STEPS + 4 and len(risen) == 2 and all(record["computed"] for record in risen)
    assert cached.report["computed"] <= len(trace) * 0.7 and psnr(cached.latent, plain.latent) > 31


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "heunpp2"])
def test_nearly_everything_is_skipped_with_two_evaluations_per_step(tiny, run, sampler):
    """Catches steps that are counted twice, and a division by zero where hardly anything is computed."""
    scene = tiny("SD15")
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain = run(scene, make_guider, sampler)
    cached = run(scene, make_guider, sampler, target_speedup=10.0)
    evaluations = plain.calls.total()
    assert cached.report["evaluations"] == evaluations
    assert cached.report["computed"] == cached.calls.total() <= math.ceil(evaluations / 10)
    assert cached.report["speedup"] == pytest.approx(evaluations / cached.calls.total())


def inner_iterations(count):
    """A sampler that moves the latent so often at each noise level, with noise, before it takes an Euler step."""

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        rng, one = torch.Generator().manual_seed(4), x.new_ones([len(x)])
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            for _ in range(count):
                drift = (1 - sigma) * model(x, sigma * one, **extra_args) - x
                x = x + 0.1 * drift + 0.4 * sigma * torch.randn(x.shape, generator=rng)
            denoised = model(x, sigma * one, **extra_args)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    return sampler


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("speedup", [2.0, 3.0, 6.0])
def test_the_last_of_several_evaluations_per_step(tiny, run, count, speedup):
    """Catches a budget that is spent at the first evaluation of the last step: the last one draws the detail."""
    scene = tiny("Flux")
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    cached = run(scene, make_guider, inner_iterations(count), target_speedup=speedup)
    evaluations = (count + 1) * STEPS
    assert cached.report["evaluations"] == evaluations and cached.report["trace"][-1]["computed"]
    assert math.ceil(evaluations / speedup) - 2 <= cached.report["computed"] <= math.ceil(evaluations / speedup)


@torch.no_grad()
def looking_ahead(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Ancestral steps of second order, of flow models: the second look is far ahead; noise leads back from there."""
    rng, one = torch.Generator().manual_seed(6), x.new_ones([len(x)])
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma * one, **extra_args)
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        if following == 0:
            return denoised
        down = 0.5 * following
        between = (sigma * down).sqrt()
        ahead = x + (between - sigma) * (x - denoised) / sigma
        x = x + (down - sigma) * (ahead - model(ahead, between * one, **extra_args)) / between
        x = with_noise(x, down, following, rng)


@pytest.mark.parametrize("speedup", [2.0, 3.0])
@pytest.mark.parametrize("scheduler", ["simple", "beta"])
def test_a_sampler_that_looks_ahead(comfy, tiny, run, scheduler, speedup):
    """Catches the way to its second look being taken for its stride, each of which could be the last one: the budget is
    spent on these, more than it allows, and nothing is left for the end.
    """
    scene = tiny("Flux")
    sigmas = comfy.node("BasicScheduler", scene.model, scheduler, STEPS, 1.0)[0]
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    cached = run(scene, make_guider, looking_ahead, sigmas, target_speedup=speedup)
    evaluations, trace = 2 * STEPS - 1, cached.report["trace"]
    assert len(trace) == evaluations and trace[-1]["computed"]
    assert cached.report["computed"] <= math.ceil(evaluations / speedup)


@torch.no_grad()
def coming_back(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Implicit steps: each is evaluated again where it began, with what was seen ahead, and told of twice. The last one
    does not end at 0.
    """
    one = x.new_ones([len(x)])
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma * one, **extra_args)
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        to = following if following > 0 else 0.3 * sigma
        ahead = model(x + (to - sigma) * (x - denoised) / sigma, to * one, **extra_args)
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": ahead})
        denoised = model(x + 0.1 * (ahead - denoised), sigma * one, **extra_args)
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


@pytest.mark.parametrize("predictor", ["forecast", "reuse"])
def test_a_sampler_that_looks_ahead_and_comes_back(tiny, run, caplog, predictor):
    """Catches a look ahead in the last step that is taken for a step of the sampler's own: the evaluation it comes back
    to, which draws the detail, is predicted.
    """
    make_guider = functools.partial(guiding, conds=pair(tiny("Flux")), predict=both)
    with caplog.at_level(logging.INFO):
        cached = run(tiny("Flux"), make_guider, coming_back, threshold=0.3, warmup_steps=2, predictor=predictor)
    assert cached.report["evaluations"] == 3 * STEPS and cached.report["computed"] < 2 * STEPS
    assert cached.report["trace"][-1]["computed"]
    assert not any("the last evaluation was predicted" in line for line in log_of(caplog))


LEVELS = {
    "every second one": lambda sigmas: sigmas[::2],
    "some of them": lambda sigmas: sigmas[[0, 1, 2, 4, 5, 8, 9, 12, 13, 16]],
    "one between the last ones": lambda sigmas: torch.cat([sigmas[:-3], 0.9 * sigmas[-3:-2], sigmas[-1:]]),
}


@THRESHOLD_OR_BUDGET
@pytest.mark.parametrize("levels", LEVELS)
def test_a_sampler_that_leaves_levels_out(tiny, run, caplog, levels, widgets):
    """Catches a last evaluation that is predicted, as the schedule has levels below, and a budget that is exceeded
    without a word.
    """
    scene = tiny("Flux")

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        sigmas = LEVELS[levels](sigmas)
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = model(x, sigma * x.new_ones([len(x)]), **extra_args)
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    plain = run(scene, make_guider, sampler)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, sampler, **widgets)
    check_counts(cached, plain.calls)
    assert min(plain.levels) in cached.levels and len(cached.levels) < len(plain.levels)
    beyond = widgets == BUDGET and len(cached.levels) > math.ceil(len(plain.levels) / 4)
    assert any("fewer evaluations than its schedule has steps" in line for line in log_of(caplog)) == beyond


def solver(places, per_step=1, calls_back=True, shift=1.0):
    """A sampler that goes from the first of its levels to the last one in Euler steps of its own, to these places in
    between, from 0 to 1, in the time of a flow model with that shift. It calls back after so many of them, or never.
    """

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        times = sigmas / (shift - (shift - 1) * sigmas)
        times = times[0] + (times[-1] - times[0]) * torch.tensor(places)
        own = shift * times / (1 + (shift - 1) * times)
        for i, (sigma, following) in enumerate(zip(own[:-1], own[1:], strict=True)):
            denoised = model(x, sigma * x.new_ones([len(x)]), **extra_args)
            if calls_back and i % per_step == per_step - 1:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    return sampler


EVENLY = [i / 24 for i in range(25)]
SOLVERS = {
    "even steps": solver(EVENLY),
    "without a callback": solver(EVENLY, calls_back=False),
    "steps that become shorter": solver([1 - (1 - i / 24) ** 2 for i in range(25)]),
    "steps that become longer": solver([(i / 24) ** 1.5 for i in range(25)]),
    "steps of a shifted schedule": solver(EVENLY, shift=8.0),
    "five evaluations per step": solver(
        [0.2 * n + at for n in range(5) for at in (0, 0.04, 0.06, 0.16, 0.18)] + [1.0], 5
    ),
}


@pytest.mark.in_turn("kind")
@pytest.mark.parametrize("widgets", [dict(threshold=0.3, warmup_steps=2), HALF, dict(HALF, predictor="reuse"), BUDGET])
@pytest.mark.parametrize("given", [(1, 0), (2, 0), (4, 0), (1, 0.5), (4, 0.5)], ids="{0[0]} levels to {0[1]}".format)
@pytest.mark.parametrize("kind", SOLVERS)
def test_a_solver_that_is_given_few_levels(comfy, demo_scene, run, caplog, kind, given, widgets):
    """It takes steps of its own between them (ComfyUI-ODE). Catches all that it evaluates below the last level being
    computed as the last one, beyond any budget; and a last one that is predicted.
    """
    latent = {"samples": demo_scene.latent["samples"][:, :, :2, :8, :8]}

    def make_guider(model):
        return guiding(comfy.node("ModelSamplingSD3", model, 8.0)[0], pair(demo_scene), both)

    (levels, end), speedup = given, widgets.get("target_speedup")
    with caplog.at_level(logging.INFO):
        cached = run(demo_scene, make_guider, SOLVERS[kind], torch.linspace(1, end, levels + 1), latent, **widgets)
    evaluations = len(cached.report["trace"])
    assert evaluations in (24, 25) and cached.report["trace"][-1]["computed"]
    allowed = math.ceil(evaluations / speedup) if speedup else 0.75 * evaluations
    assert cached.report["computed"] <= allowed + (2 if speedup else 0)
    if speedup:
        beyond = any("as what may be the last one is computed" in line for line in log_of(caplog))
        assert beyond == (cached.report["computed"] > allowed)


@pytest.mark.parametrize("predictor", ["forecast", "reuse"])
def test_what_is_asked_twice_is_computed_once(comfy, demo_scene, run, predictor):
    """Catches a budget that is spent on answers which are known already: then a quarter of the levels is forecast."""
    latent = {"samples": demo_scene.latent["samples"][:, :, :2, :8, :8]}
    make_guider = functools.partial(guiding, conds=pair(demo_scene), predict=both)
    plain = run(demo_scene, make_guider, asking_twice, latent=latent)
    cached = run(demo_scene, make_guider, asking_twice, latent=latent, predictor=predictor, **HALF)
    assert cached.report["computed"] == STEPS and len(cached.levels) >= STEPS - 1
    assert cached.report["trace"][-1]["computed"] and psnr(cached.latent, plain.latent) > 15


def staggered(lag):
    """A sampler in which each row of a batch is so many steps behind the one before (diffusion forcing)."""

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        steps, rows = len(sigmas) - 1, torch.arange(len(x))
        for i in range(steps + lag * (len(x) - 1)):
            at = (i - lag * rows).clamp(0, steps)
            level, following = sigmas[at.clamp(max=steps - 1)], sigmas[(i + 1 - lag * rows).clamp(0, steps)]
            denoised = model(x, level, **extra_args)
            callback({"x": x, "i": i, "sigma": level.max(), "sigma_hat": level.max(), "denoised": denoised})
            x = x + ((following - sigmas[at]) / level).view(-1, *[1] * (x.ndim - 1)) * (x - denoised)
        return x

    return sampler


@pytest.mark.parametrize("lag", [1, 4])
def test_rows_that_are_some_steps_behind_one_another(demo_scene, run, caplog, lag):
    """Catches a latent that is taken for turned, as its rows go each their own way: all that was known of it is dropped
    then, and the last evaluation predicted (10 dB).
    """
    channels = demo_scene.latent["samples"].shape[1]
    latent = {"samples": torch.zeros(3, channels, 2, 8, 8)}
    make_guider = functools.partial(guiding, conds=pair(demo_scene), predict=guided)
    plain = run(demo_scene, make_guider, staggered(lag), latent=latent)
    for widgets in (HALF, dict(threshold=0.15, warmup_steps=2)):
        with caplog.at_level(logging.INFO):
            cached = run(demo_scene, make_guider, staggered(lag), latent=latent, **widgets)
        assert cached.report["skipped"] and cached.report["trace"][-1]["computed"]
        assert psnr(cached.latent, plain.latent) > 14, widgets
    assert "turns its latent" not in caplog.text


@pytest.mark.parametrize("steps", [12, 13, 20])
def test_a_sampler_that_combines_evaluations(comfy, demo_scene, steps):
    """dpm_fast takes as many evaluations as the schedule has steps, at other noise levels. Catches a budget that is
    spent blindly (31.9 instead of 57.7 dB), and a last evaluation that is predicted.
    """
    options = dict(sampler_name="dpm_fast", steps=steps)
    plain = comfy.sample(demo_scene, **options)
    for widgets in (dict(target_speedup=2.0), dict(threshold=0.1)):
        model = comfy.cached(demo_scene.model, **{"warmup_steps": 2, **widgets})
        cached = comfy.sample(demo_scene, model, **options)
        report = json.loads(comfy.node("EasyCacheReport", model, {"samples": cached})[2])
        assert report["evaluations"] == steps and report["trace"][-1]["computed"] and report["skipped"]
        assert report["computed"] == math.ceil(steps / 2) or "threshold" in widgets
        assert psnr(cached, plain) > (17 if steps < 20 else 35)


@pytest.mark.parametrize("back", range(3, 7))
def test_a_sampler_that_takes_steps_again(tiny, run, caplog, back):
    """It goes back to a latent that it had some steps before. Catches a log that says of a budget that is exceeded that
    there were too few evaluations, where there were more than steps.
    """

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        before, i, turned = {}, 0, False
        while i < STEPS:
            before[i] = x
            denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **extra_args)
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
            x, i = x + (sigmas[i + 1] - sigmas[i]) * (x - denoised) / sigmas[i], i + 1
            if i == STEPS / 2 and not turned:
                i, turned = i - back, True
                x = 0.95 * before[i]
        return x

    scene = tiny("Flux")
    with caplog.at_level(logging.INFO):
        cached = run(scene, functools.partial(guiding, conds=pair(scene), predict=both), sampler, target_speedup=2.0)
    assert cached.report["evaluations"] == STEPS + back and cached.report["skipped"]
    assert not any("fewer evaluations than" in line for line in log_of(caplog))


@pytest.mark.parametrize("left_out", [0, 2, 4])
def test_a_sampler_that_stops_early(tiny, run, caplog, left_out):
    """Without a sign, so that its last evaluation may be predicted. Catches a log that does not say so."""
    scene = tiny("Flux")

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i, (sigma, following) in enumerate(zip(sigmas[: -1 - left_out], sigmas[1:], strict=False)):
            denoised = model(x, sigma * x.new_ones([len(x)]), **extra_args)
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    with caplog.at_level(logging.INFO):
        cached = run(scene, functools.partial(guiding, conds=pair(scene), predict=both), sampler, target_speedup=2.0)
    computed = cached.report["trace"][-1]["computed"]
    assert computed == (left_out == 0) and cached.report["closeness"] is None
    said = "the last evaluation was predicted, as nothing told that it was the last"
    assert (said in caplog.text) != computed


@torch.no_grad()
def plain_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Of another pack, so that nothing is known of it."""
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma * x.new_ones([len(x)]), **extra_args)
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


@pytest.mark.parametrize("sampler", ["euler", plain_euler], ids=["euler", "another pack's"])
def test_a_picture_is_unsampled(comfy, demo_scene, run, sampler):
    """Catches the third evaluation being skipped, where two of a picture without noise are all that is known."""
    sigmas = comfy.node("FlipSigmas", schedule(comfy, demo_scene, 20))[0][:-1]
    picture = {"samples": comfy.sample(demo_scene, steps=12)}
    make_guider = functools.partial(guiding, conds=pair(demo_scene), predict=both)
    plain = run(demo_scene, make_guider, sampler, sigmas, picture)
    cached, reused = (
        run(demo_scene, make_guider, sampler, sigmas, picture, target_speedup=2.0, predictor=predictor)
        for predictor in ("forecast", "reuse")
    )
    assert cached.report["computed"] == 10 and cached.report["trace"][2]["computed"]
    assert psnr(cached.latent, plain.latent) > max(15, psnr(reused.latent, plain.latent))
