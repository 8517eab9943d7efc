"""attach on the transformers of real diffusers pipelines, tiny and with random weights."""

import diffusers
import pytest
import torch
from paper_rule import Recorder, assert_the_papers
from pipelines import FAMILIES, build, calm

from easycache_core import CacheConfig, attach

STEPS = 30
PAPER = CacheConfig(threshold=0.1, warmup_steps=5, predictor="reuse")


@pytest.fixture(params=FAMILIES)
def subject(request):
    return build(request.param)


def recorder(transformer):
    return Recorder(
        transformer, transformer.proj_out, lambda args, kwargs: kwargs["hidden_states"], lambda output: output[0]
    )


def test_decisions_and_predictions_are_the_papers(subject):
    """Catches a pipeline's way to call its transformer that attach takes for something else."""
    transformer = subject.pipe.transformer
    with recorder(transformer) as seen, attach(transformer, PAPER, STEPS, by_row=False) as cache:
        subject.sample(STEPS)
    assert len(seen.ran) == subject.calls * STEPS == subject.calls * len(cache.trace)
    for n in range(subject.calls):
        assert seen.ran[n :: subject.calls] == seen.ran[:: subject.calls]
    assert_the_papers(*seen.tracked(subject.calls), PAPER)


def test_threshold_zero_is_bit_identical_and_nothing_stays_behind(subject):
    """Catches changed inputs and outputs, and a pipeline that is not its own after the cache is gone."""
    transformer = subject.pipe.transformer
    plain, before = subject.sample(STEPS), dict(transformer.__dict__)
    with attach(transformer, CacheConfig(threshold=0.0, predictor="reuse"), STEPS) as cache:
        assert torch.equal(subject.sample(STEPS), plain)
    assert cache.skipped == 0
    with attach(transformer, PAPER, STEPS) as cache:
        first = subject.sample(STEPS)
        assert torch.equal(subject.sample(STEPS), first), "a second run starts anew"
    assert cache.skipped > 0 and not torch.equal(first, plain)
    assert transformer.__dict__ == before
    assert torch.equal(subject.sample(STEPS), plain)


def test_forecasts_are_closer_than_repetitions(subject):
    """Catches a wrong noise level or a wrong word for what the network predicts: forecasts would be far off."""
    plain = subject.sample(STEPS)
    distances = {}
    for predictor in ("reuse", "forecast"):
        config = CacheConfig(target_speedup=2, predictor=predictor)
        options = dict(sigma_of=subject.sigma_of, prediction=subject.prediction)
        with attach(subject.pipe.transformer, config, STEPS, **options) as cache:
            distances[predictor] = (subject.sample(STEPS) - plain).abs().mean()
        assert cache.computed == STEPS / 2
    assert distances["forecast"] < distances["reuse"] / 2


@pytest.mark.parametrize("return_dict", [True, False])
def test_answers_are_what_the_transformer_returns(subject, return_dict):
    """Catches a bare tensor, or one in the wrong wrapping, where a step is predicted."""
    transformer = subject.pipe.transformer
    calls = []
    hook = transformer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    subject.sample(STEPS)
    hook.remove()
    kind = type(transformer(**{**calls[0], "return_dict": return_dict}))
    assert issubclass(kind, diffusers.utils.BaseOutput if return_dict else tuple)
    with attach(transformer, PAPER, STEPS) as cache:
        for call in calls:
            answer = transformer(**{**call, "return_dict": return_dict})
            assert type(answer) is kind
            v = answer.sample if return_dict else answer[0]
            assert v.shape == call["hidden_states"].shape
    assert cache.skipped


@pytest.mark.parametrize("with_scheduler", [False, True])
def test_a_video_and_its_sound_in_one_call(with_scheduler):
    """LTX-2. Catches a transformer with two latents being refused, a timestep that it is told twice being taken for
    another question at each step, and forecasts of one of the two with what is known of the other.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = diffusers.LTX2VideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
            audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
            audio_cross_attention_dim=16, num_layers=2, caption_channels=16,
        )  # fmt: skip
        text, video, sound = torch.randn(2, 5, 16), torch.randn(1, 32, 8), torch.randn(1, 6, 4)
    transformer.eval().requires_grad_(False)
    calm(transformer)
    size = dict(num_frames=2, height=4, width=4, fps=24.0, audio_num_frames=6, return_dict=False)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)

    def sample():
        xs = [video, sound]
        for t, sigma, following in zip(scheduler.timesteps, scheduler.sigmas, scheduler.sigmas[1:], strict=False):
            timestep = t.expand(2)
            answers = transformer(
                *(torch.cat([x, x]) for x in xs), text, text, timestep=timestep, sigma=timestep, **size
            )
            pairs = [answer.chunk(2) for answer in answers]
            vs = [negative + 2 * (positive - negative) for negative, positive in pairs]
            xs = [x + (following - sigma) * v for x, v in zip(xs, vs, strict=True)]
        return xs

    exact = sample()
    options = dict(sigma_of=lambda t: t / 1000, input=("hidden_states", "audio_hidden_states"))
    options["scheduler"] = scheduler if with_scheduler else None
    for config, furthest in (
        (CacheConfig(threshold=0.0), 0.0),
        (CacheConfig(target_speedup=2), 0.005),
        (CacheConfig(threshold=0.1), 0.005),
    ):
        with attach(transformer, config, STEPS, **options) as cache:
            got = sample()
        off = [float((x - y).abs().mean() / y.abs().mean()) for x, y in zip(got, exact, strict=True)]
        assert max(off) <= furthest
        assert cache.skipped == 0 if not furthest else cache.skipped >= STEPS / 2
    with pytest.raises(ValueError, match="input= names all"), attach(transformer, CacheConfig(), STEPS, sigma_of=float):
        sample()


def test_a_denoiser_that_is_a_unet():
    """Catches whatever holds for transformers alone: here x is called sample, and timesteps are numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        text, noise = torch.randn(2, 4, 8), torch.randn(1, 4, 8, 8)
    unet.eval().requires_grad_(False)
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")

    def sample():
        x = noise
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            negative, positive = unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample.chunk(2)
            x = scheduler.step(negative + 2 * (positive - negative), t, x).prev_sample
        return x

    record = Recorder(unet, unet.conv_out, v_of=lambda output: output.sample)
    config = CacheConfig(threshold=0.3, warmup_steps=3, predictor="reuse")
    with record as seen, attach(unet, config, STEPS, by_row=False):
        sample()
    assert_the_papers(seen.x, seen.v, seen.ran, config)
