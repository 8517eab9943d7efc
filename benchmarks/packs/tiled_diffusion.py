"""ComfyUI-TiledDiffusion: each evaluation is done tile by tile, by a wrapper around the network."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-TiledDiffusion"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    scene = scene._replace(latent={"samples": torch.zeros(1, 4, 24, 24)})

    def tiled(model, method):
        return host.node(
            "TiledDiffusion", model=model, method=method, tile_width=128, tile_height=128, tile_overlap=32,
            tile_batch_size=2,
        )[0]  # fmt: skip

    _, sample = common.ksampler(host, scene)
    for method in ("MultiDiffusion", "Mixture of Diffusers", "SpotDiffusion"):
        yield Case(method, tiled(scene.model, method), sample)
    after = common.ksampler(host, scene, "dpmpp_2m", patch=lambda model: tiled(model, "MultiDiffusion"))
    yield Case("MultiDiffusion after ours, dpmpp_2m", *after)
