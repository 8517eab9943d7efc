"""The EasyCache Compare node."""

import math

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..similarity import check_comparable, difference, pairs, psnr, squared_error, ssim, strength
from .json_text import as_json
from .pictures import put_label


class EasyCacheCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EasyCacheCompare",
            display_name="EasyCache Compare",
            category="EasyCache",
            description="Says how near pictures or the frames of a video are to others, as PSNR and SSIM, and shows "
            "where they differ. For a cached run beside the uncached one with the same seed.",
            inputs=[
                io.Image.Input(
                    "reference",
                    tooltip="The pictures to measure against: those of the uncached run.",
                ),
                io.Image.Input(
                    "candidate",
                    tooltip="The pictures to be measured: those of the cached run. As many, and of the same size.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="psnr",
                    tooltip="Peak signal-to-noise ratio in dB over all frames together. Higher is nearer: from 40 on "
                    "differences are hard to see. Infinite for equal pictures.",
                ),
                io.Float.Output(
                    display_name="ssim", tooltip="Structural similarity, mean over the frames. 1 for equal pictures."
                ),
                io.Image.Output(
                    display_name="difference",
                    tooltip="Where the pictures differ. Each frame says how many times its differences are enlarged; "
                    "it is the same for all of them.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="All numbers as JSON: over all frames, the least, and frame by frame. A PSNR that is "
                    "infinite is null there.",
                ),
            ],
        )

    @classmethod
    def execute(cls, reference: torch.Tensor, candidate: torch.Tensor) -> io.NodeOutput:
        try:
            check_comparable(reference, candidate)
        except ValueError as error:
            raise ValueError(f"EasyCache Compare: {error}") from None
        frames, height, width, _ = reference.shape
        progress = ProgressBar(2 * frames)  # its updates raise when the user cancels

        errors, similarities = [], []
        for a, b in pairs(reference, candidate):
            errors.append(squared_error(a, b))
            similarities.append(ssim(a, b))
            progress.update(1)
        error, similarity = sum(errors) / frames, sum(similarities) / frames

        times, ratios = strength(error), [psnr(of_frame) for of_frame in errors]
        shown = torch.empty(frames, height, width, 3)
        for frame, ratio, (a, b) in zip(shown, ratios, pairs(reference, candidate), strict=True):
            frame.copy_(difference(a, b, times))
            words = f"difference x {times}"
            put_label(frame, f"{words}, {ratio:.1f} dB" if math.isfinite(ratio) else "identical", words, f"x {times}")
            progress.update(1)
        report = {
            "frames": frames,
            "identical": error == 0,
            "psnr": _finite(psnr(error)),
            "psnr_least": _finite(min(ratios)),
            "ssim": similarity,
            "ssim_least": min(similarities),
            "difference_times": times,
            "per_frame": [
                {"frame": number, "psnr": _finite(ratio), "ssim": of_frame}
                for number, (ratio, of_frame) in enumerate(zip(ratios, similarities, strict=True), 1)
            ],
        }
        return io.NodeOutput(psnr(error), similarity, shown, as_json(report))


def _finite(value: float) -> float | None:
    """None for infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
