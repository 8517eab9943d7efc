"""ComfyUI-TaylorSeer: a cache of its own, within the network."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-TaylorSeer"


def cases(host):
    scene = common.video(host)

    def seer(model):
        return host.node("TaylorSeerLite", model=model, model_type="wanvideo")[0]

    yield Case("video, TaylorSeerLite first", seer(scene.model), common.ksampler(host, scene)[1])
    yield Case("video, TaylorSeerLite last", *common.ksampler(host, scene, patch=seer))
