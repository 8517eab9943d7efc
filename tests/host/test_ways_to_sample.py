"""The ways people sample in, with the nodes that ComfyUI ships for them, on tiny models."""

import logging
import re
from collections import Counter
from typing import NamedTuple

import pytest
import tiny_models
import torch
from closeness import psnr
from safetensors.torch import save_file
from steps import Steps
from streams import nested, streams

pytestmark = pytest.mark.usefixtures("one_thread")


class Outcome(NamedTuple):
    """Latents without the node and with it, and the noise levels at which the network ran."""

    plain: torch.Tensor
    cached: torch.Tensor
    everywhere: list[float]
    levels: list[float]


@pytest.fixture
def compare(comfy):
    """compare(sample, *scenes): the Outcome of a way to sample, after the checks for all of them.

    sample: makes a latent; called with the node, as a function of a model, or with something that does nothing.
    """

    def compare(
        sample, *scenes, closer_than=10.0, whole_steps=True, threshold=0.3, warmup_steps=3, predictor="forecast"
    ):
        def run(**widgets):
            for scene in scenes:
                scene.calls.clear()
            latent = sample(lambda model: comfy.cached(model, **widgets) if widgets else model)
            return latent, Counter(sigma for scene in scenes for _, sigma, _ in scene.calls)

        plain, everywhere = run()
        same, calls = run(threshold=0.0)
        assert torch.equal(same, plain) and calls == everywhere, "threshold 0 must change nothing"

        cached, calls = run(threshold=threshold, warmup_steps=warmup_steps, predictor=predictor)
        assert cached.shape == plain.shape and cached.isfinite().all()
        assert calls.total() < everywhere.total(), "nothing was reused"
        if whole_steps:
            assert calls == {level: everywhere[level] for level in calls}, "a step is computed as a whole or not at all"
        assert psnr(cached, plain) > closer_than
        return Outcome(plain, cached, sorted(everywhere, reverse=True), sorted(calls, reverse=True))

    return compare


@pytest.fixture
def custom(comfy):
    """custom(guider, sigmas, latent): a SamplerCustomAdvanced run."""

    def sample(guider, sigmas, latent, sampler="euler", noise="RandomNoise"):
        noise = comfy.node(noise, *([5] if noise == "RandomNoise" else []))[0]
        sampler = comfy.node("KSamplerSelect", sampler)[0]
        return comfy.node("SamplerCustomAdvanced", noise, guider, sampler, sigmas, latent)[0]

    return sample


def prompt(seed, tokens=6):
    """A conditioning for the tiny models whose prompts are 48 wide."""
    return [[torch.randn(1, tokens, 48, generator=torch.Generator().manual_seed(seed)), {}]]


def both_patches(cache, add, model, cache_first):
    """A model with the cache and something else, in that order or the other."""
    return add(cache(model)) if cache_first else cache(add(model))


# How many and what.


def test_a_batch(comfy, tiny, compare):
    """Catches one decision or one cached output for a batch that takes the first latent for all."""
    scene = tiny("SD15")
    latent = {"samples": torch.randn(3, 4, 16, 16)}
    compare(lambda cache: comfy.sample(scene, cache(scene.model), latent_image=latent), scene)


def test_a_batch_of_prompts(comfy, demo_scene):
    """A prompt for each row. Catches rows that are answered by the first one's, or decided by it: each is as near to
    what it is uncached as by itself.
    """
    rows = [
        comfy.node("EasyCacheDemoModel", *words, "zoom-out", 1)[1] for words in (("rocket", "night"), ("owl", "meadow"))
    ]
    both = [[torch.cat([row[0][0] for row in rows]), rows[0][0][1]]]
    noise = torch.randn(2, *demo_scene.latent["samples"].shape[1:], generator=torch.Generator().manual_seed(3))

    def sample(positive, noise, **widgets):
        model = comfy.cached(demo_scene.model, **widgets) if widgets else demo_scene.model
        guider = comfy.node("CFGGuider", model, positive, demo_scene.negative, 4.0)[0]
        sampler, sigmas = (
            comfy.node("KSamplerSelect", "euler")[0],
            comfy.node("BasicScheduler", model, "simple", 12, 1.0)[0],
        )
        with torch.no_grad():
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=5)

    together = sample(both, noise, target_speedup=2.0)
    for i, row in enumerate(rows):
        plain, alone = sample(row, noise[i : i + 1]), sample(row, noise[i : i + 1], target_speedup=2.0)
        assert psnr(together[i : i + 1], plain) > psnr(alone, plain) - 3


