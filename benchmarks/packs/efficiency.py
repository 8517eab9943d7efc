"""efficiency-nodes-comfyui: KSampler (Efficient), with HighRes-Fix, with mixed noise, and SDXL's two models."""

import itertools

from works_with import Case

from . import common

FOLDER = "efficiency-nodes-comfyui"


def cases(host):
    scene = common.video(host)
    yield Case("video, euler", scene.model, efficient(host, scene))
    scene = common.answering(common.tiny("SD15"))
    yield Case("SD15, dpmpp_2m", scene.model, efficient(host, scene, sampler_name="dpmpp_2m"))
    noise = host.node(
        "Noise Control Script", rng_source="cpu", cfg_denoiser=False, add_seed_noise=True, seed=3, weight=0.1
    )
    yield Case("SD15, Noise Control Script", scene.model, efficient(host, scene, script=noise[0]))
    fix = host.node(
        "HighRes-Fix Script", upscale_type="latent", hires_ckpt_name="(use same)", latent_upscaler="bicubic",
        pixel_upscaler="", upscale_by=1.5, use_same_seed=True, seed=1, hires_steps=12, denoise=0.6, iterations=1,
        use_controlnet=False, control_net_name="", strength=1.0, preprocessor="_", preprocessor_imgs=False,
    )  # fmt: skip
    yield Case("SD15, HighRes-Fix", scene.model, efficient(host, scene, script=fix[0]))


COUNT = itertools.count()


def efficient(host, scene, script=None, **widgets):
    def sample(model):
        return host.node(
            "KSampler (Efficient)", model=model, seed=common.SEED, steps=common.STEPS, cfg=common.CFG,
            positive=scene.positive, negative=scene.negative, latent_image=dict(scene.latent), preview_method="none",
            vae_decode="false", my_unique_id=str(next(COUNT)), script=script, prompt={},
            **dict(sampler_name="euler", scheduler="simple") | widgets,
        )["result"][3]["samples"]  # fmt: skip

    return sample
