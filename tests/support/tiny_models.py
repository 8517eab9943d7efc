"""Every model family the host knows, in its own architecture, tiny and with random weights.

`families` lists the host's model classes; RECIPES says how each of them is built small and what sampling it
needs; `build` makes a Scene of it. A host's new class has no recipe yet and is listed with None.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
from host_source import assigned
from scene import Scene
from streams import nested

TEXT = (1, 6, 48)  # prompts of 6 tokens of width 48, for the networks that let us choose


class Vision(dict):
    """A CLIP vision model's output: shapes by attribute."""


@dataclass(frozen=True)
class Recipe:
    """One family at a tiny size; a tuple stands for random numbers of that shape, except in `sizes`.

    sizes: the network's arguments, where they differ from the class's own. latent: what is sampled; a list for
    several streams. text: the prompt. cond: further entries of a conditioning, named as ComfyUI's nodes name them.
    mask: the latent's noise mask, one for each stream. checkpoint: what the class itself, not its network, reads from
    a checkpoint. trim: cuts down what the network has no argument for. one_batch: the network takes cond and uncond
    only together. apart: it takes them only one after the other.
    """

    sizes: dict = field(default_factory=dict)
    latent: tuple | torch.Tensor | list[tuple] = (1, 16, 16, 16)
    text: tuple = TEXT
    cond: dict = field(default_factory=dict)
    mask: torch.Tensor | list[torch.Tensor] | None = None
    checkpoint: dict = field(default_factory=dict)
    trim: Callable = lambda network: None
    one_batch: bool = False
    apart: bool = False


def families(host: Path) -> Iterator[tuple[str, Recipe | None]]:
    """(class name, recipe or None) of each class in the list of the ComfyUI in that folder."""
    for models in assigned(host / "comfy" / "supported_models.py", "models"):
        for entry in models.elts:
            yield entry.id, RECIPES.get(entry.id)


