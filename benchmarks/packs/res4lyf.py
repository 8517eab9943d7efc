"""RES4LYF: Runge-Kutta and multistep samplers with noise, guides, implicit steps, and samplers in a chain."""

from works_with import Case

from . import common

FOLDER = "RES4LYF"


def cases(host):
    scene = common.video(host)

    def clownshark(model, **widgets):
        given = dict(
            model=model, positive=scene.positive, negative=scene.negative, latent_image=scene.latent, eta=0.5,
            scheduler="beta57", steps=common.STEPS, steps_to_run=-1, denoise=1.0, cfg=common.CFG, seed=common.SEED,
            sampler_mode="standard", bongmath=True,
        )  # fmt: skip
        return host.node("ClownsharKSampler_Beta", **given | widgets)

    def case(name, **widgets):
        return Case(f"ClownsharKSampler {name}", scene.model, lambda model: clownshark(model, **widgets)[0]["samples"])

    yield case("res_2m", sampler_name="res_2m")
    yield case("res_2m, eta 0, simple", sampler_name="res_2m", eta=0.0, scheduler="simple")
    yield case("res_2s", sampler_name="res_2s")
    yield case("res_2s, eta 0", sampler_name="res_2s", eta=0.0)
    yield case("res_3s, eta 0", sampler_name="res_3s", eta=0.0)
    yield case("deis_3m, eta 0", sampler_name="deis_3m", eta=0.0)
    yield case("gauss-legendre_2s, eta 0", sampler_name="gauss-legendre_2s", eta=0.0)
    implicit = host.node(
        "ClownOptions_ImplicitSteps_Beta", implicit_type="rebound", implicit_type_substeps="rebound", implicit_steps=1,
        implicit_substeps=0,
    )[0]  # fmt: skip
    yield case("res_2m, implicit step", sampler_name="res_2m", eta=0.0, options=implicit)
    cycles = host.node(
        "ClownOptions_Cycles_Beta", cycles=1.0, eta_decay_scale=1.0, unsample_eta=0.5, unsampler_override="none",
        unsample_steps_to_run=-1, unsample_cfg=1.0, unsample_bongmath=False,
    )[0]  # fmt: skip
    yield case("res_2m, cycles", sampler_name="res_2m", steps_to_run=6, options=cycles)

    picture = {"samples": common.ksampler(host, scene, seed=7)[1](scene.model)}
    for mode in ("epsilon", "flow", "sync"):
        guides = host.node(
            "ClownGuide_Beta", guide_mode=mode, channelwise_mode=True, projection_mode=True, weight=0.5, cutoff=1.0,
            weight_scheduler="constant", start_step=0, end_step=12, invert_mask=False, guide=picture,
        )[0]  # fmt: skip
        yield case(f"res_2m, guide {mode}", sampler_name="res_2m", guides=guides)

    def chain(model):
        first = clownshark(model, sampler_name="res_2m", steps_to_run=10)
        return host.node(
            "ClownsharkChainsampler_Beta", model=model, latent_image=first[0], sampler_name="res_2m", steps_to_run=-1,
            cfg=common.CFG, eta=0.5, sampler_mode="resample", bongmath=True,
        )[0]["samples"]  # fmt: skip

    yield Case("ClownsharKSampler and ClownsharkChainsampler, 10 steps each", scene.model, chain)
    clown = host.node("ClownSampler_Beta", sampler_name="res_2s", eta=0.5, seed=common.SEED, bongmath=True)[0]
    yield Case("ClownSampler res_2s in SamplerCustomAdvanced", *common.custom(host, scene, None, clown))
    yield Case("KSampler res_2s, bong_tangent", *common.ksampler(host, scene, "res_2s", scheduler="bong_tangent"))
    flux = common.tiny("Flux")
    yield Case("Flux, KSampler res_2m", *common.ksampler(host, flux, "res_2m"))
