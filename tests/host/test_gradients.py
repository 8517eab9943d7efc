"""Guiders and samplers that differentiate through the network."""

import functools
import logging

import pytest
import torch
from closeness import psnr
from sampling import HALF, STEPS, THRESHOLD, THRESHOLD_OR_BUDGET, counting, direct, guided, log_of, pair, uncached

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("by", ["x", "what x is made of", "the prompt"])
@pytest.mark.parametrize("at", [range(STEPS), range(0, STEPS, 3)], ids=["always", "every third step"])
def test_a_guider_that_differentiates_through_the_network(tiny, run, caplog, at, by):
    """Catches the gradient of a prediction in place of the network's, and a run that dies as a prediction has none."""
    scene, gradients = tiny("SD15"), []

    def predict(guider, step, x, timestep, options):
        if step not in at:
            return guided(guider, x, timestep, options)
        before = len(scene.calls)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_(by != "the prompt")
            text = guider.conds["positive"][0]["model_conds"]["c_crossattn"]
            given, text.cond = text.cond, text.cond.detach().clone().requires_grad_(by == "the prompt")
            denoised = guided(guider, 1.0 * x if by == "what x is made of" else x, timestep, options)
            (gradient,) = torch.autograd.grad(denoised.square().mean(), text.cond if by == "the prompt" else x)
            text.cond = given
        gradients.append(len(scene.calls) > before)
        if by == "the prompt":
            return (denoised + gradient.mean()).detach()
        return (denoised - 0.05 * x.numel() * gradient).detach()

    make_guider = counting(predict, pair(scene))
    plain = uncached(run, scene, make_guider)
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, **HALF)
    assert all(gradients) and psnr(cached.latent, plain.latent) > 20
    assert any("differentiates through" in line for line in log_of(caplog))
    assert len(cached.levels) == len(at) + (STEPS - len(at)) // 2


@torch.no_grad()
def by_its_derivative(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Steps of second order: the derivative of the answer along the step is carried through the network with it."""
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma * x.new_ones([len(x)]), **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        slope, step, change = (x - denoised) / sigma, following - sigma, 0.0
        if following > 0:

            def answer(latent, level):
                return model(latent, level * latent.new_ones([len(latent)]), **extra_args)

            _, change = torch.func.jvp(answer, (x, sigma), (slope, torch.ones_like(sigma)))
        x = x + step * slope - 0.5 * step**2 * change / sigma
    return x


@pytest.mark.parametrize("past_predict_noise", [False, True])
@THRESHOLD_OR_BUDGET
def test_a_sampler_that_carries_a_derivative_through_the_network(tiny, run, caplog, widgets, past_predict_noise):
    """With torch.func.jvp, where no tensor asks for a gradient. Catches the derivative of a prediction in place of the
    network's, and tensors of torch.func that outlive it.
    """
    scene = tiny("SD15")
    make_guider = functools.partial(direct, scene=scene, past_predict_noise=past_predict_noise)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # others have no forward mode
        plain = uncached(run, scene, make_guider, by_its_derivative)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cached = run(scene, make_guider, by_its_derivative, **widgets)
    assert plain.calls.total() == 2 * STEPS - 1
    assert f"{STEPS - 1} calls that the guider or sampler differentiates through were computed" in log_of(caplog)[-1]
    assert cached.report["evaluations"] == STEPS and cached.report["skipped"] > 0
    assert cached.calls.total() == STEPS - 1 + cached.report["computed"]
    assert psnr(cached.latent, plain.latent) > (40 if widgets == THRESHOLD else 15)
