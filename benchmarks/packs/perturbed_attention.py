"""sd-perturbed-attention: guidance by perturbed answers, windows, earlier answers and frequencies."""

from works_with import Case

from . import common

FOLDER = "sd-perturbed-attention"


def cases(host):
    unet, video = common.answering(common.tiny("SD15")), common.video(host)

    def case(node, name="", scene=unet, **widgets):
        model = host.node(node, model=scene.model, **widgets)[0]
        return Case(name or node, model, common.ksampler(host, scene)[1])

    yield case("PerturbedAttention", scale=1.0)
    yield case("PerturbedAttention", "PerturbedAttention, sigma 10 to 1", scale=1.0, sigma_start=10.0, sigma_end=1.0)
    yield case("PerturbedAttention", "PerturbedAttention, snf", scale=1.0, rescale_mode="snf")
    yield case("SmoothedEnergyGuidanceAdvanced", scale=1.0)
    yield case("SlidingWindowGuidanceAdvanced", scale=1.0, tile_width=64, tile_height=64, tile_overlap=16)
    yield case("TokenPerturbationGuidance", scale=1.0, unet_block_list="")
    yield case("NormalizedAttentionGuidance", negative=unet.negative)
    for scene, name in ((unet, "SD15"), (video, "video")):
        yield case("MomentumGuidance", f"MomentumGuidance, {name}", scene)
    yield case("SlidingModeControlCFG", **{"lambda": 6.0})
    yield case("FrequencyDecoupledGuidance", strength_high=6.0)
