"""ComfyUI-IC-Light: the UNet's first layer is made wider for a picture's latent. Its weights are random ones."""

import sys

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-IC-Light"


def cases(host):
    pack, rng = sys.modules[host.node_class("LoadAndApplyICLightUnet").__module__], torch.Generator().manual_seed(3)
    weights = {"input_blocks.0.0.weight": torch.randn(32, 8, 3, 3, generator=rng) * 0.05}
    pack.load_torch_file = lambda path: dict(weights)
    pack.folder_paths.get_full_path = lambda *_: __file__  # it only has to be there
    scene = common.answering(common.tiny("SD15"))
    model = host.node("LoadAndApplyICLightUnet", scene.model, "")[0]
    picture = {"samples": torch.randn(1, 4, 16, 16, generator=rng)}
    positive, negative, latent = host.node(
        "ICLightConditioning", positive=scene.positive, negative=scene.negative, vae=None, foreground=picture
    )
    lit = common.Scene(model, positive, negative, latent)
    for sampler in ("euler", "dpmpp_2m"):
        yield Case(sampler, *common.ksampler(host, lit, sampler))
