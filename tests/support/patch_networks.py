"""Networks that nodes of ComfyUI put beside a model, tiny and with random weights: what ModelPatchLoader would load."""

from types import SimpleNamespace

import tiny_models
import torch

# The width of the tiny networks beside which they are put (tiny_models.RECIPES).
WIDTH, Z_IMAGE_WIDTH = 64, 256


@torch.no_grad()
def _patch(network: torch.nn.Module):
    import comfy.model_management as management
    import comfy.model_patcher

    tiny_models.fill(network.requires_grad_(False), torch.Generator().manual_seed(3))
    return comfy.model_patcher.ModelPatcher(network, management.get_torch_device(), management.unet_offload_device())


def _arguments() -> dict:
    import comfy.ops

    return dict(dtype=torch.float32, device=torch.device("cpu"), operations=comfy.ops.manual_cast)


def qwen_image(*_):
    from comfy_extras.nodes_model_patch import QwenImageBlockWiseControlNet

    return _patch(QwenImageBlockWiseControlNet(num_layers=1, dim=WIDTH, **_arguments()))


def z_image(*_):
    from comfy.ldm.lumina.controlnet import ZImage_Control

    return _patch(ZImage_Control(dim=Z_IMAGE_WIDTH, n_heads=2, n_kv_heads=2, multiple_of=32, n_control_layers=1,
                                 **_arguments()))  # fmt: skip


def uni3c(*_):
    from comfy.ldm.wan.uni3c import WanUni3CControlnet

    return _patch(WanUni3CControlnet(conv_out_dim=32, dim=32, ffn_dim=32, num_heads=2, num_layers=2,
                                     time_embed_dim=WIDTH, out_proj_dim=WIDTH, **_arguments()))  # fmt: skip


def uso(*_):
    from comfy_extras.nodes_model_patch import SigLIPMultiFeatProjModel

    return _patch(SigLIPMultiFeatProjModel(siglip_token_nums=5, style_token_nums=4, hidden_size=WIDTH, **_arguments()))


def vae(family: str):
    """Makes one for the latents of that family."""

    def make(*_):
        import tiny_loaders

        return tiny_loaders.vae(family)

    return make


def audio_vae(*_):
    """Answers with random numbers of the shape that LTX's would have."""
    latent = torch.randn(1, 8, 6, 16, generator=torch.Generator().manual_seed(4))
    return SimpleNamespace(audio_sample_rate=44100, encode=lambda waveform: latent)
