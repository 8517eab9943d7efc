"""TeaCache (arXiv 2411.19108), from the paper's formulas.

The relative L1 change of the timestep-modulated input from one evaluation to the next, put through a polynomial of
degree 4 that was fitted to the relative L1 change of the network's output, is summed up since the blocks last ran.
Below the threshold they are left out, and their last residual (what left them minus what entered) is added instead.
The first and the last step are always computed.

The polynomial is fitted on this very model, over uncached runs of seeds that nothing is compared on, as the paper says.
A fit can dip below zero, where it means nothing; such values count as zero.
"""

import numpy as np
import torch


def relative_change(now: torch.Tensor, before: torch.Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())


def fit(input_changes: list[float], output_changes: list[float]) -> list[float]:
    """Coefficients, the highest power first."""
    return np.polyfit(input_changes, output_changes, 4).tolist()


class TeaCache:
    def __init__(self, total_steps: int, threshold: float, polynomial: list[float]):
        self._total_steps, self._threshold, self._polynomial = total_steps, threshold, polynomial
        self._modulated: dict[int, torch.Tensor] = {}
        self._residual: dict[int, torch.Tensor] = {}
        self._distance: dict[int, float] = {}

    def wants(self, step: int, branch: int, modulated: torch.Tensor) -> bool:
        before, self._modulated[branch] = self._modulated.get(branch), modulated
        if before is None or step in (0, self._total_steps - 1):
            return True
        expected = max(0.0, float(np.polyval(self._polynomial, relative_change(modulated, before))))
        self._distance[branch] += expected
        return self._distance[branch] >= self._threshold

    def follow(self, branch: int, runs: bool) -> None:
        if runs:
            self._distance[branch] = 0.0

    def store(self, step: int, branch: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        self._residual[branch] = leaving - entering

    def predict(self, step: int, branch: int, entering: torch.Tensor) -> torch.Tensor:
        return entering + self._residual[branch]
