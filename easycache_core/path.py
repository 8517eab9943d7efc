"""Where the answers to a latent lead it.

Samplers are linear in the latent and in the answers to it, apart from noise that they add. So the latent that a sampler
asks about next can be told from another one, and from the same one rearranged: rolled, flipped, or with its rows or
frames in another order, as for pictures and videos without seams. What was answered before that is of a picture that
lies another way.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from .samples import SAMPLE_SIZE, sample_of

# The part of a latent's squares that its answers leave unexplained; of samplers that add no noise, 0.06 at most.
ASTRAY = 0.25
REARRANGED = 0.02  # less than this no rearrangement leaves that matters
# What a rearrangement does not change is left unexplained by less than this part of what new noise would leave.
UNCHANGED = 0.1
MAX_ANSWERS = 8  # of an evaluation, that are looked at
PLANES = 16  # of a latent, whose spectra are looked at


class _View(NamedTuple):
    """Samples of a latent: of its elements, of its means along each axis but that of channels, and of its spectrum over
    the last two axes, if they are those of a picture and the device can tell.

    Of these, a flip along an axis, or any order of the places there, keeps the means along it; rolling along the last
    two keeps the power of the spectrum. Where a picture's places are packed as tokens, all of these are orders of them.
    """

    elements: torch.Tensor
    means: list[torch.Tensor]
    spectrum: torch.Tensor | None

    @classmethod
    def of(cls, x: Sequence[torch.Tensor]) -> "_View":
        whole = x[0].detach().to(torch.float32)
        means = [sample_of([whole.mean(axis)]) for axis in _axes(whole.shape)]
        if whole.ndim < 4:
            return cls(sample_of(x), means, None)
        try:
            spectrum = torch.fft.rfft2(whole.flatten(0, -3)[:PLANES], norm="ortho").flatten()[:SAMPLE_SIZE]
        except RuntimeError:  # not every kind of device has it, nor always the memory
            spectrum = None
        return cls(sample_of(x), means, spectrum)


def _axes(shape: torch.Size) -> list[int]:
    """Along which the places of a latent may come in another order: rows of a batch may be frames. Where there are
    three the second one may be that of packed tokens.
    """
    places = (1,) if len(shape) == 3 else range(2, len(shape))
    return [axis for axis in (0, *places) if axis or shape[0] > 1] if len(shape) > 2 else []


class Path:
    """From the newest evaluation of a latent on. It keeps samples, and nothing of the latent's size."""

    def __init__(self):
        self._views: list[_View] = []
        self._shapes: list[torch.Size] = []

    def __bool__(self) -> bool:
        """Whether there is an evaluation."""
        return bool(self._views)

    def clear(self) -> None:
        self._views, self._shapes = [], []

    def begin(self, x: Sequence[torch.Tensor]) -> None:
        """An evaluation is about this latent, in one piece or several; the first tells whether it is rearranged."""
        self._begin(x, _View.of(x))

    def go_on(self, x: Sequence[torch.Tensor]) -> bool:
        """Begin the next evaluation, about x; whether it is rearranged, as is_rearranged has it."""
        view = _View.of(x)
        rearranged = self._may_be_rearranged(x) and self._is_rearranged(view, x[0].shape)
        self._begin(x, view)
        return rearranged

    def _begin(self, x: Sequence[torch.Tensor], view: _View) -> None:
        self._views, self._shapes = [view], [one.shape for one in x]

    def answer(self, output: Sequence[torch.Tensor]) -> None:
        """This was answered there, noise, velocity or what is denoised; without effect where there is no evaluation, or
        it is no answer to all of its latent, in pieces like its own.
        """
        if len(self._views) <= MAX_ANSWERS and self._shapes == [one.shape for one in output]:
            self._views.append(_View.of(output))

    def leads_to(self, x: Sequence[torch.Tensor]) -> bool:
        """Whether x is where a sampler that adds no noise may go from here. Waits for the device, as is_rearranged."""
        if len(self._views) < 2 or self._shapes != [one.shape for one in x]:
            return False
        left, square = _unexplained(sample_of(x), [one.elements for one in self._views])
        return left < ASTRAY * square

    def is_rearranged(self, x: Sequence[torch.Tensor]) -> bool:
        """Whether x is where a sampler may go but for the order of its elements. That noise was added to it would be
        another thing: then nothing of it is explained.
        """
        return self._may_be_rearranged(x) and self._is_rearranged(_View.of(x), x[0].shape)

    def _may_be_rearranged(self, x: Sequence[torch.Tensor]) -> bool:
        return len(self._views) > 1 and x[0].ndim > 2 and self._shapes == [one.shape for one in x]

    def _is_rearranged(self, view: _View, shape: torch.Size) -> bool:
        noise, square = _unexplained(view.elements, [one.elements for one in self._views])
        if noise < REARRANGED * square:
            return False
        for axis, means, *ours in zip(_axes(shape), view.means, *(one.means for one in self._views), strict=True):
            if _unexplained(means, ours)[0] < UNCHANGED * noise / shape[axis]:
                return True
        spectra = [one.spectrum for one in self._views]
        if any(one is None for one in (view.spectrum, *spectra)):
            return False
        pairs = [(one * other.conj()).real for n, one in enumerate(spectra) for other in spectra[n:]]
        return _unexplained(view.spectrum.abs() ** 2, pairs)[0] < UNCHANGED * noise**2


def _unexplained(sample: torch.Tensor, by: Sequence[torch.Tensor]) -> tuple[float, float]:
    """(mean square of what no linear combination of others has of a sample, that of the sample). The first is inf where
    it says nothing: there are too few elements, or they are not finite.
    """
    if any(one.shape != sample.shape or one.device != sample.device for one in by) or len(sample) < 4 * len(by):
        return math.inf, 0.0
    rows = torch.stack([*by, sample])
    # No matrix product, which may be computed with ten bits.
    products = (rows[:, None] * rows).mean(-1).cpu().double().numpy()
    if not np.isfinite(products).all():
        return math.inf, 0.0
    among, with_it, square = products[:-1, :-1], products[:-1, -1], float(products[-1, -1])
    explained = float(with_it @ np.linalg.pinv(among, rcond=1e-6, hermitian=True) @ with_it)
    return max(0.0, square - explained), square
