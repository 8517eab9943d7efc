"""FoCa (arXiv 2508.16211), from the paper's formulas: a predictor-corrector on features.

A feature F is taken for the solution of an ODE over the steps. Every N-th step is computed; in between, h steps on from
the values at k and k - 1:

    forecast    P   = 4/3 F_k - 1/3 F_(k-1) + 2/3 h F'_k                     BDF2, made explicit
    calibrated  F_c = F_k + h/2 (F'_full + (3 P - 4 F_k + F_(k-1)) / (2 h))  Heun's rule

F'_full is the derivative at the last computed step. No code of the authors could be had, and the formulas can be read
in two ways, which are both measured, and the closer one at each count of evaluations stands in the tables:

recursive   k and k - 1 are the last two steps, be they computed or forecast, and h is 1. Assumed: F'_k is
            F_k - F_(k-1), and F'_full the change between the last two computed values per step between them.
computed    k and k - 1 are the last two computed steps. With F'_k = F'_full, all this is the line through both.

The paper forecasts what each attention and each MLP adds to the tokens. Formulas that are linear in F give the same for
their sum: what all blocks together add. The first steps are computed, as in the works it builds on (here 5 of 50 or 3),
and the last one, which it does not ask for.
"""

import torch


def calibrated_forecast(newest: torch.Tensor, before: torch.Tensor, full_derivative: torch.Tensor) -> torch.Tensor:
    """F_c from F_k, F_(k-1) and F'_full, where h is 1."""
    derivative = newest - before
    forecast = 4 / 3 * newest - before / 3 + 2 / 3 * derivative
    derivative_ahead = (3 * forecast - 4 * newest + before) / 2
    return newest + (full_derivative + derivative_ahead) / 2


class FoCa:
    def __init__(self, total_steps: int, interval: int, warmup: int, recursive: bool):
        """interval: N. warmup: steps computed at the start, 2 or more. recursive: or from computed values only."""
        self._total_steps, self._interval, self._warmup, self._recursive = total_steps, interval, warmup, recursive
        self._values: dict[int, list[torch.Tensor]] = {}  # of the last two steps
        self._full: dict[int, tuple[int, torch.Tensor]] = {}  # last computed step, and its value
        self._derivative: dict[int, torch.Tensor] = {}  # F'_full

    def wants(self, step: int, branch: int, modulated: torch.Tensor) -> bool:
        since = step - (self._warmup - 1)
        return since <= 0 or since % self._interval == 0 or step == self._total_steps - 1

    def follow(self, branch: int, runs: bool) -> None:
        """When the blocks run is known beforehand."""

    def store(self, step: int, branch: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        value = leaving - entering
        if branch in self._full:
            before, full = self._full[branch]
            self._derivative[branch] = (value - full) / (step - before)
        self._full[branch] = step, value
        self._values[branch] = [*self._values.get(branch, [])[-1:], value]

    def predict(self, step: int, branch: int, entering: torch.Tensor) -> torch.Tensor:
        if not self._recursive:
            computed, full = self._full[branch]
            return entering + full + (step - computed) * self._derivative[branch]
        before, newest = self._values[branch]
        value = calibrated_forecast(newest, before, self._derivative[branch])
        self._values[branch] = [newest, value]
        return entering + value
