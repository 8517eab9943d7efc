"""attach on diffusers pipelines that hand more to their network than a latent and a prompt."""

import functools

import diffusers
import pytest
import torch
from pipelines import calm

from easycache_core import CacheConfig, attach

STEPS = 30
BUDGET = CacheConfig(target_speedup=2)
FLUX = dict(
    in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
)  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pipeline(kind, transformer, scheduler=None, **parts):
    scheduler = scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    calm(transformer.eval())
    expected = dict.fromkeys(kind._get_signature_keys(kind)[0])
    pipe = kind(**{**expected, "transformer": transformer, "scheduler": scheduler, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_of(pipe, **arguments):
    """A function that samples from the same noise each time."""
    options = dict(num_inference_steps=STEPS, output_type="latent", return_dict=False)

    def sample():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return pipe(**arguments, **options, generator=torch.Generator().manual_seed(0))[0]

    return sample


def autoencoder(channels=4):
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=down, up_block_types=up, latent_channels=channels,
        norm_num_groups=4, layers_per_block=1, shift_factor=0.0, scaling_factor=1.0,
    ).eval()  # fmt: skip


def flux_prompts(*, guided=True):
    prompt = dict(prompt_embeds=torch.randn(1, 7, 32), pooled_prompt_embeds=torch.randn(1, 32))
    return {**prompt, **{f"negative_{name}": value * -1 for name, value in prompt.items() if guided}}


def kontext():
    pipe = pipeline(diffusers.FluxKontextPipeline, diffusers.FluxTransformer2DModel(**FLUX), vae=autoencoder())
    size = dict(height=64, width=64, max_area=64 * 64, _auto_resize=False)
    return pipe, latents_of(pipe, image=torch.rand(1, 3, 128, 128), true_cfg_scale=3.0, **size, **flux_prompts()), float


def qwen_edit():
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    pipe = pipeline(diffusers.QwenImageEditPipeline, transformer, scheduler, vae=vae.eval())
    mask = torch.ones(1, 7, dtype=torch.int64)
    prompts = dict(prompt_embeds=torch.randn(1, 7, 32), negative_prompt_embeds=torch.randn(1, 7, 32))
    masks = dict(prompt_embeds_mask=mask, negative_prompt_embeds_mask=mask)
    image = diffusers.utils.numpy_to_pil(torch.rand(1, 64, 64, 3).numpy())[0]
    sample = latents_of(pipe, image=image, true_cfg_scale=3.0, height=64, width=64, **prompts, **masks)
    return pipe, sample, float


def first_frame_given():
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=48, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    parts = dict(vae=vae.eval(), expand_timesteps=True)
    pipe = pipeline(diffusers.WanImageToVideoPipeline, transformer, scheduler, **parts)
    prompts = dict(prompt_embeds=torch.randn(1, 7, 16), negative_prompt_embeds=torch.randn(1, 7, 16))
    size = dict(height=64, width=64, num_frames=9, guidance_scale=4.0)
    return pipe, latents_of(pipe, image=torch.rand(1, 3, 64, 64), **size, **prompts), lambda t: t / 1000


@pytest.mark.parametrize("make", [kontext, qwen_edit, first_frame_given])
def test_pictures_for_reference_have_no_say(make, monkeypatch, caplog):
    """Catches an edit whose decisions hang on what the network answers for the picture to be edited, which the pipeline
    throws away: nothing changes where that is noise.
    """
    caplog.set_level("INFO")
    if make is qwen_edit:
        module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit"
        monkeypatch.setattr(f"{module}.calculate_dimensions", lambda area, ratio: (96, 96, None))
    pipe, sample, sigma_of = make()
    seen, flags, latents = [], [], []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    exact = sample()
    hook.remove()
    still = (torch.stack(seen) == seen[0]).all(0).all(1 if seen[0].ndim == 5 else -1, keepdim=True)
    assert still.any() and not still.all()

    def disturbed(*args, **kwargs):
        """The network with noise in place of what it answers for what stands still."""
        x, output = kwargs["hidden_states"], forward(*args, **kwargs)
        seed = int(1e6 * kwargs["timestep"].max())
        noise = 8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        return (torch.where(still, noise, output[0]), *output[1:])

    forward, config = pipe.transformer.forward, CacheConfig(threshold=0.05, warmup_steps=4)
    for network in (forward, functools.wraps(forward)(disturbed)):
        pipe.transformer.forward = network
        with attach(pipe.transformer, config, STEPS, sigma_of=sigma_of) as cache:
            latents.append(sample())
        flags.append([record["computed"] for record in cache.trace])
    assert flags[0] == flags[1] and cache.skipped > STEPS / 4
    assert torch.equal(*latents)
    assert (latents[0] - exact).abs().mean() < 0.01 * exact.abs().mean()
    assert "taken for a reference" in caplog.text


def sd3_controlled(start, end):
    sizes = dict(
        sample_size=8, patch_size=1, in_channels=4, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=16, out_channels=4,
    )  # fmt: skip
    control = diffusers.SD3ControlNetModel(**sizes, num_layers=1)
    transformer = diffusers.SD3Transformer2DModel(**sizes, num_layers=2)
    kind = diffusers.StableDiffusion3ControlNetPipeline
    prompt = dict(prompt_embeds=torch.randn(1, 7, 32), pooled_prompt_embeds=torch.randn(1, 16))
    prompts = {**prompt, **{f"negative_{name}": value * -1 for name, value in prompt.items()}}
    return _controlled(kind, transformer, control, start, end, prompts, 0.05), lambda t: t / 1000


def flux_controlled(start, end):
    control = diffusers.FluxControlNetModel(**{**FLUX, "num_layers": 1, "num_single_layers": 1})
    transformer = diffusers.FluxTransformer2DModel(**FLUX)
    kind = diffusers.FluxControlNetPipeline
    return _controlled(kind, transformer, control, start, end, {**flux_prompts(), "true_cfg_scale": 3.0}, 0.1), float


def _controlled(kind, transformer, control, start, end, prompts, weight):
    for parameter in control.parameters():  # they start at zero
        parameter.copy_(weight * torch.randn(parameter.shape))
    calm(control.eval())
    pipe = pipeline(kind, transformer, vae=autoencoder(), controlnet=control)
    window = dict(control_guidance_start=start, control_guidance_end=end, controlnet_conditioning_scale=1.0)
    image = torch.rand(1, 3, 64, 64)
    return pipe, latents_of(pipe, control_image=image, height=64, width=64, **window, **prompts)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.0, 0.5), (0.3, 0.8)])
