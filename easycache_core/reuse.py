"""Predictor "reuse": the paper's rule (section 3.3), decision for decision."""

from collections.abc import Sequence

import torch

from .decision import relative_change
from .predictor import Place, Predictor, Seen
from .rate import distance, mean_abs, transformation_rate, wide
from .storage import Snapshot, keep


class Reuse(Predictor):
    """A skipped output is v_n := x_n + (v_i - x_i), the last transformation vector added to the new input.

    Holds one output a branch and the input of the last computed evaluation, all in the dtype they came in.
    """

    def __init__(self, cache_device: str, streams: Sequence[int], alone: bool):
        super().__init__(cache_device, streams, alone)
        self._error: torch.Tensor | None = None  # E; None stands for 0

    def arrive(self, sigma, device: torch.device) -> None:
        """Come to the next evaluation. The paper's rule looks at the input alone."""

    def leave(self, skipping: bool) -> None:
        """What was decided there."""
        if not skipping:
            self._error = None

    @property
    def ready(self) -> bool:
        """Whether an error can be estimated."""
        return self.rate is not None

    def error(self, input_change: torch.Tensor, place: Place | None) -> torch.Tensor:
        """E, grown by this evaluation."""
        change = relative_change(self.rate, input_change, self.output_norm)
        self._error = change if self._error is None else self._error + change
        return self._error

    def look(self, tensor: torch.Tensor) -> torch.Tensor:
        """What of a tensor goes into norms: the paper's rule takes all of it."""
        return tensor

    def store(self, branch: str, output: torch.Tensor, x: torch.Tensor, tracked: bool) -> torch.Tensor:
        """Keep a branch's output and return whether it is finite. x: its input as it was kept."""
        norm = mean_abs(output, self._streams)
        healthy = torch.isfinite(norm).all()
        if tracked:
            self._see(self._look_back(branch, output, x, norm), healthy)
            # What the network no longer computes must not be predicted from a stale output.
            self._branches.clear()
            self._tracked = branch
        self._branches[branch] = Snapshot(x, keep(output, self._cache_device))
        return healthy

    def _look_back(self, branch: str, output: torch.Tensor, x: torch.Tensor, norm: torch.Tensor) -> Seen:
        last = self._branches.get(branch)
        if branch != self._tracked or last is None or last.output.shape != output.shape:
            return Seen(norm)
        moved = distance(x.to(output.device), last.x, self._streams)
        return Seen(norm, distance(output, last.output, self._streams), moved)

    def conclude(self, seen: Seen, linked: torch.Tensor) -> None:
        """Go on from what was seen of the tracked branch."""
        known = seen.output_change is not None
        self.rate = transformation_rate(seen.output_change, seen.moved, self.rate) if known else None
        self.output_norm = seen.output_norm

    def predict(self, branch: str, x: torch.Tensor) -> torch.Tensor:
        """A new tensor of x's shape and device in the dtype of the network's output.

        Raises KeyError for a branch that was not stored at the last computed evaluation.
        """
        last = self._branches[branch]
        output, earlier_x = last.output.to(x.device), last.x.to(x.device)
        return (wide(output) - wide(earlier_x)).add_(wide(x)).to(output.dtype)
