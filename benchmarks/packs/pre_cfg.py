"""pre_cfg_comfy_nodes_for_ComfyUI: functions before CFG, some of which ask the network once more."""

import torch
from works_with import Case

from . import common

FOLDER = "pre_cfg_comfy_nodes_for_ComfyUI"


class NoText:
    """A CLIP that encodes an empty prompt."""

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens, return_pooled):
        return torch.zeros(1, 6, 48), torch.zeros(1, 32)


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    _, sample = common.ksampler(host, scene)
    everywhere, above = dict(start_at_sigma=15.0, end_at_sigma=0.0), dict(start_at_sigma=15.0, end_at_sigma=1.0)

    def case(name, node, **widgets):
        return Case(name, host.node(f"Pre CFG {node}", model=scene.model, **widgets)[0], sample)

    yield case("PAG", "PAG", scale=0.5, **everywhere)
    yield case("PAG down to sigma 1", "PAG", scale=0.5, **above)
    yield case("zero attention", "zero attention", do_on="uncond", mix_scale=1.5, **everywhere)
    yield case(
        "perp-neg", "perp-neg", clip=NoText(), neg_scale=1.0, set_context_length=False, context_length=1, **everywhere
    )
    yield case("sharpening", "sharpening", do_on="both", scale=0.75, **above)
    yield case("subtract mean", "subtract mean", enabled=True, **everywhere)
    yield case("variable scaling", "variable scaling", target_scale=2.0, target_as_start=False, proportional_to="sigma")
    yield case(
        "gradient scaling", "gradient scaling", maximum_scale=8.0, minimum_scale=2.0, strength=0.5, end_at_sigma=0.28,
        converging_scales=True, invert_mask=False,
    )  # fmt: skip
    ranged = host.node(
        "Conditioning set timestep from sigma", model=scene.model, conditioning=scene.negative, sigma_start=15.0,
        sigma_end=1.0,
    )[0]  # fmt: skip
    model = host.node("Support empty uncond", model=scene.model, method="from cond")[0]
    yield Case("no negative below sigma 1", model, common.ksampler(host, scene._replace(negative=ranged))[1])
