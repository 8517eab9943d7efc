"""Predictor "reuse": the paper's rule (section 3.3), decision for decision.

    k     = ||v_i - v_j|| / ||x_i - x_j||       transformation rate between the last computed evaluations j < i
    eps_n = k ||x_n - x_(n-1)|| / ||v_i||       estimated relative change of the output
    E     = sum of eps since evaluation i
    v_n   = x_n + (v_i - x_i)                   while E < threshold; else v_n is computed, and E is 0 again

The first warmup_steps steps and the last one are computed whatever E is, and E stays 0 meanwhile (controller.py).
"""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .norms import Norms, upcast
from .predictor import Predictor
from .reading import Measurements
from .response import Response
from .storage import copy_for_cache


def transformation_rate(measured: Measurements, before: Sequence[float] | None) -> list[float]:
    """k per part of the latent.

    Where the input did not move at all (a repeated noise level) the rate shows nothing new: the one before stays, NaN
    if there was none. A stream that stands still while another moves (a soundtrack that is given) has rate 0: it must
    not keep the others from being reused.
    """
    output_change, input_change = measured.output_change, measured.input_change
    before = before or [0.0 if any(moved > 0 for moved in input_change) else math.nan] * len(input_change)
    changes = zip(output_change, input_change, before, strict=True)
    return [change / moved if moved > 0 else rate for change, moved, rate in changes]


def reuse(x: torch.Tensor, x_i: torch.Tensor, output_i: torch.Tensor) -> torch.Tensor:
    """v_n: the last transformation vector v_i - x_i, added to the new input. A new tensor of output_i's dtype."""
    return (upcast(output_i) - upcast(x_i)).add_(upcast(x)).to(output_i.dtype)


class Snapshot(NamedTuple):
    """Input and output of one branch at its last computed evaluation."""

    x: torch.Tensor
    output: torch.Tensor


class Reuse(Predictor):
    """Holds one output per branch and the input of the last computed evaluation, all in the dtype they came in."""

    follows_denoised = False

    def __init__(self, cache_device: str, norms: Norms, response: Response | None = None):
        super().__init__(cache_device, norms, response)
        self._before: dict[str, Snapshot] = {}  # the branches at the computed evaluation before

    def subsample(self, tensor: torch.Tensor) -> torch.Tensor:
        """The paper's rule takes all of it."""
        return tensor

    def update(self, measured: Measurements, comparable: bool) -> None:
        self.output_norm = list(measured.output_norm)
        self.rate = transformation_rate(measured, self.rate) if measured.output_change else None

    def advance(
        self, sigma: float | None, comparable: bool, input_change: Sequence[float] | None, windows_moved: bool = False
    ) -> None:
        """The paper's rule looks at the input alone."""

    @property
    def ready(self) -> bool:
        return self.rate is not None

    def expected_errors(self, input_change: Sequence[float]) -> list[float]:
        terms = zip(self.rate, input_change, self.output_norm, strict=True)
        return [k * change / max(norm, sys.float_info.min) for k, change, norm in terms]

    def commit(self, skipping: bool) -> None:
        super().commit(skipping)
        if skipping:
            self._before = {}  # what the network no longer computes must not be predicted from a stale output
        else:
            self._before, self._branches = self._branches, {}

    def store(self, branch: str, output: torch.Tensor, x: torch.Tensor, tracked: bool) -> torch.Tensor:
        norm, last = self._norms.of(output), self._before.pop(branch, None)
        if tracked:
            self.measured = self._measure(last if branch == self._tracked else None, output, x, norm)
            self._tracked = branch
        self._branches[branch] = Snapshot(x, copy_for_cache(output, self._cache_device))
        return sum(norm[1:], norm[0])

    def _measure(
        self, last: Snapshot | None, output: torch.Tensor, x: torch.Tensor, norm: list[torch.Tensor]
    ) -> Measurements:
        if last is None or last.output.shape != output.shape:
            return Measurements(norm)
        output_change = self._norms.of_difference(output, last.output)
        return Measurements(norm, output_change, self._norms.of_difference(x.to(output.device), last.x))

    def predict(self, branch: str, x: torch.Tensor) -> torch.Tensor:
        last = self._branches[branch]
        return reuse(x, last.x.to(x.device), last.output.to(x.device))
