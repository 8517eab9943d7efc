"""Pillow's pictures as ComfyUI's, and labels on them.

The font is Pillow's own, so that none has to be installed; it has little more than ASCII.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

MARGIN = 3  # pixels around a label's text


def font(size: int) -> ImageFont.FreeTypeFont:
    """size: pixels."""
    return ImageFont.load_default(size)


def as_images(picture: Image.Image) -> torch.Tensor:
    """A picture as an IMAGE of one frame: (1, height, width, 3), 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def put_label(frame: torch.Tensor, *texts: str) -> None:
    """Write the first of the texts that fits into the upper left corner of a frame, in place; nothing if none fits.

    frame: (height, width, 3), 0 to 1.
    """
    height, width, _ = frame.shape
    letters = font(max(10, min(28, width // 22)))
    for text in texts:
        _, _, right, bottom = letters.getbbox(text)
        label = Image.new("RGB", (int(right) + 2 * MARGIN, int(bottom) + 2 * MARGIN))
        if label.width <= width and label.height <= height // 2:
            ImageDraw.Draw(label).text((MARGIN, MARGIN), text, "white", letters)
            frame[: label.height, : label.width] = as_images(label)[0]
            return
