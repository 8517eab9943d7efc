"""The demo's pictures of a video sampled without and with EasyCache."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ANIMATED, LISTED = 384, 160  # width of a frame in the animation and in the contact sheet
EVERY = 4  # how many frames the contact sheet goes on by
AMPLIFIED = 8
FRAME_MS = 125
INK, PAPER, SKIPPED, COMPUTED = (30, 32, 40), (250, 250, 248), (206, 220, 214), (24, 128, 96)


class Pair(NamedTuple):
    """uncached, cached: (frames, height, width, 3) uint8. computed: whether, by evaluation of the cached one."""

    uncached: np.ndarray
    cached: np.ndarray
    computed: list[bool]
    psnr: float

    @property
    def captions(self) -> tuple[str, str]:
        evaluations = sum(self.computed)
        return (
            f"uncached: {len(self.computed)} evaluations",
            f"EasyCache: {evaluations} evaluations, {self.psnr:.1f} dB",
        )


def _font(size: int):
    return ImageFont.load_default(size)


def _scaled(frame: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(frame).resize((side, side), Image.Resampling.LANCZOS)


def _draw_steps(draw: ImageDraw.ImageDraw, computed: list[bool], box: tuple[int, int, int, int]) -> None:
    """One bar per step: full where it was computed, low and pale where it was skipped."""
    left, top, right, bottom = box
    pitch = (right - left) / len(computed)
    for i, high in enumerate(computed):
        x0, x1 = left + i * pitch, left + (i + 1) * pitch - 2
        draw.rectangle((x0, top if high else bottom - (bottom - top) // 3, x1, bottom), COMPUTED if high else SKIPPED)


def side_by_side(pair: Pair, file: Path) -> None:
    """Write an animation of both videos with the strip of steps below."""
    pages, gap, head, foot = [], 12, 34, 40
    for frames in zip(pair.uncached, pair.cached, strict=True):
        page = Image.new("RGB", (2 * ANIMATED + 3 * gap, head + ANIMATED + foot), PAPER)
        draw = ImageDraw.Draw(page)
        for column, (frame, text) in enumerate(zip(frames, pair.captions, strict=True)):
            x = gap + column * (ANIMATED + gap)
            draw.text((x, 7), text, INK, _font(18))
            page.paste(_scaled(frame, ANIMATED), (x, head))
        _draw_steps(draw, pair.computed, (gap, page.height - foot + 10, page.width - gap, page.height - 6))
        pages.append(page)
    pages[0].save(file, save_all=True, append_images=pages[1:], duration=FRAME_MS, loop=0, quality=85, method=6)


def contact_sheet(pair: Pair, file: Path) -> None:
    """Write a picture of some frames of both videos, their difference, and the steps that were skipped."""
    chosen = range(0, len(pair.uncached), EVERY)
    error = np.abs(pair.uncached.astype(float) - pair.cached)
    difference = np.clip(error * AMPLIFIED, 0, 255).astype(np.uint8)
    rows = [*zip(pair.captions, (pair.uncached, pair.cached), strict=True),
            (f"difference, {AMPLIFIED} times enlarged", difference)]  # fmt: skip
    gap, head, strip = 8, 26, 76
    sheet = Image.new("RGB", (len(chosen) * (LISTED + gap) + gap, len(rows) * (LISTED + head) + strip), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (text, video) in enumerate(rows):
        top = row * (LISTED + head)
        draw.text((gap, top + 6), text, INK, _font(14))
        for column, frame in enumerate(chosen):
            sheet.paste(_scaled(video[frame], LISTED), (gap + column * (LISTED + gap), top + head))
    top, skipped = len(rows) * (LISTED + head), len(pair.computed) - sum(pair.computed)
    legend = f"steps 1 to {len(pair.computed)}: high bars were computed, the {skipped} low ones skipped"
    draw.text((gap, top + 8), legend, INK, _font(14))
    _draw_steps(draw, pair.computed, (gap, top + 34, sheet.width - gap, sheet.height - 8))
    sheet.save(file, optimize=True)
