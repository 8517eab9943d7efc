"""ComfyUI-Extra-Samplers: samplers with momentum, a leap or several evaluations per step, and guiders."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-Extra-Samplers"


def cases(host):
    scene = common.video(host)
    unet = common.answering(common.tiny("SD15"))

    def sampler(kind, name="", scene=scene, **widgets):
        built = host.node(kind, **widgets)[0]
        return Case(f"{name or kind}", *common.custom(host, scene, None, built))

    plain = dict(noise_sampler_type="gaussian")
    yield sampler("SamplerRES_Momentumized", momentum=0.0, denoise_to_zero=True, simple_phi_calc=False, c2=0.5, **plain)
    yield sampler("SamplerRES_Momentumized", "SamplerRES_Momentumized, momentum 0.5", momentum=0.5, **plain)
    yield sampler("SamplerDPMPP_DualSDE_Momentumized", "SamplerDPMPP_DualSDE_Momentumized, eta 0", eta=0.0, **plain)
    yield sampler("SamplerCLYB_4M_SDE_Momentumized", "SamplerCLYB_4M_SDE_Momentumized, eta 0", eta=0.0, **plain)
    yield sampler("SamplerDPMPP_3M_SDE_DynETA", "SamplerDPMPP_3M_SDE_DynETA, eta 0.3 to 0", eta_max=0.3, **plain)
    yield sampler("SamplerEulerAncestralDancing_Experimental", "SamplerEulerAncestralDancing, leap 2, eta 0", leap=2,
                  eta=0.0, eta_dance=0.0, **plain)  # fmt: skip
    # It differentiates forwards, of which only this attention is capable.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield sampler("SamplerTTM", "SamplerTTM, eta 0", eta=0.0, **plain)
    supreme = dict(eta=0.0, s_noise=0.0, centralization=0.05, normalization=0.05, edge_enhancement=0.0, perphist=0.0,
                   noise_modulation="none", modulation_strength=0.0, modulation_dims="3", **plain)  # fmt: skip
    for method in ("euler", "dpm_1s", "dpm_2s", "bogacki_shampine", "rk4", "trapezoidal", "adaptive_rk", "dynamic"):
        yield sampler("SamplerSupreme", f"SamplerSupreme {method}", step_method=method, substep_method="euler",
                      substeps=1, **supreme)  # fmt: skip
    yield sampler("SamplerSupreme", "SamplerSupreme euler, three substeps", step_method="euler",
                  substep_method="euler", substeps=3, **supreme)  # fmt: skip

    def guided(kind, **widgets):
        def guider(model):
            return host.node(kind, model=model, negative=unet.negative, **widgets)[0]

        return Case(kind, *common.custom(host, unet, guider))

    two = dict(cond1=unet.positive, cond2=[[torch.randn(1, 6, 48, generator=torch.manual_seed(3)), {}]], cfg=4.0)
    yield guided("GeometricCFGGuider", **two)
    yield guided("ScaledCFGGuider", **two)
    one = dict(positive=unet.positive)
    yield guided("WarmupDecayCFGGuider", **one)
    picture = {"samples": common.ksampler(host, unet, seed=7)[1](unet.model)}
    yield guided("ImageAssistedCFGGuider", image_weighting="flat", cfg=4.0, image_cfg=0.1, weight_scaling=1.0,
                 latent_image=picture, **one)  # fmt: skip
    yield guided("MegaCFGGuider", mean_cfg=0.5, image_guidance=0.1, image_weighting="linear down", weight_scaling=1.0,
                 latent_image=picture, **one)  # fmt: skip

    sigmas = host.node("BasicScheduler", unet.model, "simple", common.STEPS, 1.0)[0]
    again = host.node("BasicScheduler", unet.model, "simple", common.STEPS, 0.5)[0]
    euler = host.node("KSamplerSelect", "euler")[0]
    both = dict(
        noise_type="gaussian", add_noise=True, add_noise_pass2=True, return_noisy_pass1=True, noise_seed=common.SEED,
        cfg=4.0, cfg2=4.0, positive=unet.positive, negative=unet.negative, sampler=euler, sampler2=euler,
        sigmas=sigmas,
    )  # fmt: skip

    def duo(model):
        return host.node(
            "SamplerCustomNoiseDuo", model=model, sigmas2=again, hr_upscale=1.5, latent_image=dict(unet.latent), **both
        )[0]["samples"]

    yield Case("SamplerCustomNoiseDuo, 1.5 times as large", unet.model, duo)
