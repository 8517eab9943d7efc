"""The nodes of the bundled demo: a tiny video model that needs no download."""

from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io

from ..demo.codec import CHANNELS, Decoder, latent_shape
from ..demo.words import BACKGROUNDS, CAMERAS, KINDS, SUBJECTS, embed, unconditional
from ..easycache_core.config import require_choice

WEIGHTS = Path(__file__).resolve().parents[1] / "demo" / "weights"


class EasyCacheDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def choice(name, options, default, tooltip):
            return io.Combo.Input(name, options=list(options), default=default, tooltip=tooltip)

        return io.Schema(
            node_id="EasyCacheDemoModel",
            display_name="EasyCache Demo Model",
            category="EasyCache",
            description="A tiny text-to-video model in Wan 2.1's architecture, made for trying out EasyCache: an "
            "animated emoji before a painted scene. It comes with the pack and needs no download.",
            inputs=[
                choice("subject", SUBJECTS, "rocket", "Which emoji is seen."),
                choice("background", BACKGROUNDS, "night", "The scene behind it."),
                choice("camera", CAMERAS, "zoom-out", "How the camera moves over the 17 frames."),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="How many videos at once. More take longer."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The demo model."),
                io.Conditioning.Output(display_name="positive", tooltip="The three words as a prompt."),
                io.Conditioning.Output(display_name="negative", tooltip="The empty prompt."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of 17 frames of 128 x 128 pixels."),
            ],
        )

    @classmethod
    def execute(cls, subject: str, background: str, camera: str, batch_size: int) -> io.NodeOutput:
        words = dict(subject=subject, background=background, camera=camera)
        for (name, word), known in zip(words.items(), KINDS, strict=True):
            require_choice(name, word, known)
        model = comfy.sd.load_diffusion_model(str(WEIGHTS / "easycache_demo_wan.safetensors"))
        latent = torch.zeros(latent_shape(batch_size), device=comfy.model_management.intermediate_device())
        return io.NodeOutput(
            model,
            [[embed(words.values()), {}]],
            [[unconditional(), {}]],
            {"samples": latent},
        )


class EasyCacheDemoDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EasyCacheDemoDecode",
            display_name="EasyCache Demo Decode",
            category="EasyCache",
            description="Turns latents of the EasyCache Demo Model into pictures.",
            inputs=[io.Latent.Input("samples", tooltip="Latents that were sampled with the EasyCache Demo Model.")],
            outputs=[io.Image.Output(display_name="images", tooltip="The frames, one video after the other.")],
        )

    @classmethod
    def execute(cls, samples: dict) -> io.NodeOutput:
        latent = samples["samples"]
        if latent.ndim != 5 or latent.shape[1] != CHANNELS:
            raise ValueError(
                f"EasyCache Demo Decode takes latents of the EasyCache Demo Model, (batch, {CHANNELS}, frames, height, "
                f"width); these have the shape {tuple(latent.shape)}"
            )
        device = comfy.model_management.get_torch_device()
        decoder = Decoder()
        decoder.load_state_dict(comfy.utils.load_torch_file(str(WEIGHTS / "easycache_demo_decoder.safetensors")))
        decoder.to(device).eval()
        with torch.no_grad():
            videos = [decoder(one[None].to(device, torch.float32))[0] for one in latent]
        frames = torch.cat(videos).clamp(0, 1).movedim(1, -1)
        return io.NodeOutput(frames.to(comfy.model_management.intermediate_device()))
