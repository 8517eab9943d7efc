"""What the two predictors have in common."""

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Place(NamedTuple):
    """A noise level: how far it is from the last computed evaluation's, and sigma."""

    distance: torch.Tensor
    sigma: torch.Tensor


class Movements(NamedTuple):
    """What forecasts learn trust from: sums over the tracked branch's elements (Trust), one number each."""

    followed: torch.Tensor
    left: torch.Tensor
    leant: torch.Tensor
    carried_on: torch.Tensor
    carried: torch.Tensor


class Seen(NamedTuple):
    """What the tracked branch told where the network ran; norms have an entry a stream.

    output_norm: ||v_i||. The rest is None without a computed evaluation j before it. output_change, moved:
    ||v_i - v_j||, ||x_i - x_j||. Of forecasts alone: miss, by how much one would have been off; passed, how far the
    evaluations lie apart; movements.
    """

    output_norm: torch.Tensor
    output_change: torch.Tensor | None = None
    moved: torch.Tensor | None = None
    miss: torch.Tensor | None = None
    passed: torch.Tensor | None = None
    movements: Movements | None = None


class Predictor(abc.ABC):
    """Stands in for the network: knows the branches of the last computed evaluation, and how far to trust itself.

    rate, output_norm: k and ||v_i|| of the tracked branch, an entry a stream; None until known.
    seen: what nothing was concluded from yet, as other ranks have to be heard first; never where it is alone.
    """

    place: Place | None = None

    def __init__(self, cache_device: str, streams: Sequence[int], alone: bool):
        self._cache_device, self._streams, self._alone = cache_device, streams, alone
        self.rate: torch.Tensor | None = None
        self.output_norm: torch.Tensor | None = None
        self.seen: Seen | None = None
        self._branches: dict = {}
        self._tracked: str | None = None
        self._linked: torch.Tensor | bool = True

    def link(self, linked: torch.Tensor | bool) -> None:
        """linked: whether this evaluation's outputs go on from the last ones: the network is asked the same as before,
        and answered with numbers.
        """
        self._linked = linked

    def _see(self, seen: Seen, healthy: torch.Tensor) -> None:
        if self._alone:
            self.conclude(seen, self._linked & healthy)
        else:
            self.seen = seen

    def settle(self, seen: Seen | None, healthy: bool) -> None:
        """Conclude from what all ranks have `seen`; healthy: whether all of it was finite."""
        if seen is not None:
            self.conclude(seen, torch.tensor(self._linked and healthy))
        self.seen = None

    @abc.abstractmethod
    def conclude(self, seen: Seen, linked: torch.Tensor) -> None:
        """Go on from what was seen of the tracked branch. linked: as in `link`, and what was seen is finite."""

    def knows(self, branch: str) -> bool:
        """Whether the branch was stored at the last computed evaluation."""
        return branch in self._branches

    @property
    def empty(self) -> bool:
        """Whether it knows no branch at all."""
        return not self._branches
