"""Predictor "forecast": follow the denoised latent, and repay what forecasts got wrong.

The denoised latent D = x - sigma v of each branch moves smoothly along the noise levels. With the place of a level
a = log(1 + sigma), linear where flow models live and logarithmic at the high levels of others, a skipped evaluation
gets

    D_n = D_i + lambda s_n (D_i - D_j) + theta (x_n - line_n),    s_n = min((a_n - a_i) / (a_i - a_j), FURTHEST)

from the last two computed evaluations j < i.

lambda in [-LEAN, LEAN] is how much of the movement before the last one was seen to go on in the last. Where D swings to
and fro (strong guidance with a sparse budget, injected noise) it is negative: to go on regardless costs 8 dB and more
there, and never to go on costs 1 to 3 dB where D moves smoothly. Over longer stretches than those in which a movement
was seen (the beta scheduler's) it misleads: without FURTHEST it costs 1 dB there.

line_n = D_i + sigma_n / sigma_i (x_i - D_i) is where x would be had it kept to v_i, and theta in [0, 1] is how much D
has been seen to follow when x left that line. A trained network sees through the noise that a sampler injects (theta of
0.01 to 0.05) and gives way to guidance and to earlier forecasts (0.1 to 0.5); where a network does not look at its
input at all, theta is 1 and forecasts go on with v instead of D.

The next computed evaluation b shows where D really went:

    D'_k = D_i + (a_k - a_i) / (a_b - a_i) (D_b - D_i)

would have been right for the evaluations k of the gap. By then y = x / sigma lacks what is owed = the sum of
(D'_k - D_k) (u_(k+1) - u_k), u = 1 / sigma. The first forecasts after b have that added, as with the corrector of a
multistep solver; no evaluation is spent on it, and what the network answers is never touched. This is what counts most:
errors of forecasts otherwise add up along the run. What theta adds is left out of the books: it follows from where x
is, and not from a guess of where D goes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .course import Course, Debts, View, ratio, slope
from .predictor import Movements, Place, Predictor, Seen
from .rate import distance, mean_abs, thin, transformation_rate, wide
from .storage import keep

# The most of a movement that is carried on, or taken back. 1 overshoots over long gaps.
LEAN = 0.3
# Movements of x off its line below this part (squared) of what else changed D say nothing on theta.
NOTICEABLE = 1e-3
# What remains of what was seen of theta before, at each computed evaluation.
MEMORY = 0.5


class Forecast(Predictor):
    """Outputs are the sampler's derivative v: the velocity of flow models, the noise of eps models. Or D itself.

    Holds three tensors a branch and the input of the last computed evaluation. Norms look at a part of large latents.
    """

    def __init__(self, cache_device: str, streams: Sequence[int], alone: bool, denoised: bool):
        """denoised: whether outputs are D."""
        super().__init__(cache_device, streams, alone)
        self._outputs_are_denoised = denoised
        self._course = Course()
        self._trust = Trust()
        self._slope: torch.Tensor | None = None  # how fast forecasts of D go wrong, in each stream
        self._earlier: dict[str, Branch] = {}  # those of the last computed evaluation, during the next
        self._dtype = torch.float32
        self._weights: Weights | None = None  # at this evaluation, once one was forecast
        self._skipped, self._longest = 0, 1  # evaluations of this gap, and how many they may become

    def arrive(self, sigma, device: torch.device) -> None:
        """Come to the next evaluation.

        Raises ValueError without a sigma.
        """
        if sigma is None:
            raise ValueError('sigma must be given: predictor "forecast" follows the noise level')
        level = torch.as_tensor(sigma, dtype=torch.float32).flatten()[0]
        self._course.at(level.to(device, non_blocking=True, copy=True))
        self._weights = None

    def leave(self, skipping: bool) -> None:
        """What was decided there."""
        if skipping:
            self._course.skipped()
            self._skipped += 1
            self._earlier = {}  # of branches that the network no longer computes
        else:
            self._course.computed(self._trust.lean)
            self._skipped, self._longest = 0, self._skipped + 1
            self._earlier, self._branches = self._branches, {}

    @property
    def ready(self) -> bool:
        """Whether an error can be estimated: from a gap of m evaluations not for one of more than m + 1.

        At high noise D hardly moves, over many orders of magnitude even, and that tells nothing of what comes next.
        """
        return self._slope is not None and self._skipped < self._longest

    @property
    def place(self) -> Place | None:
        """This noise level; None while nothing was computed."""
        return None if self.empty else Place(self._course.distance, self._course.sigma)

    def error(self, input_change: torch.Tensor, place: Place) -> torch.Tensor:
        """E: the expected miss of a forecast of v at this noise level, relative to ||v_i||."""
        tiny = torch.finfo(self.output_norm.dtype).tiny
        return self._slope * place.distance / place.sigma / self.output_norm.clamp_min(tiny)

    def look(self, tensor: torch.Tensor) -> torch.Tensor:
        """What of a tensor goes into norms; packed streams stay as they are."""
        return tensor if self._streams else thin(tensor)

    def store(self, branch: str, output: torch.Tensor, x: torch.Tensor, tracked: bool) -> torch.Tensor:
        """Keep what a branch's output says and return whether it is finite. x: its input as it was kept."""
        denoised = keep(self._denoised(output, x), self._cache_device, ours=not self._outputs_are_denoised)
        here = denoised.to(output.device)
        healthy = torch.isfinite(wide(here).sum())
        linked = self._linked & healthy
        before = self._earlier.pop(branch, None)
        if before is not None and before.last.shape != denoised.shape:
            before = None
        if tracked:
            self._see(self._look_back(branch, before, self.look(here), self.look(x).to(output.device)), healthy)
            self._tracked, self._dtype = branch, output.dtype
        if before is None:
            self._branches[branch] = Branch(x, denoised)
        else:
            self._branches[branch] = before.successor(x, denoised, self._course.debts, linked, output.device)
        return healthy

    def _denoised(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self._outputs_are_denoised:
            return output
        denoised = torch.addcmul(wide(x.to(output.device)), wide(output), -self._course.sigma)
        return denoised.to(torch.promote_types(x.dtype, output.dtype))

    def _look_back(self, branch: str, before: "Branch | None", denoised: torch.Tensor, x: torch.Tensor) -> Seen:
        """What the tracked branch tells of the network; denoised, x: what `look` leaves of them."""
        per_sigma = self._per_sigma
        output = (wide(x) - wide(denoised)) * per_sigma
        norm = mean_abs(output, self._streams)
        if before is None or branch != self._tracked:
            return Seen(norm)
        view = self._course.view_there
        last = before.seen(self.look, x.device)
        # k as the paper has it; forecasts do not go by it.
        earlier_output = (wide(last.x) - wide(last.last)) * (view.onward * per_sigma)
        # Alone sums will do; slices of a latent, of which each rank has one, add up by their means.
        miss, movements = self._trust.judge(last.surprise(x, denoised, view), 1 if self._alone else x.numel())
        return Seen(
            norm,
            distance(output, earlier_output, self._streams),
            distance(x, last.x, self._streams),
            mean_abs(miss, self._streams),
            self._course.passed,
            movements,
        )

    def conclude(self, seen: Seen, linked: torch.Tensor) -> None:
        """Go on from what was seen of the tracked branch."""
        self.output_norm = seen.output_norm
        if seen.output_change is None:
            self.rate = self._slope = None
            return
        self.rate = transformation_rate(seen.output_change, seen.moved, self.rate)
        self._trust.learn(seen.movements, linked)
        now = slope(seen.miss, seen.passed, self._slope)
        self._slope = now if self._slope is None else torch.where(linked, now, self._slope)

    @property
    def _per_sigma(self) -> torch.Tensor:
        """1 / sigma; at noise level 0 nothing is left to remove, and any v does."""
        return ratio(torch.ones_like(self._course.sigma), self._course.sigma)

    def predict(self, branch: str, x: torch.Tensor) -> torch.Tensor:
        """A new tensor of x's shape and device in the dtype of the network's output.

        Raises KeyError for a branch that was not stored at the last computed evaluation.
        """
        held = self._branches[branch]
        if self._weights is None:
            self._weights = self._trust.weights(self._course)
        denoised = held.forecast(x, self._weights)
        if not self._outputs_are_denoised:
            denoised = denoised.neg_().add_(wide(x)).mul_(self._per_sigma)
        return denoised.to(self._dtype)


class Trust:
    """lean and theta: how much of a movement of D goes on, and how much D follows where x leaves its line.

    Both by least squares, lean over the last movement, theta over the run, where later movements count more. They are
    the tracked branch's and hold for all of them: guidance lives on the difference of branches, which forecasts that
    follow x by different parts would spoil (by 3 dB with a theta for each).
    """

    def __init__(self):
        self.lean: torch.Tensor | float = LEAN
        self.theta: torch.Tensor | float = 0.0
        self._followed: torch.Tensor | float = 0.0
        self._left: torch.Tensor | float = 0.0

    def judge(self, surprise: "Surprise", count: int) -> tuple[torch.Tensor, Movements]:
        """(what was missed of D with what was known so far, what `learn` needs: sums over count)."""
        off_line, carried = surprise.off_line, surprise.carried
        off_lean = surprise.moved - carried * self.lean
        sums = Movements(
            _product(off_line, off_lean),
            _product(off_line, off_line),
            _product(off_lean, off_lean),
            _product(carried, surprise.moved),
            _product(carried, carried),
        )
        seen = sums if count == 1 else Movements(*(total / count for total in sums))
        return off_lean - off_line * self.theta, seen

    def learn(self, seen: Movements, linked: torch.Tensor) -> None:
        """Take in what was seen."""
        followed = MEMORY * self._followed + seen.followed
        left = MEMORY * self._left + seen.left + NOTICEABLE * seen.leant
        self._followed = torch.where(linked, followed, self._followed)
        self._left = torch.where(linked, left, self._left)
        self.theta = ratio(self._followed, self._left).clamp(0, 1)
        lean = ratio(seen.carried_on, seen.carried).clamp(-LEAN, LEAN)
        self.lean = torch.where(linked & (seen.carried > 0), lean, torch.ones_like(lean) * self.lean)

    def weights(self, course: Course) -> "Weights":
        """By which D is forecast at this noise level."""
        view = course.view
        theta = torch.ones_like(view.onward) * self.theta  # a number until something was seen
        kept_to = view.onward * theta
        return Weights(1 - theta + kept_to, theta, -kept_to, view.stride * self.lean, course.repaid)


class Weights(NamedTuple):
    """Of what a forecast is the sum of: D_i, x_n, x_i, D_i - D_j and what is owed."""

    last: torch.Tensor
    x: torch.Tensor
    x_last: torch.Tensor
    change: torch.Tensor
    owed: torch.Tensor


class Surprise(NamedTuple):
    """Where the network ran next: by how much x was off its line, how far D moved, and how far it would have moved had
    its last movement gone on; 0 where there was none.
    """

    off_line: torch.Tensor
    moved: torch.Tensor
    carried: torch.Tensor


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum of a b, with no tensor of their size in between."""
    return torch.dot(a.flatten(), b.flatten())


class Branch:
    """One branch: three tensors of a latent's size, and its input, which branches may share.

    last: D_i. x: x_i. change: D_i - D_j, 0 where there is none to go on. owed: what x / sigma lacks, 0 likewise.
    """

    def __init__(
        self,
        x: torch.Tensor,
        last: torch.Tensor,
        change: torch.Tensor | None = None,
        owed: torch.Tensor | None = None,
    ):
        self.x, self.last, self.change, self.owed = x, last, change, owed

    def seen(self, look, device: torch.device) -> "Branch":
        """What `look` leaves of it, there; without what is owed."""
        return Branch(*(part if part is None else look(part).to(device) for part in (self.x, self.last, self.change)))

    def surprise(self, x: torch.Tensor, denoised: torch.Tensor, view: View) -> "Surprise":
        """x, denoised: at the next computed evaluation, on the same device."""
        last = wide(self.last)
        line = (wide(self.x) - last).mul_(view.onward).add_(last)
        carried = torch.zeros_like(last) if self.change is None else wide(self.change) * view.stride
        return Surprise(wide(x) - line, wide(denoised) - last, carried)

    def forecast(self, x: torch.Tensor, weights: Weights) -> torch.Tensor:
        """D_n, a new tensor on x's device."""
        denoised = wide(self.last.to(x.device)) * weights.last
        denoised.addcmul_(wide(x), weights.x).addcmul_(wide(self.x.to(x.device)), weights.x_last)
        if self.change is not None:
            denoised.addcmul_(wide(self.change.to(x.device)), weights.change)
            denoised.addcmul_(wide(self.owed.to(x.device)), weights.owed)
        return denoised

    def successor(
        self, x: torch.Tensor, denoised: torch.Tensor, debts: Debts, linked: torch.Tensor, device: torch.device
    ) -> "Branch":
        """The branch after a computed evaluation; reckoned on that device, kept where `denoised` is.

        linked: whether it may be compared with the one before.
        """
        change = (wide(denoised.to(device)) - wide(self.last.to(device))).masked_fill_(~linked, 0)
        owed = change * debts.off
        if self.change is not None:  # both were finite when they were kept
            owed.addcmul_(wide(self.change.to(device)), debts.leant * linked)
            owed.addcmul_(wide(self.owed.to(device)), debts.still_owed * linked)
        return Branch(x, denoised, change.to(denoised), owed.to(denoised))
