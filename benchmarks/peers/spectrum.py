"""Spectrum (arXiv 2603.01623), from the paper's formulas.

What leaves the last block is a function of the step, fitted by Chebyshev polynomials T_0 .. T_4 on the whole run's
interval with ridge regression (lambda 0.1) over all computed steps, and forecast from that. The authors' later advice
is to mix it with the linear extrapolation through the last two computed steps: weight 1 is the paper's forecast, 0.5
their scripts' mixture.

After the warm-up (their 5 steps of 50) the blocks run at every floor(w)-th step; w starts at 2 and grows by `growth`
(the paper's alpha, their flex_window) each time they do. Nothing is calibrated. Computed in fp32, where the authors'
code rounds to bf16.
"""

import math

import torch

DEGREE = 4
RIDGE = 0.1
WINDOW = 2.0


class Spectrum:
    def __init__(self, total_steps: int, growth: float, weight: float, warmup: int):
        """weight: of the Chebyshev forecast, the rest is linear extrapolation. warmup: steps, 2 or more."""
        self._total_steps, self._growth, self._weight, self._warmup = total_steps, growth, weight, warmup
        self._window: dict[int, float] = {}
        self._left_out: dict[int, int] = {}
        self._steps: dict[int, list[int]] = {}
        self._features: dict[int, list[torch.Tensor]] = {}
        self._coefficients: dict[int, torch.Tensor] = {}

    def wants(self, step: int, branch: int, modulated: torch.Tensor) -> bool:
        if step < self._warmup or branch not in self._steps or step == self._total_steps - 1:
            return True
        window = self._window.setdefault(branch, WINDOW)
        if (self._left_out[branch] + 1) % math.floor(window) != 0:
            return False
        self._window[branch] = window + self._growth
        return True

    def follow(self, branch: int, runs: bool) -> None:
        self._left_out[branch] = 0 if runs else self._left_out[branch] + 1

    def store(self, step: int, branch: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        self._steps.setdefault(branch, []).append(step)
        self._features.setdefault(branch, []).append(leaving)
        self._coefficients.pop(branch, None)

    def predict(self, step: int, branch: int, entering: torch.Tensor) -> torch.Tensor:
        steps, features = self._steps[branch], self._features[branch]
        if branch not in self._coefficients:
            design = self._chebyshev(steps).to(entering.device)
            gram = design.T @ design + RIDGE * torch.eye(DEGREE + 1).to(design)
            values = torch.stack(features).flatten(1)
            self._coefficients[branch] = torch.linalg.solve(gram, design.T @ values)
        spectral = (self._chebyshev([step]).to(entering.device) @ self._coefficients[branch]).view_as(entering)
        ahead = (step - steps[-1]) / (steps[-1] - steps[-2])
        linear = features[-1] + ahead * (features[-1] - features[-2])
        return self._weight * spectral + (1 - self._weight) * linear

    def _chebyshev(self, steps: list[int]) -> torch.Tensor:
        """(steps, 5): T_0 .. T_4 at each step, the run's steps mapped onto -1 .. 1."""
        place = torch.tensor(steps, dtype=torch.float32) * 2 / self._total_steps - 1
        columns = [torch.ones_like(place), place]
        while len(columns) <= DEGREE:
            columns.append(2 * place * columns[-1] - columns[-2])
        return torch.stack(columns, 1)
