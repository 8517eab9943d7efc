"""Thumbnails of workflows whose models are not available here: a title and a sketch of the computed steps.

It is only a sketch, as the node decides during each run which steps are computed.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SIZE, FINER = (480, 280), 2  # drawn finer and scaled down, for smooth edges
INK, MUTED, PAPER, SKIPPED, COMPUTED = (30, 32, 40), (112, 116, 128), (250, 250, 248), (206, 220, 214), (24, 128, 96)


def card(title: str, lines: Sequence[str], computed: Sequence[bool], frames: int) -> Image.Image:
    """lines: below the title. computed: whether, by step. frames: how many to draw in the corner, 1 for a picture."""
    width, height = (FINER * side for side in SIZE)
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    margin = 28 * FINER

    left, top = width - margin - (64 + 13 * (frames - 1)) * FINER, 26 * FINER
    for frame in reversed(range(frames)):
        x, y = left + 13 * frame * FINER, top + 9 * frame * FINER
        box = (x, y, x + 64 * FINER, y + 40 * FINER)
        draw.rounded_rectangle(box, 5 * FINER, PAPER, SKIPPED if frame else COMPUTED, 2 * FINER)
    hills = ((10, 33), (25, 15), (34, 24), (42, 17), (54, 33))
    draw.polygon([(left + x * FINER, top + y * FINER) for x, y in hills], SKIPPED)

    draw.text((margin, 30 * FINER), "EasyCache", COMPUTED, _font(17))
    draw.text((margin, 86 * FINER), title, INK, _font(36))
    for row, line in enumerate(lines):
        draw.text((margin, (138 + 24 * row) * FINER), line, MUTED, _font(17))

    bottom, full, low = height - margin, 46 * FINER, 15 * FINER
    pitch = (width - 2 * margin) / len(computed)
    for step, runs in enumerate(computed):
        left = margin + step * pitch
        box = (left, bottom - (full if runs else low), left + pitch - 2 * FINER, bottom)
        draw.rectangle(box, COMPUTED if runs else SKIPPED)
    return page.resize(SIZE, Image.Resampling.LANCZOS)


def sketch(steps: int, computed_first: int, every: int) -> list[bool]:
    """Whether each step is computed: the first ones, then each `every`-th, and the last."""
    return [n < computed_first or (n - computed_first) % every == every - 1 or n == steps - 1 for n in range(steps)]


def _font(size: int):
    return ImageFont.load_default(size * FINER)
