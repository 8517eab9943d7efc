"""ComfyUI-IPAdapter-Flux: a picture in FLUX's attentions, in a part of the schedule. Its weights are random."""

import sys

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-IPAdapter-Flux"
WIDTH, TOKENS = 64, 4


def cases(host):
    for start, end in ((0.0, 1.0), (0.0, 0.6), (0.2, 0.6)):
        scene = common.answering(common.tiny("Flux"))
        model = adapted(host, scene.model, start, end)
        yield Case(f"from {start:.0%} to {end:.0%}", model, common.ksampler(host, scene, cfg=1.0)[1])
    scene = common.answering(common.tiny("Flux"))
    yield Case(
        "from 20% to 60%, after ours",
        *common.ksampler(host, scene, cfg=1.0, patch=lambda model: adapted(host, model, 0.2, 0.6)),
    )


def adapted(host, model, start: float, end: float):
    """The model behind the pack's node, whose encoder of pictures is left out."""
    pack = sys.modules[host.node_class("ApplyIPAdapterFlux").__module__]
    adapter, rng = object.__new__(pack.InstantXFluxIPAdapterModel), torch.Generator().manual_seed(4)
    network, adapter.ip_attn_procs = model.model.diffusion_model, {}
    for kind in ("double_blocks", "single_blocks"):
        for i, _ in enumerate(getattr(network, kind)):
            attention = pack.IPAFluxAttnProcessor2_0(hidden_size=network.hidden_size, cross_attention_dim=WIDTH)
            for weight in attention.parameters():
                weight.data = torch.randn(weight.shape, generator=rng) * 0.1
            adapter.ip_attn_procs[f"{kind}.{i}"] = attention
    picture = torch.randn(1, TOKENS, WIDTH, generator=rng)
    adapter.get_image_embeds = lambda **_: picture
    return host.node("ApplyIPAdapterFlux", model, adapter, torch.zeros(1, 8, 8, 3), 1.0, start, end)[0]
