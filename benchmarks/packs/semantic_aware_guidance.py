"""ComfyUI-semantic-aware-guidance: guidance by the attention maps that the network left at its last call."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-semantic-aware-guidance"


def cases(host):
    scene = common.full_unet()

    def aware(model):
        return host.node("SemanticAwareGuidance", model=model)[0]

    for sampler in ("euler", "dpmpp_2m"):
        yield Case(sampler, aware(scene.model), common.ksampler(host, scene, sampler)[1])
    yield Case("after ours", *common.ksampler(host, scene, patch=aware))
