"""The demo's encoder and decoder, in the shape of Wan's VAE: 4 frames x 8 x 8 pixels to 16 channels.

Layers work on (batch, frames, height, width, channels). Convolutions are two-dimensional, which is fast on any
processor; frames are mixed by shifting a part of the channels by one frame. As in Wan's VAE the first latent frame
stands for one picture, so 4n+1 pictures make n+1 latent frames. Only training needs the encoder.
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

FRAMES, SIZE = 17, 128  # of a video
CHANNELS = 16
TIME, SPACE = 4, 8  # pictures and pixels a latent cell covers
FINE, MIDDLE, COARSE = 64, 128, 192  # channels at 1/2, 1/4 and 1/8 of the pictures' size


def latent_shape(batch: int) -> tuple[int, ...]:
    """Of that many videos."""
    return batch, CHANNELS, (FRAMES - 1) // TIME + 1, SIZE // SPACE, SIZE // SPACE


class _Conv(nn.Module):
    """A 3 x 3 convolution of every frame."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x):
        y = self.conv(x.flatten(0, 1).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _shift_frames(x: torch.Tensor) -> torch.Tensor:
    """A quarter of the channels from the frame before, a quarter from the frame after; the ends repeat."""
    quarter = x.shape[-1] // 4
    before, after, own = x.split((quarter, quarter, x.shape[-1] - 2 * quarter), dim=-1)
    before = torch.cat([before[:, :1], before[:, :-1]], dim=1)
    after = torch.cat([after[:, 1:], after[:, -1:]], dim=1)
    return torch.cat([before, after, own], dim=-1)


def _norm(width: int) -> nn.RMSNorm:
    return nn.RMSNorm(width, eps=1e-5)


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.conv1, self.conv2 = _Conv(width, width), _Conv(width, width)
        nn.init.zeros_(self.conv2.conv.weight)

    def forward(self, x):
        y = self.conv1(_shift_frames(F.silu(self.norm1(x))))
        return x + self.conv2(_shift_frames(F.silu(self.norm2(y))))


class Encoder(nn.Module):
    """(batch, 4n+1, 3, 8h, 8w) pictures in [0, 1] to (batch, 16, n+1, h, w) latents of unit variance."""

    def __init__(self):
        super().__init__()
        self.inlet = _Conv(12, FINE)
        self.fine = nn.Sequential(Residual(FINE))
        self.merge1 = nn.Linear(8 * FINE, MIDDLE)
        self.middle = nn.Sequential(Residual(MIDDLE), Residual(MIDDLE))
        self.merge2 = nn.Linear(8 * MIDDLE, COARSE)
        self.coarse = nn.Sequential(Residual(COARSE), Residual(COARSE), _norm(COARSE))
        self.outlet = nn.Linear(COARSE, CHANNELS)

    @staticmethod
    def _halve(x):
        x = torch.cat([x[:, :1], x], dim=1)  # the first picture stands for itself and for the time before it
        return rearrange(x, "b (t p) (h q) (w r) c -> b t h w (p q r c)", p=2, q=2, r=2)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        x = self.inlet(rearrange(video * 2 - 1, "b t c (h q) (w r) -> b t h w (q r c)", q=2, r=2))
        x = self.merge1(self._halve(self.fine(x)))
        x = self.merge2(self._halve(self.middle(x)))
        return self.outlet(self.coarse(x)).movedim(-1, 1)


class Decoder(nn.Module):
    """(batch, 16, n+1, h, w) latents to (batch, 4n+1, 3, 8h, 8w) pictures in [0, 1].

    `inlet` is linear in each latent cell, so that a change of the latents' scale can be folded into it exactly.
    """

    def __init__(self):
        super().__init__()
        self.inlet = nn.Linear(CHANNELS, COARSE)
        self.coarse = nn.Sequential(Residual(COARSE), Residual(COARSE))
        self.split1 = nn.Linear(COARSE, 8 * MIDDLE)
        self.middle = nn.Sequential(Residual(MIDDLE), Residual(MIDDLE))
        self.split2 = nn.Linear(MIDDLE, 8 * FINE)
        self.fine = nn.Sequential(Residual(FINE), Residual(FINE), _norm(FINE), nn.SiLU())
        self.outlet = _Conv(FINE, 12)

    @staticmethod
    def _double(x):
        x = rearrange(x, "b t h w (p q r c) -> b (t p) (h q) (w r) c", p=2, q=2, r=2)
        return x[:, 1:]  # of the first latent frame only the last picture is left: 4n+1 pictures

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.coarse(self.inlet(latent.movedim(1, -1)))
        x = self.middle(self._double(self.split1(x)))
        x = self.outlet(self.fine(self._double(self.split2(x))))
        return (rearrange(x, "b t h w (q r c) -> b t c (h q) (w r)", q=2, r=2) + 1) / 2
