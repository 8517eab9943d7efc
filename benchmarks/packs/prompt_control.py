"""comfyui-prompt-control: prompts for regions and for parts of the schedule, and LoRAs that come and go."""

import sys

import torch
from works_with import Case

from . import common

FOLDER = "comfyui-prompt-control"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    couple = next(module for name, module in sys.modules.items() if name.endswith(".attention_couple_ppm"))
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1

    def prompt(seed, **options):
        return [torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(seed)), options]

    def regions(seed, **options):
        return couple.set_cond_attnmask(
            [prompt(seed, **options)], [prompt(seed + 1, mask=left, mask_strength=1.0)], True
        )

    def sampled(positive, **widgets):
        return common.ksampler(host, scene._replace(positive=positive), **widgets)

    yield Case("two regions", *sampled(regions(20)))
    parts = regions(20, start_percent=0.0, end_percent=0.5) + regions(30, start_percent=0.5, end_percent=1.0)
    yield Case("other regions in the second half", *sampled(parts))
    positive, negative = host.node("PCAttentionCoupleBatchNegative", positive=parts, negative=scene.negative)
    yield Case(
        "other regions in the second half, and in the negative",
        *common.ksampler(host, scene._replace(positive=positive, negative=negative)),
    )
    prompts = [prompt(40, start_percent=0.0, end_percent=0.3), prompt(41, start_percent=0.3, end_percent=1.0)]
    yield Case("another prompt from 0.3 on", *sampled(prompts))
