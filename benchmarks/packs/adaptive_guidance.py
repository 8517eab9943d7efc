"""ComfyUI-Adaptive-Guidance: guiders that leave the negative out once both agree, and projected guidance."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-Adaptive-Guidance"


def cases(host):
    scene = common.video(host)

    def adaptive(**widgets):
        def guider(model):
            return host.node(
                "AdaptiveGuidance", model=model, positive=scene.positive, negative=scene.negative, cfg=common.CFG,
                **widgets,
            )[0]  # fmt: skip

        return guider

    yield Case("AdaptiveGuidance, threshold 0.95", *common.custom(host, scene, adaptive(threshold=0.95)))
    late = adaptive(threshold=1.0, cfg_start_pct=0.3)
    yield Case("AdaptiveGuidance, CFG from 30 % on", *common.custom(host, scene, late))
    zero = adaptive(threshold=1.0, cfg_start_pct=0.2, uncond_zero_scale=0.3)
    yield Case("AdaptiveGuidance, uncond zero before 20 %", *common.custom(host, scene, zero))

    unet = common.answering(common.tiny("SD15"))

    def perpendicular(model):
        return host.node(
            "PerpNegAdaptiveGuidanceGuider", model=model, positive=unet.positive, negative=unet.negative,
            empty_conditioning=[[torch.zeros(1, 6, 48), {}]], threshold=1.0, cfg=common.CFG, neg_scale=1.0,
            cfg_start_pct=0.2,
        )[0]  # fmt: skip

    yield Case("SD15, PerpNegAdaptiveGuidanceGuider", *common.custom(host, unet, perpendicular))
    for mode in ("normal", "denoised"):
        # The guidance keeps a running mean: each run has its own.
        def patch(model, mode=mode):
            return host.node_class("AdaptiveProjectedGuidance")().apply(model, mode=mode)[0]

        yield Case(f"AdaptiveProjectedGuidance, {mode}", *common.ksampler(host, scene, patch=patch))