@pytest.mark.parametrize("make", [sd3_controlled, flux_controlled])
def test_a_control_net_for_a_part_of_the_steps(make, start, end):
    """Catches steps with a ControlNet being forecast from steps without it, and nothing being skipped because its
    residuals move along with the latent.
    """
    (pipe, sample), sigma_of = make(start, end)
    exact = sample()
    with attach(pipe.transformer, BUDGET, STEPS, sigma_of=sigma_of) as cache:
        latents = sample()
    flags = [record["computed"] for record in cache.trace]
    switches = [round(part * STEPS) for part in (start, end) if 0 < part < 1]  # the first steps with or without it
    assert STEPS / 2 - 2 <= cache.computed <= STEPS / 2 + 2
    assert all(flags[n] for n in switches)
    assert (latents - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_another_prompt_on_the_way():
    """Catches the new prompt being answered with a forecast of the old one."""
    pipe = pipeline(diffusers.FluxPipeline, diffusers.FluxTransformer2DModel(**FLUX))
    other = torch.randn(1, 7, 32)

    def swap(pipe, step, t, tensors):
        return {"prompt_embeds": other} if step == 14 else {}

    arguments = dict(callback_on_step_end=swap, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    sample = latents_of(pipe, height=128, width=128, **flux_prompts(guided=False), **arguments)
    exact = sample()
    with attach(pipe.transformer, BUDGET, STEPS, sigma_of=float) as cache:
        latents = sample()
    assert cache.trace[15]["computed"] and cache.computed == STEPS / 2
    assert (latents - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_a_panorama_of_tiles():
    """Catches tiles that are answered from each other's cache: one by one they come out as in one batch."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", beta_start=0.0001, beta_end=0.004)
    kind = diffusers.StableDiffusionPanoramaPipeline
    pipe = kind(autoencoder(), None, None, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.get_views = lambda height, width, circular_padding: [(0, 8, left, left + 8) for left in range(0, 20, 4)]
    prompts = dict(prompt_embeds=torch.randn(1, 7, 8), negative_prompt_embeds=torch.randn(1, 7, 8))
    results = []
    for views in (5, 1):
        sample = latents_of(pipe, height=64, width=192, view_batch_size=views, **prompts)
        exact = sample()
        with attach(unet, CacheConfig(target_speedup=2, predictor="reuse"), STEPS) as cache:
            results.append(sample())
        assert len(cache.trace) == 5 * STEPS / views and cache.skipped == len(cache.trace) / 2
    batched, one_by_one = results
    assert (one_by_one - batched).abs().mean() < 0.1 * (batched - exact).abs().mean()
