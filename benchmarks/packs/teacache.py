"""ComfyUI-TeaCache beside ours, before and after it: two caches on one model."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-TeaCache"


def cases(host):
    scene = common.video(host)

    def teacache(model):
        return host.node(
            "TeaCache", model=model, model_type="wan2.1_t2v_1.3B", rel_l1_thresh=0.08, start_percent=0.0,
            end_percent=1.0, cache_device="cpu",
        )[0]  # fmt: skip

    _, sample = common.ksampler(host, scene)
    yield Case("video, TeaCache first", teacache(scene.model), sample)
    yield Case("video, TeaCache last", *common.ksampler(host, scene, patch=teacache))
