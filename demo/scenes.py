"""The procedural videos that the demo model was trained on: one shape, one colour, one motion, one background.

They are drawn from signed distances while training, which therefore needs no data set. A video is (frames, 3, height,
width), linear, in [0, 1].
"""

import math
from dataclasses import dataclass

import torch

FRAMES = 17
SIZE = 128

COLOURS = {
    "red": (0.92, 0.16, 0.18),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.98, 0.87, 0.20),
    "green": (0.20, 0.75, 0.30),
    "blue": (0.15, 0.38, 0.95),
    "violet": (0.62, 0.25, 0.85),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("circle", "square", "triangle", "star", "ring")
MOTIONS = ("right", "left", "up", "down", "orbit", "bounce", "spin", "pulse")
# Colour at the top and at the bottom of the picture.
BACKGROUNDS = {
    "night": ((0.02, 0.03, 0.10), (0.12, 0.10, 0.28)),
    "dawn": ((0.30, 0.22, 0.48), (0.98, 0.66, 0.48)),
    "meadow": ((0.60, 0.83, 0.98), (0.38, 0.62, 0.26)),
    "sea": ((0.66, 0.90, 0.92), (0.04, 0.30, 0.48)),
    "paper": ((0.93, 0.91, 0.87), (0.80, 0.77, 0.72)),
}


@dataclass(frozen=True)
class Scene:
    """What a prompt says; everything else about a video (position, size, phase) is random."""

    colour: str
    shape: str
    motion: str
    background: str

    @property
    def words(self) -> tuple[str, str, str, str]:
        return (self.colour, self.shape, self.motion, self.background)


def random_scene(rng: torch.Generator) -> Scene:
    def pick(options):
        options = list(options)
        return options[int(torch.randint(len(options), (1,), generator=rng))]

    return Scene(pick(COLOURS), pick(SHAPES), pick(MOTIONS), pick(BACKGROUNDS))


def _path(motion: str, u: torch.Tensor, rng: torch.Generator):
    """Centre, radius and angle of the shape at times u in [0, 1]; picture coordinates run from -1 to 1."""

    def chance(low, high):
        return low + (high - low) * float(torch.rand(1, generator=rng))

    # The network knows positions and times only relative to each other (rotary embeddings), so motions differ in how
    # a shape moves, not in where or when.
    radius = chance(0.36, 0.44)
    angle = chance(-0.12, 0.12)
    x = torch.full_like(u, chance(-0.25, 0.25))
    y = torch.full_like(u, chance(-0.25, 0.25))
    sweep = chance(0.75, 0.95) * (u - 0.5)
    phase = 2 * math.pi * (u + chance(0, 1))
    if motion == "right":
        x = 0.5 * x + sweep
    elif motion == "left":
        x = 0.5 * x - sweep
    elif motion == "down":
        y = 0.5 * y + sweep
    elif motion == "up":
        y = 0.5 * y - sweep
    elif motion == "orbit":
        reach = chance(0.38, 0.46)
        x, y = 0.3 * x + reach * torch.sin(phase), 0.3 * y - reach * torch.cos(phase)
    elif motion == "bounce":
        y = 0.5 - chance(0.90, 1.00) * torch.sin(phase).abs()
    r = torch.full_like(u, radius)
    if motion == "pulse":
        r = radius * (1 + 0.4 * torch.sin(phase))
    a = torch.full_like(u, angle)
    if motion == "spin":
        a = angle + 2 * math.pi * u
    return x, y, r, a


def _distance(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed distance (negative inside) of a shape of radius 1 around the origin."""
    if shape == "circle":
        return torch.hypot(x, y) - 1.0
    if shape == "ring":
        return (torch.hypot(x, y) - 0.75).abs() - 0.27
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.82
    corners = {"triangle": 3, "star": 5}[shape]
    sector = 2 * math.pi / corners
    theta = torch.atan2(x, -y)  # zero points up
    folded = torch.remainder(theta + sector / 2, sector) - sector / 2
    length = torch.hypot(x, y)
    if shape == "triangle":
        # Distance to the edge that faces away from the nearest corner.
        return length * torch.cos(sector / 2 - folded.abs()) - 0.58
    # A star's edge runs from an outer corner (radius 1.1) to an inner one (radius 0.5).
    px, py = length * torch.sin(folded.abs()), length * torch.cos(folded)
    inner = (0.5 * math.sin(sector / 2), 0.5 * math.cos(sector / 2))
    ex, ey = inner[0], inner[1] - 1.1
    return -(ex * (py - 1.1) - ey * px) / -math.hypot(ex, ey)


def render(scenes: list[Scene], rng: torch.Generator, frames: int = FRAMES, size: int = SIZE) -> torch.Tensor:
    """Draw scenes as videos, shape (len(scenes), frames, 3, size, size), float32 in [0, 1]."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    gy, gx = torch.meshgrid(axis, axis, indexing="ij")
    u = torch.linspace(0, 1, frames)
    height = ((gy + 1) / 2)[None, None]
    sharpness = size * 0.75  # an edge about 1.5 pixels soft
    videos = []
    for scene in scenes:
        x, y, radius, angle = (p[:, None, None] for p in _path(scene.motion, u, rng))
        top, bottom = (torch.tensor(c)[None, :, None, None] for c in BACKGROUNDS[scene.background])
        canvas = (top * (1 - height) + bottom * height).expand(frames, -1, -1, -1)

        cos, sin = torch.cos(angle), torch.sin(angle)
        lx, ly = ((gx - x) * cos + (gy - y) * sin) / radius, (-(gx - x) * sin + (gy - y) * cos) / radius
        inside = torch.sigmoid(-_distance(scene.shape, lx, ly) * radius * sharpness)[:, None]
        shadow = torch.sigmoid(-_distance("circle", (gx - x) / radius, (gy - y) / radius - 0.3) * radius * 12)[:, None]
        # Shading along the shape's own axis makes the spin of a circle visible.
        light = (0.82 - 0.30 * ly.clamp(-1.2, 1.2))[:, None]
        colour = (torch.tensor(COLOURS[scene.colour])[None, :, None, None] * light).clamp(0, 1)
        canvas = canvas * (1 - 0.4 * shadow)
        videos.append(canvas * (1 - inside) + colour * inside)
    return torch.stack(videos)
