"""ComfyUI_smZNodes: replaces ComfyUI's guiding function by one as in stable-diffusion-webui."""

from works_with import Case

from . import common

FOLDER = "ComfyUI_smZNodes"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    kind = host.node_class("smZ Settings")

    def settings(**chosen):
        given = {name: option[1]["default"] for name, option in kind.INPUT_TYPES()["optional"].items()
                 if len(option) > 1 and "default" in option[1]}  # fmt: skip
        return getattr(kind(), kind.FUNCTION)(**{"*": scene.model, **given, **chosen})[0]

    _, sample = common.ksampler(host, scene)
    yield Case("NGMS 3", settings(NGMS=3.0), sample)
    yield Case("NGMS 3 at all steps", settings(**{"NGMS": 3.0, "NGMS all steps": True}), sample)
    yield Case("no CFG in the first 30 %", settings(skip_early_cond=0.3), sample)
    yield Case("CFGDenoiser", settings(**{"Use CFGDenoiser": True}), sample)
    yield Case("CFGDenoiser, NGMS 3", settings(**{"Use CFGDenoiser": True, "NGMS": 3.0}), sample)
