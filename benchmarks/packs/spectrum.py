"""ComfyUI-Spectrum-WAN-Proper beside ours, before and after it: two caches on one model."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-Spectrum-WAN-Proper"


def cases(host):
    scene = common.video(host)

    def spectrum(model):
        return host.node("SpectrumApplyWAN", model=model, backend="wan21")[0]

    _, sample = common.ksampler(host, scene)
    yield Case("video, Spectrum first", spectrum(scene.model), sample)
    yield Case("video, Spectrum last", *common.ksampler(host, scene, patch=spectrum))
