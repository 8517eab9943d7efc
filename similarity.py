"""Similarity of two batches of pictures, frame by frame: PSNR, SSIM and the difference.

Pictures are ComfyUI's: (frames, height, width, channels), 0 to 1. One channel is grey; a 2nd or 4th one is alpha. They
are compared as they would be shown: values are clamped to 0 and 1, NaN is black, and transparent parts lie on middle
grey. Everything is computed on the CPU in float32: many GPUs round convolutions to about half of its digits, which is
too coarse for SSIM's variances.

SSIM is that of Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004): a
Gaussian window of 11 pixels with a standard deviation of 1.5, K1 0.01, K2 0.03, mean over the three colours and all
positions of the window within the frame. In scikit-image it is `structural_similarity(..., gaussian_weights=True,
sigma=1.5, use_sample_covariance=False)`.
"""

import math
from collections.abc import Iterator

import torch

WINDOW = 11  # pixels; for smaller pictures, the largest odd number that fits
STRONGEST = 256  # times: a difference of one of 255 levels fills the range


def check_comparable(reference: torch.Tensor, candidate: torch.Tensor) -> None:
    """Raise ValueError, naming both shapes, unless both are pictures with as many frames of the same size."""
    for pictures in (reference, candidate):
        if pictures.ndim != 4 or not 1 <= pictures.shape[-1] <= 4 or 0 in pictures.shape:
            raise ValueError(
                "pictures must have the shape (frames, height, width, channels) with 1 to 4 channels; reference has "
                f"{tuple(reference.shape)}, candidate {tuple(candidate.shape)}"
            )
    if reference.shape[:3] != candidate.shape[:3]:
        raise ValueError(
            f"reference and candidate must have as many frames of the same size; reference has {_size(reference)}, "
            f"candidate {_size(candidate)}"
        )


def _size(pictures: torch.Tensor) -> str:
    frames, height, width, _ = pictures.shape
    return f"{frames} frame{'s' * (frames > 1)} of {width} x {height} pixels"


def pairs(reference: torch.Tensor, candidate: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of frames, each (3, height, width), 0 to 1, as they are compared."""
    return ((_colours(a), _colours(b)) for a, b in zip(reference, candidate, strict=True))


def _colours(frame: torch.Tensor) -> torch.Tensor:
    """(height, width, 1 to 4) to (3, height, width)."""
    frame = frame.to("cpu", torch.float32).nan_to_num(0.0).clamp(0, 1).movedim(-1, 0)
    if len(frame) % 2 == 0:
        frame = frame[:-1] * frame[-1] + 0.5 * (1 - frame[-1])  # exact where it is opaque
    return frame.expand(3, -1, -1).contiguous()


def squared_error(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """Mean squared error of two frames of (3, height, width)."""
    return (reference - candidate).square().mean(dtype=torch.float64).item()


def ssim(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """Mean structural similarity of two frames of (3, height, width); 1 if they are equal."""
    # kornia is optional in ComfyUI; imported here, only this function needs it.
    from kornia.metrics import ssim as ssim_map

    smaller = min(reference.shape[1:])
    window = min(WINDOW, smaller - 1 + smaller % 2)
    values = ssim_map(reference[None], candidate[None], window, max_val=1.0, eps=0.0, padding="valid")
    return values.mean(dtype=torch.float64).item()


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB, with 1 as the peak; infinite for a squared error of 0."""
    return -10 * math.log10(squared_error) if squared_error else math.inf


def strength(squared_error: float) -> int:
    """How many times to enlarge a difference so that it can be seen: 1 to 256.

    It is the largest power of two at which four times the root mean square is at most 1.
    """
    if squared_error == 0:
        return 1
    return min(STRONGEST, 2 ** max(0, math.floor(-math.log2(4 * math.sqrt(squared_error)))))


def difference(reference: torch.Tensor, candidate: torch.Tensor, times: int) -> torch.Tensor:
    """Absolute difference of two frames of (3, height, width), enlarged and clamped: (height, width, 3), 0 to 1."""
    return ((reference - candidate).abs() * times).clamp(0, 1).movedim(0, -1)
