"""The nodes of the bundled demo: a tiny video model that needs no download."""

from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io

from ..demo.codec import CHANNELS, SPACE, TIME, Decoder
from ..demo.scenes import BACKGROUNDS, COLOURS, FRAMES, MOTIONS, SHAPES, SIZE
from ..demo.words import embed, unconditional

WEIGHTS = Path(__file__).resolve().parents[1] / "demo" / "weights"


class EasyCacheDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def choice(name, options, tooltip):
            return io.Combo.Input(name, options=list(options), tooltip=tooltip)

        return io.Schema(
            node_id="EasyCacheDemoModel",
            display_name="EasyCache Demo Model",
            category="EasyCache",
            description="A tiny text-to-video model in Wan 2.1's architecture, made for trying out EasyCache: one "
            "shape moves before one background. It comes with the pack.",
            inputs=[
                choice("colour", COLOURS, "Which colour the shape has."),
                choice("shape", SHAPES, "Which shape is drawn."),
                choice("motion", MOTIONS, "How the shape moves over the 17 frames."),
                choice("background", BACKGROUNDS, "Which scene is behind the shape."),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="How many videos at once. More take longer."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The demo model."),
                io.Conditioning.Output(display_name="positive", tooltip="The four words as a prompt."),
                io.Conditioning.Output(display_name="negative", tooltip="The empty prompt."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of 17 frames of 128 x 128 pixels."),
            ],
        )

    @classmethod
    def execute(cls, colour: str, shape: str, motion: str, background: str, batch_size: int) -> io.NodeOutput:
        model = comfy.sd.load_diffusion_model(str(WEIGHTS / "easycache_demo_wan.safetensors"))
        latent = torch.zeros(
            batch_size, CHANNELS, (FRAMES - 1) // TIME + 1, SIZE // SPACE, SIZE // SPACE,
            device=comfy.model_management.intermediate_device(),
        )  # fmt: skip
        return io.NodeOutput(
            model,
            [[embed((colour, shape, motion, background)), {}]],
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