def test_another_picture_at_the_next_run(comfy, tiny):
    """To animate, of the same size, with the same MODEL. Catches what is kept of the first one."""
    scene = tiny("WAN21_I2V")
    shared = comfy.cached(scene.model, target_speedup=2.0)

    def about(seed):
        rng, new = torch.Generator().manual_seed(seed), {}
        for name, value in scene.positive[0][1].items():
            new[name] = torch.randn(value.shape, generator=rng) if isinstance(value, torch.Tensor) else value
        return {name: [[one[0][0], {**one[0][1], **new}]] for name, one in
                (("positive", scene.positive), ("negative", scene.negative))}  # fmt: skip

    latents = []
    for seed in (1, 2, 1):
        latents.append(comfy.sample(scene, shared, **about(seed)))
        assert torch.equal(
            latents[-1], comfy.sample(scene, comfy.cached(scene.model, target_speedup=2.0), **about(seed))
        )
        assert psnr(latents[-1], comfy.sample(scene, **about(seed))) > 30
    assert torch.equal(latents[0], latents[2]) and not torch.equal(latents[0], latents[1])


@pytest.mark.parametrize("name", ["Flux", "SD15", "WAN21_T2V"])
def test_without_guidance(comfy, tiny, compare, name):
    """Catches a cache that waits for a negative: at CFG 1 ComfyUI leaves it out."""
    scene = tiny(name)
    compare(lambda cache: comfy.sample(scene, cache(scene.model), cfg=1.0), scene)
    assert all(kinds == (0,) for _, _, kinds in scene.calls)


@pytest.mark.parametrize("name", ["SD15", "WAN21_T2V"])
def test_partial_denoise(comfy, tiny, compare, name):
    """Catches a warm-up or a start that is counted from the model's first noise level and not the run's."""
    scene = tiny(name)
    latent = {"samples": torch.randn(scene.latent["samples"].shape)}
    outcome = compare(lambda cache: comfy.sample(scene, cache(scene.model), latent_image=latent, denoise=0.5), scene)
    assert outcome.levels[:3] == outcome.everywhere[:3]


