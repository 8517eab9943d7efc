"""ComfyUI-TCD: a sampler that adds noise at each step, with noise levels of a model of its own."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-TCD"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    for steps, eta in ((common.STEPS, 0.0), (common.STEPS, 0.3), (8, 0.3)):
        model, sampler, sigmas = host.node(
            "TCDModelSamplingDiscrete", model=scene.model, steps=steps, scheduler="simple", eta=eta
        )
        given = scene._replace(model=model)
        yield Case(f"{steps} steps, eta {eta:g}", *common.custom(host, given, None, sampler, sigmas))
