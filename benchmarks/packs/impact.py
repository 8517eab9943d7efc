"""ComfyUI-Impact-Pack: its samplers. Its subpack of detectors is another repository; an empty one does."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-Impact-Pack"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    widgets = dict(cfg=common.CFG, scheduler="simple")
    sampling = dict(widgets, seed=common.SEED, steps=common.STEPS)

    def latent():  # some of its nodes write into it
        return {"samples": torch.zeros(1, 4, 16, 16)}

    def prompt(seed):
        return [[torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(seed)), {}]]

    def pipe(model, positive=scene.positive):
        return model, None, None, positive, scene.negative

    def left(start):
        mask = torch.zeros(1, 128, 128)
        mask[:, start:, start:] = 1.0
        return mask

    def simple(sampler="euler", denoise=1.0):
        return scene.model, lambda model: host.node(
            "ImpactKSamplerBasicPipe", basic_pipe=pipe(model), sampler_name=sampler, latent_image=latent(),
            denoise=denoise, **sampling,
        )[1]["samples"]  # fmt: skip

    def regional(sampler):
        def provider(model, *positive):
            return host.node(
                "KSamplerAdvancedProvider", sampler_name=sampler, sigma_factor=1.0, basic_pipe=pipe(model, *positive),
                **widgets,
            )[0]  # fmt: skip

        def sample(model):
            regions = []
            for start in (64, 96):
                sampler_of_region = provider(model, prompt(start))
                regions += host.node("RegionalPrompt", mask=left(start), advanced_sampler=sampler_of_region)[0]
            return host.node(
                "RegionalSampler", seed=common.SEED, seed_2nd=0, seed_2nd_mode="ignore", steps=12, base_only_steps=2,
                denoise=1.0, samples=latent(), base_sampler=provider(model), regional_prompts=regions,
                overlap_factor=10, restore_latent=True, additional_mode="ratio between", additional_sampler="AUTO",
                additional_sigma_ratio=0.3,
            )[0]["samples"]  # fmt: skip

        return scene.model, sample

    def two_samplers(model):
        base, masked = (
            host.node("KSamplerProvider", sampler_name="euler", denoise=1.0, basic_pipe=pipe(model, one), **sampling)[0]
            for one in (scene.positive, prompt(7))
        )
        return host.node(
            "TwoSamplersForMask", latent_image=latent(), base_sampler=base, mask_sampler=masked, mask=left(64)
        )[0]["samples"]

    def upscaled(model):
        upscaler = host.node(
            "PixelKSampleUpscalerProvider", scale_method="bilinear", model=model, vae=common.PixelVAE(),
            sampler_name="euler", positive=scene.positive, negative=scene.negative, denoise=0.5, use_tiled_vae=False,
            tile_size=512, **sampling,
        )[0]  # fmt: skip
        return host.node(
            "IterativeLatentUpscale", samples=latent(), upscale_factor=2.0, steps=3, temp_prefix="", upscaler=upscaler,
            step_mode="simple", unique_id=None,
        )[0]["samples"]  # fmt: skip

    yield Case("KSampler (pipe)", *simple())
    yield Case("KSampler (pipe), dpmpp_2m_sde, denoise 0.5", *simple("dpmpp_2m_sde", 0.5))
    yield Case("RegionalSampler, two regions, euler", *regional("euler"))
    yield Case("RegionalSampler, uni_pc with recovery", *regional("uni_pc"))
    yield Case("TwoSamplersForMask", scene.model, two_samplers)
    yield Case("IterativeLatentUpscale, twice as large in three steps", scene.model, upscaled)
