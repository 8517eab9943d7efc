"""The network's weights are others from evaluation to evaluation."""

import logging

import pytest
import torch
from sampling import HALF, MIDWAY, answering_by_prompt, counting, guided, log_of, uncached

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("often", [False, True], ids=["once", "at each step"])
def test_weights_are_changed_between_evaluations(tiny, run, caplog, often):
    """As by a callback that alters the strength of a LoRA. Catches the step after that, predicted from before, and a
    log that blames the threshold.
    """
    scene = tiny("Flux")
    weights = [one for one in scene.model.model.diffusion_model.parameters() if one.ndim > 1]
    before = [one.detach().clone() for one in weights]

    def scale(factor):
        for one, kept in zip(weights, before, strict=True):
            one.data.copy_(factor * kept)

    def predict(guider, step, x, timestep, options):
        scale(1 + 0.02 * step if often else 1.5 if step >= MIDWAY else 1)
        return guided(guider, x, timestep, options)

    try:
        plain = uncached(run, scene, counting(predict), patch=answering_by_prompt)
        with caplog.at_level(logging.INFO):
            cached = run(scene, counting(predict), patch=answering_by_prompt, threshold=1.0, warmup_steps=2)
        said = log_of(caplog)
        budget = run(scene, counting(predict), patch=answering_by_prompt, **HALF)
    finally:
        scale(1)
    if often:
        assert cached.report["skipped"] == 0 and "weights change at nearly every step" in said[-1]
    else:
        assert cached.report["skipped"] > 0
        for one in (cached, budget):
            assert plain.levels[MIDWAY] in one.levels


def test_weights_that_are_there_only_while_the_network_runs(tiny, run):
    """As where each block's are fetched for its call. Catches a run that ends in an error, as somebody looks at them
    meanwhile.
    """
    scene = tiny("Flux")
    network = scene.model.model.diffusion_model
    weights = [one for one in network.parameters() if one.ndim > 1]
    kept = [one.detach().clone() for one in weights]

    def fetch(*_):
        for one, whole in zip(weights, kept, strict=True):
            one.untyped_storage().resize_(whole.untyped_storage().size())
            one.data.copy_(whole)

    def drop(*_):
        for one in weights:
            one.untyped_storage().resize_(0)

    make_guider = counting(lambda guider, step, *call: guided(guider, *call))
    always = run(scene, make_guider, patch=answering_by_prompt, **HALF)
    hooks = network.register_forward_pre_hook(fetch), network.register_forward_hook(drop)
    try:
        at_times = run(scene, make_guider, patch=answering_by_prompt, **HALF)
        assert at_times.report["skipped"] > 0 and torch.equal(at_times.latent, always.latent)
    finally:
        fetch()
        for hook in hooks:
            hook.remove()


class Packed(torch.Tensor):
    """Quantised weights as packs hold them: bytes, under the shape of what they stand for."""

    @property
    def shape(self):
        return self.stands_for


def test_weights_that_are_packed(tiny, run):
    """And are unpacked for each call. Catches an error where somebody looks at them, and a change of weights that is
    none, as they lie elsewhere each time.
    """
    scene = tiny("Flux")
    owners = [(one, name) for one in scene.model.model.diffusion_model.modules()
              for name, weight in one.named_parameters(recurse=False) if weight.ndim > 1]  # fmt: skip
    kept = [owner._parameters[name] for owner, name in owners]

    def pack():
        for (owner, name), one in zip(owners, kept, strict=True):
            packed = one.detach().clone().view(-1).view(torch.uint8).as_subclass(Packed)
            packed.stands_for = one.shape
            owner._parameters[name] = torch.nn.Parameter(packed, requires_grad=False)

    def unpack():
        for (owner, name), one in zip(owners, kept, strict=True):
            owner._parameters[name] = one

    def patch(model):
        def wrapper(network, given):
            unpack()
            answer = inner(network, given)
            pack()
            return answer

        model = answering_by_prompt(model)
        inner = model.model_options["model_function_wrapper"]
        model.set_model_unet_function_wrapper(wrapper)
        return model

    make_guider = counting(lambda guider, step, *call: guided(guider, *call))
    plain = run(scene, make_guider, patch=answering_by_prompt, **HALF)
    try:
        pack()
        packed = run(scene, make_guider, patch=patch, **HALF)
    finally:
        unpack()
    assert packed.report["skipped"] and packed.calls == plain.calls and torch.equal(packed.latent, plain.latent)
