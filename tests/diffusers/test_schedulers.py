"""What attach learns from a diffusers scheduler: how long steps are, and in which weights answers are corrected."""

import contextlib
import types

import diffusers
import numpy as np
import pytest
import torch
from pipelines import build
from pretended_gpu import GPU, PretendedGpu

from easycache_core import CacheConfig, attach
from easycache_core.prediction import Prediction
from easycache_core.response import euler_response
from easycache_core.schedule import response_of, step_lengths

STEPS = 12
EULER = diffusers.FlowMatchEulerDiscreteScheduler
FLOW = dict(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
V = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")


def set_up(scheduler, **options):
    scheduler.set_timesteps(STEPS, **options)
    return scheduler


def flow_sigma(t: float) -> float:
    return t / 1000


def noise_over_signal(scheduler):
    def sigma_of(t):
        signal = float(scheduler.alphas_cumprod[int(t)].clamp_min(1e-4))
        return ((1 - signal) / signal) ** 0.5

    return sigma_of


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (EULER(shift=5.0), {}),
        (EULER(use_dynamic_shifting=True), dict(mu=1.2, sigmas=[1 - n / STEPS for n in range(STEPS)])),
        (EULER(invert_sigmas=True), {}),
        (diffusers.UniPCMultistepScheduler(**FLOW), {}),
        (diffusers.DDIMScheduler(), {}),
        (diffusers.HeunDiscreteScheduler(), {}),
        (diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0), {}),
    ],
)
def test_a_schedule_has_steps_of_equal_length_whatever_its_shift(scheduler, options):
    """Catches steps being measured in noise levels, of which a shifted schedule takes few long ones at its end."""
    set_up(scheduler, **options)
    lengths = step_lengths(scheduler, len(scheduler.timesteps))
    assert max(lengths[:-1]) - min(lengths[:-1]) < 0.002 and lengths[0] == pytest.approx(1 / STEPS, abs=0.02)
    assert step_lengths(scheduler, 3) == lengths[:3]
    assert step_lengths(scheduler, 30) is None


def all_schedulers():
    """One of each class of the installed diffusers that takes steps and can be made without arguments, with timesteps
    where it takes a number of them.
    """
    for name in (name for name in dir(diffusers) if name.endswith("Scheduler")):
        kind = getattr(diffusers, name)
        if not hasattr(kind, "step"):
            continue
        with contextlib.suppress(TypeError, ValueError, KeyError):  # classes that want something else
            scheduler = kind()
            yield scheduler
            set_up(scheduler)


def test_a_scheduler_that_does_not_say_is_no_error():
    """Catches schedulers without a table of trained timesteps (MiniMaxH3Scheduler and others) that end the user's run
    with an AttributeError.
    """
    network = torch.nn.Bilinear(4, 1, 4).eval()
    found = set()
    for scheduler in all_schedulers():
        found.add(type(scheduler).__name__)
        lengths = step_lengths(scheduler, STEPS)
        assert lengths is None or len(lengths) == STEPS
        options = dict(sigma_of=flow_sigma, scheduler=scheduler)
        with torch.no_grad(), attach(network, CacheConfig(target_speedup=2), STEPS, **options):
            network(torch.randn(2, 4), torch.full((2, 1), 1000.0))
    assert {"MiniMaxH3Scheduler", "KarrasVeScheduler", "BlockRefinementScheduler", "DDIMScheduler"} <= found


@pytest.mark.parametrize("scheduler", [EULER(shift=5.0), diffusers.DDIMScheduler()])
def test_a_configuration_in_another_form(scheduler):
    """Catches schedulers of other people whose config is a plain dict, or has attributes alone."""
    set_up(scheduler)
    lengths = step_lengths(scheduler, STEPS)
    for config in (dict(scheduler.config), types.SimpleNamespace(**scheduler.config)):
        names = ("timesteps", "sigmas", "num_inference_steps")
        plain = type(type(scheduler).__name__, (), {name: getattr(scheduler, name, None) for name in names})()
        plain.config = config
        assert step_lengths(plain, STEPS) == lengths
        plain.config = type(config)()
        assert step_lengths(plain, STEPS) is None or plain.sigmas is not None


