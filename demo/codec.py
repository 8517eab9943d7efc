"""The demo's encoder and decoder, in the shape of Wan's VAE: 4 frames x 8 x 8 pixels to 16 channels.

Encoding is linear and needed in training only: the first principal components of 4 x 8 x 8 RGB blocks (a block's
colour, how it changes in time, down and across), rotated so that they use all channels. Decoding is a small learned 3D
convolutional network, which restores sharp edges.

As in Wan's VAE the first latent frame stands for one picture, so 4 n + 1 pictures make n + 1 latent frames.
"""

import torch
from einops import rearrange
from torch import nn

CHANNELS = 16
COMPONENTS = 8  # dimensions of a latent cell; a small network learns few of large variance better than many of small
TIME, SPACE = 4, 8  # pictures and pixels a latent cell covers


def blocks(video: torch.Tensor) -> torch.Tensor:
    """Cut (batch, 4n+1, 3, h, w) pictures in [0, 1] into (batch, n+1, h/8, w/8, 768) blocks in [-1, 1]."""
    padded = torch.cat([video[:, :1].expand(-1, TIME - 1, -1, -1, -1), video], dim=1) * 2 - 1
    return rearrange(padded, "b (t p) c (h q) (w r) -> b t h w (c p q r)", p=TIME, q=SPACE, r=SPACE)


def principal_components(samples: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (768,) and projection (768, 16) of sample blocks (any number, 768).

    The first three components (a cell's colour) are scaled to a standard deviation of 1.8. The others, which are zero
    but at edges and where something moves, nearly keep their size relative to it: full whitening would give this sparse
    detail the variance of the colours, and slow down the training of a small network.
    """
    mean = samples.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((samples - mean).T))
    values, vectors = values[-COMPONENTS:].flip(0), vectors[:, -COMPONENTS:].flip(1)
    spread = 1.8 * (values / values[2]).clamp(max=1) ** 0.45
    turn, _ = torch.linalg.qr(torch.randn(CHANNELS, COMPONENTS, generator=rng))
    return mean, vectors * (spread / values.sqrt()) @ turn.T


def encode(video: torch.Tensor, mean: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """(batch, 4n+1, 3, h, w) pictures to (batch, 16, n+1, h/8, w/8) latents of about unit variance."""
    return rearrange((blocks(video) - mean) @ projection, "b t h w c -> b c t h w")


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv3d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv3d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x)


class Decoder(nn.Module):
    """(batch, 16, n+1, h, w) latents to (batch, 4n+1, 3, 8h, 8w) pictures in [0, 1].

    `inlet` is a 1x1x1 convolution, so that a change of the latents' scale can be folded into it exactly.
    """

    def __init__(self, width: int = 64, fine: int = 32):
        super().__init__()
        self.inlet = nn.Conv3d(CHANNELS, width, 1)
        self.coarse = nn.Sequential(_Residual(width), _Residual(width))
        self.expand = nn.Conv3d(width, fine * 2 * 4 * 4, 1)
        self.fine = nn.Sequential(nn.SiLU(), nn.Conv3d(fine, fine, 3, padding=1), _Residual(fine))
        self.outlet = nn.Conv3d(fine, 3 * 2 * 2 * 2, 1)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.expand(self.coarse(self.inlet(latent)))
        x = rearrange(x, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=2, q=4, r=4)
        x = self.outlet(self.fine(x))
        video = rearrange(x, "b (c p q r) t h w -> b (t p) c (h q) (w r)", p=2, q=2, r=2)
        return (video[:, TIME - 1 :] + 1) / 2
