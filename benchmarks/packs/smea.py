"""Euler-Smea-Dyn-Sampler: samplers with noise that also look at quarters of the latent, or at its negative."""

from works_with import Case

from . import common

FOLDER = "Euler-Smea-Dyn-Sampler"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    for name in ("euler_dy", "euler_smea_dy", "euler_negative", "euler_dy_negative", "Kohaku_LoNyu_Yog"):
        yield Case(f"SD15, {name}", scene.model, custom(host, scene, name))
    scene = common.video(host)  # of which the others know nothing: they leave its noise levels
    yield Case("video, Kohaku_LoNyu_Yog", scene.model, custom(host, scene, "Kohaku_LoNyu_Yog"))


def custom(host, scene, name):
    import comfy.k_diffusion.sampling
    import comfy.samplers

    function = getattr(comfy.k_diffusion.sampling, "sample_" + name)
    _, sample = common.custom(host, scene, sampler=comfy.samplers.KSAMPLER(function))
    return common.seeded(sample)
