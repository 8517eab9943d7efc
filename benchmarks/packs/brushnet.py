"""ComfyUI-BrushNet: a second network that a wrapper asks before each call, and a smaller UNet at some steps.

The second network has random weights. Needs accelerate.
"""

import sys

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-BrushNet"


def cases(host):
    import tiny_models

    scene = common.full_unet()
    pack = sys.modules[host.node_class("BrushNet").__module__]
    network = pack.BrushNetModel(block_out_channels=(32,) * 4, cross_attention_dim=48)
    tiny_models.fill(network, torch.Generator().manual_seed(7))
    brushnet = {"brushnet": network.eval(), "SDXL": False, "PP": False, "dtype": torch.float32}
    noise = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    hole = torch.zeros(1, 128, 128)
    hole[:, 32:96, 32:96] = 1
    vae = common.PixelVAE()
    vae.device = torch.device("cpu")

    def painted(model, **widgets):
        return host.node(
            "BrushNet", model=model, vae=vae, image=noise, mask=hole, brushnet=brushnet, positive=scene.positive,
            negative=scene.negative, **widgets,
        )[0]  # fmt: skip

    def smaller(model):
        return host.node("RAUNet", model=model)[0]

    _, sample = common.ksampler(host, scene)
    yield Case("BrushNet", painted(scene.model), sample)
    yield Case("BrushNet, dpmpp_2m", painted(scene.model), common.ksampler(host, scene, "dpmpp_2m")[1])
    yield Case("BrushNet in steps 5 to 12", painted(scene.model, start_at=5, end_at=12), sample)
    yield Case("RAUNet in the first ten steps", smaller(scene.model), sample)
    yield Case("BrushNet, after ours", *common.ksampler(host, scene, patch=painted))
    yield Case("RAUNet, after ours", *common.ksampler(host, scene, patch=smaller))
