"""ComfyUI-LTXVideo: its guiders, and samplers that sample in pieces. It needs a newer ComfyUI (measured with 0.33).

Two of the clone's files were replaced by empty classes, as they import what that ComfyUI and kornia do not have:
gemma_encoder.py and pyramid_blending.py.
"""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-LTXVideo"


def cases(host):
    import tiny_models

    for family in ("LTXV", "LTXAV"):  # skipped layers need some to choose from
        sizes, recipe = tiny_models.RECIPES[family].sizes | dict(num_layers=3), tiny_models.RECIPES[family]
        tiny_models.RECIPES[family] = recipe.__class__(**{**vars(recipe), "sizes": sizes, "mask": None})
    scene = common.answering(common.tiny("LTXV"), 0.6)

    def stg(kind, **widgets):
        def guider(model):
            model = host.node("LTXVApplySTG", model=model, block_indices="1")[0]
            return host.node(kind, model=model, positive=scene.positive, negative=scene.negative, **widgets)[0]

        return guider

    simple = stg("STGGuider", cfg=3.0, stg=1.0, rescale=0.7)
    lists = dict(
        sigmas="1.0, 0.95, 0.8, 0.6, 0.3", stg_rescale_values="1, 1, 1, 1, 1", cfg_star_rescale=True,
        stg_layers_indices="[1], [1], [0], [2], [0]",
    )  # fmt: skip
    falling = stg(
        "STGGuiderAdvanced", cfg_values="8, 6, 4, 1, 1", stg_scale_values="4, 4, 2, 1, 0",
        skip_steps_sigma_threshold=0.96, **lists,
    )  # fmt: skip
    constant = stg(
        "STGGuiderAdvanced", cfg_values="3, 3, 3, 3, 3", stg_scale_values="4, 4, 4, 4, 4",
        skip_steps_sigma_threshold=1.0, **lists,
    )  # fmt: skip
    yield Case("STGGuider", *common.custom(host, scene, simple))
    yield Case("STGGuider, heun", *common.custom(host, scene, simple, "heun"))
    yield Case("STGGuiderAdvanced, guidance ends on the way", *common.custom(host, scene, falling))
    yield Case("STGGuiderAdvanced, only the skipped layers change", *common.custom(host, scene, constant))

    def apg(model):
        return host.node(
            "APGGuider", model=model, positive=scene.positive, negative=scene.negative, cfg_scale=4.0, eta=1.0,
            norm_threshold=0.0, momentum_coefficient=-0.9,
        )[0]  # fmt: skip

    yield Case("APGGuider", *common.custom(host, scene, apg))

    def normalised(model):
        return host.node("LTXVPerStepStatNormPatcher", model=model, factors="0.9, 0.75, 0.5, 0.25, 0.0")[0]

    yield Case("LTXVPerStepStatNormPatcher", *common.ksampler(host, scene, patch=normalised))

    class Scales:
        """What the sampler of long videos asks of a VAE where no picture is given."""

        downscale_index_formula = (8, 32, 32)

    def looping(model):
        return host.node(
            "LTXVLoopingSampler", model=model, vae=Scales(), noise=host.node("RandomNoise", common.SEED)[0],
            sampler=host.node("KSamplerSelect", "euler")[0], guider=simple(model),
            sigmas=host.node("BasicScheduler", model, "simple", common.STEPS, 1.0)[0],
            latents={"samples": torch.zeros(1, 128, 7, 4, 4)}, temporal_tile_size=32, temporal_overlap=16,
            guiding_strength=1.0, temporal_overlap_cond_strength=0.5, cond_image_strength=1.0, adain_factor=0.0,
            horizontal_tiles=1, vertical_tiles=1, spatial_overlap=1,
        )[0]["samples"]  # fmt: skip

    yield Case("LTXVLoopingSampler, three pieces, STGGuider", scene.model, looping)

    both = common.answering(common.tiny("LTXAV"), 0.6)

    def streams(latent):
        return torch.cat([stream.flatten() for stream in latent.unbind()])

    def multimodal(skip_step):
        parameters = None
        for modality, cfg, skipped in (("VIDEO", 3.0, 0), ("AUDIO", 4.0, skip_step)):
            parameters = host.node(
                "GuiderParameters", modality=modality, cfg=cfg, stg=1.0, perturb_attn=True, rescale=0.7,
                modality_scale=2.0, skip_step=skipped, cross_attn=True, parameters=parameters,
            )[0]  # fmt: skip

        def guider(model):
            return host.node(
                "MultimodalGuider", model=model, positive=both.positive, negative=both.negative, parameters=parameters,
                skip_blocks="1",
            )[0]  # fmt: skip

        model, sample = common.custom(host, both, guider)
        return model, lambda model: streams(sample(model))

    yield Case("MultimodalGuider", *multimodal(0))
    yield Case("MultimodalGuider, sound in every other step", *multimodal(1))

    def normalizing(model):
        return streams(host.node(
            "LTXVNormalizingSampler", noise=host.node("RandomNoise", common.SEED)[0],
            guider=host.node("CFGGuider", model, both.positive, both.negative, 3.0)[0],
            sampler=host.node("KSamplerSelect", "euler")[0],
            sigmas=host.node("BasicScheduler", model, "simple", common.STEPS, 1.0)[0], latent_image=dict(both.latent),
            video_normalization_factors="1, 1, 1, 1, 1, 1, 1, 1",
            audio_normalization_factors="1, 1, 0.25, 1, 1, 0.25, 1, 1",
        )[0]["samples"])  # fmt: skip

    yield Case("LTXVNormalizingSampler", both.model, normalizing)