@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_inpainting(comfy, tiny, compare, name):
    """Catches a cache outside the mask's blending: what is kept must stay exactly as it was."""
    scene = tiny(name)
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1.0
    latent = comfy.node("SetLatentNoiseMask", {"samples": torch.randn(scene.latent["samples"].shape)}, mask)[0]
    outcome = compare(lambda cache: comfy.sample(scene, cache(scene.model), latent_image=latent), scene)
    kept = (mask == 0).expand(outcome.cached.shape)
    torch.testing.assert_close(outcome.cached[kept], latent["samples"][kept], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("given", ["nothing", "first frame", "video"])
def test_video_with_sound(comfy, tiny, compare, given):
    """Two streams in one latent. Catches one that the cache leaves out, and a mask that is laid over the other."""
    from comfy import supported_models, utils

    if not hasattr(supported_models, "LTXAV"):
        pytest.skip("this ComfyUI has no audio-video model")
    scene = tiny("LTXAV")
    video, sound = streams(scene.latent["samples"])
    mask = torch.ones(1, 1, 2, 8, 8)
    mask[:, :, : ["nothing", "first frame", "video"].index(given)] = 0.0
    latent = {"samples": scene.latent["samples"], "noise_mask": nested([mask, torch.ones_like(sound)])}

    def sample(cache):
        sampled = comfy.sample(scene, cache(scene.model), latent_image=latent)
        return utils.pack_latents(streams(sampled))[0]

    outcome = compare(sample, scene)
    cached_video, cached_sound = utils.unpack_latents(outcome.cached, [video.shape, sound.shape])
    kept = (mask == 0).expand(video.shape)
    torch.testing.assert_close(cached_video[kept], video[kept], rtol=1e-3, atol=1e-3)
    assert not torch.equal(cached_sound, sound)


def test_streams_are_told_from_the_run(comfy):
    """Catches sound that has no rate of its own. The shapes come by name or by position; old hosts have none."""
    outer = comfy.module("nodes.outer_sample")
    video, sound = torch.Size([2, 128, 2, 8, 8]), torch.Size([2, 8, 6, 16])
    assert outer.packed_streams(False, 7, latent_shapes=[video, sound]) == [16384, 768]
    assert outer.packed_streams(False, 7, [video, sound]) == [16384, 768]
    assert outer.packed_streams(False, 7, latent_shapes=[video]) == outer.packed_streams(False, 7) == []


# Several runs in one workflow.


def stage(comfy, scene, model, latent, first, last):
    """One KSamplerAdvanced of several that share 16 steps."""
    return comfy.node(
        "KSamplerAdvanced", model, "enable" if first == 0 else "disable", 5, 16, 4.0, "euler", "simple",
        scene.positive, scene.negative, latent, first, last, "enable" if last < 16 else "disable",
    )[0]  # fmt: skip


@pytest.mark.parametrize("name", ["SD15", "WAN21_T2V"])
def test_two_stages(comfy, tiny, compare, name):
    """Catches what the first run leaves behind for the second. Together they have one warm-up and one last step."""
    scene = tiny(name)

    def both(cache):
        model = cache(scene.model)
        return stage(comfy, scene, model, stage(comfy, scene, model, scene.latent, 0, 8), 8, 10000)["samples"]

    outcome = compare(both, scene, threshold=1.0, closer_than=8.0)
    first, second = outcome.everywhere[:8], outcome.everywhere[8:]
    assert {*first[:3], *second[:2], second[-1]} <= set(outcome.levels)
    assert second[2] not in outcome.levels, "the second one needs no warm-up of its own"


def test_a_model_for_high_and_one_for_low_noise(comfy, tiny, compare):
    """Wan 2.2's pair, each with its own node. Catches an output of one that answers for the other."""
    high, low = tiny("WAN21_T2V"), tiny_models.build("WAN21_T2V", seed=1)

    def both(cache):
        latent = stage(comfy, high, cache(high.model), high.latent, 0, 8)
        return stage(comfy, high, cache(low.model), latent, 8, 10000)["samples"]

    outcome = compare(both, high, low, threshold=1.0)  # so that both skip
    computed_by = [{sigma for _, sigma, _ in scene.calls} for scene in (high, low)]
    assert computed_by[0] <= set(outcome.everywhere[:8]) and computed_by[1] <= set(outcome.everywhere[8:])
    assert all(len(levels) < 8 for levels in computed_by), "both of them skip"


def test_a_second_pass_at_another_size(comfy, tiny, compare):
    """Catches cached tensors of the first size in the second run."""
    scene = tiny("SD15")

    def both(cache):
        model = cache(scene.model)
        small = {"samples": comfy.sample(scene, model)}
        large = comfy.node("LatentUpscaleBy", small, "bilinear", 1.5)[0]
        return comfy.sample(scene, model, latent_image=large, denoise=0.5, seed=6)

    outcome = compare(both, scene, whole_steps=False)  # the passes share noise levels
    assert outcome.cached.shape == (1, 4, 24, 24)


def test_custom_and_split_sigmas(comfy, tiny, compare, custom):
    """Catches a reliance on KSampler's own schedules, and on runs that end at noise level 0."""
    scene = tiny("SD15")
    sigmas = comfy.node("PolyexponentialScheduler", 16, 14.0, 0.03, 1.3)[0]
    high, low = comfy.node("SplitSigmas", sigmas, 8)

    def both(cache):
        guider = comfy.node("CFGGuider", cache(scene.model), scene.positive, scene.negative, 4.0)[0]
        return custom(guider, low, custom(guider, high, scene.latent), noise="DisableNoise")["samples"]

    compare(both, scene)


def test_flipped_sigmas(comfy, tiny, compare, custom):
    """Catches a division by next to nothing: back to noise starts where the network has no say in the result."""
    scene = tiny("SD15")
    sigmas = comfy.node("FlipSigmas", comfy.node("BasicScheduler", scene.model, "simple", 16, 1.0)[0])[0]

    def sample(cache):
        guider = comfy.node("CFGGuider", cache(scene.model), scene.positive, scene.negative, 1.0)[0]
        return custom(guider, sigmas, scene.latent, noise="DisableNoise")["samples"]

    compare(sample, scene, threshold=1.0, closer_than=0.0)  # each step goes further than the one before


# Guidance.

GUIDERS = {
    "DualCFGGuider, regular": lambda node, model, scene: node(
        "DualCFGGuider", model, scene.positive, prompt(3), scene.negative, 4.0, 2.0, "regular"
    ),
    "DualCFGGuider, nested": lambda node, model, scene: node(
        "DualCFGGuider", model, scene.positive, prompt(3), scene.negative, 4.0, 2.0, "nested"
    ),
    "PerpNegGuider": lambda node, model, scene: node(
        "PerpNegGuider", model, scene.positive, scene.negative, prompt(3), 4.0, 1.0
    ),
    "BasicGuider": lambda node, model, scene: node("BasicGuider", model, scene.positive),
}


@pytest.mark.parametrize("guider", GUIDERS)
def test_guiders(comfy, tiny, compare, custom, guider):
    """Catches a cache that counts on exactly a positive and a negative."""
    scene = tiny("SD15")

    def sample(cache):
        sigmas = comfy.node("BasicScheduler", scene.model, "simple", 16, 1.0)[0]
        return custom(GUIDERS[guider](comfy.node, cache(scene.model), scene)[0], sigmas, scene.latent)["samples"]

    compare(sample, scene)


def test_the_positive_prompt_decides(comfy, tiny, custom, caplog):
    """Some guiders list the negative first. Its rate may be another: here the result does not depend on it at all."""
    scene = tiny("SD15")

    def rates(make_guider):
        caplog.clear()
        sigmas = comfy.node("BasicScheduler", scene.model, "simple", 10, 1.0)[0]
        model = comfy.cached(scene.model, threshold=0.0, verbose=True)
        with caplog.at_level(logging.INFO):
            custom(make_guider(model), sigmas, scene.latent)
        return [float(rate) for rate in re.findall(r"transformation rate ([\d.e-]+)", caplog.text)]

    alone = rates(lambda model: comfy.node("BasicGuider", model, scene.positive)[0])
    assert len(alone) == 9, "none after the first evaluation"
    guiders = {
        "nested": lambda model: comfy.node(
            "DualCFGGuider", model, scene.positive, prompt(3), scene.negative, 1.0, 1.0, "nested"
        )[0],
        "positive first": lambda model: comfy.node(
            "PerpNegGuider", model, scene.positive, prompt(4), prompt(3), 1.0, 0.0
        )[0],
    }
    for name, make_guider in guiders.items():
        assert rates(make_guider) == pytest.approx(alone, rel=1e-2), name


def skipped_layers(start, end):
    """Widgets of the skip-layer nodes of double-stream networks."""
    return dict(start_percent=start, end_percent=end, double_layers="0", single_layers="")


ADD_ONS = {
    "perturbed attention": ("SD15", "PerturbedAttentionGuidance", dict(scale=3.0)),
    "self-attention": ("SD15", "SelfAttentionGuidance", dict(scale=0.5, blur_sigma=2.0)),
    "skipped layers": ("Flux", "SkipLayerGuidanceDiT", skipped_layers(0.0, 1.0) | dict(scale=3.0)),
    "skipped layers, in the negative": ("Flux", "SkipLayerGuidanceDiTSimple", skipped_layers(0.0, 1.0)),
    "skipped layers at high noise only": ("Flux", "SkipLayerGuidanceDiT", skipped_layers(0.0, 0.5) | dict(scale=3.0)),
    "skipped layers at high noise only, in the negative": (
        "Flux",
        "SkipLayerGuidanceDiTSimple",
        skipped_layers(0.0, 0.5),
    ),
    "skipped layers of SD3": (
        "SD3",
        "SkipLayerGuidanceSD3",
        dict(layers="0", scale=3.0, start_percent=0.01, end_percent=0.3),
    ),
    "a CFG that grows over the frames": ("SVD_img2vid", "VideoLinearCFGGuidance", dict(min_cfg=1.0)),
    "rescaled CFG": ("SD15", "RescaleCFG", dict(multiplier=0.7)),
    "normalised CFG": ("Flux", "CFGNorm", dict(strength=1.0)),
    "CFG-Zero*": ("Flux", "CFGZeroStar", {}),
    "tangential CFG": ("SD15", "TCFG", {}),
    "Mahiro": ("SD15", "Mahiro", {}),
    "FreSca": ("SD15", "FreSca", dict(scale_low=1.0, scale_high=1.25, freq_cutoff=20)),
    "FreeU": ("SD15", "FreeU_V2", dict(b1=1.3, b2=1.4, s1=0.9, s2=0.2)),
    "merged tokens": ("SD15", "TomePatchModel", dict(ratio=0.3)),
    "shrunk layers at high noise": (
        "SD15",
        "PatchModelAddDownscale",
        dict(block_number=1, downscale_factor=2.0, start_percent=0.0, end_percent=0.35, downscale_after_skip=True,
             downscale_method="bicubic", upscale_method="bicubic"),
    ),
    "zero-terminal SNR": ("SD15", "ModelSamplingDiscrete", dict(sampling="v_prediction", zsnr=True)),
    "another shift": ("Flux", "ModelSamplingFlux", dict(max_shift=1.15, base_shift=0.5, width=1024, height=1024)),
}  # fmt: skip


@pytest.mark.parametrize("cache_first", [False, True])
@pytest.mark.parametrize("add_on", ADD_ONS)
def test_nodes_that_patch_the_model(comfy, tiny, compare, add_on, cache_first):
    """Some ask the network again within a step. Catches one call that is answered with another's output."""
    name, kind, widgets = ADD_ONS[add_on]
    scene = tiny(name)

    def add(model):
        return comfy.node(kind, model, **widgets)[0]

    compare(lambda cache: comfy.sample(scene, both_patches(cache, add, scene.model, cache_first)), scene)


def wrap_the_network(model, note):
    def wrapper(apply_model, options):
        note()
        return apply_model(options["input"], options["timestep"], **options["c"]) * 0.9

    model.set_model_unet_function_wrapper(wrapper)


def replace_attention(model, note):
    def attention(query, key, value, extra_options):
        note()
        return query + value.mean(1, keepdim=True)

    model.set_model_attn1_replace(attention, "middle", 0)


def change_what_attention_sees(model, note):
    def patch(query, context, value, extra_options):
        note()
        return query, context, value * 0.5

    model.set_model_attn2_patch(patch)


def override_attention(model, note):
    def attention(original, *args, **kwargs):
        note()
        return original(*args, **kwargs) * 0.5

    model.model_options["transformer_options"]["optimized_attention_override"] = attention


def wrap_the_forward(model, note):
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, *args, **kwargs):
        note()
        return executor(*args, **kwargs) * 0.9

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", wrapper)


