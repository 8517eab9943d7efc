"""Several latents that take turns in one run, each of them asked the same: which history goes on with which.

ComfyUI's own samplers have one. Others draw two in step (an original and its edit) or look at a guide in between.
Latents are told apart by where they were last; a distance is a part of their size, and that of two noises about 1.4.
"""

from collections.abc import Sequence

import torch

from ..easycache_core.response import SAME_LEVEL
from ..easycache_core.turns import TRAIL, distance, sample_of

FAR = 1.0


class Trail:
    """Where the latent of one history was: samples of its last TRAIL evaluations, and the noise level of the last."""

    def __init__(self):
        self.sigma: float | None = None
        self._samples: list[torch.Tensor] = []
        self._far = 0  # how often in a row it was far from where it was before, at one noise level

    def is_at(self, sigma: float) -> bool:
        return self.sigma is not None and abs(sigma - self.sigma) <= SAME_LEVEL * max(sigma, self.sigma)

    def distance(self, sample: torch.Tensor) -> float:
        return distance(sample, self._samples[-1])

    def takes_turns(self, sample: torch.Tensor) -> bool:
        """Whether the latent is far from where it was last, and back where it was before: that was another one."""
        moved = self.distance(sample)
        return moved > FAR and any(distance(sample, there) < 0.5 * moved for there in self._samples[:-1])

    def add(self, sigma: float, sample: torch.Tensor) -> bool:
        """Go on with it. Whether it may be another latent: at this noise level, it is far from where it was. One that
        never comes back is one whose noise the sampler renews.
        """
        far = self.is_at(sigma) and self.distance(sample) > FAR
        self._far = self._far + 1 if far else 0 if self.is_at(sigma) else self._far
        self.sigma, self._samples = sigma, [*self._samples[1 - TRAIL :], sample]
        return far and self._far < TRAIL


def trail_of(trails: Sequence[Trail], sigma: float, sample: torch.Tensor) -> Trail | None:
    """The trail that leads to this latent; None: none of them. trails: of what is asked the same."""
    nearest = min([one for one in trails if not one.is_at(sigma)] or trails, key=lambda one: one.distance(sample))
    return None if nearest.takes_turns(sample) else nearest


def level_of(timestep: torch.Tensor) -> torch.Tensor:
    """The noise level of an evaluation, a one-element tensor: of rows that have their own, the highest one.

    timestep: sigma, (batch,).
    """
    return timestep[0] if len(timestep) == 1 else timestep.max()


def position_of(x: torch.Tensor, timestep: torch.Tensor) -> tuple[float, torch.Tensor]:
    """(sigma, sample) of a latent; waits for its device."""
    return float(level_of(timestep)), sample_of([x])
