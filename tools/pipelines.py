"""Tiny diffusers pipelines with random weights. They take encoded prompts and return latents."""

from collections.abc import Callable
from typing import NamedTuple

import comfy_host
import diffusers
import torch

FAMILIES = ("Wan", "HunyuanVideo", "FLUX", "LTX", "CogVideoX", "Mochi")


class Subject(NamedTuple):
    """A pipeline and how to call it.

    arguments: of its call, without the number of steps and the generator. calls: of the transformer per step.
    sigma_of, prediction: as `attach` takes them.
    """

    pipe: diffusers.DiffusionPipeline
    arguments: dict
    calls: int
    sigma_of: Callable[[float], float]
    prediction: str = "flow"

    def sample(self, steps: int, seed: int = 0) -> torch.Tensor:
        """The final latent."""
        generator = torch.Generator().manual_seed(seed)
        options = dict(num_inference_steps=steps, generator=generator, output_type="latent", return_dict=False)
        return self.pipe(**self.arguments, **options)[0]


def build(family: str, seed: int = 0) -> Subject:
    """A pipeline of one of FAMILIES; the same seed gives the same weights. On a GPU if the environment variable
    EASYCACHE_GPU is set.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        subject = _MAKERS[family]()
    subject.pipe.set_progress_bar_config(disable=True)
    calm(subject.pipe.transformer.eval().requires_grad_(False))
    if not comfy_host.on_gpu():
        return subject
    moved = {name: one.cuda() if isinstance(one, torch.Tensor) else one for name, one in subject.arguments.items()}
    return subject._replace(pipe=subject.pipe.to("cuda"), arguments=moved)


def calm(transformer: torch.nn.Module) -> None:
    """Make the output depend less on the timestep; with random weights it differs too much from step to step."""
    for name, parameter in transformer.named_parameters():
        if (
            "timestep_embedder.linear_2" in name
            or "time_embedding.linear_2" in name
            or "time_embedder.linear_2" in name
        ):
            parameter.mul_(0.1)


def _pipeline(kind: type, transformer: torch.nn.Module, scheduler) -> diffusers.DiffusionPipeline:
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    expected = kind._get_signature_keys(kind)[0]
    return kind(**{k: v for k, v in nothing.items() if k in expected}, transformer=transformer, scheduler=scheduler)


def _embeds(*shape: int, masked: bool = False) -> dict:
    """A positive and a negative encoded prompt of that shape, without the batch."""
    prompts = {"prompt_embeds": torch.randn(1, *shape), "negative_prompt_embeds": torch.randn(1, *shape)}
    if masked:
        prompts |= {
            name: torch.ones(1, shape[0]) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")
        }
    return prompts


def _flow_sigma(t: float) -> float:
    return t / 1000


def _wan() -> Subject:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=48, num_layers=4, rope_max_seq_len=32,
    )  # fmt: skip
    pipe = _pipeline(diffusers.WanPipeline, transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0))
    size = dict(height=64, width=64, num_frames=5, guidance_scale=4.0)
    return Subject(pipe, {**size, **_embeds(7, 16)}, 2, _flow_sigma)


def _hunyuan_video() -> Subject:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    pipe = _pipeline(diffusers.HunyuanVideoPipeline, transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0))
    prompt = dict(prompt_embeds=torch.randn(1, 7, 16), pooled_prompt_embeds=torch.randn(1, 8))
    mask = dict(prompt_attention_mask=torch.ones(1, 7, dtype=torch.bool))
    return Subject(pipe, dict(height=64, width=64, num_frames=5, **prompt, **mask), 1, _flow_sigma)


def _flux() -> Subject:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    pipe = _pipeline(diffusers.FluxPipeline, transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    pooled = dict(pooled_prompt_embeds=torch.randn(1, 32), negative_pooled_prompt_embeds=torch.randn(1, 32))
    return Subject(pipe, dict(height=128, width=128, true_cfg_scale=3.0, **_embeds(7, 32), **pooled), 2, float)


def _ltx() -> Subject:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=4, caption_channels=32,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = _pipeline(diffusers.LTXPipeline, transformer, scheduler)
    size = dict(height=256, width=256, num_frames=9, guidance_scale=3.0)
    return Subject(pipe, {**size, **_embeds(7, 32, masked=True)}, 1, _flow_sigma)


def _cogvideox() -> Subject:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=16,
        text_embed_dim=32, num_layers=4, sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=7,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipe = _pipeline(diffusers.CogVideoXPipeline, transformer, scheduler)

    def sigma_of(t: float) -> float:
        signal = float(scheduler.alphas_cumprod[int(t)].clamp_min(1e-4))  # it is 0 at the first timestep
        return ((1 - signal) / signal) ** 0.5

    size = dict(height=64, width=64, num_frames=5, guidance_scale=4.0, max_sequence_length=7)
    return Subject(pipe, {**size, **_embeds(7, 32)}, 1, sigma_of, "v_prediction")


def _mochi() -> Subject:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=4, pooled_projection_dim=16, in_channels=12,
        text_embed_dim=32, time_embed_dim=16, max_sequence_length=7,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = _pipeline(diffusers.MochiPipeline, transformer, scheduler)
    prompts = {name: value.bool() if "mask" in name else value for name, value in _embeds(7, 32, masked=True).items()}
    size = dict(height=64, width=64, num_frames=7, guidance_scale=3.0)
    return Subject(pipe, {**size, **prompts}, 1, lambda t: 1 - t / 1000, "reverse_flow")


_MAKERS = dict(zip(FAMILIES, (_wan, _hunyuan_video, _flux, _ltx, _cogvideox, _mochi), strict=True))