@torch.no_grad()
def build(
    name: str, seed: int = 0, weights: torch.dtype = torch.float32, computed_in: torch.dtype | None = None
) -> Scene:
    """The family's model with conditionings and a random latent.

    weights: their type. computed_in: what they are cast to for each operation, if anything.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    recipe, family = RECIPES[name], getattr(comfy.supported_models, name)
    rng = torch.Generator().manual_seed(seed)
    sizes = known_arguments({**family.unet_config, **recipe.sizes})
    config = family(sizes)
    config.unet_config.update({name: sizes[name] for name in recipe.sizes if name in sizes})  # over the class's own
    config.set_inference_dtype(weights, computed_in)
    model = config.get_model(draw(recipe.checkpoint, rng), "", device=torch.device("cpu"))
    recipe.trim(model.diffusion_model)
    fill(model.diffusion_model, rng)
    patcher = comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())
    positive, negative = ([draw([recipe.text, recipe.cond], rng)] for _ in range(2))
    latent = {"samples": nested(draw(recipe.latent, rng))}
    if recipe.mask is not None:
        latent["noise_mask"] = nested(recipe.mask)
    return Scene(patcher, positive, negative, latent)


# Classes of the list that ComfyUI does not sample with.
NOT_SAMPLED = {
    "RT_DETR_v4": "finds objects in a picture; nothing is sampled",
    "SAM3": "cuts objects out of a picture; nothing is sampled",
    "SAM31": "cuts objects out of a picture; nothing is sampled",
    "DepthAnything3": "estimates depth from a picture; nothing is sampled",
}

# By image model: where a network lists its arguments. It takes no others, and newer versions of ComfyUI ask for more.
ARGUMENTS = {
    "flux": ("comfy.ldm.flux.model", "FluxParams"),
    "flux2": ("comfy.ldm.flux.model", "FluxParams"),
    "hunyuan_video": ("comfy.ldm.hunyuan_video.model", "HunyuanVideoParams"),
    "chroma": ("comfy.ldm.chroma.model", "ChromaParams"),
    "chroma_radiance": ("comfy.ldm.chroma_radiance.model", "ChromaRadianceParams"),
}


def known_arguments(sizes: dict) -> dict:
    """The sizes without those that this version of ComfyUI does not know yet."""
    if sizes.get("image_model") not in ARGUMENTS:
        return sizes
    module, name = ARGUMENTS[sizes["image_model"]]
    known = {"image_model", *(argument.name for argument in fields(getattr(import_module(module), name)))}
    return {name: size for name, size in sizes.items() if name in known}


def fill(network: torch.nn.Module, rng: torch.Generator) -> None:
    """Random weights for all that a checkpoint would bring; norms scale by 1, and no output layer is zero."""
    for name, weight in network.state_dict().items():
        if weight.ndim == 1 and name.endswith(("weight", "scale", "gamma")):
            weight.copy_(torch.ones(weight.shape))
        else:
            weight.copy_(torch.randn(weight.shape, generator=rng) * 0.05)  # not every type can be drawn


def draw(spec, rng: torch.Generator):
    """A conditioning entry with each shape in it replaced by random numbers."""
    if isinstance(spec, tuple):
        return torch.randn(spec, generator=rng)
    if isinstance(spec, list):
        return [draw(part, rng) for part in spec]
    if isinstance(spec, dict):
        drawn = {key: draw(part, rng) for key, part in spec.items()}
        return SimpleNamespace(**drawn) if isinstance(spec, Vision) else drawn
    return spec


def ones(*shape: int) -> torch.Tensor:
    """An attention mask that lets everything through."""
    return torch.ones(shape, dtype=torch.long)


# Sizes that all families of an architecture share.

IMAGE, SMALL_IMAGE, VIDEO = (1, 16, 16, 16), (1, 4, 16, 16), (1, 16, 2, 8, 8)
GIVEN_START = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1, 1).repeat(1, 1, 1, 8, 8)  # the first frame is given

UNET = dict(image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1],
            channel_mult=[1, 2], transformer_depth=[0, 1], transformer_depth_middle=1,
            transformer_depth_output=[0, 0, 1, 1], context_dim=48, use_spatial_transformer=True,
            use_checkpoint=False, legacy=False)  # fmt: skip
LABELLED = UNET | dict(num_classes="sequential")
SVD = LABELLED | dict(in_channels=8, extra_ff_mix_layer=True, use_spatial_context=True,
                      merge_strategy="learned_with_images", merge_factor=0.0, video_kernel_size=[3, 1, 1],
                      disable_temporal_crossattention=False)  # fmt: skip
PIXART = dict(in_channels=4, hidden_size=96, depth=1, num_heads=2, caption_channels=48, pe_interpolation=1)
HUNYUAN_DIT = dict(hidden_size=64, depth=4, num_heads=2, text_states_dim=48, text_states_dim_t5=64, text_len=6,
                   text_len_t5=8)  # fmt: skip
STREAMS = dict(hidden_size=64, num_heads=2, mlp_ratio=2.0, depth=1, depth_single_blocks=1, qkv_bias=True,
               context_in_dim=48)  # fmt: skip
FLUX = STREAMS | dict(in_channels=16, out_channels=16, vec_in_dim=32, axes_dim=[8, 12, 12], theta=10000, patch_size=2,
                      txt_ids_dims=[])  # fmt: skip
FLUX_2 = FLUX | dict(in_channels=128, out_channels=128, vec_in_dim=None, axes_dim=[8, 8, 8, 8], theta=2000,
                     patch_size=1, qkv_bias=False, guidance_embed=True, global_modulation=True, mlp_silu_act=True,
                     ops_bias=False, default_ref_method="index", ref_index_scale=10.0, txt_ids_dims=[3])  # fmt: skip
CHROMA = STREAMS | dict(in_channels=64, out_channels=64, axes_dim=[8, 12, 12], theta=10000, patch_size=2, in_dim=64,
                        out_dim=64, hidden_dim=64, n_layers=1, txt_ids_dims=[], vec_in_dim=None)  # fmt: skip
RADIANCE = CHROMA | dict(in_channels=3, out_channels=3, patch_size=16, nerf_hidden_size=16, nerf_mlp_ratio=2,
                         nerf_depth=1, nerf_max_freqs=4, nerf_tile_size=512, nerf_final_head_type="conv",
                         nerf_embedder_dtype=torch.float32, use_x0=False,
                         use_sequential_txt_ids=False)  # fmt: skip
HUNYUAN = STREAMS | dict(in_channels=16, out_channels=16, vec_in_dim=32, axes_dim=[8, 12, 12], theta=256,
                         patch_size=[1, 2, 2], guidance_embed=False, byt5=False, meanflow=False,
                         use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False)  # fmt: skip
HUNYUAN_15 = HUNYUAN | dict(in_channels=65, out_channels=32, vec_in_dim=None, patch_size=[1, 1, 1], byt5=True,
                            use_cond_type_embedding=True, vision_in_dim=1152, meanflow_sum=True)  # fmt: skip
COSMOS = dict(max_img_h=32, max_img_w=32, max_frames=8, out_channels=16, patch_spatial=2, patch_temporal=1,
              concat_padding_mask=True, model_channels=64, num_blocks=1, num_heads=2, crossattn_emb_channels=48,
              pos_emb_cls="rope3d", pos_emb_interpolation="crop", use_adaln_lora=True, adaln_lora_dim=16)  # fmt: skip
COSMOS_1 = COSMOS | dict(block_config="FA-CA-MLP", block_x_format="THWBD", affline_emb_norm=True,
                         extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable")  # fmt: skip
COSMOS_2 = COSMOS | dict(pos_emb_learnable=True, rope_enable_fps_modulation=False)
LUMINA = dict(patch_size=2, in_channels=16, dim=64, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=1,
              multiple_of=32, axes_dims=[8, 12, 12], axes_lens=[64, 64, 64], qk_norm=True, cap_feat_dim=48)  # fmt: skip
LTX = dict(num_layers=1, num_attention_heads=2, attention_head_dim=32, cross_attention_dim=64, caption_channels=48)
KANDINSKY = dict(in_text_dim=48, in_text_dim2=32, time_dim=32, model_dim=64, ff_dim=128, num_text_blocks=1,
                 num_visual_blocks=2, axes_dims=(8, 12, 12))  # fmt: skip
WAN = dict(dim=64, ffn_dim=128, freq_dim=32, text_dim=48, num_heads=2, num_layers=2, in_dim=16, out_dim=16)
PIXEL_DIT = dict(num_groups=2, hidden_size=64, pixel_hidden_size=8, pixel_attn_hidden_size=64, pixel_num_groups=2,
                 patch_depth=2, pixel_depth=1, txt_embed_dim=48, txt_max_length=6)  # fmt: skip
COGVIDEO = dict(num_attention_heads=2, attention_head_dim=32, time_embed_dim=32, text_embed_dim=48, num_layers=1,
                sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=6,
                use_rotary_positional_embeddings=True)  # fmt: skip

# Conditionings that several families share.

XL = dict(pooled_output=(1, 1280))
PAIR = dict(concat_latent_image=SMALL_IMAGE)
POOLED = dict(pooled_output=(1, 32))
NO_POOLED = dict(pooled_output=None)  # what text encoders without one hand out
PADDED = dict(attention_mask=ones(1, 6))
GLYPHS = dict(conditioning_byt5small=(1, 4, 1472))
START = dict(concat_latent_image=VIDEO, concat_mask=GIVEN_START)
CLIP_IMAGE = dict(clip_vision_output=Vision(penultimate_hidden_states=(1, 5, 1280)))


def unclip(width: int) -> dict:
    """A picture as prompt; its width is fixed by the class."""
    return dict(unclip_conditioning=[
        dict(clip_vision_output=Vision(image_embeds=(1, width)), strength=1.0, noise_augmentation=0.1)
    ])  # fmt: skip


def seconds(name: str) -> dict:
    """Stable Audio's embedding of a duration, as its checkpoints name it."""
    part = f"conditioner.conditioners.{name}.embedder.embedding."
    return {part + "0.weights": (128,), part + "1.weight": (768, 257), part + "1.bias": (768,)}


