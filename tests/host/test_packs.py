"""What real packs do to a run, imitated in a few lines (docs/works_with.md has figures with the packs themselves)."""

import json
import math

import pytest
import torch
from closeness import psnr
from sampling import renewing_the_noise

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 16
THRESHOLD, BUDGET = dict(threshold=0.3, warmup_steps=3), dict(target_speedup=2.0)
THRESHOLD_OR_BUDGET = pytest.mark.parametrize("widgets", [THRESHOLD, BUDGET], ids=["threshold", "budget"])


@pytest.fixture
def run(comfy):
    """run(scene, sampler function, guider class, **widgets): (latent, noise levels of the network's calls, report)."""

    def run(scene, sampler, kind=None, flip=None, **widgets):
        import comfy.samplers as samplers

        model = comfy.cached(scene.model, **widgets) if widgets else scene.model
        guider = (kind or samplers.CFGGuider)(model)
        guider.inner_set_conds({"positive": scene.positive, "negative": scene.negative})
        guider.set_cfg(4.0)
        noise, sigmas = comfy.node("RandomNoise", 5)[0], comfy.node("BasicScheduler", model, "simple", STEPS, 1.0)[0]
        sigmas = sigmas if flip is None else flip(sigmas)
        given = noise, guider, samplers.KSAMPLER(sampler), sigmas, scene.latent
        latent, levels = scene.counting(lambda: comfy.node("SamplerCustomAdvanced", *given)[0]["samples"])
        calls = [sigma for _, sigma, _ in scene.calls]
        report = json.loads(comfy.node("EasyCacheReport", model, {"samples": latent})[2]) if widgets else None
        assert latent.isfinite().all()
        return latent, calls, report

    return run


def exact(run, *args):
    """The uncached run, to which one with threshold 0 is bit-identical."""
    plain = run(*args)
    assert torch.equal(run(*args, threshold=0.0)[0], plain[0])
    return plain


