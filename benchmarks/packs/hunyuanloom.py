"""ComfyUI-HunyuanLoom: FlowEdit and controlled flows, on the video model."""

import functools

from works_with import Case

from . import common

FOLDER = "ComfyUI-HunyuanLoom"


def cases(host):
    scene = common.video(host)
    _, wanted, *_ = host.node("EasyCacheDemoModel", "whale", "sunset", "zoom-in", 1)
    picture = {"samples": common.ksampler(host, scene, seed=7)[1](scene.model)}
    sigmas = host.node("BasicScheduler", scene.model, "simple", common.STEPS, 1.0)[0]
    flipped = host.node("FlipSigmas", sigmas)[0]

    runs = functools.partial(common.edited, host, scene.model, latent=picture)

    def sampling(kind):
        return lambda model: host.node(
            "BasicGuider", host.node(kind, model=model, shift=5.0)[0], scene.positive
        )[0]  # fmt: skip

    def forward():
        return host.node(
            "HYForwardODESampler", gamma=0.5, start_step=0, end_step=5, gamma_trend="linear_decrease", seed=3
        )[0]

    def reverse():
        return host.node(
            "HYReverseODESampler", model=scene.model, latent_image=picture, eta=0.8, start_step=0, end_step=5,
            eta_trend="linear_decrease",
        )[0]  # fmt: skip

    yield Case("HYForwardODESampler", *runs(forward, flipped, sampling("HYInverseModelSamplingPred")))
    yield Case("HYReverseODESampler", *runs(reverse, sigmas, sampling("HYReverseModelSamplingPred"), noise=True))

    def edit(**widgets):
        return lambda: host.node("HYFlowEditSampler", seed=3, **widgets)[0]

    def editing(kind="HYFlowEditGuider", **widgets):
        def guider(model):
            shifted = host.node("HYReverseModelSamplingPred", model=model, shift=5.0)[0]
            conditionings = dict(source_cond=scene.positive, target_cond=wanted)
            if "CFG" in kind:
                conditionings |= dict(source_uncond=scene.negative, target_uncond=scene.negative)
            return host.node(kind, model=shifted, **conditionings, **widgets)[0]

        return guider

    yield Case("HYFlowEditSampler", *runs(edit(skip_steps=4, drift_steps=0), sigmas, editing()))
    yield Case("HYFlowEditSampler, five drift steps", *runs(edit(skip_steps=4, drift_steps=5), sigmas, editing()))
    cfg = editing("HYFlowEditGuiderCFG", source_cfg=2.0, target_cfg=4.5)
    yield Case("HYFlowEditSampler, CFG", *runs(edit(skip_steps=4, drift_steps=0), sigmas, cfg))
    thrice = editing("HYFlowEditGuiderAdv", num_repeats=2)
    yield Case("HYFlowEditSampler, asked twice", *runs(edit(skip_steps=4, drift_steps=0), sigmas, thrice))
