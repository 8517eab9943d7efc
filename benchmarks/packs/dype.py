"""ComfyUI-DyPE: positions that are scaled by the noise level, for pictures that are larger than those trained with."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-DyPE"


def cases(host):
    for method in ("vision_yarn", "yarn", "ntk"):
        yield Case(f"Flux, {method}", *sampled(host, method=method))
    yield Case("Flux, vision_yarn from sigma 0.6 on", *sampled(host, dype_start_sigma=0.6))
    yield Case("Flux, vision_yarn, exponent 8", *sampled(host, dype_exponent=8.0))
    yield Case("Flux, after ours", *sampled(host, after=True))


def sampled(host, after=False, **widgets):
    """A picture of twice the size that it thinks the model was trained with."""
    scene = common.answering(common.tiny("Flux"))
    scene = scene._replace(latent={"samples": torch.zeros(1, 16, 64, 64)})

    def dype(model):
        given = dict(width=512, height=512, model_type="flux", base_resolution=256, yarn_alt_scaling=True) | widgets
        return host.node("DyPE_FLUX", model=model, **given)[0]

    if after:
        return common.ksampler(host, scene, cfg=1.0, patch=dype)
    return dype(scene.model), common.ksampler(host, scene, cfg=1.0)[1]
