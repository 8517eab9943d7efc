"""What every predictor offers: it answers for the network and estimates how wrong the answer is."""

import abc
from collections.abc import Sequence
from typing import ClassVar

import torch

from .norms import Norms
from .reading import Measurements
from .response import Response


class Predictor(abc.ABC):
    """Holds the branches of the last computed evaluation i. At each evaluation n the controller calls `update`, if the
    evaluation before measured something; `advance`; `errors`, if the threshold decides; `commit`; then, per branch,
    `store` where the network runs, and then `answered`, else `predict`.

    follows_denoised: whether branches are denoised latents D, so that noise levels are needed; else they are what the
    network answers.
    rate, output_norm: k and ||v_i|| of the tracked branch, one number per part of the latent; None until known.
    measured: of the evaluation before, not read yet. miss: how far off a forecast of v_i would have been, as a part of
    it, per evaluation since the computed one before; None if unknown. jumped: whether noise was added before n, so that
    it had better be computed. noise_added: whether x was seen to move as with noise at most steps. final_error: of the
    final latent, at the end (closeness.py); None if unknown.
    """

    follows_denoised: ClassVar[bool]

    miss: float | None = None
    jumped = False
    noise_added = False
    final_error: float | None = None

    def __init__(self, cache_device: str, norms: Norms, response: Response | None = None):
        """response: the sampler's, if it is known."""
        self._cache_device, self._norms = cache_device, norms
        self.rate: list[float] | None = None
        self.output_norm: list[float] | None = None
        self.measured: Measurements | None = None
        self._branches: dict = {}
        self._tracked: str | None = None
        self._errors: list[float] | None = None  # E; None stands for 0

    def has(self, branch: str) -> bool:
        """Whether the branch was stored at the last computed evaluation."""
        return branch in self._branches

    @property
    def empty(self) -> bool:
        """Whether no branch is stored."""
        return not self._branches

    @abc.abstractmethod
    def subsample(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of a latent that norms are taken of."""

    @abc.abstractmethod
    def update(self, measured: Measurements, comparable: bool) -> None:
        """Learn from the numbers of the last computed evaluation. comparable: as in `advance` there, and all finite."""

    @abc.abstractmethod
    def advance(
        self, sigma: float | None, comparable: bool, input_change: Sequence[float] | None, windows_moved: bool = False
    ) -> None:
        """Go on to evaluation n at this noise level. comparable: the network is asked the same as at i, and x and the
        outputs there are finite. input_change: ||x_n - x_(n-1)||, None where there was no evaluation before.
        windows_moved: it is asked in other windows than at i.
        """

    def forget_response(self) -> None:
        """The sampler does not do what its response says."""
        return

    def follow(self, response: Response) -> None:
        """As of CacheController, where the response was known."""
        return

    def stop_corrections(self) -> None:
        """Answers make up for nothing from here on."""
        return

    @property
    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether `errors` can say anything at n."""

    def errors(self, input_change: Sequence[float]) -> list[float]:
        """E at n if it is skipped, one number per part; NaN if unknown. It grows by what the answer at n is expected to
        be off by: all of a gap's answers move the latent. input_change: as in `advance`.
        """
        before = self._errors or [0.0] * len(input_change)
        self._errors = [sum(pair) for pair in zip(before, self.expected_errors(input_change), strict=True)]
        return self._errors

    @abc.abstractmethod
    def expected_errors(self, input_change: Sequence[float]) -> list[float]:
        """What `errors` grows by: eps_n, the relative error that is expected of the answer at n, per part."""

    @abc.abstractmethod
    def commit(self, skipping: bool) -> None:
        """The decision at n. To be called by what overrides it and estimates an error."""
        if not skipping:
            self._errors = None

    @abc.abstractmethod
    def store(self, branch: str, output: torch.Tensor, x: torch.Tensor, tracked: bool) -> torch.Tensor:
        """Keep a copy of a branch's output at n, and x, its input, which is a copy already.

        Returns a scalar tensor that is finite if all of the output is.
        """

    def answered(self, answer: torch.Tensor, x: torch.Tensor) -> None:
        """What a guider made of the branches at n, corrections included, once all of them are stored. x: as of them."""
        return

    def correction(self, branch: str) -> torch.Tensor | None:
        """What is to be added to the branch, as it was stored at n, for the sampler; None if nothing is."""
        return None

    @abc.abstractmethod
    def predict(self, branch: str, x: torch.Tensor) -> torch.Tensor:
        """The branch at n: a new tensor like x, in the dtype that was stored. Raises KeyError if it is not stored."""
