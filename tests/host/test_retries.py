"""Evaluations that fail and are tried again, by a sampler, a guider or another pack's wrapper."""

import pytest
import torch
from sampling import STEPS, answering_by_prompt, ask, guiding, plain_prompt

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = {"positive": plain_prompt(0.5), "negative": plain_prompt(-0.5)}
SETTINGS = [dict(target_speedup=2.0), dict(target_speedup=2.0, predictor="reuse"), dict(threshold=0.15, warmup_steps=2)]


class Fault(RuntimeError):
    """What goes wrong, and is over soon."""


def trying_again(call, by):
    """call, or, for those whose turn it is to catch a fault, call that is tried again."""

    def try_again(*args, **kwargs):
        try:
            return call(*args, **kwargs)
        except Fault:
            return call(*args, **kwargs)

    return try_again if by else call


def euler(by):
    @torch.no_grad()
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        def denoise(x, sigma):  # with a new timestep each time
            return model(x, sigma * x.new_ones([len(x)]), **extra_args)

        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = trying_again(denoise, by == "sampler")(x, sigma)
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    return sampler


class Failing:
    """A guider that asks two prompts in a call each. At each step the network fails in the one or in the other, or the
    guider does when it has both answers, or nothing at all. nested: it has a guider for each prompt.
    """

    def __init__(self, by, faults, past_predict_noise=False, nested=False):
        self._by, self._past, self._nested = by, past_predict_noise, nested
        unseen = by != "sampler" or past_predict_noise  # the answers are asked for twice, and nobody tells why
        self._places = [1, 2, None if unseen else "guider", None] if faults else [None]
        self._evaluations, self._sigma = -1, None

    def patch(self, model):
        model = answering_by_prompt(model)
        network = model.model_options["model_function_wrapper"]

        def wrapper(*args):
            self._calls += 1
            self._fail_in(self._calls)
            return network(*args)

        model.set_model_unet_function_wrapper(wrapper)
        return model

    def _fail_in(self, place):
        if self._place == place:
            self._place = None
            raise Fault

    @staticmethod
    def _ask_a_guider(guider, names, x, timestep, options):
        inner = guiding(guider.model_patcher, {}, lambda inner, *args: ask(guider, names, *args)[0])
        inner.inner_model, inner.model_options = guider.inner_model, guider.model_options
        return [inner(x, timestep, options)]

    def __call__(self, model):
        def predict(guider, x, timestep, options):
            if self._sigma != float(timestep[0]):
                self._evaluations, self._sigma, self._calls = self._evaluations + 1, float(timestep[0]), 0
                self._place = self._places[self._evaluations % len(self._places)]
            asking = trying_again(self._ask_a_guider if self._nested else ask, self._by == "guider")
            (cond,), (uncond,) = (asking(guider, [name], x, timestep, options) for name in ("positive", "negative"))
            self._fail_in("guider")
            return uncond + 2.0 * (cond - uncond)

        guider = guiding(model, PROMPTS, trying_again(predict, self._by == "predict_noise"))
        if self._past:
            type(guider).__call__ = lambda self, *args, **kwargs: self.predict_noise(*args, **kwargs)
        return guider


@pytest.mark.parametrize(
    "kind",
    [{}, dict(past_predict_noise=True), dict(nested=True), dict(nested=True, past_predict_noise=True)],
    ids=["", "past PREDICT_NOISE", "nested", "nested, past PREDICT_NOISE"],
)
@pytest.mark.parametrize("by", ["guider", "predict_noise", "sampler"])
def test_what_fails_and_is_tried_again(tiny, run, by, kind):
    """Makes no difference. Catches a budget that is charged for it twice (3 to 13 dB less on the demo model), and a
    second try that is taken for another question, or for another step.
    """
    scene = tiny("Flux")

    def sampled(faults, **widgets):
        failing = Failing(by, faults, **kind)
        return run(scene, failing, euler(by), patch=failing.patch, **widgets)

    assert torch.equal(sampled(True, threshold=0.0).latent, sampled(False).latent)
    for widgets in SETTINGS:
        smooth, failed = sampled(False, **widgets), sampled(True, **widgets)
        assert failed.report == smooth.report and failed.report["skipped"] > 0, widgets
        assert torch.equal(failed.latent, smooth.latent), widgets
        evaluations = 2 * STEPS if "nested" in kind else STEPS
        assert len(failed.report["trace"]) == evaluations and failed.levels == smooth.levels
