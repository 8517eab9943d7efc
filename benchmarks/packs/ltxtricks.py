"""ComfyUI-LTXTricks: edits and controlled flows, on LTXV.

Its own forward of LTXV needs a ComfyUI of January 2025, as do the nodes that change attentions. So that the others can
be loaded, a function that ComfyUI has no more is put back as a name.
"""

import functools

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-LTXTricks"


def prepare():
    import comfy.ldm.lightricks.model as lightricks

    for name in ("apply_rotary_emb", "precompute_freqs_cis"):
        if not hasattr(lightricks, name):
            setattr(lightricks, name, None)


def cases(host):
    scene = common.answering(common.tiny("LTXV"))
    rng = torch.Generator().manual_seed(1)
    picture = {"samples": torch.randn(1, 128, 2, 8, 8, generator=rng) * 0.5}
    scene = scene._replace(latent={"samples": torch.zeros_like(picture["samples"])})
    wanted = [[torch.randn(scene.positive[0][0].shape, generator=rng), scene.positive[0][1]]]
    sigmas = host.node("BasicScheduler", scene.model, "simple", common.STEPS, 1.0)[0]
    flipped = host.node("FlipSigmas", sigmas)[0]

    runs = functools.partial(common.edited, host, scene.model, latent=picture)

    def guided(kind):
        return lambda model: host.node(
            "CFGGuider", host.node(kind, model=model)[0], scene.positive, scene.negative, 1.5
        )[0]  # fmt: skip

    def forward(**widgets):
        return lambda: host.node("LTXRFForwardODESampler", gamma=0.5, gamma_trend="linear_decrease", **widgets)[0]

    def reverse(**widgets):
        return lambda: host.node(
            "LTXRFReverseODESampler", model=scene.model, latent_image=picture, end_step=5, **widgets
        )[0]  # fmt: skip

    for order in ("first", "second"):
        there, back = guided("LTXForwardModelSamplingPred"), guided("LTXReverseModelSamplingPred")
        yield Case(f"LTXRFForwardODESampler, {order}", *runs(forward(order=order), flipped, there))
        yield Case(f"LTXRFReverseODESampler, {order}", *runs(reverse(order=order), sigmas, back, noise=True))

    def editing(model):
        return host.node(
            "LTXFlowEditCFGGuider", model=host.node("LTXReverseModelSamplingPred", model=model)[0],
            source_pos=scene.positive, source_neg=scene.negative, target_pos=wanted, target_neg=scene.negative,
            source_cfg=1.5, target_cfg=3.0,
        )[0]  # fmt: skip

    for steps in (0, 5):

        def edit(steps=steps):
            return host.node("LTXFlowEditSampler", skip_steps=4, refine_steps=steps, seed=3)[0]

        yield Case(f"LTXFlowEditSampler, {steps} refining steps", *runs(edit, sigmas, editing))
    perturbed = host.node("LTXPerturbedAttention", model=scene.model, cfg=3.0)[0]
    yield Case("LTXPerturbedAttention", perturbed, common.ksampler(host, scene)[1])