SCHEDULERS = {
    "Euler": (EULER(shift=5.0), "flow"),
    "Euler, the other way round": (EULER(invert_sigmas=True), "reverse_flow"),
    "Heun": (diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0), "flow"),
    "with noise": (EULER(shift=3.0, stochastic_sampling=True), "flow"),
    "UniPC": (diffusers.UniPCMultistepScheduler(**FLOW), "flow"),
    "DPM++ 2M of flow models": (diffusers.DPMSolverMultistepScheduler(**FLOW), "flow"),
    "DPM++ 2M": (diffusers.DPMSolverMultistepScheduler(), "epsilon"),
    "DEIS": (diffusers.DEISMultistepScheduler(), "epsilon"),
    "Euler, of noise": (diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"), "epsilon"),
    "Euler ancestral": (diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing"), "epsilon"),
    "DDIM": (diffusers.DDIMScheduler(clip_sample=False), "epsilon"),
    "DDIM, v": (diffusers.DDIMScheduler(clip_sample=False, **V), "v_prediction"),
    "CogVideoX": (diffusers.CogVideoXDDIMScheduler(**V), "v_prediction"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_a_scheduler_makes_of_its_answers(name):
    """Catches weights in other terms than the engine's: a run with any other answers is their sum. And a scheduler, or
    the caller's random numbers, that are others afterwards.
    """
    scheduler, prediction = SCHEDULERS[name]
    set_up(scheduler)
    timesteps = scheduler.timesteps
    sigma_of = flow_sigma if "flow" in prediction else noise_over_signal(scheduler)
    if prediction == "reverse_flow":
        sigma_of = lambda t: 1 - t / 1000  # noqa: E731
    before = {key: value for key, value in vars(scheduler).items() if not isinstance(value, torch.Tensor)}
    state = torch.get_rng_state()
    response = response_of(scheduler, len(timesteps), Prediction(prediction), sigma_of, sigma_of(float(timesteps[0])))
    assert torch.equal(state, torch.get_rng_state())
    assert before == {key: value for key, value in vars(scheduler).items() if not isinstance(value, torch.Tensor)}
    assert response.adds_noise == ("noise" in name and name != "Euler, of noise" or "ancestral" in name)

    def sample(answers):
        torch.manual_seed(7)
        set_up(scheduler)
        conversion, x = Prediction(prediction), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
        for t, sigma, denoised in zip(timesteps, response.sigmas, answers, strict=True):
            conversion.set_sigma(sigma)
            network_x = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(conversion.output(denoised, network_x), t, x, return_dict=False)[0]
        return x

    answers = torch.randn(len(timesteps), 1, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = sample(answers) - sample(torch.zeros_like(answers))
    expected = torch.tensordot(torch.from_numpy(response.weights[-1]), answers, 1)
    torch.testing.assert_close(whole.double(), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_timesteps_on_a_gpu(name):
    """Catches timesteps that become float64 there, which Apple's GPUs do not have."""
    scheduler, prediction = SCHEDULERS[name]
    sigma_of = flow_sigma if "flow" in prediction else noise_over_signal(scheduler)

    def learnt():
        first = sigma_of(float(scheduler.timesteps[0]))
        response = response_of(scheduler, len(scheduler.timesteps), Prediction(prediction), sigma_of, first)
        return response and response.weights, step_lengths(scheduler, len(scheduler.timesteps))

    set_up(scheduler)
    expected = learnt()
    with PretendedGpu():
        set_up(scheduler, device=GPU)
        weights, lengths = learnt()
    set_up(scheduler)
    assert np.array_equal(weights, expected[0]) and lengths == expected[1]


def test_eulers_method_has_eulers_weights():
    """Catches noise levels that were read from rounded timesteps, and evaluations that are counted from another one."""
    scheduler = set_up(EULER(shift=5.0))
    scheduler.set_begin_index(4)
    sigmas = scheduler.sigmas[4:].tolist()
    response = response_of(scheduler, STEPS - 4, Prediction("flow"), flow_sigma, sigmas[0])
    assert response.sigmas == pytest.approx(sigmas[:-1])
    assert np.allclose(response.weights, euler_response(sigmas).weights, atol=1e-6)


def test_the_second_half_of_a_multistep_run():
    """Catches answers of the first network, as of Wan 2.2's two, that are taken for those of the second one."""
    scheduler = set_up(diffusers.UniPCMultistepScheduler(**FLOW))
    x = torch.randn(1, 4, 1, 8, 8)
    for t in scheduler.timesteps[:5]:
        x = scheduler.step(torch.randn_like(x), t, x).prev_sample
    response = response_of(scheduler, STEPS - 5, Prediction("flow"), flow_sigma, float(scheduler.sigmas[5]))
    assert response.weights.shape == (STEPS - 4, STEPS - 5) and np.isfinite(response.weights).all()
    assert response.weights[-1, -1] == pytest.approx(1, abs=1e-3), "the last answer is the picture"


def another_noise_level(t: float) -> float:
    return t / 3000


@pytest.mark.parametrize(
    ("scheduler", "sigma_of"),
    [
        (diffusers.DDIMScheduler(clip_sample=True), None),
        (diffusers.CogVideoXDPMScheduler(**V), None),
        (EULER(shift=3.0), another_noise_level),
    ],
)
def test_what_is_not_known_is_not_made_up(scheduler, sigma_of):
    """Catches weights of a scheduler that clips, that wants more than answers, or that has other noise levels."""
    set_up(scheduler)
    sigma_of = sigma_of or noise_over_signal(scheduler)
    first = sigma_of(float(scheduler.timesteps[0]))
    assert response_of(scheduler, STEPS, Prediction("flow"), sigma_of, first) is None


@torch.no_grad()
def test_noise_that_the_scheduler_does_not_tell_of():
    """Pipelines hand eta to each step. Catches a scheduler that is believed all the same: the latent is never where it
    should be then, and the budget goes before the end.
    """
    scheduler, steps, found = diffusers.DDIMScheduler(clip_sample=False), 30, {}
    sigma_of = noise_over_signal(scheduler)

    class Blurs(torch.nn.Module):
        """Predicts the noise of a picture that follows the latent."""

        def forward(self, sample, timestep):
            signal = scheduler.alphas_cumprod[int(timestep)]
            picture = torch.tanh(sample + sample.roll(1, -1) + sample.roll(1, -2))
            return (sample - signal.sqrt() * picture) / (1 - signal).sqrt()

    def sample(network):
        generator = torch.Generator().manual_seed(3)
        scheduler.set_timesteps(steps)
        x = torch.randn(1, 4, 16, 16, generator=generator)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x, eta=1.0, generator=generator, return_dict=False)[0]
        return x

    exact, network = sample(Blurs()), Blurs().eval()
    for given in (None, scheduler):
        scheduler.set_timesteps(steps)
        options = dict(sigma_of=sigma_of, prediction="epsilon", scheduler=given)
        with attach(network, CacheConfig(target_speedup=2), steps, **options) as cache:
            found[given] = decibels(sample(network), exact)
        assert cache.computed <= steps / 2 + 1 and cache.trace[-1]["computed"]
    assert found[scheduler] > found[None] - 1


def decibels(latent, exact):
    return float(10 * torch.log10(exact.square().mean() / (latent - exact).square().mean()))


@torch.no_grad()
@pytest.mark.parametrize("family", ["Wan", "HunyuanVideo", "FLUX", "Mochi"])
def test_corrected_in_the_schedulers_weights(family):
    """Catches corrections that are not handed to the pipeline, or in the wrong terms: they are worth 5 dB and more."""
    subject = build(family)
    exact, found = subject.sample(30), {}
    options = dict(sigma_of=subject.sigma_of, prediction=subject.prediction)
    for scheduler in (None, subject.pipe.scheduler):
        with attach(
            subject.pipe.transformer, CacheConfig(target_speedup=1.5), 30, scheduler=scheduler, **options
        ) as cache:
            found[scheduler] = decibels(subject.sample(30), exact)
        assert cache.computed == 20
    assert found[subject.pipe.scheduler] > found[None] + 4


@torch.no_grad()
@pytest.mark.parametrize("family", ["FLUX", "CogVideoX"])
def test_rounded_timesteps_and_half_precision(family):
    """Catches a scheduler that is no longer believed as its timesteps reach the network in half precision, or answers
    in another one than the network's.
    """
    subject = build(family)
    transformer, scheduler = subject.pipe.transformer, subject.pipe.scheduler
    kinds = set()

    def rounded(t: float) -> float:
        return float(torch.tensor(subject.sigma_of(t)).bfloat16())

    hook = transformer.register_forward_hook(lambda module, args, output: kinds.add((type(output), output[0].dtype)))
    sigma_of = rounded if family == "FLUX" else subject.sigma_of
    options = dict(sigma_of=sigma_of, prediction=subject.prediction, scheduler=scheduler)
    with attach(transformer, CacheConfig(target_speedup=2.0), 30, **options) as cache:
        subject.sample(30)
    hook.remove()
    assert cache.computed == 15 and len(kinds) == 1
    if family == "FLUX":
        assert [record["sigma"] for record in cache.trace] == pytest.approx(scheduler.sigmas[:-1].tolist())


@torch.no_grad()
def test_nothing_is_corrected_where_nothing_is_skipped():
    """Catches answers that are handed on in another form than the network's own."""
    subject = build("Wan")
    options = dict(sigma_of=subject.sigma_of, scheduler=subject.pipe.scheduler)
    with attach(subject.pipe.transformer, CacheConfig(threshold=0.0), 30, **options) as cache:
        cached = subject.sample(30)
    assert cache.skipped == 0 and torch.equal(cached, subject.sample(30))


@torch.no_grad()
def test_a_budget_spreads_over_the_length_of_steps():
    """Catches long steps (the beta scheduler's) getting no more evaluations than short ones."""
    subject, computed = build("FLUX"), {}
    for beta in (False, True):
        subject.pipe.scheduler = scheduler = EULER(shift=3.0, use_beta_sigmas=beta)
        config = CacheConfig(target_speedup=3)
        with attach(subject.pipe.transformer, config, 30, sigma_of=float, scheduler=scheduler) as cache:
            subject.sample(30)
        computed[beta] = [n for n, record in enumerate(cache.trace) if record["computed"]]
        assert cache.computed == 10
    scheduler.set_timesteps(30)
    lengths = step_lengths(scheduler, 30)

    def mean_length(which):
        return sum(lengths[n] for n in which) / len(which)

    assert mean_length(computed[True]) > 1.02 * mean_length(computed[False])


@torch.no_grad()
def test_a_scheduler_of_other_steps_is_said_to_be_of_no_use(caplog):
    """Catches a wrong total_steps that leads to an error, or to a budget over another schedule."""
    caplog.set_level("INFO")
    subject = build("FLUX")
    with attach(
        subject.pipe.transformer, CacheConfig(target_speedup=2), 39, sigma_of=float, scheduler=subject.pipe.scheduler
    ) as cache:
        subject.sample(30)
    assert cache.skipped and "does not have 39 steps from here" in caplog.text
