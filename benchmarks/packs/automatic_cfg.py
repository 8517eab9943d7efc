"""ComfyUI-AutomaticCFG: a negative that ends on the way, and one that is made up instead."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-AutomaticCFG"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    _, sample = common.ksampler(host, scene, cfg=8.0)

    def case(name, node="", **widgets):
        kind = f"Automatic CFG{node}"
        return Case(name, host.node(kind, model=scene.model, **widgets)[0], sample)

    yield case("Automatic CFG, boost")
    yield case("Automatic CFG, no boost", boost=False)
    yield case("Warp Drive", " - Warp Drive")
    yield case("Post rescale only", " - Post rescale only")
    yield case("Negative", " - Negative")
    method = dict(automatic_cfg="From preset")
    for preset in ("Excellent_attention", "Kickstart", "Crossed conds customized 1"):
        yield case(f"Preset Loader, {preset}", " - Preset Loader", preset=preset, **method)
