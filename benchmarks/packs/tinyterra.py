"""ComfyUI_tinyterraNodes: its sampler, and one more of an enlarged latent."""

from works_with import Case

from . import common

FOLDER = "ComfyUI_tinyterraNodes"


def cases(host):
    scene = common.video(host)
    yield Case("video, tinyKSampler", scene.model, tiny_ksampler(host, scene))
    scene = common.answering(common.tiny("SD15"))
    yield Case("SD15, tinyKSampler, GITS[coeff=1.2]", scene.model, tiny_ksampler(host, scene, scheduler="GITS"))


def tiny_ksampler(host, scene, **widgets):
    class NoVAE:
        def decode(self, latent):
            return latent

    def sample(model):
        given = dict(
            model=model, positive=scene.positive, negative=scene.negative, latent=dict(scene.latent), vae=NoVAE(),
            lora_name="None", steps=common.STEPS, cfg=common.CFG, sampler_name="euler", scheduler="simple",
            image_output="Disabled", seed=common.SEED, my_unique_id="1", upscale_method="None",
        )  # fmt: skip
        return host.node("ttN KSampler_v2", **given | widgets)[3]["samples"]

    return sample
