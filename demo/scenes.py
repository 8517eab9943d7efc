"""Scenes for training the demo model: an animated emoji before a painted background, seen by a moving camera.

Coordinates of a picture run from -1 to 1, y downwards. The emoji are the clips in demo/clips, where their licence is;
backgrounds and cameras are the functions here.
"""

import functools
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from .codec import FRAMES, SIZE
from .words import BACKGROUNDS, CAMERAS, KINDS, SUBJECTS

CLIPS = Path(__file__).resolve().parent / "clips"
PARALLAX = 0.45  # the background follows the camera less than the emoji does
SHADOW = 0.32  # how dark the emoji's shadow is


@functools.cache
def _colour(rgb, device) -> torch.Tensor:
    """Cached: a copy to the GPU makes the program wait for the GPU."""
    return torch.tensor(rgb, dtype=torch.float32, device=device).view(3, 1, 1)


def _blend(t, low, high):
    """Colours from `low` to `high` along t (n, frames, h, w), as (n, frames, 3, h, w)."""
    low, high = _colour(low, t.device), _colour(high, t.device)
    return low + (high - low) * t.clamp(0, 1).unsqueeze(2)


def _over(canvas, rgb, inside):
    """Paint a colour where `inside` (n, frames, h, w) is 1."""
    return canvas + (_colour(rgb, canvas.device) - canvas) * inside.unsqueeze(2)


def _inside(distance, softness=0.03):
    """1 where a signed distance is negative, with an edge of about two pixels."""
    return (0.5 - distance / softness).clamp(0, 1)


def _wrap(x, period):
    return torch.remainder(x + period / 2, period) - period / 2


# Backgrounds: (x, y, chance) to colours; two random numbers from 0 to 1 per video set each of them a little apart.


def _sky(x, y, chance):
    canvas = _blend((y + 1) / 2, (0.33, 0.64, 0.98), (0.80, 0.93, 1.00))
    for cx, cy, size in ((-0.75, -0.62, 1.0), (0.45, -0.80, 0.8), (0.72, 0.02, 0.9), (-0.55, 0.62, 1.1)):
        dx, dy = _wrap(x - cx - 0.5 * chance[0], 2.4) / size, (y - cy) / size
        circles = ((0, 0, 0.2), (0.22, 0.06, 0.14), (-0.22, 0.06, 0.14))
        puffs = [torch.hypot(dx - px, dy - py) - radius for px, py, radius in circles]
        canvas = _over(canvas, (1.0, 1.0, 1.0), 0.9 * _inside(torch.stack(puffs).amin(0) * size))
    return canvas


def _night(x, y, chance):
    canvas = _blend((y + 1) / 2, (0.04, 0.05, 0.19), (0.22, 0.15, 0.45))
    x, y = (x + 0.4 * chance[0]) / 0.42, (y + 0.4 * chance[1]) / 0.42
    cell = torch.floor(x), torch.floor(y)  # with one star each

    def hashed(k):
        """A number from 0 to 1 for each cell."""
        return torch.frac(torch.sin(cell[0] * (1.9 + k) + cell[1] * (3.7 - k) + k).abs() * 437.5)

    distance = torch.hypot(x - cell[0] - 0.2 - 0.6 * hashed(0.3), y - cell[1] - 0.2 - 0.6 * hashed(0.7))
    return _over(canvas, (1.0, 0.97, 0.80), _inside((distance - 0.05 - 0.05 * hashed(1.1)) * 0.42))


def _meadow(x, y, chance):
    canvas = _blend((y + 1) / 1.4, (0.55, 0.82, 1.00), (0.93, 0.98, 0.92))
    back = 0.20 + 0.12 * torch.sin(2.3 * x + 2 * chance[0]) - y
    front = 0.48 + 0.10 * torch.sin(1.7 * x + 2 + 2 * chance[1]) - y
    return _over(_over(canvas, (0.58, 0.82, 0.38), _inside(back)), (0.36, 0.68, 0.28), _inside(front))


