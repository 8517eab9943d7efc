"""ComfyUI-vectorscope-cc: colours that are shifted in the callback, in the latent and in the denoised one."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-vectorscope-cc"


def cases(host):
    scene = common.full_unet()
    for method, alt in (("Straight Abs.", False), ("Straight Abs.", True), ("Cross", True), ("N.Random", True)):
        model = vectorscope(host, scene.model, method=method, alt=alt)
        where = "the latent" if alt else "the denoised one"
        for sampler in ("euler", "dpmpp_2m"):
            yield Case(f"{method}, {where}, {sampler}", model, common.seeded(common.ksampler(host, scene, sampler)[1]))
    yield Case(
        "after ours, the latent",
        scene.model,
        common.seeded(common.ksampler(host, scene, patch=lambda model: vectorscope(host, model, alt=True))[1]),
    )


def vectorscope(host, model, **widgets):
    widgets = dict(brightness=2.0, contrast=1.0, saturation=1.5, r=0.5, g=0.0, b=-0.5, scaling="Flat") | widgets
    return host.node("VectorscopeCC", model=model, **dict(method="Straight Abs.", alt=False) | widgets)[0]