PATCHES = [wrap_the_network, replace_attention, change_what_attention_sees, override_attention, wrap_the_forward]


@pytest.mark.parametrize("cache_first", [False, True])
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_patches_of_other_packs(comfy, tiny, compare, patch, cache_first):
    """Catches a patch that the cache drops, and one that still runs where nothing is computed."""
    scene = tiny("SD15")
    noted = []

    def add(model):
        patched = model.clone()
        patch(patched, lambda: noted.append(len(scene.calls)))
        return patched

    outcome = compare(lambda cache: comfy.sample(scene, both_patches(cache, add, scene.model, cache_first)), scene)
    assert not torch.equal(comfy.sample(scene), outcome.plain), "the patch must have an effect"
    noted.clear()
    scene.counting(lambda: comfy.sample(scene, both_patches(comfy.cached, add, scene.model, cache_first)))
    per_call = len(noted) / len(scene.calls)
    assert per_call and per_call == int(per_call), "as often in each network call, and never without one"


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.3), (0.3, 1.0)])
def test_an_add_on_that_starts_or_ends_on_the_way(comfy, tiny, caplog, start, end):
    """Its new calls are not in the cache. Catches steps that are called skipped while the network runs in each."""
    scene = tiny("Flux")
    model = comfy.node("SkipLayerGuidanceDiTSimple", scene.model, **skipped_layers(start, end))[0]
    with Steps(comfy.cached(model, threshold=1.0)) as steps, caplog.at_level(logging.INFO):
        comfy.sample(scene, steps.model, steps=30)
    (line,) = [message for message in caplog.messages if message.startswith("EasyCache: computed")]
    computed = int(re.search(r"computed (\d+) of", line)[1])
    assert sum(step.computed for step in steps) <= computed + 1


