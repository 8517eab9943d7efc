"""attention-couple-ComfyUI: regions of the picture have prompts of their own, in the attention."""

import torch
from works_with import Case

from . import common

FOLDER = "attention-couple-ComfyUI"


def cases(host):
    scene = common.full_unet()
    left, other = torch.zeros(1, 128, 128), torch.Generator().manual_seed(9)
    left[..., :64] = 1
    right = [[torch.randn(1, 6, 48, generator=other), {}]]
    both = [
        part[0] for part in (
            host.node("ConditioningSetMask", prompt, mask, "default", 1.0)[0]
            for prompt, mask in ((scene.positive, left), (right, 1 - left))
        )
    ]  # fmt: skip

    def coupled(model):
        return host.node("Attention couple", model=model, positive=both, negative=scene.negative, mode="Attention")

    model, positive, negative = coupled(scene.model)
    halves = scene._replace(positive=positive, negative=negative)
    for sampler in ("euler", "dpmpp_2m"):
        yield Case(f"two halves, {sampler}", model, common.ksampler(host, halves, sampler)[1])
    yield Case("two halves, after ours", *common.ksampler(host, halves, patch=lambda model: coupled(model)[0]))
