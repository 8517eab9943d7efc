"""Networks with a memory."""

import functools
import logging

import pytest
import torch
from sampling import STEPS, THRESHOLD, ask, both, guiding, log_of, pair, schedule

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def block_by_block(model, x, sigmas, extra_args=None, callback=None, disable=None, blocks=1):
    """Each block of rows from noise to picture, then once more at no noise, for the network to remember it."""
    options = extra_args["model_options"]["transformer_options"]
    kept, done = [{"sums": [], "end": 0} for _ in range(2)], []
    try:
        for block in x.chunk(blocks, 2):
            options["state"] = {"start": len(done), "layers": kept}
            one = x.new_ones([len(x)])
            for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
                denoised = model(block, sigma * one, **extra_args)
                if callback is not None:
                    callback({"x": block, "i": 0, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
                block = block + (following - sigma) * (block - denoised) / sigma
            model(block, 0 * one + 1e-3, **extra_args)
            done.append(block)
    finally:
        options.pop("state", None)
    return torch.cat(done, 2)


def remembering(where):
    """A network that adds something of the calls before to each answer."""

    def patch(model):
        model = model.clone()

        def wrapper(network, given):
            output = network(given["input"], given["timestep"], **given["c"])
            if where == "options":
                memory = given["c"]["transformer_options"]["state"]["layers"][0]
                before = memory["sums"]
                memory["end"] += 1
            else:
                before = network.__self__.diffusion_model.__dict__.setdefault("kv_cache", [])
            output = output + 0.1 * sum(before[-4:])
            if where.endswith("overwritten") and before:
                before[0].copy_(output.mean())
            else:
                before.append(output.mean())
            return output

        model.set_model_unet_function_wrapper(wrapper)
        return model

    return patch


@pytest.mark.parametrize("widgets", [THRESHOLD, dict(target_speedup=2.0)], ids=["threshold", "budget"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("where", "blocks"),
    [("options", 1), ("options", 2), ("an attribute", 1), ("an attribute that is overwritten", 1)],
)
def test_a_network_that_remembers(tiny, run, caplog, where, blocks, widgets, mode):
    """What a call leaves behind changes the next answer, also in the mode that ComfyUI's server samples in, in which
    tensors have no version. Catches calls that are skipped, and a log that blames the settings. An attribute shows
    from the second computed step on, which a budget may leave out.
    """
    scene, network = tiny("SD15"), tiny("SD15").model.model.diffusion_model
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    sampler = functools.partial(block_by_block, blocks=blocks)

    def sample(**widgets):
        network.__dict__.pop("kv_cache", None)
        caplog.clear()
        try:
            with caplog.at_level(logging.INFO), mode():
                return run(scene, make_guider, sampler, patch=remembering(where), **widgets)
        finally:
            network.__dict__.pop("kv_cache", None)

    plain, cached = sample(), sample(**widgets)
    lines = log_of(caplog)
    assert "the network keeps what one call leaves for the next" in lines[0] and "everything is computed" in lines[0]
    if where.startswith("an attribute") and widgets != THRESHOLD:
        assert cached.calls.total() >= plain.calls.total() - 2
    else:
        assert torch.equal(cached.latent, plain.latent)
        assert cached.calls == plain.calls
        assert "for the next, in" in lines[-1] and "raise threshold" not in lines[-1]
        assert cached.report["skipped"] == 0


@pytest.mark.parametrize("widgets", [dict(threshold=1.0), dict(target_speedup=2.0)], ids=["threshold", "budget"])
@pytest.mark.parametrize("frames_per_block", [1, 2, 4])
def test_video_drawn_block_after_block(comfy, tiny, run, caplog, frames_per_block, widgets):
    """With ComfyUI's own sampler, which keeps keys and values of earlier blocks. Catches a call that is skipped."""
    from comfy import samplers, supported_models

    if not hasattr(supported_models, "WAN21_CausalAR_T2V"):
        pytest.skip("this ComfyUI has no video model that draws block after block")
    scene = tiny("WAN21_CausalAR_T2V")
    sampler = samplers.ksampler("ar_video", {"num_frame_per_block": frames_per_block})

    def predict(guider, x, timestep, options):
        return ask(guider, ["positive"], x, timestep, options)[0]

    make_guider = functools.partial(guiding, conds=pair(scene), predict=predict)
    sigmas = schedule(comfy, scene, 8)
    plain = run(scene, make_guider, sampler, sigmas)
    with caplog.at_level(logging.INFO):
        cached = run(scene, make_guider, sampler, sigmas, **widgets)
    assert torch.equal(cached.latent, plain.latent) and cached.calls == plain.calls
    assert "keeps what one call leaves for the next" in log_of(caplog)[0]


def test_notes_in_the_options_are_no_memory(tiny, run):
    """Another pack's windows note there which frames a call is about. Catches a cache that gives up for that."""
    from comfy.patcher_extension import WrappersMP

    scene = tiny("SD15")

    def patch(model):
        def note(executor, network, conds, x, timestep, options):
            notes = options["transformer_options"]["frames"]
            notes["now"], notes["calls"] = [len(notes["now"])] * (notes["calls"] % 3), notes["calls"] + 1
            return executor(network, conds, x, timestep, options)

        model = model.clone()
        model.model_options["transformer_options"]["frames"] = {"now": [], "calls": 0, "mask": (torch.ones(1),)}
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "windows", note)
        return model

    cached = run(scene, functools.partial(guiding, conds=pair(scene), predict=both), patch=patch, **THRESHOLD)
    assert len(cached.levels) < STEPS - 3


def test_a_cache_of_what_never_changes_is_no_memory(tiny, run):
    """A network keeps the keys of its prompt, from the first evaluation on. Catches a cache that gives up for that."""
    scene = tiny("SD15")

    def patch(model):
        kept = []

        def wrapper(network, given):
            network.__self__.diffusion_model.__dict__["kv_cache_of_prompts"] = kept
            if not kept:
                kept.append({"keys": torch.ones(2)})
            return network(given["input"], given["timestep"], **given["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return model

    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    try:
        cached = run(scene, make_guider, patch=patch, **THRESHOLD)
    finally:
        scene.model.model.diffusion_model.__dict__.pop("kv_cache_of_prompts", None)
    assert len(cached.levels) < STEPS - 3
