"""What a sampler makes of the network's answers.

Samplers are linear in the denoised latents D that they are given (ancestral ones are, apart from their noise). Their
impulse response tells what an error of one answer does to every latent after it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Noise levels that differ by less than this part are the same: samplers compute them in float32 or less.
SAME_LEVEL = 2e-3
# By so much at most levels differ that a sampler computes in bfloat16, as it does where its latent is one.
ROUNDED = 2**-8
# Weights that are so much smaller than the largest are none.
ROUNDING = 1e-3


def same_level(one: float, other: float, part: float = SAME_LEVEL) -> bool:
    return abs(one - other) <= part * max(abs(one), abs(other))


class Response(NamedTuple):
    """The impulse response of a sampler over one run of N evaluations.

    sigmas: noise level of each evaluation, (N,). weights: (N + 1, N), by how much x at evaluation n changes with D at
    evaluation k < n; the last row is the final latent. adds_noise: whether the sampler does, on its way. lengths: from
    each evaluation to the next in the model's own time, (N - 1,), in any unit; empty: all alike. takes_branches:
    whether it uses cond or uncond by themselves, next to what guidance makes of them; weights are those of an error
    that all of them have in common.
    """

    sigmas: tuple[float, ...]
    weights: np.ndarray
    adds_noise: bool = False
    lengths: Sequence[float] = ()
    takes_branches: bool = False

    def expects(self, n: int, sigma: float | None) -> bool:
        """Whether evaluation n of the run is at this noise level; None stands for any."""
        if n >= len(self.sigmas):
            return False
        return sigma is None or same_level(self.sigmas[n], sigma, ROUNDED)

    def of(self, which: Sequence[int]) -> "Response":
        """Of these evaluations alone, in their order: those at which one of several questions is asked in turn."""
        where = np.cumsum([0, *self.distances])[which]
        weights = self.weights[[*which, -1]][:, which]
        sigmas = tuple(self.sigmas[k] for k in which)
        return self._replace(sigmas=sigmas, weights=weights, lengths=np.diff(where).tolist())

    @property
    def distances(self) -> Sequence[float]:
        """lengths, also where they are all alike, (N - 1,)."""
        return self.lengths or [1.0] * (len(self.sigmas) - 1)

    @property
    def signal(self) -> np.ndarray:
        """The part of a picture that is in x at each evaluation, (N,)."""
        return _signal(self.sigmas)

    @property
    def size_at_the_end(self) -> float:
        """About that of the final latent, in parts of a picture's: of noise, where the run leads back to it."""
        return max(1.0, self.sigmas[-1]) if self.sigmas and self.sigmas[-1] > self.sigmas[0] else 1.0

    @property
    def both_signs(self) -> bool:
        """Whether weights of both signs may cancel, as those of samplers that use earlier answers again."""
        return bool(self.weights.min(initial=0) < -ROUNDING * self.weights.max(initial=0))

    @property
    def memory(self) -> int:
        """How many earlier answers a step uses again, at most."""
        most = 0
        for n in range(1, len(self.sigmas) - 1):
            row = self.weights[n + 1]
            used = np.abs(row - _kept(self.sigmas[n], self.sigmas[n + 1]) * self.weights[n])[:n]
            most = max(most, int((used > ROUNDING * np.abs(row).max()).sum()))
        return most

    def influence(self, variance: float = 1.0) -> np.ndarray:
        """T_k, signed: by how much an error of D at evaluation k changes the final latent, (N,), with the answers after
        it following x as those of data with that variance would.
        """
        sensitivity, influence = self._sensitivity(variance), self.weights[-1].copy()
        for n in range(len(influence) - 1, 0, -1):
            influence[:n] += influence[n] * sensitivity[n] * self.weights[n, :n]
        return influence

    def _sensitivity(self, variance: float) -> np.ndarray:
        """By how much D follows x at each evaluation, (N,)."""
        sigmas, signal = np.asarray(self.sigmas), self.signal
        return signal / np.maximum(signal**2 + sigmas**2 / variance, 1e-12)


def euler_response(sigmas: Sequence[float]) -> Response:
    """Euler's method, one evaluation per step. sigmas: the noise levels that steps lead from and to; where they rise in
    a run that descends, noise is added and nothing is evaluated (restarts).
    """
    evaluated = evaluated_levels(sigmas)
    weights, row = [], np.zeros(sum(evaluated))
    steps = zip(evaluated, pairwise(sigmas), pairwise(_signal(sigmas)), strict=True)
    for evaluates, (sigma, following), (signal, signal_next) in steps:
        if not evaluates:
            row = row * (signal_next / signal)
            continue
        kept = _kept(sigma, following)
        weights.append(row)
        row = kept * row
        row[len(weights) - 1] = 1 - kept
    levels = tuple(float(sigma) for sigma, evaluates in zip(sigmas, evaluated, strict=False) if evaluates)
    return Response(levels, np.array([*weights, row]))


def _signal(sigmas: Sequence[float]) -> np.ndarray:
    """The part of a picture that is in x at each of these levels of one schedule, in their shape."""
    # Flow models have x = (1 - sigma) D + sigma noise and sigmas up to 1; all others x = D + sigma noise.
    sigmas = np.asarray(sigmas, dtype=float)
    return 1 - sigmas if sigmas.max(initial=0) <= 1 else np.ones_like(sigmas)


def evaluated_levels(sigmas: Sequence[float]) -> list[bool]:
    """Whether the network is asked at each of these levels but the last: not where noise is added."""
    steps = list(pairwise(sigmas))
    descends = any(following < sigma for sigma, following in steps)
    return [following <= sigma or not descends for sigma, following in steps]


def _kept(sigma: float, sigma_next: float) -> float:
    """The part of x that is still in it after a step between these noise levels."""
    return sigma_next / sigma if sigma else 0.0
