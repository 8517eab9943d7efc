"""What stands in for the network's output under predictor "forecast": a forecast and the repayment of its errors.

The denoised latent D = x - sigma v of each branch moves smoothly along the noise levels. With the place of a level
a = log(1 + sigma), linear where flow models live and logarithmic at the high levels of others, a skipped evaluation
gets

    D_n = D_i + LEAN (a_n - a_i) / (a_i - a_j) (D_i - D_j)

from the last two computed evaluations j < i. The next computed evaluation b shows where D really went:

    D'_k = D_i + (a_k - a_i) / (a_b - a_i) (D_b - D_i)

would have been right for the evaluations k of the gap. A sampler moves y = x / sigma by D du with u = 1 / sigma, so by
then y lacks what is owed = sum of (D'_k - D_k) (u_(k+1) - u_k). The first forecasts after b have that added, as with
the corrector of a multistep solver; no evaluation is spent on it, and what the network answers is never touched. This
is what counts most: errors of forecasts otherwise add up along the run.

Working on D rather than on v keeps noise that a sampler injects out of the forecast.
"""

import torch

from .rate import wide
from .storage import keep

# Part of the linear step that is taken. 1 overshoots over long gaps, 0 repays more than it has to.
LEAN = 0.25


class Course:
    """The noise levels of a run as far as forecasts need them; all device scalars, nothing waits.

    Call `at` at each evaluation, then `computed` if the network is to run and `skipped` if not.
    """

    def __init__(self):
        self.sigma: torch.Tensor | None = None  # of this evaluation
        self._place: torch.Tensor | None = None  # a of this evaluation
        self._last: torch.Tensor | None = None  # a_i
        self._earlier: torch.Tensor | None = None  # a_j
        self._arrival: torch.Tensor | None = None  # the change of u up to this evaluation
        self._stretch: torch.Tensor | None = None  # the last change of sigma that was none of 0
        self._astray: torch.Tensor | None = None  # a_k - a_i where evaluation k is skipped
        self._gap: torch.Tensor | None = None  # sum of (a_k - a_i) (u_(k+1) - u_k) since the network ran
        self._due: torch.Tensor | None = None  # part of what is owed that is not repaid yet
        self._repaying: torch.Tensor | None = None  # the change of u within which this evaluation would repay all
        # At the evaluation where the network ran last:
        self._passed: torch.Tensor | None = None  # how far it was from the one before
        self.lean_there: torch.Tensor | float = 0.0  # `lean`, by which it would have been forecast
        self.debts: tuple = (0.0, 0.0, 0.0)  # see `Forecast.successor`

    def at(self, sigma: torch.Tensor) -> None:
        """Come to the next evaluation."""
        if self.sigma is not None:
            departure, change = _difference(sigma, self.sigma), sigma - self.sigma
            if self._astray is not None:
                weight = self._weight(departure)
                self._gap = self._gap + weight * self._astray
                self._due = (self._due * (1 - _ratio(weight, self._repaying))).clamp(0, 1)
            self._arrival = departure
            self._stretch = change if self._stretch is None else torch.where(change != 0, change, self._stretch)
        self.sigma, self._place, self._astray = sigma, torch.log1p(sigma), None

    def _weight(self, departure: torch.Tensor) -> torch.Tensor:
        """The change of u that an evaluation stands for: up to the next one, and half of it where two share a step."""
        if self._arrival is None:
            return departure
        second = torch.where(departure == 0, self._arrival / 2, departure)
        return torch.where(self._arrival == 0, departure / 2, second)

    def computed(self) -> None:
        """The network runs at this evaluation."""
        nothing = torch.zeros_like(self.sigma)
        if self._last is not None:
            self._passed = (self._place - self._last).abs()
            self.lean_there = self.lean
            leant = 0.0 if self._earlier is None else -LEAN * _ratio(self._gap, self._last - self._earlier)
            self.debts = (_ratio(self._gap, self._place - self._last), leant, self._due)
        self._earlier, self._last = self._last, self._place
        self._gap, self._due = nothing, nothing + 1

    def skipped(self) -> None:
        """The evaluation is forecast."""
        self._astray = self._place - self._last
        # The next level is not known; the same change again is a guess, and rather too long a one.
        ahead = torch.zeros_like(self.sigma) if self._stretch is None else self._stretch
        self._repaying = _difference(torch.maximum(self.sigma + ahead, self.sigma / 4), self.sigma)

    @property
    def lean(self) -> torch.Tensor | float:
        """How much of (D_i - D_j) is added to D_i at this noise level."""
        return 0.0 if self._earlier is None else LEAN * _ratio(self._place - self._last, self._last - self._earlier)

    @property
    def repaid(self) -> torch.Tensor:
        """How much of what is owed is added to D where it is forecast."""
        return _ratio(self._due, self._repaying)

    def slope(self, miss: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """How fast forecasts go wrong: miss is by how much one was off where the network ran last."""
        unknown = torch.full_like(miss, torch.nan) if before is None else before
        return torch.where(self._passed > 0, miss / self._passed, unknown)

    def relative_error(self, slope: torch.Tensor, output_norm: torch.Tensor) -> torch.Tensor:
        """E: the expected miss of a forecast of v at this noise level relative to ||v_i||."""
        miss = slope * (self._place - self._last).abs() / self.sigma
        return miss / output_norm.clamp_min(torch.finfo(output_norm.dtype).tiny)


class Forecast:
    """One branch: three tensors of a latent's size.

    last: D_i. change: D_i - D_j, 0 where there is none to go on. owed: what x / sigma lacks, 0 likewise.
    """

    def __init__(self, denoised: torch.Tensor, cache_device: str):
        self.last = keep(denoised, cache_device)
        self.change: torch.Tensor | None = None
        self.owed: torch.Tensor | None = None

    def predict(self, lean: torch.Tensor | float, device: torch.device) -> torch.Tensor:
        """D_n, a new tensor on that device."""
        denoised = wide(self.last).to(device, copy=True)
        return denoised if self.change is None else denoised.add_(wide(self.change.to(device)) * lean)

    def repay(self, denoised: torch.Tensor, part: torch.Tensor | float) -> torch.Tensor:
        """D, in place, with a part of what is owed."""
        return denoised if self.owed is None else denoised.add_(wide(self.owed.to(denoised.device)) * part)

    def successor(self, denoised: torch.Tensor, debts: tuple, linked: torch.Tensor, cache_device: str) -> "Forecast":
        """The branch after a computed evaluation.

        debts: parts of (D_b - D_i), of (D_i - D_j) and of what was owed before that add up to what is owed now.
        linked: whether it may be compared with the one before (both are finite, and of the same prompt).
        """
        branch = Forecast(denoised, cache_device)
        change = wide(denoised) - wide(self.last.to(denoised.device))
        off, leant, still_owed = debts
        owed = change * off
        if self.change is not None:
            owed.add_(wide(self.change.to(denoised.device)) * leant)
        if self.owed is not None:
            owed.add_(wide(self.owed.to(denoised.device)) * still_owed)
        nothing = torch.zeros((), device=denoised.device, dtype=owed.dtype)
        branch.change = keep(torch.where(linked, change, nothing).to(denoised.dtype), cache_device)
        branch.owed = keep(torch.where(linked, owed, nothing).to(denoised.dtype), cache_device)
        return branch


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """part / whole, 0 where whole is 0: a noise level that repeats tells nothing new."""
    return torch.where(whole != 0, part / whole, torch.zeros_like(whole))


def _difference(sigma: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The change of u = 1 / sigma."""
    return (before - sigma) / (sigma * before)
