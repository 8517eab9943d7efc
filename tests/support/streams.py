"""Latents of several streams, video and sound, which ComfyUI keeps in a NestedTensor."""

import torch


def nested(latent):
    """A list of streams as ComfyUI's latent; anything else as it is."""
    if not isinstance(latent, list):
        return latent
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(latent)


def streams(latent) -> list[torch.Tensor]:
    """A latent's tensors: the only one, or one for each stream."""
    if isinstance(latent, torch.Tensor):
        return [latent]
    return latent if isinstance(latent, list) else list(latent.unbind())
