"""ComfyUI-ppm: samplers, guidance in a part of the schedule, and prompts for regions."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-ppm"


def cases(host):
    scene = common.answering(common.tiny("SD15"))

    def selected(node, **widgets):
        return common.custom(host, scene, None, host.node(node, **widgets)[0])

    dynamic = dict(eta=1.0, s_dy_pow=2, s_extra_steps=True)
    for name in ("euler_dy", "dpmpp_2m_dy"):
        yield Case(f"{name}, extra steps at half size", *selected("DynSamplerSelect", sampler_name=name, **dynamic))
    plain = dict(eta=1.0, s_gamma_start=0.0, s_gamma_end=0.0, s_extra_steps=False)
    yield Case("euler_dy_cfg_pp", *selected("CFGPPSamplerSelect", sampler_name="euler_dy_cfg_pp", **plain))
    gamma = dict(sampler_name="euler_gamma", model=scene.model, cfg_pp=False, s_sigma_diff=2.0)
    yield Case("euler_gamma", *selected("PPMSamplerSelect", **gamma))

    _, sample = common.ksampler(host, scene)
    limited = host.node("Guidance Limiter", model=scene.model, sigma_start=5.42, sigma_end=0.28)[0]
    yield Case("Guidance Limiter, sigma 5.42 to 0.28", limited, sample)

    def guider(model):
        return host.node(
            "CFGLimiterGuider", model=model, positive=scene.positive, negative=scene.negative, cfg=common.CFG,
            sigma_start=5.42, sigma_end=0.28,
        )[0]  # fmt: skip

    yield Case("CFGLimiterGuider, sigma 5.42 to 0.28", *common.custom(host, scene, guider))
    first = host.node("SkipFirstStepCFG", model=scene.model, skip_percent=0.1)[0]
    yield Case("no CFG in the first 10%", first, sample)

    left, other = common.half_and_prompt(128, 48)
    coupled = host.node(
        "AttentionCouplePPM", model=scene.model, base_cond=scene.positive, base_mask=left, cond_1=other, mask_1=1 - left
    )[0]
    yield Case("Attention Couple", coupled, sample)
