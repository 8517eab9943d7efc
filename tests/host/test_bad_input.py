"""Bad input: a clear error that names the widget, or a harmless fall-back; never a spoilt picture."""

import logging
import math

import pytest
import torch


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        (dict(threshold=math.nan), "threshold must be a number from 0 to 1"),
        (dict(threshold=-0.1), "threshold must be a number from 0 to 1"),
        (dict(threshold=1.5), "threshold must be a number from 0 to 1"),
        (dict(warmup_steps=0), "warmup_steps must be a whole number from 1 to 50"),
        (dict(max_consecutive_skips=51), "max_consecutive_skips must be a whole number from 0 to 50"),
        (dict(start_percent=-1), "start_percent must be a number from 0 to 1"),
        (dict(end_percent=math.nan), "end_percent must be a number from 0 to 1"),
        (dict(start_percent=0.8, end_percent=0.2), "start_percent .* must not be above end_percent"),
        (dict(cache_device="tpu"), "cache_device must be one of gpu, cpu"),
    ],
)
def test_widgets_out_of_range(comfy, small_scene, widgets, message):
    """Linked inputs bypass the browser's own checks."""
    with pytest.raises(ValueError, match=message):
        comfy.cached(small_scene.model, **widgets)


def test_warmup_longer_than_the_run(comfy, small_scene):
    plain = comfy.sample(small_scene, steps=4)
    assert torch.equal(plain, comfy.sample(small_scene, comfy.cached(small_scene.model, warmup_steps=50), steps=4))


@pytest.mark.parametrize("sigmas", [[], [1.0]])
def test_zero_steps(comfy, small_scene, sigmas):
    """Empty schedules come from SplitSigmas and from denoise 0."""
    import comfy.samplers as samplers

    guider = samplers.CFGGuider(comfy.cached(small_scene.model))
    guider.set_conds(small_scene.positive, small_scene.negative)
    latent = small_scene.latent["samples"]
    result = guider.sample(
        torch.randn(latent.shape), latent, samplers.sampler_object("euler"), torch.tensor(sigmas), seed=0
    )
    assert result.shape == latent.shape


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_or_inf_from_the_network(comfy, small_scene, caplog, poison):
    """One bad evaluation (an fp16 overflow): it must not be cached, and the log must say so once."""
    network = small_scene.model.model.diffusion_model

    def spoil(module, args, kwargs, output):
        if len(small_scene.calls) == 4:
            return torch.full_like(output, poison)
        return output

    handle = network.register_forward_hook(spoil, with_kwargs=True)
    try:
        with caplog.at_level(logging.WARNING):
            _, levels = small_scene.counting(
                lambda: comfy.sample(small_scene, comfy.cached(small_scene.model, threshold=1.0, warmup_steps=4))
            )
    finally:
        handle.remove()
    assert len(levels) > 6, "after a bad evaluation the network must be asked again"
    assert sum("NaN or inf" in message for message in caplog.messages) == 1


def test_nan_in_the_latent(comfy, small_scene, caplog):
    start = torch.zeros_like(small_scene.latent["samples"])
    start[0, 0, 0, 0, 0] = math.nan
    with caplog.at_level(logging.WARNING):
        cached = comfy.cached(small_scene.model, threshold=1.0)
        small_scene.counting(lambda: comfy.sample(small_scene, cached, latent_image={"samples": start}, denoise=0.8))
    assert len(small_scene.calls) == 16, "every step is computed, as without the node"
    assert sum("NaN or inf" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("widgets", [dict(threshold=1.0), dict(target_speedup=2.0)], ids=["threshold", "budget"])
def test_why_nothing_was_skipped_of_a_latent_that_is_nan(comfy, tiny, caplog, widgets):
    """Catches a log that blames the settings or the sampler."""
    scene = tiny("SD15")
    latent = {"samples": torch.full_like(scene.latent["samples"], math.nan)}
    with caplog.at_level(logging.INFO):
        comfy.sample(scene, comfy.cached(scene.model, **widgets), latent_image=latent)
    line = caplog.messages[-1]
    assert line.endswith("Nothing was skipped: the latent or the network's output is NaN or inf")
    assert ("as nothing can be predicted from NaN or inf" in line) == ("target_speedup" in widgets)


@pytest.mark.parametrize("shown", ["a list", "nothing", "an empty latent", "words"])
def test_a_sampler_that_shows_something_else_than_its_denoised_latent(comfy, small_scene, shown):
    """Catches a run that ends with an error because of what a sampler calls back with."""
    import comfy.samplers as samplers

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
            x = denoised + (x - denoised) * following / sigma
            kinds = {"a list": [denoised], "nothing": None, "an empty latent": denoised[:0], "words": "step"}
            callback(dict(x=x, i=i, sigma=sigma, sigma_hat=sigma, denoised=kinds[shown]))
        return x

    def look(*_):
        """Stands for a preview; it takes whatever comes."""

    def sampled(model):
        guider = samplers.CFGGuider(model)
        guider.set_conds(small_scene.positive, small_scene.negative)
        guider.set_cfg(4.0)
        latent = small_scene.latent["samples"]
        sampler, sigmas = samplers.KSAMPLER(sample), torch.linspace(1, 0, 9)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return guider.sample(noise, latent, sampler, sigmas, callback=look, seed=0)

    try:
        sampled(small_scene.model)
    except AttributeError as error:
        pytest.skip(f"this ComfyUI looks into it itself: {error}")
    assert sampled(comfy.cached(small_scene.model, target_speedup=2.0)).isfinite().all()
