"""The noise levels of a run as far as forecasts need them; all device scalars, nothing waits.

Where y = x / sigma and u = 1 / sigma, a sampler moves y by D du: the denoised latent D times the change of u. So what a
forecast of D is off by counts as much as u changes.
"""

from typing import NamedTuple

import torch

# How far a movement is carried on at most, in times the stretch in which it was seen. Where steps grow (the beta
# scheduler), forecasts would otherwise lean on a short stretch for a long one.
FURTHEST = 0.75


class View(NamedTuple):
    """A noise level as seen from the last computed evaluation i and the one before it, j.

    stride: (a_n - a_i) / (a_i - a_j), how many times the last stretch, but FURTHEST at most; 0 without one.
    onward: sigma / sigma_i.
    """

    stride: torch.Tensor
    onward: torch.Tensor


class Debts(NamedTuple):
    """Parts of (D_b - D_i), of (D_i - D_j) and of what was owed before that add up to what is owed at b."""

    off: torch.Tensor
    leant: torch.Tensor
    still_owed: torch.Tensor


class Course:
    """Call `at` at each evaluation, then `computed` if the network is to run and `skipped` if not."""

    def __init__(self):
        self.sigma: torch.Tensor | None = None  # of this evaluation
        self._place: torch.Tensor | None = None  # a of this evaluation
        self._sigma_last: torch.Tensor | None = None  # sigma_i
        self._last: torch.Tensor | None = None  # a_i
        self._earlier: torch.Tensor | None = None  # a_j
        self._arrival: torch.Tensor | None = None  # the change of u up to this evaluation
        self._stretch: torch.Tensor | None = None  # the last change of sigma in the run's direction
        self._astray: torch.Tensor | None = None  # a_k - a_i where evaluation k is skipped
        self._gap: torch.Tensor | None = None  # sum of (a_k - a_i) (u_(k+1) - u_k) since the network ran
        self._carried: torch.Tensor | None = None  # sum of stride_k (u_(k+1) - u_k), likewise
        self._widest: torch.Tensor | None = None  # the largest |u_(k+1) - u_k| in it
        self._pace: torch.Tensor | None = None  # that of the gap before
        self._due: torch.Tensor | None = None  # part of what is owed that is not repaid yet
        self._view: View | None = None  # once asked for at this evaluation
        self._repaying: torch.Tensor | None = None  # the change of u within which this evaluation would repay all
        # At the evaluation where the network ran last:
        self.passed: torch.Tensor | None = None  # how far it was from the one before
        self.view_there: View | None = None  # `view`, by which it would have been forecast
        self.debts: Debts | None = None

    def at(self, sigma: torch.Tensor) -> None:
        """Come to the next evaluation."""
        if self.sigma is not None:
            departure, change = _difference(sigma, self.sigma), sigma - self.sigma
            if self._astray is not None:
                weight = self._weight(departure)
                self._gap = self._gap + weight * self._astray
                self._carried = self._carried + weight * self.view.stride  # still of the evaluation before
                self._widest = torch.maximum(self._widest, weight.abs())
                self._due = (self._due * (1 - ratio(weight, self._repaying))).clamp(0, 1)
            self._arrival = departure
            # Samplers that inject noise go up again between steps; those that look twice do not go on.
            before = change if self._stretch is None else self._stretch
            self._stretch = torch.where((change * before > 0) | (before == 0), change, before)
        self.sigma, self._place, self._astray, self._view = sigma, torch.log1p(sigma), None, None

    def _weight(self, departure: torch.Tensor) -> torch.Tensor:
        """The change of u that an evaluation stands for: up to the next one, and half of it where two share a step."""
        if self._arrival is None:
            return departure
        second = torch.where(departure == 0, self._arrival / 2, departure)
        return torch.where(self._arrival == 0, departure / 2, second)

    def computed(self, lean: torch.Tensor | float) -> None:
        """The network runs at this evaluation. lean: part of the stride that forecasts since the last one took."""
        nothing = torch.zeros_like(self.sigma)
        if self._last is not None:
            self.passed, self.view_there = self.distance, self.view
            self.debts = Debts(ratio(self._gap, self._ahead), -lean * self._carried, self._due)
        self._earlier, self._last, self._sigma_last = self._last, self._place, self.sigma
        self._pace = self._widest
        self._gap, self._carried, self._widest, self._due = nothing, nothing, nothing, nothing + 1

    def skipped(self) -> None:
        """The evaluation is forecast."""
        self._astray = self._ahead
        # The next level is not known; the same change again is a guess, and rather too long a one.
        ahead = torch.zeros_like(self.sigma) if self._stretch is None else self._stretch
        change = _difference(torch.maximum(self.sigma + ahead, self.sigma / 4), self.sigma)
        # No faster than the debt was made.
        self._repaying = change if self._pace is None else change.sign() * torch.maximum(change.abs(), self._pace)

    @property
    def view(self) -> View:
        """This noise level, until the network runs at it."""
        if self._view is None:
            stride = ratio(self._ahead, self._run).clamp(-FURTHEST, FURTHEST)
            self._view = View(stride, ratio(self.sigma, self._sigma_last))
        return self._view

    @property
    def _ahead(self) -> torch.Tensor:
        """a_n - a_i"""
        return self._place - self._last

    @property
    def _run(self) -> torch.Tensor:
        """a_i - a_j, 0 without j"""
        return self._last - (self._last if self._earlier is None else self._earlier)

    @property
    def repaid(self) -> torch.Tensor:
        """How much of what is owed is added to D where it is forecast."""
        return ratio(self._due, self._repaying)

    @property
    def distance(self) -> torch.Tensor:
        """How far this level is from the last computed evaluation's."""
        return self._ahead.abs()


def slope(miss: torch.Tensor, passed: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """How fast forecasts go wrong: miss is by how much one was off over the distance `passed`."""
    unknown = torch.full_like(miss, torch.nan) if before is None else before
    return torch.where(passed > 0, miss / passed, unknown)


def ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """part / whole, 0 where whole is 0: a noise level that repeats tells nothing new."""
    return (part / whole).nan_to_num_(0.0, 0.0, 0.0)


def _difference(sigma: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The change of u = 1 / sigma."""
    return (before - sigma) / (sigma * before)
