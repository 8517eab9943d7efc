"""ComfyUI-Detail-Daemon: samplers that tell the network another noise level than theirs."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-Detail-Daemon"


def cases(host):
    for name, scene in {"video": common.video(host), "SD15": common.tiny("SD15")}.items():
        for sampler in ("euler", "dpmpp_2m") if name == "video" else ("euler",):
            plain = host.node("KSamplerSelect", sampler)[0]
            for amount in (0.1, 0.5):
                daemon = host.node("DetailDaemonSamplerNode", sampler=plain, detail_amount=amount)[0]
                title = f"{name}, DetailDaemonSampler {sampler}, amount {amount}"
                yield Case(title, *common.custom(host, scene, None, daemon))
    scene, plain = common.video(host), host.node("KSamplerSelect", "euler")[0]
    lying = host.node("LyingSigmaSampler", sampler=plain, dishonesty_factor=-0.05, start_percent=0.1, end_percent=0.9)
    yield Case("video, LyingSigmaSampler", *common.custom(host, scene, None, lying[0]))
    sigmas = host.node("BasicScheduler", scene.model, "simple", common.STEPS, 1.0)[0]
    scaled = host.node("MultiplySigmas", sigmas=sigmas, factor=0.95, start=0.2, end=0.8)[0]
    yield Case("video, MultiplySigmas", *common.custom(host, scene, None, "euler", scaled))
