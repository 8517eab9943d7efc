"""ComfyUI_IPAdapter_plus: attention to a picture, in a part of the schedule. The adapter has random weights."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI_IPAdapter_plus"
BLOCKS = 16


def cases(host):
    scene, rng = common.full_unet(), torch.Generator().manual_seed(3)

    def drawn(*shape):
        return torch.randn(shape, generator=rng) * 0.3

    adapter = {
        "image_proj": {
            "proj.weight": drawn(4 * 48, 32), "proj.bias": drawn(4 * 48), "norm.weight": torch.ones(48),
            "norm.bias": torch.zeros(48),
        },
        "ip_adapter": {f"{2 * i + 1}.to_{one}_ip.weight": drawn(32, 48) for i in range(BLOCKS) for one in "kv"},
    }  # fmt: skip
    seen, unseen = drawn(1, 32) / 0.3, torch.zeros(1, 32)

    @torch.no_grad()  # torch 2.14 refuses layers that were made in inference mode
    def adapted(model, weight=1.5, weight_type="linear", embeds_scaling="V only", start_at=0.0, end_at=1.0):
        return host.node_class("IPAdapterEmbeds")().apply_ipadapter(
            model, adapter, seen, weight, weight_type, start_at, end_at, unseen, embeds_scaling=embeds_scaling
        )[0]

    _, sample = common.ksampler(host, scene)
    yield Case("all of the schedule", adapted(scene.model), sample)
    middle = dict(start_at=0.3, end_at=0.6)
    yield Case("from 30 to 60 %", adapted(scene.model, **middle), sample)
    yield Case("from 30 to 60 %, dpmpp_2m", adapted(scene.model, **middle), common.ksampler(host, scene, "dpmpp_2m")[1])
    yield Case("two: to 40 %, from 70 % on", adapted(adapted(scene.model, end_at=0.4), start_at=0.7), sample)
    yield Case("style transfer, K+V, to 70 %", adapted(scene.model, 2.0, "style transfer", "K+V", end_at=0.7), sample)
    after = common.ksampler(host, scene, patch=lambda model: adapted(model, **middle))
    yield Case("from 30 to 60 %, after ours", *after)