def _sunset(x, y, chance):
    canvas = _blend((y + 1) / 1.4, (0.55, 0.27, 0.60), (1.00, 0.68, 0.40))
    canvas = _over(canvas, (1.00, 0.90, 0.55), _inside(torch.hypot(x - 0.5 * chance[0] + 0.25, y - 0.30) - 0.52))
    return _over(canvas, (0.33, 0.20, 0.48), _inside(0.42 - y))


def _mint(x, y, chance):
    return _blend((y + 1) / 2, (0.72, 0.95, 0.85), (0.52, 0.85, 0.73))


def _lavender(x, y, chance):
    return _blend((y + 1) / 2, (0.87, 0.82, 1.00), (0.68, 0.60, 0.92))


def _rays(x, y, chance):
    wave = torch.sin(12 * torch.atan2(y, x) + 2 * math.pi * chance[0])
    distance = wave * torch.hypot(x, y) / 12  # about the distance to the nearest edge of a ray
    return _over(_blend(torch.ones_like(x), (0, 0, 0), (1.00, 0.93, 0.64)), (1.00, 0.82, 0.36), _inside(distance))


def _dots(x, y, chance):
    x, y = x + 0.4 * chance[0], y + 0.4 * chance[1]
    first = torch.hypot(_wrap(x, 0.44), _wrap(y, 0.44))
    second = torch.hypot(_wrap(x - 0.22, 0.44), _wrap(y - 0.22, 0.44))
    pink = _blend(torch.ones_like(x), (0, 0, 0), (0.99, 0.66, 0.76))
    return _over(pink, (1.00, 0.87, 0.91), _inside(torch.minimum(first, second) - 0.085))


_PAINTERS = {
    "sky": _sky, "night": _night, "meadow": _meadow, "sunset": _sunset,
    "mint": _mint, "lavender": _lavender, "rays": _rays, "dots": _dots,
}  # fmt: skip

# At time u (frames,) from 0 to 1: the logarithm of the zoom, how far right the picture is pushed, and its roll.
# `strength` and `phase` are (n, 1).
_MOVES = {
    "still": lambda u, strength, phase: (0 * u, 0 * u, 0 * u),
    "zoom-in": lambda u, strength, phase: (strength * (0.55 * u - 0.40), 0 * u, 0 * u),
    "zoom-out": lambda u, strength, phase: (strength * (0.15 - 0.55 * u), 0 * u, 0 * u),
    "pan-left": lambda u, strength, phase: (0 * u - 0.1, strength * 0.72 * (u - 0.5), 0 * u),
    "pan-right": lambda u, strength, phase: (0 * u - 0.1, strength * 0.72 * (0.5 - u), 0 * u),
    "sway": lambda u, strength, phase: (
        0 * u,
        strength * 0.10 * torch.sin(2 * math.pi * (u + phase)),
        strength * 0.24 * torch.sin(2 * math.pi * (u + phase)),
    ),
}


def _load_clip(subject: str) -> np.ndarray:
    """(frames, 4, size, size) uint8, colours multiplied by alpha. A file holds a loop's frames, one below the other."""
    strip = np.asarray(Image.open(CLIPS / f"{subject}.webp").convert("RGBA").convert("RGBa"))
    return strip.reshape(FRAMES, SIZE, SIZE, 4).transpose(0, 3, 1, 2)


def random_scenes(count: int, rng: np.random.Generator, held_out: bool = False) -> np.ndarray:
    """(count, 3): places of the words in SUBJECTS, BACKGROUNDS and CAMERAS.

    One combination in 17 is held out of training; held_out asks for those.
    """
    scenes = np.empty((0, 3), int)
    while len(scenes) < count:
        more = np.stack([rng.integers(len(words), size=count) for words in KINDS], axis=1)
        scenes = np.concatenate([scenes, more[(more @ (1, 3, 5) % 17 == 0) == held_out]])
    return scenes[:count]


def scene_of(words) -> np.ndarray:
    """(3,), as in random_scenes."""
    return np.array([kind.index(word) for kind, word in zip(KINDS, words, strict=True)])


