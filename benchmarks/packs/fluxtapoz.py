"""ComfyUI-Fluxtapoz: inversion, controlled flows, FlowEdit and RF-Edit, with model samplings of its own."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-Fluxtapoz"


def cases(host):
    scene = common.answering(common.tiny("Flux"))
    other = common.tiny("Flux").negative
    picture = {"samples": common.ksampler(host, scene, seed=7)[1](scene.model)}
    sigmas = host.node("BasicScheduler", scene.model, "simple", common.STEPS, 1.0)[0]
    flipped = host.node("FlipSigmas", sigmas)[0]
    size = dict(width=1024, height=1024)

    def basic(conditioning):
        return lambda model: host.node("BasicGuider", model, conditioning)[0]

    def runs(make_sampler, levels, latent=picture, wrap=lambda model: model, guider=None, noise=False):
        """Each time a new sampler, as some keep a generator or the answers of a run."""

        def sample(model):
            given = host.node("RandomNoise", common.SEED)[0] if noise else host.node("DisableNoise")[0]
            built = (guider or basic(scene.positive))(wrap(model))
            return host.node("SamplerCustomAdvanced", given, built, make_sampler(), levels, dict(latent))[0]["samples"]

        return scene.model, sample

    def inverse(model):
        return host.node("InFluxModelSamplingPred", model=model, **size)[0]

    def out(model, reverse=False):
        return host.node("OutFluxModelSamplingPred", model=model, reverse_ode=reverse, **size)[0]

    def inverted():
        return host.node("FluxInverseSampler")[0]

    yield Case("FluxInverseSampler", *runs(inverted, flipped, wrap=inverse))

    def forward(gamma):
        return lambda: host.node("FluxForwardODESampler", gamma=gamma, seed=3)[0]

    def reverse(**widgets):
        return lambda: host.node(
            "FluxReverseODESampler", model=scene.model, latent_image=picture, eta=0.8, start_step=0, end_step=5,
            **widgets,
        )[0]  # fmt: skip

    yield Case("FluxForwardODESampler, gamma 0.5", *runs(forward(0.5), flipped, wrap=inverse))
    yield Case("FluxForwardODESampler, gamma 0", *runs(forward(0.0), flipped, wrap=inverse))
    backwards = dict(wrap=lambda model: out(model, True), noise=True)
    yield Case("FluxReverseODESampler, eta 0.8 for 5 steps", *runs(reverse(), sigmas, **backwards))
    falling = reverse(eta_trend="linear_decrease")
    yield Case("FluxReverseODESampler, falling", *runs(falling, sigmas, **backwards))

    def editing(model):
        return host.node("FlowEditGuider", model=model, source_cond=scene.positive, target_cond=other)[0]

    def edit(**widgets):
        return lambda: host.node("FlowEditSampler", seed=3, **widgets)[0]

    plain = dict(guider=editing, wrap=lambda model: out(model, True))
    yield Case("FlowEditSampler", *runs(edit(skip_steps=4, refine_steps=0), sigmas, **plain))
    yield Case("FlowEditSampler, five refining steps", *runs(edit(skip_steps=4, refine_steps=5), sigmas, **plain))

    for order in ("second", "fireflow"):

        def there_and_back(model, order=order):
            modified = host.node("ConfigureModifiedFlux", model=model)[0]
            first, bank = host.node("FlowEditForwardSampler", save_steps=10, order=order)
            way = [host.node("DisableNoise")[0], basic(scene.positive)(inverse(modified))]
            latent = host.node("SamplerCustomAdvanced", *way, first, flipped, dict(picture))[0]
            second = host.node("FlowEditReverseSampler", attn_inj=bank, inject_steps=10, order=order)[0]
            way[1] = basic(other)(out(modified, True))
            return host.node("SamplerCustomAdvanced", *way, second, sigmas, latent)[0]["samples"]

        yield Case(f"RF-Edit {order}, there and back", scene.model, there_and_back)
