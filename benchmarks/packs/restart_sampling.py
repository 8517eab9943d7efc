"""ComfyUI_restart_sampling: the noise level rises again within a run."""

from works_with import Case

from . import common

FOLDER = "ComfyUI_restart_sampling"
SEGMENTS = {"Flux": "[3,2,0.4,0.7]", "SD15": "default", "video": "[3,2,0.4,0.7],[3,1,0.7,0.9]"}


def cases(host):
    for name, scene in {"video": common.video(host), "SD15": common.tiny("SD15"), "Flux": common.tiny("Flux")}.items():
        yield Case(f"{name}, KRestartSampler euler", scene.model, restarting(host, scene, "euler", SEGMENTS[name]))
    scene, segments = common.video(host), SEGMENTS["video"]
    for sampler in ("heun", "dpmpp_2m", "euler_ancestral"):
        yield Case(f"video, KRestartSampler {sampler}", scene.model, restarting(host, scene, sampler, segments))
    unchunked = restarting(host, scene, "euler", segments, chunked_mode=False)
    yield Case("video, KRestartSampler euler, not chunked", scene.model, unchunked)
    sigmas = host.node(
        "RestartScheduler", model=scene.model, steps=common.STEPS, scheduler="simple", segments=segments,
        restart_scheduler="simple", denoise=1.0, start_at_step=0, end_at_step=10000,
    )[0]  # fmt: skip
    euler = host.node("KSamplerSelect", "euler")[0]
    sampler = host.node("RestartSampler", sampler=euler, chunked_mode=True)[0]
    yield Case("video, RestartScheduler and RestartSampler", *common.custom(host, scene, None, sampler, sigmas))


def restarting(host, scene, sampler, segments, chunked_mode=True):
    def sample(model):
        return host.node(
            "KRestartSampler", model=model, seed=common.SEED, steps=common.STEPS, cfg=common.CFG, sampler_name=sampler,
            scheduler="simple", positive=scene.positive, negative=scene.negative, latent_image=scene.latent,
            denoise=1.0, segments=segments, restart_scheduler="simple", chunked_mode=chunked_mode,
        )[0]["samples"]  # fmt: skip

    return sample
