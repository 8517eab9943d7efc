"""ComfyUI-Advanced-ControlNet: a ControlNet whose strength changes by keyframes."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-Advanced-ControlNet"


def cases(host):
    import comfy.cldm.cldm as cldm
    import comfy.controlnet
    import tiny_models

    scene = common.answering(common.tiny("SD15"))
    network = cldm.ControlNet(hint_channels=3, **scene.model.model.model_config.unet_config)
    tiny_models.fill(network, torch.Generator().manual_seed(7))
    for weight in network.parameters():
        weight.data.mul_(3)  # else it has no effect
    net = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))

    def keyframes(*strengths, steps=1):
        frames = None
        for start, strength in strengths:
            frames = host.node(
                "TimestepKeyframe", start_percent=start, strength=strength, prev_timestep_kf=frames,
                guarantee_steps=steps,
            )[0]  # fmt: skip
        return frames

    def controlled(frames, start=0.0, end=1.0, latent=scene.latent, **changes):
        positive, negative = host.node(
            "ACN_AdvancedControlNetApply_v2", positive=scene.positive, negative=scene.negative, control_net=net,
            image=picture, strength=1.0, start_percent=start, end_percent=end, timestep_kf=frames, **changes,
        )  # fmt: skip
        return common.ksampler(host, common.Scene(scene.model, positive, negative, latent))

    on_off_on = (0.0, 1.0), (0.3, 0.0), (0.6, 1.0)
    yield Case("constant strength", *controlled(keyframes((0.0, 1.0))))
    yield Case("on, off, on", *controlled(keyframes(*on_off_on)))
    yield Case("off for four guaranteed steps", *controlled(keyframes((0.0, 1.0), (0.2, 0.0), (0.25, 1.0), steps=4)))
    falling = host.node(
        "ACN_TimestepKeyframeInterpolation", start_percent=0.0, end_percent=1.0, strength_start=1.0, strength_end=0.0,
        interpolation="linear", intervals=10,
    )[0]  # fmt: skip
    yield Case("falling from 1 to 0", *controlled(falling))
    yield Case("active from 0.3 to 0.6", *controlled(None, 0.3, 0.6))
    frames = host.node("LatentKeyframeGroup", index_strengths="0=1.0, 2=0.2")[0]
    batch = {"samples": torch.zeros(4, 4, 16, 16)}
    yield Case(
        "two latents of a batch of four", *controlled(keyframes((0.0, 1.0)), latent=batch, latent_kf_override=frames)
    )
