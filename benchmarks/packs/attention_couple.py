"""attention-couple-ComfyUI: regions of the picture have prompts of their own, in the attention."""

from works_with import Case

from . import common

FOLDER = "attention-couple-ComfyUI"


def cases(host):
    scene = common.full_unet()
    left, right = common.half_and_prompt(128, 48)
    both = [
        part[0] for part in (
            host.node("ConditioningSetMask", prompt, mask, "default", 1.0)[0]
            for prompt, mask in ((scene.positive, left), (right, 1 - left))
        )
    ]  # fmt: skip

    def coupled(model):
        return host.node("Attention couple", model=model, positive=both, negative=scene.negative, mode="Attention")

    model, positive, negative = coupled(scene.model)
    halves = scene._replace(positive=positive, negative=negative)
    for sampler in ("euler", "dpmpp_2m"):
        yield Case(f"two halves, {sampler}", model, common.ksampler(host, halves, sampler)[1])
    yield Case("two halves, after ours", *common.ksampler(host, halves, patch=lambda model: coupled(model)[0]))