# Conditionings.


def combined(comfy, *conditionings):
    """ConditioningCombine of all of them."""
    first, *rest = conditionings
    for other in rest:
        first = comfy.node("ConditioningCombine", first, other)[0]
    return first


def test_areas_and_strengths(comfy, tiny, compare):
    """Catches a cached output of an area's size, and areas whose order or weight is lost."""
    scene = tiny("SD15")
    positive = combined(
        comfy,
        comfy.node("ConditioningSetArea", prompt(3), 64, 128, 0, 0, 1.0)[0],
        comfy.node("ConditioningSetAreaPercentage", prompt(4), 0.5, 0.5, 0.5, 0.5, 0.8)[0],
        comfy.node("ConditioningSetAreaStrength", scene.positive, 0.5)[0],
    )
    compare(lambda cache: comfy.sample(scene, cache(scene.model), positive=positive), scene)


def test_an_area_that_leaves_a_part_without_a_prompt(comfy, tiny, compare):
    """Where no prompt is, ComfyUI's prediction is 0 whatever the noise level: no network output, but it is cached.

    With "reuse": guidance away from a random negative towards nothing grows without bounds there, so that a forecast of
    it and the uncached run part ways.
    """
    scene = tiny("SD15")
    left = comfy.node("ConditioningSetArea", prompt(3), 64, 128, 0, 0, 1.0)[0]
    compare(lambda cache: comfy.sample(scene, cache(scene.model), positive=left), scene, predictor="reuse")


