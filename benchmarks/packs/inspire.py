"""ComfyUI-Inspire-Pack: its samplers, which call those of ComfyUI-Impact-Pack, its guiders, and HyperTile."""

import torch
from works_with import Case

from . import common

FOLDER, NEEDS = "ComfyUI-Inspire-Pack", ("ComfyUI-Impact-Pack",)


def cases(host):
    scene = common.answering(common.tiny("SD15"))

    def progress(model):
        return host.node(
            "KSamplerProgress //Inspire", model=model, seed=common.SEED, steps=common.STEPS, cfg=common.CFG,
            sampler_name="euler", scheduler="simple", positive=scene.positive, negative=scene.negative,
            latent_image=dict(scene.latent), denoise=1.0, noise_mode="CPU", interval=2, omit_start_latent=True,
            omit_final_latent=False,
        )[1]["samples"]  # fmt: skip

    yield Case("KSampler Progress: the latents on the way, too", scene.model, progress)

    def advanced(model):
        return host.node(
            "KSamplerAdvanced //Inspire", model=model, add_noise=True, noise_seed=common.SEED, steps=common.STEPS,
            cfg=common.CFG, sampler_name="dpmpp_2m", scheduler="karras", positive=scene.positive,
            negative=scene.negative, latent_image=dict(scene.latent), start_at_step=0, end_at_step=10000,
            noise_mode="CPU", return_with_leftover_noise=False, batch_seed_mode="incremental", variation_seed=3,
            variation_strength=0.2,
        )[0]["samples"]  # fmt: skip

    yield Case("KSamplerAdvanced, dpmpp_2m karras, variation", scene.model, advanced)

    def scheduled(kind, **widgets):
        def guider(model):
            sigmas = host.node("BasicScheduler", model, "simple", common.STEPS, 1.0)[0]
            return host.node(
                kind, model=model, positive=scene.positive, negative=scene.negative, sigmas=sigmas, from_cfg=6.5,
                to_cfg=1.0, schedule="log", **widgets,
            )[0]  # fmt: skip

        return guider

    yield Case("Scheduled CFGGuider", *common.custom(host, scene, scheduled("ScheduledCFGGuider //Inspire")))
    empty = [[torch.zeros(1, 6, 48), {}]]
    perpendicular = scheduled("ScheduledPerpNegCFGGuider //Inspire", empty_conditioning=empty, neg_scale=1.0)
    yield Case("Scheduled PerpNeg CFGGuider, heun", *common.custom(host, scene, perpendicular, "heun"))

    _, sample = common.ksampler(host, scene)
    mask = torch.ones(1, 128, 128)
    mask[..., 64:] = 0.5
    yield Case("Regional CFG", host.node("RegionalCFG //Inspire", model=scene.model, mask=mask)[0], sample)
