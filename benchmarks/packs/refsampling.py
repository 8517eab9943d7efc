"""ComfyUI-RefSampling: each call of the network first looks at a noisy reference, whose attention it then uses.

That noise comes from torch's own generator, so what is skipped changes the noise of the calls after it.
"""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-RefSampling"


def cases(host):
    scene = common.full_unet()
    reference = {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))}
    host.node("ApplyRefUNetNode", scene.model, "FULL")
    _, sample = common.ksampler(host, scene)
    for name, widgets in (
        ("content", {}), ("content, to 50 %", dict(end_percent=0.5)), ("content, fidelity 0", dict(fidelity=0.0)),
    ):  # fmt: skip
        model = scene.model.clone()
        yield Case(name, host.node("ApplyRefContentNode", model=model, ref_latents=reference, **widgets)[0], sample)
