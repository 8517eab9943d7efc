"""style_aligned_comfy: a reference in the batch, whose latent is exchanged in the callback of each step."""

import torch
from works_with import Case

from . import common

FOLDER = "style_aligned_comfy"


def cases(host):
    scene = common.full_unet()
    rng = torch.Generator().manual_seed(9)
    reference, prompt = (
        {"samples": torch.randn(1, 4, 16, 16, generator=rng)},
        [[torch.randn(1, 6, 48, generator=rng), {}]],
    )
    sampler = host.node("KSamplerSelect", "euler")[0]
    sigmas = host.node("BasicScheduler", scene.model, "simple", common.STEPS, 1.0)[0]
    inverted = host.node(
        "StyleAlignedSampleReferenceLatents", model=scene.model, noise_seed=0, cfg=1.0, positive=prompt,
        negative=scene.negative, sampler=sampler, sigmas=sigmas.clone(), latent_image=reference,
    )[0]  # fmt: skip

    def sample_with(name):
        def sample(model):
            return host.node(
                "StyleAlignedReferenceSampler", model=model, share_norm="disabled", share_attn="q+k", scale=1.0,
                batch_size=1, noise_seed=common.SEED, cfg=common.CFG, positive=scene.positive,
                negative=scene.negative, ref_positive=prompt, sampler=host.node("KSamplerSelect", name)[0],
                sigmas=sigmas, ref_latents=inverted.clone(),
            )[0]["samples"]  # fmt: skip

        return sample

    yield Case("Reference Sampler, euler", scene.model, sample_with("euler"))
    yield Case("Reference Sampler, dpmpp_2m", scene.model, sample_with("dpmpp_2m"))

    def invert(model):
        return host.node(
            "StyleAlignedSampleReferenceLatents", model=model, noise_seed=0, cfg=1.0, positive=prompt,
            negative=scene.negative, sampler=sampler, sigmas=sigmas.clone(), latent_image=reference,
        )[0].flatten(0, 1)[None]  # fmt: skip

    yield Case("Sample Reference Latents", scene.model, invert)
    batch = scene._replace(latent={"samples": torch.zeros(2, 4, 16, 16)})
    _, sample = common.ksampler(host, batch)
    model = host.node("StyleAlignedBatchAlign", model=scene.model, share_norm="disabled", share_attn="q+k", scale=1.0)[
        0
    ]
    yield Case("Batch Align", model, sample)
