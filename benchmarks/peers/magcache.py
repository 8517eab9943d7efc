"""MagCache (arXiv 2506.09045), from the paper's formulas.

The blocks' residual shrinks from step to step by a ratio that hardly depends on prompt or seed: the mean over tokens of
|r_n| / |r_(n-1)|. While steps are left out, the product of their ratios says how far the last residual is off, and
|1 - product| is summed up. The blocks are left out while that error stays below the threshold, at most K times in a
row, and not in the first part of the steps (retention ratio). The authors' code allows retention ratios down to 0.1; a
lower one is tried as well, since at tight budgets nothing else comes down to 11 evaluations.

The curve of ratios is measured on this very model, each branch's own, as the mean over uncached runs of seeds that
nothing is compared on. With another number of steps the nearest entry of the curve is taken, as in the authors' code.
"""

import torch


def magnitude_ratio(residual: torch.Tensor, before: torch.Tensor) -> float:
    return float((residual.norm(dim=-1) / before.norm(dim=-1)).mean())


class MagCache:
    def __init__(
        self, total_steps: int, threshold: float, longest: int, retention: float, ratios: dict[int, list[float]]
    ):
        """longest: K. ratios: of each branch, one entry per step."""
        self._total_steps, self._threshold, self._longest = total_steps, threshold, longest
        self._first = int(total_steps * retention)
        self._ratios = ratios
        self._residual: dict[int, torch.Tensor] = {}
        self._state: dict[int, tuple[float, float, int]] = {}  # product of ratios, summed error, steps left out

    def wants(self, step: int, branch: int, modulated: torch.Tensor) -> bool:
        if step < self._first or branch not in self._residual:
            return True
        product, error, left_out = self._state[branch]
        product *= self._ratio(branch, step)
        error, left_out = error + abs(1 - product), left_out + 1
        self._state[branch] = product, error, left_out
        return error >= self._threshold or left_out > self._longest

    def _ratio(self, branch: int, step: int) -> float:
        curve = self._ratios[branch]
        return curve[round(step * (len(curve) - 1) / max(1, self._total_steps - 1))]

    def follow(self, branch: int, runs: bool) -> None:
        if runs:
            self._state[branch] = 1.0, 0.0, 0

    def store(self, step: int, branch: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        self._residual[branch] = leaving - entering

    def predict(self, step: int, branch: int, entering: torch.Tensor) -> torch.Tensor:
        return entering + self._residual[branch]
