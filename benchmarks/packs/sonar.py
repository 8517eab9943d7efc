"""ComfyUI-sonar: samplers with momentum and guidance, FreeU that starts on the way."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-sonar"


def cases(host):
    scene = common.video(host)
    picture = {"samples": common.ksampler(host, scene, seed=7)[1](scene.model)}

    def sonar(kind, name, **widgets):
        sampler = host.node(kind, momentum_init="ZERO", **widgets)[0]
        return Case(name, *common.custom(host, scene, None, sampler))

    yield sonar("SamplerSonarEuler", "SamplerSonarEuler, momentum 0.95")
    yield sonar("SamplerSonarEuler", "SamplerSonarEuler, momentum 0.7", momentum=0.7)
    for kind in ("linear", "euler"):
        guidance = host.node(
            "SonarGuidanceConfig", factor=0.05, guidance_type=kind, start_step=1, end_step=8, latent=picture
        )[0]
        yield sonar("SamplerSonarEuler", f"SamplerSonarEuler, guidance {kind}", guidance_cfg_opt=guidance)
    yield sonar("SamplerSonarDPMPPSDE", "SamplerSonarDPMPPSDE, eta 0", eta=0.0, noise_type="gaussian")
    euler = host.node("KSamplerSelect", "euler_ancestral")[0]
    override = host.node("SamplerConfigOverride", sampler=euler, eta=0.2, sde_solver="midpoint")[0]
    yield Case("SamplerConfigOverride: euler_ancestral, eta 0.2", *common.custom(host, scene, None, override))
    unet = common.answering(common.tiny("SD15"))
    _, sample = common.ksampler(host, unet)
    sharpen = host.node("LatentOperationSharpen", 3, 1.0, 0.1)[0]
    model = host.node(
        "SonarApplyLatentOperationCFG", model=unet.model, operation_1=sharpen, start_sigma=10.0, end_sigma=1.0
    )[0]
    yield Case("SD15, SonarApplyLatentOperationCFG, sigma 10 to 1", model, sample)
    config = host.node("FreeUExtremeConfig", target="both", start=0.2, end=0.6, scale=1.2, slice=0.5)[0]
    model = host.node("FreeUExtreme", model=unet.model, output_config=config)[0]
    yield Case("SD15, FreeUExtreme, 20 to 60 %", model, sample)
