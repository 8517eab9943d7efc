"""cg-noisetools: mixed and shaped noise, and schedules that go back."""

from works_with import Case

from . import common

FOLDER = "cg-noisetools"


def cases(host):
    scene = common.video(host)

    def sample_with(make_noise):
        def sample(model):
            sigmas = host.node("BasicScheduler", model, "simple", common.STEPS, 1.0)[0]
            guider = host.node("CFGGuider", model, scene.positive, scene.negative, common.CFG)[0]
            sampler = host.node("KSamplerSelect", "euler")[0]
            return host.node("SamplerCustomAdvanced", make_noise(), guider, sampler, sigmas, scene.latent)[0]["samples"]

        return sample

    def mixed():
        first, second = (host.node("RandomNoise", seed)[0] for seed in (common.SEED, 7))
        return host.node("Mix Noise", noise1=first, noise2=second, weight2=0.1, renormalise="yes")[0]

    yield Case("Mix Noise", scene.model, sample_with(mixed))

    def rewound(model):
        """Ten steps, back to where five were done, and on to the end."""
        sigmas = host.node("BasicScheduler", model, "simple", common.STEPS, 1.0)[0]
        high, low, again = host.node("Split Sigmas with Rewind", sigmas=sigmas, endstep=10, startstep=5)
        guider = host.node("CFGGuider", model, scene.positive, scene.negative, common.CFG)[0]
        sampler, noise = host.node("KSamplerSelect", "euler")[0], host.node("RandomNoise", common.SEED)[0]
        first = host.node("SamplerCustomAdvanced", noise, guider, sampler, high, scene.latent)[1]
        other = host.node("RandomNoise", 7)[0]
        return host.node("SamplerCustomAdvanced", other, guider, sampler, low, first)[0]["samples"]

    yield Case("Split Sigmas with Rewind", scene.model, rewound)
