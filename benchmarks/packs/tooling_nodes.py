"""comfyui-tooling-nodes: regions with prompts of their own, in the attention."""

from works_with import Case

from . import common

FOLDER = "comfyui-tooling-nodes"


def cases(host):
    scene = common.full_unet()
    left, other = common.half_and_prompt(128, 48)

    def regional(model):
        background = host.node("ETN_BackgroundRegion", scene.positive)[0]
        regions = host.node("ETN_DefineRegion", left, other, background)[0]
        return host.node("ETN_AttentionMask", model, regions)[0]

    for sampler in ("euler", "dpmpp_2m"):
        yield Case(f"two regions, {sampler}", regional(scene.model), common.ksampler(host, scene, sampler)[1])
    yield Case("two regions, after ours", *common.ksampler(host, scene, patch=regional))
    anima = common.answering(common.tiny("Anima"))
    mask, second = common.half_and_prompt(16, 1024)

    def couple(model):
        regions = host.node("ETN_DefineRegion", mask, second, host.node("ETN_BackgroundRegion", anima.positive)[0])[0]
        return host.node("ETN_AttentionMask", model, regions)[0]

    yield Case("Anima, two regions", couple(anima.model), common.ksampler(host, anima)[1])
    yield Case("Anima, two regions, after ours", *common.ksampler(host, anima, patch=couple))
