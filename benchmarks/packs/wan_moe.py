"""ComfyUI-WanMoeKSampler: one sampler for two models, the first of which is sampled to its end."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-WanMoeKSampler"


def cases(host):
    scene = common.video(host)
    for sampler in ("euler", "dpmpp_2m"):
        yield Case(sampler, scene.model, moe(host, scene, sampler))
    yield Case("two nodes of ours", scene.model, moe(host, scene, "euler", nodes=2))
    yield Case("Advanced, from step 4", scene.model, moe(host, scene, "euler", advanced=True))


def moe(host, scene, sampler, nodes=1, advanced=False):
    def sample(model):
        low = common.second_model(host, model, scene.model.clone(), nodes)
        widgets = dict(
            model_high_noise=model, model_low_noise=low, boundary=0.875, steps=common.STEPS, cfg_high_noise=4.0,
            cfg_low_noise=3.0, sampler_name=sampler, scheduler="simple", sigma_shift=8.0, positive=scene.positive,
            negative=scene.negative, latent_image=dict(scene.latent),
        )  # fmt: skip
        if advanced:
            return host.node(
                "WanMoeKSamplerAdvanced", noise_seed=common.SEED, add_noise="enable", start_at_step=4,
                end_at_step=10000, return_with_leftover_noise="disable", **widgets,
            )[0]["samples"]  # fmt: skip
        return host.node("WanMoeKSampler", seed=common.SEED, denoise=1.0, **widgets)[0]["samples"]

    return sample
