"""Predictor "forecast": linear extrapolation of the denoised latent, with correction.

With t = log(1 + sigma), a skipped evaluation n gets, from the last two computed evaluations j < i,

    D_n  = D_i + g r (D_i - D_j) + theta (x_n - xe_n) + c_n d
    r    = clip((t_n - t_i) / (t_i - t_j), +-MAX_STEP_RATIO)    step ratio (steps.py)
    g    = <p, q> / <p, p>, limited                             gain: p the extrapolated, q the actual last change of D
    xe_n = D_i + sigma_n / sigma_i (x_i - D_i)                  where x would be had it followed v_i: the Euler path
    theta in [0, 1]                                             sensitivity of D to x (Gains)
    c_n, d                                                      what makes up for the last gaps (correction.py)

Evaluations that are computed get c_n d as well, where the sampler's response is known (`Forecast.correction`).

Where D swings to and fro (strong guidance with few evaluations) the gain is negative. What noise that the sampler adds
does to D does not go on along t: it is taken out of D_i - D_j and of d.
docs/method.md derives all of it, with an example in numbers and with what each part is worth.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch

from .branch import Branch, Departure, changes, departure, noise_part, off_path, uncorrected
from .closeness import Observed, estimate_final_error, observe
from .correction import Correction
from .error_estimate import ErrorEstimate
from .norms import Norms, some_of, upcast
from .predictor import Predictor
from .reading import Measurements, Products
from .response import Response
from .reuse import transformation_rate
from .steps import StepHistory, StepRatios, clip, ratio
from .storage import copy_for_cache

# The largest absolute gain, and the largest one where D_i - D_j is a change over NEAR evaluations at most, or over one
# where no gain was learnt yet: over longer ones it overshoots.
MAX_GAIN, MAX_GAIN_NEAR, NEAR = 0.6, 0.9, 2
# The part of a run, of its evaluations and of t, over which a change of D does not go on under guidance, unless a gain
# has shown that it does.
LONG_GAP, LONG_STRETCH = 0.16, 0.3
# Ridge term of the regression for theta, as a part of what else changed D (squared): smaller departures show nothing.
RIDGE = 1e-3
# What remains of the regression's sums at each computed evaluation.
FORGETTING_FACTOR = 0.5
# The power of theta in forecasts where noise is added, unless what is off the path explains more than this part of how
# D changed, of squares: then theta holds as it is.
NOISE_POWER, EXPLAINED = 0.5, 0.85
# Of x's moves, from which on a sampler of which nothing is known adds noise: those that add none have 0.06 at most.
NOISE_PART = 0.15
# By how many times as much x moves where a level rises by noise as it did where the level fell; by 1 without.
NOISE_IN_RISE = 1.5
# The influence on the final latent from which on nothing is skipped under a threshold: of Euler's steps, the last two.
# It is never more than a part of the run.
DECISIVE, DECISIVE_PART = 0.35, 0.2


def _begin_of_end(influence: Sequence[float]) -> int:
    """Index of the first evaluation from which on all are decisive."""
    size = len(influence)
    begin = 1 + max((n for n, value in enumerate(influence) if abs(value) < DECISIVE), default=-1)
    return max(begin, size - max(2, math.ceil(DECISIVE_PART * size)))


def forecast(x: torch.Tensor, i: Branch, ratios: StepRatios, gains: "Gains", payments: Sequence[float]) -> torch.Tensor:
    """D_n, a new tensor in at least float32 on x's device. x: x_n. payments: c_n per gap."""
    theta = gains.theta_of_forecasts
    theta_s = theta * ratios.sigma_ratio
    denoised = upcast(i.denoised.to(x.device)) * (1 - theta + theta_s)
    denoised.add_(x, alpha=theta).add_(i.x.to(x.device), alpha=-theta_s)
    if i.change is not None:
        denoised.add_(i.change.to(x.device), alpha=gains.gain * ratios.step_ratio)
    for c, defect in zip(payments, i.defects, strict=False):
        if c:
            denoised.add_(defect.to(x.device), alpha=c)
    return denoised