@pytest.mark.parametrize("bounds", ["default", "mask bounds"])
def test_masks(comfy, tiny, compare, bounds):
    """Catches a mask that is applied twice or not at all."""
    scene = tiny("SD15")
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1.0
    positive = combined(
        comfy,
        comfy.node("ConditioningSetMask", prompt(3), mask, bounds, 0.7)[0],
        comfy.node("ConditioningSetMask", prompt(4), 1 - mask, bounds, 1.0)[0],
    )
    compare(lambda cache: comfy.sample(scene, cache(scene.model), positive=positive), scene)


def test_prompts_of_different_length(comfy, tiny, compare):
    """Catches conditions of one prompt that are taken for the other's when ComfyUI cannot batch them."""
    scene = tiny("SD15")
    positive = combined(comfy, scene.positive, prompt(3, tokens=11))
    compare(lambda cache: comfy.sample(scene, cache(scene.model), positive=positive), scene)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpm_fast", "euler_ancestral"])
def test_prompts_that_take_turns(comfy, tiny, sampler):
    """An output cached under one prompt must not answer for the next, at whichever noise levels a sampler asks."""
    scene = tiny("SD15")
    early = comfy.node("ConditioningSetTimestepRange", scene.positive, 0.0, 0.5)[0]
    late = comfy.node("ConditioningSetTimestepRange", prompt(3), 0.5, 1.0)[0]
    positive = combined(comfy, early, late)
    switch = scene.model.get_model_object("model_sampling").percent_to_sigma(0.5)
    plain = comfy.sample(scene, sampler_name=sampler, positive=positive)
    same = comfy.sample(scene, comfy.cached(scene.model, threshold=0.0), sampler_name=sampler, positive=positive)
    assert torch.equal(plain, same)

    with Steps(comfy.cached(scene.model, threshold=1.0)) as steps:
        comfy.sample(scene, steps.model, sampler_name=sampler, positive=positive)
    cached_early = None
    assert not all(step.computed for step in steps)
    for step in steps:
        is_early = float(step.sigma[0]) > switch
        if step.computed:
            cached_early = is_early
        assert cached_early == is_early, f"at noise level {float(step.sigma[0]):.3f} the wrong prompt's output was used"


