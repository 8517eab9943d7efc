"""comfyui_jankhidiffusion: windowed attention that moves at random."""

from works_with import Case

from . import common

FOLDER = "comfyui_jankhidiffusion"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    _, sample = common.ksampler(host, scene)

    def windowed(**widgets):
        given = dict(model=scene.model, input_blocks="1,2", output_blocks="", middle_blocks="0")
        return host.node("ApplyMSWMSAAttention", **given | widgets)[0]

    yield Case("ApplyMSWMSAAttention", windowed(), sample)
    yield Case("ApplyMSWMSAAttention to 20 %", windowed(end_time=0.2), sample)
    yield Case("ApplyMSWMSAAttention, dpmpp_2m", windowed(), common.ksampler(host, scene, "dpmpp_2m")[1])