def two_answers():
    """A guider that returns two latents per evaluation, of which the sampler uses both."""
    from comfy.samplers import CFGGuider, calc_cond_batch, cfg_function

    class Guider(CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            conds = self.conds["positive"], self.conds["negative"]
            answers = calc_cond_batch(self.inner_model, list(conds), x, timestep, model_options)
            return tuple(cfg_function(self.inner_model, *answers, scale, x, timestep) for scale in (4.0, -0.5))

    return Guider


@torch.no_grad()
def langevin(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Three noisy iterations at each level, then the step, for which the sampler's latent is written over in place."""
    rng, one = torch.Generator().manual_seed(4), x.new_ones([len(x)])
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        inner = x.clone()
        for _ in range(3):
            denoised, other = model(inner, sigma * one, **extra_args)
            inner = inner + 0.1 * (0.9 * denoised + 0.1 * other - inner)
            inner += 0.05 * sigma * torch.randn(x.shape, generator=rng)
        denoised, _ = model(inner, sigma * one, **extra_args)
        x.copy_(inner)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


@THRESHOLD_OR_BUDGET
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_langevin_iterations_at_each_noise_level(tiny, run, name, widgets):
    """Inpainting does them. Catches a step for each iteration, a cached tensor that the sampler writes over, and a
    guider that must return one latent.
    """
    scene = tiny(name)
    latent, calls, _ = exact(run, scene, langevin, two_answers())
    cached, computed, report = run(scene, langevin, two_answers(), **widgets)
    assert report["steps"] == STEPS and report["evaluations"] == 4 * STEPS == len(calls)
    assert report["computed"] == len(computed) < 4 * STEPS * 0.9
    assert computed[-1] == calls[-1], "the last evaluation draws the detail"
    if widgets == BUDGET:
        assert len(computed) <= 2 * STEPS
    assert psnr(cached, latent) > 15


def telling_another_level(factor):
    """Euler steps whose network is told a noise level that is not the sampler's, to draw more or less detail."""

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        one, steps = x.new_ones([len(x)]), len(sigmas) - 1
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            told = sigma * (1 + (factor - 1) * math.sin(math.pi * (i + 1) / steps) if i < steps - 1 else factor)
            denoised = model(x, told * one, **extra_args)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    return sampler


@THRESHOLD_OR_BUDGET
@pytest.mark.parametrize("factor", [0.7, 1.05])
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_a_network_that_is_told_another_noise_level(tiny, run, name, factor, widgets):
    """Catches a last evaluation that is known by its noise level only: told a higher one, it would be predicted."""
    scene, sampler = tiny(name), telling_another_level(factor)
    latent, calls, _ = exact(run, scene, sampler)
    cached, computed, report = run(scene, sampler, **widgets)
    assert report["steps"] == report["evaluations"] == STEPS
    assert report["computed"] == len(computed) < STEPS
    assert computed[-1] == calls[-1] and report["trace"][-1]["computed"]
    if widgets == BUDGET:
        assert len(computed) == STEPS / 2
    assert psnr(cached, latent) > 15


def stages_of(numbers):
    """Steps of so many evaluations, after the last of which the sampler calls back. (noise levels by step, sampler)."""
    steps = []

    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        steps.clear()
        one = x.new_ones([len(x)])
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            for stage in range(numbers[i]):
                steps.append(i)
                denoised = model(x, sigma * one, **extra_args)
                to = sigma + (following - sigma) * (stage + 1) / numbers[i]
                x, sigma = x + (to - sigma) * (x - denoised) / sigma, to
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        return x

    return steps, sampler


@THRESHOLD_OR_BUDGET
@pytest.mark.parametrize(
    "numbers",
    [[2, 2] + [1] * 12 + [2, 1], [4] * 8 + [3] * 4 + [2] * 3 + [1], [3] * STEPS],
    ids=["more at first and before the last", "fewer and fewer", "always three"],
)
def test_steps_of_several_evaluations_that_end_with_a_callback(tiny, run, numbers, widgets):
    """Catches steps that are counted one behind: a budget then keeps its last evaluation for a step that never comes,
    and nothing is computed in the last one.
    """
    scene, (steps, sampler) = tiny("SD15"), stages_of(numbers)
    latent, calls, _ = exact(run, scene, sampler)
    cached, computed, report = run(scene, sampler, **widgets)
    assert report["steps"] == STEPS and report["evaluations"] == len(calls) == sum(numbers)
    assert [record["step"] for record in report["trace"]] == steps
    assert report["computed"] == len(computed) < len(calls)
    assert computed[-1] <= calls[-numbers[-1]], "the last step draws the detail"
    if widgets == BUDGET:
        kept_for_nothing = numbers[-1] < numbers[-2]  # the last step has fewer evaluations than the one before
        assert 0 <= math.ceil(sum(numbers) / 2) - len(computed) <= kept_for_nothing
    assert psnr(cached, latent) > 10


@THRESHOLD_OR_BUDGET
def test_a_flipped_schedule_with_a_level_that_repeats(tiny, run, widgets):
    """A picture is unsampled, from a level near 0 that is there twice. Catches a schedule whose rises are all taken for
    added noise: it then has one step, and a threshold skips nothing in it. And catches an estimate of the noise's
    closeness, which was 14 dB too good on the demo model.
    """
    from comfy.k_diffusion.sampling import sample_euler

    def flip(sigmas):
        upwards = sigmas.flip(0)
        return torch.cat([upwards.new_full([2], 1e-4), upwards[1:-1]])

    given = tiny("Flux"), sample_euler
    latent, calls, _ = run(*given, flip=flip)
    assert torch.equal(run(*given, flip=flip, threshold=0.0)[0], latent)
    cached, computed, report = run(*given, flip=flip, **widgets)
    assert report["steps"] == report["evaluations"] == len(calls) == STEPS
    assert report["computed"] == len(computed) < STEPS and report["closeness"] is None
    if widgets == BUDGET:
        assert len(computed) == STEPS / 2
    assert psnr(cached, latent) > 10


def own_wrapper(executor, *args, **kwargs):
    return executor(*args, **kwargs)


@pytest.mark.parametrize("place", ["the model's", "the options'"])
def test_a_pack_that_puts_its_wrappers_in_place_of_others(comfy, tiny, place):
    """Catches a cache that is gone once a node behind ours has replaced all wrappers of its kind, and a run that is
    cached twice where it has not.
    """
    from comfy.patcher_extension import WrappersMP

    scene = tiny("SD15")
    model, foreign = comfy.cached(scene.model, **BUDGET).clone(), {WrappersMP.OUTER_SAMPLE: {None: [own_wrapper]}}
    if place == "the model's":
        model.wrappers.update(foreign)
    else:
        model.model_options["transformer_options"]["wrappers"] = foreign
    samples, computed = scene.counting(lambda: comfy.sample(scene, model, steps=STEPS))
    assert len(computed) == STEPS / 2
    report = json.loads(comfy.node("EasyCacheReport", model, {"samples": samples})[2])
    assert report["evaluations"] == STEPS and report["computed"] == STEPS / 2


def test_the_log_says_that_noise_cannot_be_forecast(tiny, run, caplog):
    """With a budget; under a threshold nothing is skipped there. Catches a picture that drifts away without a word, and
    such a word where a sampler adds no noise.
    """
    scene, says = tiny("Flux"), "adds noise, or moves the latent as noise does"
    with caplog.at_level("INFO", logger="easycache"):
        _, computed, _ = run(scene, renewing_the_noise, **BUDGET)
        assert len(computed) == STEPS / 2 and says in caplog.text
        caplog.clear()
        run(scene, renewing_the_noise, **THRESHOLD)
        run(scene, telling_another_level(1.05), **BUDGET)
    assert "skipped" in caplog.text and says not in caplog.text