def word_numbers(scenes: np.ndarray) -> np.ndarray:
    """(count, 3): places of the words in WORDS."""
    return scenes + np.cumsum([1, len(SUBJECTS), len(BACKGROUNDS)])


class Renderer:
    """Draws scenes on a device. Place, size and phase are random, from the device's global random state."""

    def __init__(self, device: str):
        self.device = device
        self._clips = torch.from_numpy(np.stack([_load_clip(subject) for subject in SUBJECTS])).to(device)

    def put(self, numbers: np.ndarray) -> torch.Tensor:
        """On the device, without waiting for it."""
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self.device, non_blocking=True)

    def _random(self, count: int, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, device=self.device)

    @torch.no_grad()
    def render(self, scenes: np.ndarray) -> torch.Tensor:
        """Videos (count, frames, 3, size, size) in [0, 1]."""
        subjects, backgrounds, cameras = scenes.T
        seen = self._camera(cameras)
        canvas = self._background(backgrounds, *seen(PARALLAX))
        colour, alpha = self._emoji(subjects, *seen(1.0))
        shadow = F.pad(alpha.flatten(0, 1), (0, 0, 6, -6))  # the emoji's own outline, lower and blurred
        for _ in range(2):
            shadow = F.avg_pool2d(shadow, 7, stride=1, padding=3, count_include_pad=True)
        canvas = canvas * (1 - SHADOW * shadow.view_as(alpha))
        return (colour + canvas * (1 - alpha)).clamp(0, 1)

    def _camera(self, cameras: np.ndarray):
        """A function of how far a thing follows the camera: the coordinates (x, y) that the pixels show of it."""
        count, device = len(cameras), self.device
        zoom, push, roll = (torch.zeros(count, FRAMES, 1, 1, device=device) for _ in range(3))
        strength, phase = self._random(count, 0.9, 1.1), self._random(count, 0, 1)
        u = torch.linspace(0, 1, FRAMES, device=device)
        for k, name in enumerate(CAMERAS):
            rows = self.put(np.flatnonzero(cameras == k))
            moved = _MOVES[name](u, strength[rows, 0, 0], phase[rows, 0, 0])
            for into, value in zip((zoom, push, roll), moved, strict=True):
                into[rows] = value.expand(len(rows), FRAMES)[:, :, None, None]
        axis = (torch.arange(SIZE, device=device) + 0.5) / SIZE * 2 - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")

        def seen(share):
            cos, sin, scale = torch.cos(share * roll), torch.sin(share * roll), torch.exp(-share * zoom)
            dx = x - share * push
            return (cos * dx + sin * y) * scale, (cos * y - sin * dx) * scale

        return seen

    def _background(self, backgrounds: np.ndarray, x, y) -> torch.Tensor:
        canvas = torch.empty(len(backgrounds), FRAMES, 3, SIZE, SIZE, device=self.device)
        chance = self._random(len(backgrounds), 0, 1), self._random(len(backgrounds), 0, 1)
        for k, name in enumerate(BACKGROUNDS):
            rows = self.put(np.flatnonzero(backgrounds == k))
            if len(rows):
                canvas[rows] = _PAINTERS[name](x[rows], y[rows], [numbers[rows] for numbers in chance])
        return canvas

    def _emoji(self, subjects: np.ndarray, x, y) -> tuple[torch.Tensor, torch.Tensor]:
        """Colours multiplied by alpha, and alpha."""
        count = len(subjects)
        half = 0.75 * self._random(count, 0.95, 1.05)  # of the emoji's side
        dx, dy = self._random(count, -0.06, 0.06), self._random(count, -0.06, 0.06)
        grid = torch.stack([(x - dx) / half, (y - dy) / half], dim=-1)
        clips = self._clips[self.put(subjects)].float() / 255
        emoji = F.grid_sample(clips.flatten(0, 1), grid.flatten(0, 1), mode="bilinear", align_corners=False)
        return emoji.unflatten(0, (count, FRAMES)).split((3, 1), dim=2)
