"""LanPaint: inpainting with Langevin iterations at each noise level."""

import torch
from works_with import Case

from . import common

FOLDER = "LanPaint"


def cases(host):
    for name, scene in {"video": common.video(host), "SD15": common.tiny("SD15"), "Flux": common.tiny("Flux")}.items():
        picture = common.ksampler(host, scene, seed=7)[1](scene.model)
        for iterations in (5, 2) if name == "video" else (5,):
            yield Case(
                f"{name}, LanPaint_KSampler, {iterations} iterations per step",
                scene.model,
                painting(host, scene, picture, iterations),
            )


def painting(host, scene, picture, iterations):
    """The left half is drawn anew."""
    mask = torch.zeros(picture.shape[-2:])
    mask[:, : mask.shape[1] // 2] = 1
    latent = host.node("SetLatentNoiseMask", {"samples": picture}, mask[None])[0]
    video = {"Inpainting_mode": "🎬 Video Inpainting"} if picture.ndim == 5 else {}

    def sample(model):
        return host.node(
            "LanPaint_KSampler", model=model, seed=common.SEED, steps=common.STEPS, cfg=common.CFG,
            sampler_name="euler", scheduler="simple", positive=scene.positive, negative=scene.negative,
            latent_image=latent, denoise=1.0, LanPaint_NumSteps=iterations, LanPaint_PromptMode="Image First",
            LanPaint_Info="", **{"Inpainting_mode": "🖼️ Image Inpainting", **video},
        )[0]["samples"]  # fmt: skip

    return sample