def one_lyric_layer(network: torch.nn.Module) -> None:
    """Six layers of width 1024 are the only lyric encoder there is."""
    del network.lyric_encoder.encoders[1:]


def one_music_layer(network: torch.nn.Module) -> None:
    """36 layers of width 2048 are the only network there is."""
    del network.diffusion_transformer.transformer.layers[1:]


def no_adapter(network: torch.nn.Module) -> None:
    """It turns prompts of another encoder into these, and has a vocabulary of 32,128."""
    del network.llm_adapter


RECIPES = {
    "SD15": Recipe(UNET, SMALL_IMAGE),
    "SD15_instructpix2pix": Recipe(UNET | dict(in_channels=8), SMALL_IMAGE, cond=PAIR),
    "Stable_Zero123": Recipe(
        UNET | dict(in_channels=8, context_dim=768),
        SMALL_IMAGE,
        text=(1, 1, 772),  # a picture's embedding and the camera
        cond=PAIR,
        checkpoint={"cc_projection.weight": (768, 772), "cc_projection.bias": (768,)},
    ),
    "SD20": Recipe(UNET, SMALL_IMAGE),
    "LotusD": Recipe(UNET | dict(num_head_channels=64), SMALL_IMAGE),
    "SD21UnclipL": Recipe(LABELLED, SMALL_IMAGE, cond=unclip(768)),
    "SD21UnclipH": Recipe(LABELLED, SMALL_IMAGE, cond=unclip(1024)),
    "SD_X4Upscaler": Recipe(
        UNET | dict(in_channels=7, num_res_blocks=[1] * 4, channel_mult=[1, 1, 1, 2], transformer_depth=[0, 0, 0, 1],
                    transformer_depth_output=[0, 0, 0, 0, 0, 0, 1, 1]),
        SMALL_IMAGE,
        cond=dict(concat_image=(1, 3, 16, 16), noise_augmentation=0.1),
    ),
    "SDXL": Recipe(LABELLED, SMALL_IMAGE, cond=XL),
    "SDXL_instructpix2pix": Recipe(LABELLED | dict(in_channels=8), SMALL_IMAGE, cond=XL | PAIR),
    "SDXLRefiner": Recipe(LABELLED, SMALL_IMAGE, cond=XL),
    "SSD1B": Recipe(LABELLED, SMALL_IMAGE, cond=XL),
    "Segmind_Vega": Recipe(LABELLED, SMALL_IMAGE, cond=XL),
    "KOALA_700M": Recipe(LABELLED, SMALL_IMAGE, cond=XL),
    "KOALA_1B": Recipe(LABELLED, SMALL_IMAGE, cond=XL),
    "SVD_img2vid": Recipe(SVD, (2, 4, 8, 8), text=(1, 1, 48), cond=PAIR),  # the frames are the batch
    "SV3D_u": Recipe(SVD, (2, 4, 8, 8), text=(1, 1, 48), cond=PAIR),
    "SV3D_p": Recipe(
        SVD, (2, 4, 8, 8), text=(1, 1, 48), cond=PAIR | dict(elevation=[0.0, 10.0], azimuth=[0.0, 180.0])
    ),
    "Stable_Cascade_C": Recipe(
        dict(c_cond=64, c_hidden=[64, 64], nhead=[2, 2], blocks=[[1, 1], [1, 1]], c_clip_text=48,
             c_clip_text_pooled=32),
        cond=POOLED,
    ),
    "Stable_Cascade_B": Recipe(
        dict(c_cond=64, c_hidden=[32, 64], nhead=[-1, 2], blocks=[[1, 1], [1, 1]], block_repeat=[[1, 1], [1, 1]],
             level_config=["CT", "CTA"], c_clip=32),
        SMALL_IMAGE,
        cond=POOLED | dict(stable_cascade_prior=(1, 16, 4, 4)),
    ),
    "SD3": Recipe(
        dict(in_channels=16, out_channels=16, input_size=None, depth=1, num_blocks=2, adm_in_channels=32,
             context_embedder_config=dict(target="torch.nn.Linear", params=dict(in_features=48, out_features=64)),
             num_patches=64, pos_embed_max_size=8),
        cond=POOLED,
    ),
    "StableAudio": Recipe(
        dict(embed_dim=64, depth=1, num_heads=1, project_cond_tokens=True),
        (1, 64, 32),
        text=(1, 6, 768),
        checkpoint=seconds("seconds_start") | seconds("seconds_total"),
    ),
    "AuraFlow": Recipe(
        dict(dim=64, n_layers=2, n_double_layers=1, n_heads=2, global_conddim=64, cond_seq_dim=48, max_seq=64),
        SMALL_IMAGE,
    ),
    # Below 33 x 33 the positions are divided by zero.
    "PixArtAlpha": Recipe(PIXART | dict(micro_condition=True), (1, 4, 34, 34), cond=dict(width=272, height=272)),
    "PixArtSigma": Recipe(PIXART | dict(micro_condition=False), (1, 4, 34, 34)),
    "HunyuanDiT": Recipe(
        HUNYUAN_DIT,
        SMALL_IMAGE,
        cond=PADDED | dict(conditioning_mt5xl=(1, 8, 64), attention_mask_mt5xl=ones(1, 8)),
    ),
    "HunyuanDiT1": Recipe(
        HUNYUAN_DIT | dict(size_cond=True, use_style_cond=True),
        SMALL_IMAGE,
        cond=PADDED | dict(conditioning_mt5xl=(1, 8, 64), attention_mask_mt5xl=ones(1, 8)),
    ),
    "Flux": Recipe(FLUX | dict(guidance_embed=True), cond=POOLED | dict(guidance=3.5)),
    "FluxInpaint": Recipe(
        FLUX | dict(guidance_embed=True, in_channels=96),
        cond=POOLED | dict(concat_latent_image=IMAGE, concat_mask=torch.ones(1, 1, 128, 128)),
    ),
    "FluxSchnell": Recipe(FLUX | dict(guidance_embed=False), cond=POOLED),
    "Flux2": Recipe(FLUX_2, (1, 128, 8, 8), cond=POOLED | dict(guidance=4.0, reference_latents=[(1, 128, 4, 4)])),
    "Chroma": Recipe(CHROMA, cond=NO_POOLED),
    "ChromaRadiance": Recipe(RADIANCE, (1, 3, 64, 64), cond=NO_POOLED),
    # It insists on 12288 hidden features.
    "GenmoMochi": Recipe(
        dict(depth=2, num_heads=2, hidden_size_x=64, hidden_size_y=32, mlp_ratio_x=192.0, mlp_ratio_y=2.0,
             learn_sigma=False, in_channels=12, qk_norm=True, qkv_bias=False, out_bias=True, attn_drop=0.0,
             timestep_scale=1000.0, use_t5=True, t5_feat_dim=48, t5_token_length=6),
        (1, 12, 2, 8, 8),
        cond=PADDED,
    ),
    "LTXV": Recipe(LTX, (1, 128, 2, 8, 8), cond=PADDED | dict(frame_rate=24), mask=GIVEN_START),
    "LTXAV": Recipe(
        LTX | dict(audio_num_attention_heads=2, audio_attention_head_dim=16, audio_cross_attention_dim=32),
        [(1, 128, 2, 8, 8), (1, 8, 6, 16)],  # video and sound
        text=(1, 6, 96),  # half of it for each of them
        cond=PADDED | dict(frame_rate=24),
        mask=[GIVEN_START, torch.ones(1, 8, 6, 16)],
    ),
    "HunyuanVideo": Recipe(HUNYUAN | dict(guidance_embed=True), VIDEO, cond=POOLED | dict(guidance=6.0)),
    "HunyuanVideoI2V": Recipe(
        HUNYUAN | dict(in_channels=33), VIDEO, cond=POOLED | START
    ),
    "HunyuanVideoSkyreelsI2V": Recipe(
        HUNYUAN | dict(in_channels=32), VIDEO, cond=POOLED | dict(concat_latent_image=VIDEO)
    ),
    "HunyuanImage21": Recipe(
        HUNYUAN | dict(in_channels=64, out_channels=64, vec_in_dim=None, axes_dim=[16, 16], patch_size=[1, 1],
                       byt5=True),
        (1, 64, 8, 8),
        cond=GLYPHS,
    ),
    "HunyuanImage21Refiner": Recipe(
        HUNYUAN | dict(in_channels=128, out_channels=64, vec_in_dim=None, patch_size=[1, 1, 1], meanflow=True),
        torch.zeros(1, 32, 1, 8, 8),  # ComfyUI stacks two frames into 64 channels, and fits an empty latent to that
        cond=dict(concat_latent_image=(1, 32, 1, 8, 8)),
    ),
    "HunyuanVideo15": Recipe(
        HUNYUAN_15,
        (1, 32, 2, 8, 8),
        cond=GLYPHS
        | NO_POOLED
        | dict(
            concat_latent_image=(1, 32, 2, 8, 8),
            concat_mask=GIVEN_START,
            clip_vision_output=Vision(last_hidden_state=(1, 5, 1152)),
        ),
    ),
    "HunyuanVideo15_SR_Distilled": Recipe(
        HUNYUAN_15 | dict(in_channels=98, meanflow=True),
        (1, 32, 2, 8, 8),
        cond=GLYPHS | NO_POOLED | dict(concat_latent_image=(1, 66, 2, 8, 8)),
    ),
    "CosmosT2V": Recipe(COSMOS_1, VIDEO),
    "CosmosI2V": Recipe(COSMOS_1, VIDEO, mask=GIVEN_START),
    "CosmosT2IPredict2": Recipe(COSMOS_2, (1, 16, 1, 16, 16)),
    "CosmosI2VPredict2": Recipe(COSMOS_2, VIDEO, mask=GIVEN_START),
    "Lumina2": Recipe(LUMINA, cond=PADDED),
    # Its modulation is 256 wide whatever the network's width.
    "ZImage": Recipe(
        LUMINA | dict(dim=256, n_kv_heads=2, axes_dims=[32, 48, 48], rope_theta=256.0, z_image_modulation=True,
                      time_scale=1000.0, pad_tokens_multiple=32),
        cond=PADDED,
    ),
    "WAN21_T2V": Recipe(WAN, VIDEO),
    "WAN21_CausalAR_T2V": Recipe(WAN, (1, 16, 4, 8, 8)),
    "WAN21_I2V": Recipe(WAN | dict(in_dim=36), VIDEO, cond=START | CLIP_IMAGE),
    "WAN21_FunControl2V": Recipe(
        WAN | dict(in_dim=48), VIDEO, cond=CLIP_IMAGE | dict(concat_latent_image=(1, 32, 2, 8, 8))
    ),
    "WAN21_Camera": Recipe(
        WAN | dict(in_dim=32),
        VIDEO,
        cond=CLIP_IMAGE | dict(concat_latent_image=VIDEO, camera_conditions=(1, 24, 2, 64, 64)),
    ),
    "WAN22_Camera": Recipe(WAN | dict(in_dim=36), VIDEO, cond=START | dict(camera_conditions=(1, 24, 2, 64, 64))),
    "WAN21_Vace": Recipe(
        WAN | dict(vace_layers=1, vace_in_dim=96),
        VIDEO,
        cond=dict(vace_frames=[(1, 32, 2, 8, 8)], vace_mask=[torch.ones(1, 64, 2, 8, 8)], vace_strength=[1.0]),
    ),
    "WAN21_HuMo": Recipe(WAN, VIDEO, cond=dict(audio_embed=(1, 2, 8, 5, 1280), reference_latents=[(1, 16, 1, 8, 8)])),
    "WAN22_T2V": Recipe(WAN | dict(in_dim=48, out_dim=48), (1, 48, 2, 8, 8), mask=GIVEN_START),
    "WAN22_S2V": Recipe(
        WAN | dict(audio_dim=32, audio_inject_layers=[0]),
        VIDEO,
        cond=dict(audio_embed=(1, 25, 32, 8), reference_latents=[(1, 16, 1, 8, 8)],
                  reference_motion=(1, 16, 19, 8, 8), control_video=VIDEO),
    ),
    # Without the face video: its encoder wants 512 x 512 pixels.
    "WAN22_Animate": Recipe(
        WAN | dict(in_dim=36), VIDEO, cond=START | CLIP_IMAGE | dict(pose_video_latent=(1, 16, 1, 8, 8))
    ),
    "Hunyuan3Dv2": Recipe(STREAMS | dict(in_channels=64), (1, 64, 32)),
    "Hunyuan3Dv2mini": Recipe(STREAMS | dict(in_channels=64), (1, 64, 32)),
    "Hunyuan3Dv2_1": Recipe(
        dict(in_channels=64, hidden_size=64, context_dim=48, depth=3, num_heads=2, num_moe_layers=1, num_experts=4,
             guidance_cond_proj_dim=None),
        (1, 64, 32),
        one_batch=True,
    ),
    "HiDream": Recipe(
        dict(patch_size=2, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=32,
             num_attention_heads=2, caption_channels=[48, 40], text_emb_dim=32, axes_dims_rope=[16, 8, 8],
             max_resolution=[32, 32], llama_layers=[0, 1]),
        cond=POOLED | dict(conditioning_llama3=(1, 2, 6, 40)),
    ),
    "ACEStep": Recipe(
        dict(num_layers=1, attention_head_dim=32, num_attention_heads=2, mlp_ratio=2.0, max_position=256,
             text_embedding_dim=48, ssl_latent_dims=[32, 32], lyric_encoder_vocab_size=64),
        (1, 8, 16, 32),
        cond=dict(conditioning_lyrics=torch.arange(5)[None]),
        trim=one_lyric_layer,
    ),
    "Omnigen2": Recipe(
        dict(hidden_size=64, num_layers=1, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=32,
             axes_dim_rope=[8, 12, 12], axes_lens=[64, 64, 64], text_feat_dim=48, timestep_scale=1000.0),
        cond=PADDED | dict(reference_latents=[(1, 16, 8, 8)]),
    ),
    "QwenImage": Recipe(
        dict(num_layers=1, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=48,
             axes_dims_rope=[8, 12, 12]),
        (1, 16, 1, 16, 16),
        cond=dict(reference_latents=[(1, 16, 1, 8, 8)]),
    ),
    "Kandinsky5": Recipe(
        KANDINSKY,
        VIDEO,
        cond=PADDED | POOLED | dict(time_dim_replace=(1, 16, 1, 8, 8), concat_mask=GIVEN_START),
    ),
    "Kandinsky5Image": Recipe(KANDINSKY, cond=PADDED | POOLED),
    # Since ComfyUI 0.9.
    "LongCatImage": Recipe(FLUX | dict(guidance_embed=False, vec_in_dim=None, txt_ids_dims=[1, 2])),
    "StableAudio3": Recipe(
        dict(embed_dim=64, depth=1, num_heads=1, project_cond_tokens=True, global_cond_dim=768,
             io_channels=256, input_concat_dim=0, global_cond_type="adaLN", timestep_features_type="expo",
             local_add_cond_dim=257),
        (1, 256, 32),
        text=(1, 6, 768),
        checkpoint={"conditioner.conditioners.seconds_total.embedder.embedding.1.weight": (768, 256),
                    "conditioner.conditioners.seconds_total.embedder.embedding.1.bias": (768,)},
    ),
    "MiniMaxH3": Recipe(
        dict(hidden_size=96, num_layers=1, token_refiner_num_layers=1, num_attention_heads=1, attention_head_dim=96,
             ffn_hidden_size=64, text_dim=48, timestep_input_dim=32, time_embed_hidden_size=32, time_embed_dim=32),
        [(1, 24, 2, 8, 8), (1, 32, 2, 8)],  # video and sound
        mask=[torch.ones(1, 1, 2, 8, 8), torch.ones(1, 1, 2, 8)],
        apart=True,
    ),
    "ZImagePixelSpace": Recipe(
        LUMINA | dict(dim=256, n_kv_heads=2, axes_dims=[32, 48, 48], rope_theta=256.0, z_image_modulation=True,
                      time_scale=1000.0, pad_tokens_multiple=32, patch_size=8, in_channels=3, decoder_hidden_size=32,
                      decoder_num_res_blocks=1, decoder_max_freqs=4, decoder_in_channels=192),
        (1, 3, 64, 64),
        cond=PADDED,
    ),
    "PixelDiTT2I": Recipe(PIXEL_DIT, (1, 3, 64, 64)),
    "PiD": Recipe(
        PIXEL_DIT | dict(lq_hidden_dim=32, lq_num_res_blocks=1),
        (1, 3, 64, 64),
        cond=dict(lq_latent=(1, 16, 2, 2), degrade_sigma=torch.tensor([0.1])),
    ),
    "WAN_Animate2": Recipe(
        WAN | dict(in_dim=36), VIDEO, cond=START | CLIP_IMAGE | dict(pose_video_latent=(1, 16, 1, 8, 8))
    ),
    "WAN21_FlowRVS": Recipe(WAN | dict(in_dim=16), VIDEO),
    "WAN21_SCAIL": Recipe(
        WAN | dict(in_dim=20),
        VIDEO,
        cond=dict(reference_latents=[(1, 16, 1, 8, 8)], pose_video_latent=(1, 16, 2, 4, 4)),
    ),
    "WAN21_SCAIL2": Recipe(
        WAN | dict(in_dim=20),
        VIDEO,
        cond=dict(reference_latents=[(1, 16, 1, 8, 8)], pose_video_latent=(1, 16, 2, 4, 4),
                  driving_mask_28ch=(1, 2, 28, 4, 4), ref_mask_28ch=(1, 3, 28, 8, 8), ref_mask_flag=False),
    ),
    "WAN22_WanDancer": Recipe(
        WAN | dict(in_dim=36, audio_inject_layers=[0]), VIDEO, cond=START | CLIP_IMAGE | dict(audio_embed=(1, 8, 35))
    ),
    "TripoSplat": Recipe(
        dict(q_token_length=16, model_channels=64, cond_channels=48, num_blocks=1, num_refiner_blocks=1,
             num_head_channels=32, cond2_channels=128),
        [(1, 16, 16), (1, 1, 5)],  # tokens and the camera
        cond=dict(reference_latents=[(1, 128, 2, 2)]),
    ),
    "HiDreamO1": Recipe(
        dict(text_config_overrides=dict(vocab_size=151936, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                                        num_attention_heads=2, num_key_value_heads=1),
             vision_config_overrides=dict(hidden_size=64, num_heads=2, intermediate_size=64, depth=1,
                                          deepstack_visual_indexes=())),
        (1, 3, 128, 128),
        cond=dict(text_input_ids=torch.tensor([[1, 2, 3, 4, 5, 151673]])),
    ),
    "ACEStep15": Recipe(
        dict(hidden_size=64, text_hidden_dim=48, num_dit_layers=1, num_lyric_layers=1, num_timbre_layers=1,
             num_tokenizer_layers=1, num_heads=2, num_kv_heads=1, head_dim=32, intermediate_size=64, fsq_dim=64,
             encoder_hidden_size=64, encoder_intermediate_size=64, encoder_num_heads=2),
        (1, 64, 32),
        cond=dict(conditioning_lyrics=(1, 5, 48)),
    ),
    "MiniMaxMusic3": Recipe(
        {}, (1, 128, 32), text=(1, 4, 32768), cond=dict(conditioning_scale=torch.ones(1, 1, 1)), trim=one_music_layer
    ),
    "Boogu": Recipe(
        dict(hidden_size=64, num_layers=1, num_double_stream_layers=1, num_refiner_layers=1, num_attention_heads=2,
             num_kv_heads=1, multiple_of=32, axes_dim_rope=[8, 12, 12], axes_lens=[64, 64, 64],
             instruction_feat_dim=48),
        cond=PADDED | dict(reference_latents=[(1, 16, 8, 8)]),
    ),
    "MageFlow": Recipe(
        dict(in_channels=128, out_channels=128, num_layers=1, attention_head_dim=32, num_attention_heads=2,
             joint_attention_dim=48, axes_dims_rope=[8, 12, 12]),
        (1, 128, 8, 8),
        cond=dict(reference_latents=[(1, 128, 4, 4)]),
    ),
    "JoyImage": Recipe(
        dict(in_channels=16, hidden_size=64, num_attention_heads=2, text_dim=48, num_layers=1,
             rope_dim_list=[8, 12, 12]),
        (1, 16, 1, 16, 16),
        cond=dict(reference_latents=[(1, 16, 1, 8, 8)]),
    ),
    "Ideogram4": Recipe(
        dict(num_layers=1, num_attention_heads=2, attention_head_dim=32, intermediate_size=64, adaln_dim=32,
             llm_features_dim=48, mrope_section=[8, 4, 4]),
        (1, 128, 8, 8),
        cond=PADDED,
    ),
    "Krea2": Recipe(
        dict(features=128, tdim=32, txtdim=64, heads=1, kvheads=1, layers=1, txtlayers=2, txtheads=1, txtkvheads=1),
        (1, 16, 1, 16, 16),
        text=(1, 6, 128),
        cond=dict(reference_latents=[(1, 16, 1, 8, 8)]),
    ),
    "Lens": Recipe(
        dict(in_channels=128, out_channels=32, num_layers=1, attention_head_dim=32, num_attention_heads=2,
             enc_hidden_dim=48, axes_dims_rope=[8, 12, 12], selected_layer_index=[0, 1]),
        (1, 128, 8, 8),
        text=(1, 6, 96),
    ),
    "Anima": Recipe(
        COSMOS_2 | dict(in_channels=16, crossattn_emb_channels=1024),
        (1, 16, 1, 16, 16),
        text=(1, 6, 1024),
        trim=no_adapter,
    ),
    "ErnieImage": Recipe(
        dict(hidden_size=64, num_attention_heads=2, num_layers=1, ffn_hidden_size=64, text_in_dim=48,
             rope_axes_dim=(8, 12, 12)),
        (1, 128, 8, 8),
    ),
    "SeedVR2": Recipe(
        dict(norm_eps=1e-5, num_layers=2, mlp_type="swiglu", vid_dim=64, heads=2, head_dim=32, mm_layers=1, rope_dim=24,
             vid_out_norm=True),
        VIDEO,
        text=(1, 6, 5120),
        # One for both prompts, as from its node: in a batch of two the network gives each prompt the other one's.
        cond=dict(condition=torch.randn((1, 17, 2, 8, 8), generator=torch.Generator().manual_seed(0))),
    ),
    "CogVideoX_T2V": Recipe(COGVIDEO, VIDEO),
    "CogVideoX_I2V": Recipe(COGVIDEO | dict(in_channels=32), VIDEO, cond=dict(concat_latent_image=VIDEO)),
    "CogVideoX_Inpaint": Recipe(
        COGVIDEO | dict(in_channels=48), VIDEO, cond=dict(concat_latent_image=(1, 32, 2, 8, 8))
    ),
    "Trellis2": Recipe(
        dict(resolution=16, model_channels=64, cond_channels=48, num_blocks=1, num_heads=2, mlp_ratio=2.0),
        (1, 32, 16, 16, 16),
        cond=dict(embeds=(1, 6, 48), trellis2_generation_mode="structure_generation"),
    ),
}  # fmt: skip
