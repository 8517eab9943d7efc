"""Callbacks of other packs that write to the sampler's latent: they roll or flip it, or add something to it."""

import contextlib
from collections.abc import Callable

import torch

from ..easycache_core.samples import distance, sample_of
from .latents import ASTRAY
from .origins import is_code_of

PREVIEWS = ("latent_preview",)  # ComfyUI's own callback
SAME_SIZE = 0.01  # by which the squares of a latent may differ that is only rearranged


class CallbackWrites:
    """Whether they make another latent of it, of which nothing is known: one that is rearranged, or was moved far once.
    What is added again is as noise is that a sampler adds.
    """

    def __init__(self):
        self._moved = False  # whether it was, far, but not rearranged

    @contextlib.contextmanager
    def watch(self, callback: Callable, x, on_moved: Callable[[], None]):
        """While the callback is called. x: the sampler's latent. on_moved: is called if it is another one afterwards.
        Waits for the device, but for ComfyUI's own callback.
        """
        if is_code_of(callback, PREVIEWS) or not isinstance(x, torch.Tensor):
            yield
            return
        before, size = sample_of([x]), _square(x)
        yield
        if distance(sample_of([x]), before) < ASTRAY:
            return
        rearranged = bool((_square(x) - size).abs() < SAME_SIZE * size)
        if rearranged or not self._moved:
            on_moved()
        self._moved = self._moved or not rearranged


def _square(x: torch.Tensor) -> torch.Tensor:
    return x.detach().square().mean(dtype=torch.float32)