class Gains:
    """By least squares: gain from the last change of D, theta over the run with forgetting. They hold for all branches:
    guidance lives on the difference of branches; a theta for each would cost 3 dB. theta is the tracked branch's. The
    gain is that of the guided latent, which the sampler gets: guidance amplifies what differs between branches, and
    that goes on along t for less long than each of them does.

    Where noise is added, theta is that of the paper's rule for flow models, 1 - sigma. Least squares would find a third
    of that and less, as most of x_n - xe_n is noise: but D answers more to what is none, and the sampler removes what
    is too much. Where it is known of the sampler, forecasts take the root of theta; theta itself is taken out of
    changes of D.
    """

    def __init__(self, noise_added: bool = False):
        self.noise_added = self._noise_known = noise_added  # what is seen for noise may be the moves of others
        self.theta = 0.0
        self.moves = self.noisy_moves = 0  # of x that were looked at for noise, and those that had some
        self._learnt = 0.0 if noise_added else 1.0  # the gain without its limit
        self.distance = 1  # over how many evaluations the last change of D was
        self._xy = self._xx = 0.0  # sums of the regression for theta
        self._pq = self._pp = 0.0  # and for the gain
        self._explained = 0.0  # of how D changed last, by what was off the path; of squares

    def distrust_change(self) -> None:
        """The last change of D is no guide, as long as no gain was learnt."""
        if not self._pp:
            self._learnt = 0.0

    def forget_gain(self) -> None:
        """How D went on so far says nothing of how it will: noise was added, or something else is asked."""
        self._pq = self._pp = 0.0
        self._learnt = 0.0

    @property
    def gain(self) -> float:
        return clip(self._learnt, -MAX_GAIN, self.limit)

    @property
    def limit(self) -> float:
        return MAX_GAIN_NEAR if self.distance <= (NEAR if self._pp else 1) else MAX_GAIN

    @property
    def theta_of_forecasts(self) -> float:
        known = self.noise_added and self._noise_known
        return self.theta**NOISE_POWER if known and self._explained < EXPLAINED else self.theta

    def advance(self, sigmas: Sequence[float]) -> None:
        """Go on to the evaluation at the last of these noise levels."""
        if self.noise_added:
            sigma, part = sigmas[-1], sigmas[-1] / max(sigmas[0], 1.0)
            self.theta = clip((1 - part) / (1 + sigma - part), 0, 1)

    def look_for_noise(self, part: float) -> bool:
        """part: of noise, in x's last move. Returns whether it is the first noise."""
        found = part > NOISE_PART
        self.moves, self.noisy_moves = self.moves + 1, self.noisy_moves + found
        first = found and not self.noise_added
        self.noise_added = found
        if first:
            self.forget_gain()
        return first

    def update(self, products: Products) -> None:
        xy, xx, yy = products.xy, products.xx, products.yy
        self._explained = ratio(xy * xy, xx * yy)
        if not self.noise_added:
            self._xy = FORGETTING_FACTOR * self._xy + xy
            self._xx = FORGETTING_FACTOR * self._xx + xx + RIDGE * yy
            self.theta = clip(ratio(self._xy, self._xx), 0, 1)
        kept = FORGETTING_FACTOR if self.noise_added else 0.0
        self._pq, self._pp = kept * self._pq + products.guided_pq, kept * self._pp + products.guided_pp
        if self._pp > 0:
            self._learnt = ratio(self._pq, self._pp)


