"""ComfyUI-AnimateDiff-Evolved: 16 frames in windows of 8, with a motion module of random weights.

Its class of motion modules has the sizes of Stable Diffusion 1.5 in its code; here it gets those of the tiny one.
"""

import inspect
import sys
import textwrap

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-AnimateDiff-Evolved"
LOOPED = dict(context_length=8, context_stride=1, context_overlap=2, closed_loop=True)


def cases(host):
    import tiny_models

    # Two layers per level, as the pack expects.
    sizes = dict(num_res_blocks=[2, 2], transformer_depth=[0, 0, 1, 1], transformer_depth_output=[0, 0, 0, 1, 1, 1])
    recipe = tiny_models.RECIPES["SD15"]
    tiny_models.RECIPES["SD15"] = recipe.__class__(**{**vars(recipe), "sizes": recipe.sizes | sizes})
    scene = common.answering(common.tiny("SD15"))
    scene = scene._replace(latent={"samples": torch.zeros(16, 4, 8, 8)})
    module = motion_module()

    def motion(start=0.0, end=1.0, **given):
        return host.node(
            "ADE_ApplyAnimateDiffModel", motion_model=module, start_percent=start, end_percent=end, **given
        )[0]

    def evolved(model, windows=None, settings=None, **given):
        return host.node(
            "ADE_UseEvolvedSampling", model=model, beta_schedule="autoselect", m_models=motion(**given),
            context_options=windows, sample_settings=settings,
        )[0]  # fmt: skip

    def settings(**given):
        return host.node(
            "ADE_AnimateDiffSamplingSettings", batch_offset=0, noise_type="FreeNoise", seed_gen="comfy", seed_offset=0,
            **given,
        )[0]  # fmt: skip

    _, sample = common.ksampler(host, scene)
    looped = host.node("ADE_LoopedUniformContextOptions", **LOOPED)[0]
    static = host.node("ADE_StandardStaticContextOptions", context_length=8, context_overlap=2)[0]
    yield Case("no windows", evolved(scene.model), sample)
    yield Case("looped windows, which move", evolved(scene.model, looped), sample)
    before = common.ksampler(host, scene, patch=lambda model: evolved(model, looped))
    yield Case("looped windows, after ours", *before)
    yield Case("static windows, dpmpp_2m", evolved(scene.model, static), common.ksampler(host, scene, "dpmpp_2m")[1])

    keyframes = None
    for start, effect in ((0.0, 1.0), (0.4, 0.0), (0.7, 1.0)):
        keyframes = host.node(
            "ADE_AnimateDiffKeyframe", start_percent=start, prev_ad_keyframes=keyframes, effect_multival=effect
        )[0]
    yield Case("keyframes: motion on, off, on", evolved(scene.model, ad_keyframes=keyframes), sample)
    guidance = host.node("ADE_CustomCFGKeyframeSimple", cfg=7.0, start_percent=0.0)[0]
    guidance = host.node("ADE_CustomCFGKeyframe", cfg_multival=1.0, start_percent=0.5, prev_custom_cfg=guidance)[0]
    yield Case("CFG 7, and none from 0.5 on", evolved(scene.model, looped, settings(custom_cfg=guidance)), sample)
    twice = settings(iteration_opts=host.node(
        "ADE_IterationOptsFreeInit", iterations=2, filter="gaussian", d_s=0.25, d_t=0.25, n_butterworth=4,
        sigma_step=999, apply_to_1st_iter=False, init_type="FreeInit [sampler sigma]",
    )[0])  # fmt: skip
    yield Case("FreeInit, two iterations", evolved(scene.model, None, twice), sample)
    before = common.ksampler(host, scene, patch=lambda model: evolved(model, None, twice))
    yield Case("FreeInit, two iterations, after ours", *before)


def motion_module():
    """A MOTION_MODEL_ADE of random weights."""
    loaded = {name.rsplit(".", 1)[-1]: module for name, module in sys.modules.items() if ".animatediff." in name}
    modules, injection = loaded["motion_module_ad"], loaded["model_injection"]
    source = textwrap.dedent(inspect.getsource(modules.AnimateDiffModel.__init__))
    for given, here in (("(320, 640, 1280, 1280)", "(32, 64)"), ("middle_channel = 1280", "middle_channel = 64"),
                        ("super().__init__()", "nn.Module.__init__(self)")):  # fmt: skip
        source = source.replace(given, here)
    exec(source, modules.__dict__)
    modules.AnimateDiffModel.__init__ = modules.__dict__.pop("__init__")

    positions = "motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.{}.pos_encoder.pe"
    blocks = ("down_blocks.0", "up_blocks.0", "mid_block")
    shapes = {f"{block}.{positions.format(i)}": torch.zeros(1, 32, 32) for block in blocks for i in (0, 1)}
    info = modules.AnimateDiffInfo(sd_type="SD1.5", mm_format="AnimateDiff", mm_version="v3", mm_name="tiny")
    network, rng = modules.AnimateDiffModel(shapes, info), torch.Generator().manual_seed(3)
    for name, weight in network.state_dict().items():
        if weight.ndim == 1 and name.endswith("weight"):
            weight.fill_(1.0)
        elif not name.endswith(".pe"):
            weight.copy_(torch.randn(weight.shape, generator=rng) * 0.15)
    return injection.create_MotionModelPatcher(network, torch.device("cpu"), torch.device("cpu"))
