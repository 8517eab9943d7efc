"""comfyui-diffusion-cg: a callback that centres the denoised latent in place, which samplers then go on with.

Euler's method does so at its last step only.
"""

from works_with import Case

from . import common

FOLDER = "comfyui-diffusion-cg"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    for name, widgets in {
        "recentred": dict(recenter=1.0), "normalised": dict(normalization=1.0),
        "both": dict(recenter=1.0, normalization=0.5),
    }.items():  # fmt: skip
        _, sample = common.ksampler(host, scene, "dpmpp_2m", cfg=8.0)

        def hooked(model, sample=sample, widgets=widgets):
            host.node("Diffusion CG", latent=scene.latent, **widgets)
            try:
                return sample(model)
            finally:
                host.node("Disable CG", latent=scene.latent)

        yield Case(name, scene.model, hooked)
