"""ComfyUI_TiledKSampler: each step samples each tile in a run of its own."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI_TiledKSampler"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    large = {"samples": torch.zeros(1, 4, 64, 64)}

    def tiled(strategy, **widgets):
        def sample(model):
            given = dict(
                model=model, seed=common.SEED, tile_width=256, tile_height=256, tiling_strategy=strategy,
                steps=common.STEPS, cfg=common.CFG, sampler_name="euler", scheduler="simple", positive=scene.positive,
                negative=scene.negative, latent_image=dict(large), denoise=1.0,
            )  # fmt: skip
            return host.node("BNK_TiledKSampler", **given | widgets)[0]["samples"]

        return sample

    for strategy in ("random", "padded", "simple"):
        yield Case(f"four tiles, {strategy}", scene.model, tiled(strategy))
