"""ComfyUI_UltimateSDUpscale: a picture is sampled tile by tile, each tile in a run of its own. The latents that are
compared are the pictures.
"""

import torch
from torch.nn import functional
from works_with import Case

from . import common

FOLDER = "ComfyUI_UltimateSDUpscale"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    picture = functional.interpolate(noise, size=(128, 128), mode="bilinear").movedim(1, -1)

    def tiles(**changes):
        widgets = dict(
            upscaled_image=picture, positive=scene.positive, negative=scene.negative, vae=common.PixelVAE(),
            seed=common.SEED, steps=common.STEPS, cfg=common.CFG, sampler_name="euler", scheduler="simple", denoise=0.4,
            mode_type="Linear", tile_width=64, tile_height=64, mask_blur=4, tile_padding=16, seam_fix_mode="None",
            seam_fix_denoise=0.4, seam_fix_mask_blur=4, seam_fix_width=32, seam_fix_padding=16,
            force_uniform_tiles=True, tiled_decode=False,
        ) | changes  # fmt: skip
        return scene.model, lambda model: host.node("UltimateSDUpscaleNoUpscale", model=model, **widgets)[0]

    yield Case("four tiles, denoise 0.4", *tiles())
    yield Case("chess order, half tile seams", *tiles(mode_type="Chess", seam_fix_mode="Half Tile"))
    yield Case("denoise 1, dpmpp_2m", *tiles(denoise=1.0, sampler_name="dpmpp_2m"))
