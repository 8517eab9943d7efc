"""ComfyUI-KJNodes: those of its nodes that patch a model, or make a guider, a sampler or noise levels."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-KJNodes"


def cases(host):
    scene = common.video(host)
    _, sample = common.ksampler(host, scene)
    sigmas = host.node("BasicScheduler", scene.model, "simple", common.STEPS, 1.0)[0]

    def scheduled(cfg, start=0.0, end=1.0):
        def guider(model):
            return host.node(
                "ScheduledCFGGuidance", model=model, positive=scene.positive, negative=scene.negative, cfg=cfg,
                start_percent=start, end_percent=end,
            )[0]  # fmt: skip

        return guider

    yield Case("ScheduledCFGGuidance, CFG until 60 %", *common.custom(host, scene, scheduled(4.0, 0.0, 0.6)))
    falling = [4.0 - 2.5 * step / (common.STEPS - 1) for step in range(common.STEPS)]
    yield Case("ScheduledCFGGuidance, CFG falls from step to step", *common.custom(host, scene, scheduled(falling)))
    for zero_init in (True, False):
        model = host.node("CFGZeroStarAndInit", model=scene.model, use_zero_init=zero_init, zero_init_steps=0)[0]
        yield Case(f"CFGZeroStarAndInit, zero init {zero_init}", model, sample)
    model = host.node("WanVideoEnhanceAVideoKJ", model=scene.model, latent=scene.latent, weight=2.0)[0]
    yield Case("WanVideoEnhanceAVideoKJ", model, sample)
    model = host.node("ApplyRifleXRoPE_WanVideo", model=scene.model, latent=scene.latent, k=2)[0]
    yield Case("ApplyRifleXRoPE_WanVideo", model, sample)

    refining = host.node(
        "SamplerSelfRefineVideo", input_mode={"stochastic_plan": "2-5:3,6-14:1"}, certain_percentage=0.999,
        uncertainty_threshold=0.2, seed=3, verbose=False,
    )[0]  # fmt: skip
    yield Case("SamplerSelfRefineVideo", *common.custom(host, scene, None, refining))

    picture = common.ksampler(host, scene, seed=7)[1](scene.model)
    mask = torch.zeros(1, *picture.shape[-2:])
    mask[..., : mask.shape[-1] // 2] = 1
    gradient = torch.linspace(0, 1, mask.shape[-1]).expand_as(mask)
    model, latent = host.node(
        "DifferentialDiffusionAdvanced", model=scene.model, samples={"samples": picture}, mask=gradient, multiplier=1.0
    )
    yield Case("DifferentialDiffusionAdvanced", model, common.ksampler(host, scene._replace(latent=latent))[1])
    model = host.node("LatentInpaintTTM", model=scene.model, steps=7, mask=mask)[0]
    latent = {"samples": picture}
    yield Case("LatentInpaintTTM", model, common.ksampler(host, scene._replace(latent=latent), denoise=0.8, cfg=1.0)[1])
    yield Case(
        "LatentInpaintTTM after ours",
        scene.model,
        common.ksampler(
            host, scene._replace(latent=latent), denoise=0.8, cfg=1.0,
            patch=lambda model: host.node("LatentInpaintTTM", model=model, steps=7, mask=mask)[0],
        )[1],
    )  # fmt: skip
    flipped = host.node("FlipSigmasAdjusted", sigmas=sigmas, divide_by_last_sigma=False, divide_by=1.0, offset_by=1)[0]
    unsampling = common.custom(host, scene, None, "euler", flipped, latent)
    yield Case("FlipSigmasAdjusted: a picture is unsampled", *unsampling)
    own = host.node(
        "CustomSigmas", sigmas_string="14.6, 6.5, 3.9, 2.7, 1.9, 1.3, 0.9, 0.5, 0.1, 0.03", interpolate_to_steps=20
    )[0]
    unet = common.tiny("SD15")
    yield Case("SD15, CustomSigmas", *common.custom(host, unet, None, "euler", own))
