"""ComfyUI-Easy-Use: samplers that take a pipe, with schedules and guiders of their own."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-Easy-Use"


def cases(host):
    scene = common.video(host)
    yield Case("video, fullkSampler", scene.model, full(host, scene))
    scene = common.answering(common.tiny("SD15"))
    yield Case("SD15, fullkSampler, align_your_steps", scene.model, full(host, scene, scheduler="align_your_steps"))
    yield Case(
        "SD15, fullkSampler, gits, dpmpp_2m", scene.model, full(host, scene, scheduler="gits", sampler_name="dpmpp_2m")
    )
    inverse = dict(guider="CFG", cfg=1.5, steps=20, sampler_name="inversed_euler", scheduler="normal", flip_sigmas=True)
    yield Case("SD15, custom, inversed_euler", scene.model, full(host, scene, custom=inverse, add_noise="disable"))


def full(host, scene, custom=None, add_noise="enable (CPU)", **widgets):
    def sample(model):
        settings = dict(steps=common.STEPS, cfg=common.CFG, add_noise=add_noise)
        if custom:
            settings |= dict(custom, custom=custom)
        pipe = dict(
            model=model, positive=scene.positive, negative=scene.negative, samples=dict(scene.latent), vae=None,
            clip=None, seed=common.SEED, images=None, loader_settings=settings,
        )  # fmt: skip
        given = dict(
            pipe=pipe, steps=common.STEPS, cfg=common.CFG, sampler_name="euler", scheduler="simple", denoise=1.0,
            image_output="None", link_id=0, save_prefix="", seed=common.SEED, prompt={},
        )  # fmt: skip
        return host.node("easy fullkSampler", **given | widgets)["result"][0]["samples"]["samples"]

    return sample
