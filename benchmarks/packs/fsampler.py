"""ComfyUI-FSampler: samplers that skip evaluations by themselves, and those that do not."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-FSampler"


def cases(host):
    scene = common.video(host)
    for sampler, mode in (
        ("euler", "none"), ("res_2m", "none"), ("res_2s", "none"), ("dpmpp_2m", "none"), ("euler", "h2/s2"),
        ("euler", "adaptive"),
    ):  # fmt: skip
        yield Case(f"FSampler {sampler}, skip mode {mode}", scene.model, fsampler(host, scene, sampler, mode))


def fsampler(host, scene, sampler, mode):
    def sample(model):
        return host.node(
            "FSampler", model=model, positive=scene.positive, negative=scene.negative,
            latent_image=dict(scene.latent), seed=common.SEED, steps=common.STEPS, cfg=common.CFG, scheduler="simple",
            sampler=sampler, skip_mode=mode, add_noise=0.0, denoise=1.0, verbose=False,
        )[0]["samples"]  # fmt: skip

    return sample
