"""ComfyUI-CacheDiT beside ours: two caches on one model.

It replaces the network's forward for good, and a second node of it does nothing."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-CacheDiT"


def cases(host):
    video, flux = common.video(host), common.answering(common.tiny("Flux"))
    for name, scene, kind in (("video", video, "WanCacheOptimizer"), ("Flux", flux, "CacheDiT_Model_Optimizer")):
        _, sample = common.ksampler(host, scene)
        yield Case(f"{name}, {kind}", host.node(kind, model=scene.model)[0], sample)