class Forecast(Predictor):
    """Holds up to four tensors per branch and the input of the last computed evaluation."""

    follows_denoised = True

    def __init__(self, cache_device: str, norms: Norms, response: Response | None = None):
        super().__init__(cache_device, norms, response)
        self._steps, self._gains = StepHistory(response), Gains(response is not None and response.adds_noise)
        # Where the evaluations begin that are not skipped under a threshold.
        self._end = math.inf if response is None else _begin_of_end(response.influence())
        self._correction = Correction(self._steps)
        self._error_estimate = ErrorEstimate(self._steps)
        self._gap_length, self._max_gap = 0, 1  # evaluations of this gap, and how many they may become
        self._guided: Branch | None = None  # what a guider made of the branches; some elements
        # At the last computed evaluation, as seen from the one before:
        self._before: dict[str, Branch] = {}  # the branches there
        self._guided_before: Branch | None = None  # and what was made of them
        self._ratios_at_i = StepRatios(0.0, 0.0)
        self._offset_at_i = 0.0
        self._gap_closed: tuple[float, float | None] = 0.0, None  # gain and r of the gap between the two
        self._comparable = True
        self._pace: list[float] | None = None  # ||change of x|| per change of sigma, where that fell last
        self._times_computed: Counter[str] = Counter()  # by branch
        self._another_x = False  # whether noise was added since i: no line leads on from there
        # For the estimate of the final error, at computed evaluations; None once something else made a difference.
        self._observed: dict[int, Observed] | None = {}

    def subsample(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._norms.subsample(tensor)

    def update(self, measured: Measurements, comparable: bool) -> None:
        # Norms are of sigma v. At noise level 0 any v does.
        per_sigma = ratio(1.0, self._steps.sigmas[self._steps.computed[-1]])
        self.output_norm = [norm * per_sigma for norm in measured.output_norm]
        self.miss = None
        i, b = ([0] + self._steps.computed)[-2:]
        self._gains.distance = b - i
        if not measured.output_change:
            self.rate = None
            self._error_estimate.forget()
            return
        output_change = [change * per_sigma for change in measured.output_change]
        self.rate = transformation_rate(measured._replace(output_change=output_change), self.rate)
        if not comparable:
            self._observed = None
            self._gains.forget_gain()
            return
        self._observe_gap(measured.products)
        if self._steps.response is None and self._gains.look_for_noise(measured.products.noise):
            self._correction.forget()
        else:
            self._gains.update(measured.products)
        self._error_estimate.update(measured, self._offset_at_i, b - i)
        misses = zip(measured.miss, measured.output_norm, strict=True)
        self.miss = max(ratio(miss * self._steps.sigmas[-1], norm) for miss, norm in misses) / (b - i)

    def _observe_gap(self, products: Products) -> None:
        """What the last computed evaluation says about the gap before it, and about those beside it."""
        if self._observed is None:
            return
        times, (i, b) = self._steps.times, self._steps.computed[-2:]
        j = self._steps.computed[-3] if len(self._steps.computed) > 2 else i
        gain, gap_ratio = self._gap_closed
        ratios = self._ratios_at_i.step_ratio, gap_ratio or 0.0
        self._observed[b] = observe(products, gain, ratios, (times[j], times[i], times[b]))

    @property
    def noise_added(self) -> bool:
        return 2 * self._gains.noisy_moves > self._gains.moves

    @property
    def final_error(self) -> float | None:
        response, gaps = self._steps.response, self._correction.gaps
        done = response is not None and len(self._steps.sigmas) == len(response.sigmas)
        if self._observed is None or gaps is None or not done or response.adds_noise or response.takes_branches:
            return None
        return estimate_final_error(response, self._steps.times, self._steps.computed, gaps, self._observed)

    def advance(
        self, sigma: float | None, comparable: bool, input_change: Sequence[float] | None, windows_moved: bool = False
    ) -> None:
        self._error_estimate.windows_moved = windows_moved
        if windows_moved:
            self._observed = None
        self._steps.advance(sigma)
        self._gains.advance(self._steps.sigmas)
        self.jumped = self._steps.risen or self._raised_by_noise(input_change)
        if self.jumped:
            self._correction.forget()
            self._another_x = True
            self._observed = None
        self._comparable = comparable and not self.jumped

    def _raised_by_noise(self, input_change: Sequence[float] | None) -> bool:
        """Whether noise was added where the level is back at one where it just was. Samplers that looked ahead come
        back as they went. Of one whose response is known it is known where it adds noise.
        """
        rise, sigmas = self._steps.rise, self._steps.sigmas[-2:]
        if self._steps.response is not None or input_change is None:
            return False
        if rise and self._pace is not None:
            moves = zip(input_change, self._pace, strict=True)
            return any(moved > NOISE_IN_RISE * rise * pace for moved, pace in moves)
        if sigmas[0] != sigmas[-1]:
            self._pace = [moved / abs(sigmas[0] - sigmas[-1]) for moved in input_change]
        return False

    def forget_response(self) -> None:
        self._steps.response, self._end = None, math.inf

    def follow(self, response: Response) -> None:
        if self._steps.response is not None:
            self._steps.response, self._end = response, _begin_of_end(response.influence())

    def stop_corrections(self) -> None:
        self._correction.stopped = True

    @property
    def ready(self) -> bool:
        """After a gap of m evaluations, the next may be m + 1 at most: D hardly moves at high noise, which does not say
        that it will not. The last evaluations are not skipped: nothing makes up for them. Of a branch that was computed
        once, as guidance that begins on the way, nobody knows how it moves.
        """
        if not self._error_estimate.known or self._gap_length >= self._max_gap or self.jumped:
            return False
        if any(self._times_computed[branch] < 2 for branch in self._branches):
            return False
        return len(self._steps.sigmas) - 1 < self._end

    def expected_errors(self, input_change: Sequence[float]) -> list[float]:
        return self._error_estimate.expected(input_change, self.rate, self.output_norm)

    def commit(self, skipping: bool) -> None:
        super().commit(skipping)
        steps = self._steps
        if skipping:
            if not self._another_x:
                self._correction.skip()
            self._correction.pay()
            self._gap_length += 1
            self._before = {}  # of branches that the network no longer computes
        else:
            self._ratios_at_i, self._offset_at_i = steps.ratios, steps.offset()
            self._error_estimate.mark_computed()
            self._gap_closed = self._gains.gain, self._correction.close_gap()
            steps.computed.append(len(steps.sigmas) - 1)
            self._gap_length, self._max_gap = 0, self._gap_length + 1
            self._another_x = False
            self._before, self._branches = self._branches, {}
            self._guided_before, self._guided = self._guided, None

    def store(self, branch: str, output: torch.Tensor, x: torch.Tensor, tracked: bool) -> torch.Tensor:
        here = Branch(x, copy_for_cache(output, self._cache_device))
        before = self._before.pop(branch, None)
        if before is not None and before.denoised.shape != output.shape:
            before = None
        if tracked:
            self.measured = self._measure(before if branch == self._tracked else None, output, x)
            self._tracked = branch
        self._times_computed[branch] += 1
        if before is not None and self._comparable:
            here = here._replace(**changes(before, output, *self._gap_closed, self._noise(x, before, output.device)))
        self._branches[branch] = here
        if len(self._branches) > 1 and self._gap_is_long:
            self._gains.distrust_change()
        return upcast(output).sum()

    @property
    def _gap_is_long(self) -> bool:
        """Whether the gap that ends here is a large part of the run."""
        response, computed = self._steps.response, self._steps.computed
        if response is None or len(computed) < 2:
            return False
        i, b = computed[-2:]
        return b - i > LONG_GAP * len(response.sigmas) or abs(self._offset_at_i) > LONG_STRETCH * max(self._steps.times)

    def answered(self, answer: torch.Tensor, x: torch.Tensor) -> None:
        guided, known = len(self._branches) > 1, self._steps.response is not None
        if not guided and known:  # a guider makes nothing of one branch
            return
        answer, x = upcast(some_of(answer)), upcast(some_of(x).to(answer.device, copy=True))
        before = self._guided_before
        # Branches that come or go make another latent of it.
        like_before = not self._before and all(one.change is not None for one in self._branches.values())
        if before is None or before.denoised.shape != answer.shape or not like_before:
            self._guided = Branch(x, answer.clone())
            return
        payments = self._correction.pay() if known else []
        denoised = uncorrected(before, answer, *self._gap_closed, payments)
        if denoised is None:
            return
        departed = departure(before, denoised, x, self._ratios_at_i)
        if self.measured is not None and self.measured.products:
            products = self.measured.products
            if guided:
                pq, pp = self._products_of_gain(departed)
                products = products._replace(guided_pq=pq, guided_pp=pp)
            if not known and self._offset_at_i:
                products = products._replace(noise=noise_part(before, departed, x))
            self.measured = self.measured._replace(products=products)
        noise = departed.off_path * self._gains.theta if self._gains.noise_added else None
        self._guided = Branch(x, denoised, **changes(before, denoised, *self._gap_closed, noise))

    def _noise(self, x: torch.Tensor, i: Branch, device: torch.device) -> torch.Tensor | None:
        """What added noise did to D at a computed evaluation, before which the network ran at i; None if none is."""
        if not self._gains.noise_added:
            return None
        x, x_i, denoised_i = (upcast(part.to(device)) for part in (x, i.x, i.denoised))
        return off_path(x, x_i, denoised_i, self._ratios_at_i.sigma_ratio).mul_(self._gains.theta)

    def _measure(self, i: Branch | None, denoised: torch.Tensor, x: torch.Tensor) -> Measurements:
        """At a computed evaluation n, before which the network ran at i."""
        device, norms = denoised.device, self._norms
        denoised, x = upcast(self.subsample(denoised)), upcast(self.subsample(x).to(device))
        output_norm = norms.of_difference(x, denoised)  # sigma_n ||v_n||
        if i is None:
            return Measurements(output_norm)
        i = Branch(*(part if part is None else upcast(self.subsample(part).to(device)) for part in i[:3]))
        departed = departure(i, denoised, x, self._ratios_at_i)
        change, extrapolated, off = departed
        residual = torch.sub(change, extrapolated, alpha=self._gains.gain)
        xy, xx, yy = [(a * b).mean() for a, b in [(off, residual), (off, off), (residual, residual)]]
        pq, pp = self._products_of_gain(departed)
        miss = norms.of(residual.sub_(off, alpha=self._gains.theta))
        output_change = norms.of(off.sub_(change))  # sigma_n ||v_n - v_i||
        products = Products(xy, xx, yy, pq, pp, guided_pq=pq, guided_pp=pp, noise=0.0)
        return Measurements(output_norm, output_change, norms.of_difference(x, i.x), miss, products)

    def _products_of_gain(self, departed: Departure) -> list[torch.Tensor]:
        """<p, q> and <p, p>"""
        q, p, off = departed
        if self._gains.noise_added:
            q = torch.sub(q, off, alpha=self._gains.theta)
        return [(p * q).mean(), (p * p).mean()]

    def correction(self, branch: str) -> torch.Tensor | None:
        if self._steps.response is None:
            return None
        terms = zip(self._correction.pay(), self._branches[branch].defects, strict=False)
        terms = [upcast(defect) * c for c, defect in terms if c]
        return sum(terms[1:], terms[0]) if terms else None

    def predict(self, branch: str, x: torch.Tensor) -> torch.Tensor:
        held, ratios = self._branches[branch], self._steps.ratios
        if self._another_x:
            ratios = ratios._replace(step_ratio=0.0)
        return forecast(x, held, ratios, self._gains, self._correction.pay()).to(held.denoised.dtype)
