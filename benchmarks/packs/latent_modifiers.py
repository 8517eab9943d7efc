"""ComfyUI-Latent-Modifiers: a function in place of CFG that sharpens, tones down, or adds noise at each step."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-Latent-Modifiers"


def cases(host):
    scene = common.answering(common.tiny("SD15"))

    def modified(name, **widgets):
        """It comes after ours, as its generator of noise goes on from run to run: each has its own."""
        kind = host.node_class("Latent Diffusion Mega Modifier")
        required = kind.INPUT_TYPES()["required"]
        given = {
            name: options[1]["default"] if len(options) > 1 else options[0][0]
            for name, options in required.items() if name != "model"
        }  # fmt: skip

        def patch(model):
            return kind().mega_modify(model=model, **given | widgets, seed=7)[0]

        return Case(name, *common.ksampler(host, scene, cfg=8.0, patch=patch))

    yield modified("sharpness, anisotropic", sharpness_multiplier=10.0)
    for method in ("reinhard", "quantile", "gated", "cfg-mimic", "spatial-norm"):
        yield modified(f"tonemap, {method}", tonemap_multiplier=1.0, tonemap_method=method, tonemap_percentile=99.0)
    yield modified("contrast, CFG rescaled", contrast_multiplier=10.0, rescale_cfg_phi=0.7)
    yield modified("noise added", extra_noise_multiplier=10.0)
    yield modified("noise as CADS", extra_noise_multiplier=10.0, extra_noise_method="cads_rescaled")
    yield modified("dyncfg-halfcosine", dyn_cfg_augmentation="dyncfg-halfcosine")
    yield modified("spectral modulation", spectral_mod_multiplier=2.0)
