"""What the two predictors have in common."""

from collections.abc import Sequence

import torch


class Predictor:
    """Stands in for the network: knows the branches of the last computed evaluation, and how far to trust itself.

    rate, output_norm: k and ||v_i|| of the tracked branch, an entry a stream; None until known.
    """

    def __init__(self, cache_device: str, streams: Sequence[int]):
        self._cache_device, self._streams = cache_device, streams
        self.rate: torch.Tensor | None = None
        self.output_norm: torch.Tensor | None = None
        self._branches: dict = {}
        self._tracked: str | None = None

    def knows(self, branch: str) -> bool:
        """Whether the branch was stored at the last computed evaluation."""
        return branch in self._branches

    @property
    def empty(self) -> bool:
        """Whether it knows no branch at all."""
        return not self._branches
