"""Several latents that take turns in one run, each of them asked the same: which history goes on with which.

ComfyUI's own samplers have one. Others draw two in step (an original and its edit) or look at a guide in between.
Latents are told apart by where they were last; a distance is a part of their size, and that of two noises about 1.4.
"""

import itertools
from collections.abc import Collection, Sequence

import torch

from ..easycache_core.path import Path
from ..easycache_core.response import same_level
from ..easycache_core.samples import distance, sample_of

FAR = 1.0
TRAIL = 16  # evaluations that are remembered, so nearly as many latents can be told apart
RENEWALS = 4  # of the noise, until it is known that a sampler renews it
NEARER = 0.85  # of two distances; those to renewed noises differ by less
ASTRAY = 0.2  # what a guider adds to its latent changes by less from step to step


class Trail:
    """Where the latent of one history was: samples of its last TRAIL evaluations, and their noise levels."""

    def __init__(self):
        self._sigmas: list[float] = []
        self._samples: list[torch.Tensor] = []
        self._path = Path()
        self.far = 0  # how often it was far from where it was before, at one noise level
        self.mixed = False  # whether another latent was taken for it until now
        self.rearranged = False  # whether it lies another way than at the evaluation before the last one

    def is_at(self, sigma: float) -> bool:
        return bool(self._sigmas) and same_level(sigma, self._sigmas[-1])

    def distance(self, sample: torch.Tensor) -> float:
        return distance(sample, self._samples[-1])

    def takes_turns(self, sigma: float, sample: torch.Tensor) -> bool:
        """Whether the last one was another latent: this one is far from it and back where it was before; or it comes
        from a noise level where two were seen, and from the first of them: samplers go on from where they looked last.
        Where the level rose in between, noise was added, and the latent is another one anyhow.
        """
        moved = self.distance(sample)
        if moved > FAR and any(distance(sample, there) < 0.5 * moved for there in self._samples[:-1]):
            return True
        before = list(zip(self._sigmas, self._samples, strict=True))[-2::-1]
        since = itertools.takewhile(lambda one: self.is_at(one[0]), before) if not self.is_at(sigma) else ()
        return any(distance(sample, there) < NEARER * moved for _, there in since)

    def is_rearranged(self, sigma: float, x: torch.Tensor) -> bool:
        """Whether x is where its last evaluation leads, but lies another way; rearranged twice, it may be back where it
        was. Two ways to look at it at one noise level are two latents that take turns.
        """
        two_looks = len(self._sigmas) > 1 and same_level(*self._sigmas[-2:])
        return not two_looks and not self.is_at(sigma) and self._path.is_rearranged([x])

    def add(self, sigma: float, sample: torch.Tensor, x: torch.Tensor, own_levels: bool = False) -> bool:
        """Go on with it. Whether what is known may be of another latent: at this noise level, it is far from where it
        was, or it lies another way. One that never comes back is one whose noise the sampler renews. own_levels:
        whether its rows have each their own; then they go each their own way, which no rearrangement can be told from.
        """
        stays, mixed = self.is_at(sigma), self.mixed
        far = stays and self.distance(sample) > FAR
        if own_levels:
            self._path.clear()
        elif stays:
            self._path.begin([x])
        self.rearranged = not stays and not own_levels and self._path.go_on([x])
        self.far, self.mixed = self.far + far, False
        self._sigmas, self._samples = [*self._sigmas[1 - TRAIL :], sigma], [*self._samples[1 - TRAIL :], sample]
        return mixed or self.rearranged or (far and self.far < RENEWALS)

    def answer(self, denoised: torch.Tensor) -> None:
        """What was answered at the last evaluation that was added; nothing of others counts."""
        self._path.answer([denoised])


def trail_of(trails: Sequence[Trail], sigma: float, sample: torch.Tensor, x: torch.Tensor) -> Trail | None:
    """The trail that leads to this latent x; None: none of them. trails: of what is asked the same."""
    nearest = min([one for one in trails if not one.is_at(sigma)] or trails, key=lambda one: one.distance(sample))
    if nearest.takes_turns(sigma, sample) and not nearest.is_rearranged(sigma, x):
        nearest.mixed = True
        return None
    return nearest


def level_of(timestep: torch.Tensor) -> torch.Tensor:
    """The noise level of an evaluation, a one-element tensor: of rows that have their own, the highest one.

    timestep: sigma, (batch,).
    """
    return timestep[0] if len(timestep) == 1 else timestep.max()


def place_of(x: torch.Tensor) -> torch.Tensor:
    """A sample of a latent, without its size, as latents shrink with their noise."""
    sample = sample_of([x])
    return sample / sample.abs().mean().clamp_min(1e-30)


def position_of(x: torch.Tensor, timestep: torch.Tensor) -> tuple[float, bool, torch.Tensor]:
    """(sigma, whether its rows have noise levels of their own, place) of a latent; waits for its device."""
    highest, lowest = torch.stack([level_of(timestep), timestep.min()]).tolist()
    return highest, highest != lowest, place_of(x)


class OwnLatents:
    """Whether a guider's own latents move as the sampler's latent does. A guider may turn or roll its latent from step
    to step; an answer from before then belongs to another latent.
    """

    def __init__(self):
        self._now: dict[str, tuple | None] = {}  # (place, the sampler's place), by branch; None: one latent for both
        self._computed: dict[str, tuple | None] = {}

    def went_elsewhere(self, branches: Collection[str], x: torch.Tensor, sampler_x: torch.Tensor) -> bool:
        """Whether x moved much further than sampler_x did since one of these was computed. Waits for the device if the
        guider had a latent of its own then, or has now.
        """
        known = [self._computed[one] for one in branches if one in self._computed]
        own = x is not sampler_x or any(known)
        now = (place_of(x), place_of(sampler_x)) if own else None
        self._now |= dict.fromkeys(branches, now)
        return own and any(before is None or _strays(now, before) for before in known)

    def on_computed(self, branch: str) -> None:
        self._computed[branch] = self._now.get(branch)


def _strays(now: tuple, before: tuple) -> bool:
    own, samplers = map(distance, now, before)
    return own > ASTRAY + 2 * samplers
