"""ComfyUI-NAG: normalised attention guidance, with a guider and samplers of its own."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-NAG"


def cases(host):
    for name, scene in {"video": common.video(host), "SD15": common.tiny("SD15"), "Flux": common.tiny("Flux")}.items():
        yield Case(f"{name}, NAGCFGGuider", *common.custom(host, scene, guider_of(host, scene)))

    scene = common.video(host)
    yield Case("video, NAGCFGGuider, heun", *common.custom(host, scene, guider_of(host, scene), "heun"))
    yield Case("video, NAGCFGGuider until sigma 0.8", *common.custom(host, scene, guider_of(host, scene, 0.8)))

    def nag_guider(model):
        return host.node(
            "NAGGuider", model=model, conditioning=scene.positive, nag_negative=scene.negative,
            latent_image=scene.latent, nag_scale=5.0,
        )[0]  # fmt: skip

    yield Case("video, NAGGuider", *common.custom(host, scene, nag_guider))

    def ksampler(model):
        return host.node(
            "KSamplerWithNAG", model=model, seed=common.SEED, steps=common.STEPS, cfg=common.CFG, nag_scale=5.0,
            sampler_name="euler", scheduler="simple", positive=scene.positive, negative=scene.negative,
            nag_negative=scene.negative, latent_image=scene.latent,
        )[0]["samples"]  # fmt: skip

    yield Case("video, KSamplerWithNAG", scene.model, ksampler)


def guider_of(host, scene, sigma_end=0.0):
    def guider(model):
        return host.node(
            "NAGCFGGuider", model=model, positive=scene.positive, negative=scene.negative, nag_negative=scene.negative,
            cfg=common.CFG, nag_scale=5.0, nag_sigma_end=sigma_end, latent_image=scene.latent,
        )[0]  # fmt: skip

    return guider
