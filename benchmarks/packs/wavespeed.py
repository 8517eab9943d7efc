"""Comfy-WaveSpeed's first-block cache beside ours, before and after it: two caches on one model."""

from works_with import Case

from . import common

FOLDER = "Comfy-WaveSpeed"


def cases(host):
    for family, threshold in (("Flux", 0.1), ("SD15", 0.2)):
        scene = common.answering(common.tiny(family))

        def first_block(model, threshold=threshold):
            return host.node(
                "ApplyFBCacheOnModel", model=model, object_to_patch="diffusion_model",
                residual_diff_threshold=threshold,
            )[0]  # fmt: skip

        _, sample = common.ksampler(host, scene)
        yield Case(f"{family}, WaveSpeed first", first_block(scene.model), sample)
        yield Case(f"{family}, WaveSpeed last", *common.ksampler(host, scene, patch=first_block))
