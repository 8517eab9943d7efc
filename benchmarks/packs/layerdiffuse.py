"""ComfyUI-layerdiffuse: pictures in layers, whose attentions share what they see. All of its weights are random ones.

ComfyUI hands on an argument that its shared attentions do not take; here it is left out. Needs cv2.
"""

import sys

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-layerdiffuse"


def cases(host):
    import tiny_models

    pack, rng = sys.modules[host.node_class("LayeredDiffusionApply").__module__], torch.Generator().manual_seed(3)
    weights = {"diffusion_model.input_blocks.0.0.weight::diff::0": torch.randn(32, 12, 3, 3, generator=rng) * 0.05}
    pack.load_file_from_url = lambda **_: ""
    pack.load_layer_model_state_dict = lambda path: weights
    pack.AttentionSharingPatcher.load_state_dict = lambda self, weights, strict: tiny_models.fill(self, rng)

    unit = sys.modules[pack.AttentionSharingPatcher.__module__].AttentionSharingUnit
    forward = unit.forward
    unit.forward = lambda self, h, context=None, value=None, **_: forward(self, h, context, value)

    scene = common.full_unet()
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    prompts = [[[torch.randn(1, 6, 48, generator=rng), {}]] for _ in range(2)]

    def layers(name, kind, frames, **given):
        config = host.node_class(kind).MODELS[-1].config_string
        model = host.node(kind, model=scene.model, config=config, **given)[0]
        latent = {"samples": torch.zeros(frames, 4, 16, 16)}
        return Case(name, model, common.ksampler(host, scene._replace(latent=latent))[1])

    yield layers("Apply", "LayeredDiffusionApply", 1, weight=1.0)
    yield layers("JointApply", "LayeredDiffusionJointApply", 3, fg_cond=prompts[0], bg_cond=prompts[1])
    yield layers("CondJointApply", "LayeredDiffusionCondJointApply", 2, image=picture, cond=prompts[0])
    wide = common.answering(common.tiny("SDXL"))
    latents = [{"samples": torch.randn(wide.latent["samples"].shape, generator=rng)} for _ in range(2)]
    model, positive, negative = host.node(
        "LayeredDiffusionDiffApply", model=wide.model, cond=wide.positive, uncond=wide.negative,
        blended_latent=latents[0], latent=latents[1],
        config=host.node_class("LayeredDiffusionDiffApply").MODELS[0].config_string, weight=1.0,
    )  # fmt: skip
    given = wide._replace(positive=positive, negative=negative)
    yield Case("SDXL, DiffApply", model, common.ksampler(host, given)[1])
