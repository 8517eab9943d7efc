"""Options of a run that a guider or a patch copies, or holds on to."""

import copy
import functools

import pytest
import tiny_models
import torch
from closeness import psnr
from sampling import HALF, STEPS, check_counts, direct, log_of, uncached

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("windows", [False, True], ids=["whole", "in windows"])
@pytest.mark.parametrize("widgets", [dict(threshold=0.15, warmup_steps=2), HALF], ids=["threshold", "budget"])
def test_options_that_are_copied_deeply(comfy, tiny, run, windows, widgets):
    """A patch asks the positive once more, with a deep copy of the options. Catches a copy of the whole run, network
    and cache, which knows of nothing; one of all reports before; and with windows a RecursionError.
    """
    scene, latent = tiny("WAN21_T2V"), {"samples": torch.zeros(1, 16, 7, 8, 8)}

    def again(given):
        from comfy.samplers import calc_cond_batch

        options = copy.deepcopy(given["model_options"])
        assert options["transformer_options"]["wrappers"] == given["model_options"]["transformer_options"]["wrappers"]
        options["transformer_options"]["again"] = True
        (more,) = calc_cond_batch(given["model"], given["conds"][:1], given["input"], given["timestep"], options)
        return [given["conds_out"][0] * 1.2 - more * 0.2, *given["conds_out"][1:]]

    def patch(model):
        model = model.clone()
        model.set_model_sampler_pre_cfg_function(again)
        given = dict(context_length=4, context_overlap=2, context_schedule="standard_static", context_stride=1,
                     closed_loop=False, fuse_method="pyramid", dim=2)  # fmt: skip
        return comfy.node("ContextWindowsManual", model, **given)[0] if windows else model

    make_guider = functools.partial(direct, scene=scene, past_predict_noise=False)
    try:
        copy.deepcopy(scene.model.model.model_config)
    except TypeError:
        if windows:  # ComfyUI's handler holds it
            pytest.skip("this ComfyUI's own windows cannot be copied")
    plain = uncached(run, scene, make_guider, patch=patch, latent=latent)
    cached = run(scene, make_guider, patch=patch, latent=latent, **widgets)
    check_counts(cached, plain.calls)
    assert cached.report["evaluations"] == STEPS and cached.report["computed"] < STEPS * 0.7
    assert psnr(cached.latent, plain.latent) > 20


@pytest.mark.parametrize("widgets", [dict(threshold=0.15, warmup_steps=2), HALF], ids=["threshold", "budget"])
@pytest.mark.parametrize("ours", ["after it", "before it"])
@pytest.mark.parametrize("held", ["options", "model"])
def test_options_that_a_patch_copied_before_the_run(comfy, tiny, caplog, held, ours, widgets):
    """It asks the positive once more with them, in another way, and guidance amplifies the difference. Catches an
    answer that is computed beside one that is predicted, without a word where our node comes after the patch.
    """
    from comfy.model_patcher import set_model_options_patch_replace

    scene = tiny("SD15")

    def patch(model):
        model = model.clone()
        options = copy.deepcopy(model.model_options)

        def double(q, k, v, extra):
            from comfy.ldm.modules.attention import optimized_attention

            return 2 * optimized_attention(q, k, v, extra["n_heads"])

        def again(given):
            from comfy.samplers import calc_cond_batch

            asked = copy.deepcopy(options if held == "options" else model.model_options)
            asked = set_model_options_patch_replace(asked, double, "attn1", "middle", 0)
            (more,) = calc_cond_batch(given["model"], [given["input_cond"]], given["input"], given["timestep"], asked)
            return given["input"] - (given["cond_denoised"] + 12 * (given["cond_denoised"] - more))

        model.set_model_sampler_cfg_function(again)
        return model

    def sample(**widgets):
        model = comfy.cached(scene.model, **widgets) if widgets and ours == "before it" else scene.model
        model = patch(model)
        model = comfy.cached(model, **widgets) if widgets and ours == "after it" else model
        return scene.counting(lambda: comfy.sample(scene, model, steps=STEPS)), model

    ((plain, everywhere), _), asked = sample(), len(scene.calls)
    assert torch.equal(sample(threshold=0.0)[0][0], plain)
    (cached, computed), model = sample(**widgets)
    assert asked == 2 * STEPS == 2 * len(everywhere)
    assert len(scene.calls) == 2 * len(computed) < 2 * STEPS
    assert psnr(cached, plain) > 25
    assert not any("past" in line for line in log_of(caplog))
    assert "calc_cond_batch" not in model.model_options["transformer_options"]["wrappers"], "the run has ended"


def test_options_that_a_patch_holds_are_used_for_another_run(comfy, tiny, run):
    """A patch holds a second model, and somebody samples with that one between two evaluations. Catches an answer to
    one run that is given to the other.
    """
    scene, second, others = tiny("SD15"), tiny_models.build("SD15", seed=1), []

    def patch(model):
        held = second.model

        def guide(given):
            assert held is second.model
            return given["input"] - (given["cond_denoised"] + 3 * (given["cond_denoised"] - given["uncond_denoised"]))

        model = model.clone()
        model.set_model_sampler_cfg_function(guide)
        return model

    @torch.no_grad()
    def sampler(network, x, sigmas, extra_args=None, callback=None, disable=None):
        one = x.new_ones([len(x)])
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = network(x, sigma * one, **extra_args)
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            others.append(comfy.sample(second, steps=2, seed=i))
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    make_guider = functools.partial(direct, scene=scene, past_predict_noise=False)
    plain = run(scene, make_guider, sampler, patch=patch)
    alone = [*others]
    others.clear()
    cached = run(scene, make_guider, sampler, patch=patch, **HALF)
    assert all(map(torch.equal, others, alone)) and cached.report["evaluations"] == STEPS
    assert psnr(cached.latent, plain.latent) > 15
