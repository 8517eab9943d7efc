"""ComfyUI-MagCache beside ours, before and after it: two caches on one model."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-MagCache"


def cases(host):
    scene = common.video(host)

    def magcache(model):
        return host.node("MagCache", model=model, model_type="wan2.1_t2v_1.3B", magcache_thresh=0.06)[0]

    _, sample = common.ksampler(host, scene)
    yield Case("video, MagCache first", magcache(scene.model), sample)
    yield Case("video, MagCache last", *common.ksampler(host, scene, patch=magcache))
