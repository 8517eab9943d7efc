"""Draw the icon and the banner of the Comfy registry: python tools/registry_art.py

Both show bars as on the node's chart: tall ones for computed steps, short ones for skipped ones.
"""

import comfy_host
from PIL import Image, ImageDraw, ImageFont

FOLDER = comfy_host.PACK / "docs" / "registry"
ICON, BANNER, FINER = (400, 400), (1260, 540), 3  # square; 21:9; drawn finer and scaled down, for smooth edges
GROUND, COMPUTED, SKIPPED, INK, MUTED = (18, 34, 29), (86, 204, 142), (52, 92, 78), (240, 246, 243), (160, 184, 174)
FORECAST = (236, 158, 74)
STEPS = "CCsCssCssCsssCsssCsssCssCssCsCC"


def bars(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], steps: str) -> None:
    """One bar per step from left to right, and the forecast as a line over the tops of the skipped ones."""
    left, top, right, bottom = box
    pitch, height, last = (right - left) / len(steps), bottom - top, len(steps) - 1
    full = [height * (0.94 - 0.45 * (n / last) ** 1.7) for n in range(len(steps))]
    for n, step in enumerate(steps):
        high = full[n] if step == "C" else 0.25 * height
        edges = (left + (n + 0.12) * pitch, bottom - high, left + (n + 0.88) * pitch, bottom)
        draw.rounded_rectangle(edges, pitch * 0.14, COMPUTED if step == "C" else SKIPPED)
    tops = [(left + (n + 0.5) * pitch, bottom - high - 0.12 * pitch) for n, high in enumerate(full)]
    draw.line(tops, FORECAST, round(pitch * 0.16), joint="curve")


def icon() -> Image.Image:
    side = ICON[0] * FINER
    page = Image.new("RGB", (side, side), GROUND)
    bars(ImageDraw.Draw(page), (0.13 * side, 0.2 * side, 0.87 * side, 0.82 * side), "CsCssC")
    return page.resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    width, height = (FINER * side for side in BANNER)
    page = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(page)
    margin = 0.06 * width
    draw.text((margin, 0.13 * height), "EasyCache", INK, ImageFont.load_default(0.19 * height))
    draw.text((margin, 0.37 * height), "fewer network evaluations, nearly the same picture", MUTED,
              ImageFont.load_default(0.062 * height))  # fmt: skip
    bars(draw, (margin, 0.52 * height, width - margin, 0.9 * height), STEPS)
    return page.resize(BANNER, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    icon().save(FOLDER / "icon.png", optimize=True)
    banner().save(FOLDER / "banner.png", optimize=True)