# Networks beside the network, and changed weights.


@pytest.fixture(scope="module")
def controlnet(comfy, tiny):
    """(a ControlNet for the tiny SD 1.5, noise levels of its network's calls)."""
    import comfy.cldm.cldm as cldm
    import comfy.controlnet
    import comfy.model_management as management

    network = cldm.ControlNet(hint_channels=3, **tiny("SD15").model.model.model_config.unet_config)
    tiny_models.fill(network, torch.Generator().manual_seed(7))
    calls = []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["timesteps"][0]), with_kwargs=True
    )
    return comfy.controlnet.ControlNet(network, load_device=management.get_torch_device()), calls


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.3, 0.6)])
def test_controlnet(comfy, tiny, compare, controlnet, start, end):
    """Catches a ControlNet that still runs on reused steps, and one whose start or end is slept through."""
    scene, (net, calls) = tiny("SD15"), controlnet
    sampling = scene.model.get_model_object("model_sampling")
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    positive, negative = comfy.node(
        "ControlNetApplyAdvanced", scene.positive, scene.negative, net, picture, 1.0, start, end
    )

    def sample(cache):
        calls.clear()
        return comfy.sample(scene, cache(scene.model), positive=positive, negative=negative)

    outcome = compare(sample, scene)
    computed = [float(timestep) for timestep in calls]
    assert not torch.equal(comfy.sample(scene), outcome.plain)
    high, low = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
    active = [sigma for sigma in outcome.levels if low <= sigma <= high]
    assert computed == [float(sampling.timestep(torch.tensor(sigma))) for sigma in active]
    first_with = max(sigma for sigma in outcome.everywhere if sigma <= high)
    first_without = max((sigma for sigma in outcome.everywhere if sigma < low), default=first_with)
    assert {first_with, first_without} <= set(outcome.levels), "where it starts and has ended, the network is asked"


@pytest.fixture(scope="module")
def lora(comfy, tiny):
    """File name of a LoRA for the tiny SD 1.5."""
    from pathlib import Path

    import folder_paths

    rng = torch.Generator().manual_seed(9)
    weights = {}
    for name, weight in tiny("SD15").model.model.diffusion_model.state_dict().items():
        if name.endswith(("to_q.weight", "to_v.weight")):
            layer = "diffusion_model." + name.removesuffix(".weight")
            weights[f"{layer}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=rng) * 0.3
            weights[f"{layer}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=rng) * 0.3
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "tiny.safetensors")
    return "tiny.safetensors"


@pytest.mark.parametrize("cache_first", [False, True])
def test_lora(comfy, tiny, compare, lora, cache_first):
    """Catches weights that a reused step leaves patched or unpatched."""
    scene = tiny("SD15")

    def add(model):
        return comfy.node("LoraLoaderModelOnly", model, lora, 1.0)[0]

    outcome = compare(lambda cache: comfy.sample(scene, both_patches(cache, add, scene.model, cache_first)), scene)
    assert not torch.equal(comfy.sample(scene), outcome.plain)


def test_lora_that_is_scheduled(comfy, tiny, compare, lora):
    """Hooks change its strength in the course of the run. Catches an output with the old strength after that."""
    scene = tiny("SD15")
    sampling = scene.model.get_model_object("model_sampling")
    keyframes = comfy.node("CreateHookKeyframe", 1.0, 0.0)[0]
    keyframes = comfy.node("CreateHookKeyframe", 0.0, 0.5, keyframes)[0]
    hooks = comfy.node("SetHookKeyframes", comfy.node("CreateHookLoraModelOnly", lora, 1.0)[0], keyframes)[0]
    positive, negative = (comfy.node("ConditioningSetProperties", cond, 1.0, "default", hooks=hooks)[0]
                          for cond in (scene.positive, scene.negative))  # fmt: skip

    def sample(cache):
        return comfy.sample(scene, cache(scene.model), positive=positive, negative=negative)

    outcome = compare(sample, scene)
    assert not torch.equal(comfy.sample(scene), outcome.plain)
    first_after = max(sigma for sigma in outcome.everywhere if sigma <= sampling.percent_to_sigma(0.5))
    assert first_after in outcome.levels
