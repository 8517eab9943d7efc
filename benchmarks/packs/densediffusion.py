"""ComfyUI_densediffusion: regions of the picture have prompts of their own, in the attention."""

from works_with import Case

from . import common

FOLDER = "ComfyUI_densediffusion"


def cases(host):
    scene = common.full_unet()
    left, right = common.half_and_prompt(128, 48)

    def dense(model):
        for (cond, _), mask in ((scene.positive[0], left), (right[0], 1 - left)):
            prompt = [[cond, {"pooled_output": None}]]  # which it asks for, also where there is none
            model = host.node("DenseDiffusionAddCondNode", model=model, conditioning=prompt, mask=mask, strength=1.0)[0]
        return host.node("DenseDiffusionApplyNode", model=model)

    model, positive = dense(scene.model)
    two = scene._replace(positive=positive)
    for sampler in ("euler", "dpmpp_2m"):
        yield Case(f"two regions, {sampler}", model, common.ksampler(host, two, sampler)[1])
    yield Case("two regions, after ours", *common.ksampler(host, two, patch=lambda model: dense(model)[0]))
