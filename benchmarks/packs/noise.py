"""ComfyUI_Noise: a picture is unsampled, and sampled again."""

from works_with import Case

from . import common

FOLDER = "ComfyUI_Noise"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    picture = {"samples": common.ksampler(host, scene, seed=7)[1](scene.model)}

    def unsample(model, sampler="euler", **widgets):
        given = dict(
            model=model, steps=common.STEPS, end_at_step=0, cfg=1.0, sampler_name=sampler, scheduler="simple",
            normalize="disable", positive=scene.positive, negative=scene.negative, latent_image=dict(picture),
        )  # fmt: skip
        return host.node("BNK_Unsampler", **given | widgets)[0]

    yield Case("Unsampler, euler", scene.model, lambda model: unsample(model)["samples"])
    yield Case("Unsampler, dpmpp_2m, normalized, CFG 2", scene.model,
               lambda model: unsample(model, "dpmpp_2m", normalize="enable", cfg=2.0)["samples"])  # fmt: skip

    def there_and_back(model):
        start = unsample(model)
        return host.node(
            "KSamplerAdvanced", model=model, add_noise="disable", noise_seed=0, steps=common.STEPS, cfg=1.0,
            sampler_name="euler", scheduler="simple", positive=scene.positive, negative=scene.negative,
            latent_image=start, start_at_step=0, end_at_step=10000, return_with_leftover_noise="disable",
        )[0]["samples"]  # fmt: skip

    yield Case("Unsampler, and sampled again", scene.model, there_and_back)
