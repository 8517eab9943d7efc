"""comfyui_dum_samplers: samplers that keep a history, merge a batch on the way, or evaluate where they like."""

import torch
from works_with import Case

from . import common

FOLDER = "comfyui_dum_samplers"
RALSTON = "a: [[], [0.6667]]\nb: [0.25, 0.75]\nc: [0.0, 0.6667]"


def cases(host):
    scene = common.video(host)
    euler = host.node("KSamplerSelect", "euler")[0]

    def case(node, name="", scene=scene, **widgets):
        # The default of each optional widget, too.
        kind = host.node_class(node)
        fields = kind.INPUT_TYPES()
        given = {
            field: options[0]["default"]
            for part in fields.values()
            for field, (_, *options) in part.items()
            if options and "default" in options[0]
        }
        sampler = getattr(kind(), kind.FUNCTION)(**given | widgets)[0]
        return Case(name or node, *common.custom(host, scene, None, sampler))

    yield case("ButcherTableauSampler", "ButcherTableauSampler, Ralston, eta 0", yaml_tableau=RALSTON, eta=0.0)
    yield case("ButcherTableauSampler", "ButcherTableauSampler, default, eta 0", eta=0.0)
    yield case("CacheAwareEulerSampler", "CacheAwareEulerSampler, eta 0", eta=0.0)
    yield case("CacheAwareEulerSampler", eta=0.5)
    torch.cuda.synchronize = lambda device=None: None  # which it calls on a CPU as well
    yield case("HistorySampler", "HistorySampler: every answer", sampler=euler)
    yield case("PingPongSampler")
    yield case("SimilarityAncestralEulerSampler", "SimilarityAncestralEulerSampler, eta 0", eta=0.0)
    yield case("SimilarityClampEulerSampler", "SimilarityClampEulerSampler, eta 0", eta=0.0)
    yield case("LetMeHelpYouSampler", opt_sampler=euler)
    unet = common.answering(common.tiny("SD15"))
    batch = unet._replace(latent={"samples": torch.zeros(4, 4, 16, 16)})
    yield case("BatchMergeSampler", "SD15, BatchMergeSampler: four become one at step 8", batch, sampler=euler,
               mode="horizontal", merge_step=8, blend_mode="lerp")  # fmt: skip
