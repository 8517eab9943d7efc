"""Where a given number of evaluations is computed best, for a run whose every evaluation is known beforehand.

A skipped evaluation k costs what its forecast is off times what the sampler makes of that until the end. How far
forecasts are off grows with the distance to the last computed evaluation i. How far that is differs from model to
model, but it falls during the run about as the influence on the final latent grows (docs/method.md), until the
influence wins at the end. What is left of both is

    cost of k = (1 + (INFLUENCE T_k)^2) (p_k - p_i)^GROWTH

with T_k the influence (response.py) and p the position in the run, half by time and half by how far D is supposed to
have moved. By the model's own time, and a little by the number of the evaluation: where steps are tiny D hardly moves
(the end of karras, the start of linear_quadratic). And with v = sigma / signal, the noise to a part of signal, D moves
as

    dv / ((1 + v) sqrt(1 + (v / HIGH_NOISE)^2))

that is with log(1 + v), but less and less where x is hardly more than noise: the large shift of a flow model puts a
third of its steps there, while a schedule of a noise prediction model begins where D moves most. The errors of
different gaps are added up by their squares.

T_k is in parts of a picture. A run that leads back to noise (a picture is unsampled) ends at noise of several times its
size where noise levels go beyond 1; there, T_k counts in parts of that.

Samplers that use earlier answers again, with weights of both signs, have some T_k of next to 0 between large ones. A
skip costs there, too: what is paid for it (correction.py) goes into the evaluation after it, and T_k itself is only
supposed. There T_k^2 + BESIDE (T_k-1^2 + T_k+1^2) stands for T_k^2.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np

from .response import Response
from .window import Window, suffices

# What counts of the influence: it is felt where it is more than the inverse of this.
INFLUENCE = 4.0
# What counts of the influence of either neighbour, of squares.
BESIDE = 0.15
# How fast forecasts get worse over a gap.
GROWTH = 1.25
# The shorter the steps the better the forecasts, but for the start, as the picture is laid out. So in runs of more than
# SHORT evaluations the start costs more: EARLY times as much for each SHORT evaluations more, over a part of the run.
EARLY, EARLY_PART, SHORT = 0.66, 0.1, 20
# Before a second computed evaluation nothing is known of how D moves.
FIRST = 2.0
# Once something else is asked D moves more: the latent is on its way to something else. And the gap before that is not
# paid for, as nothing tells what it got wrong; so many times as much its square counts.
AFTER_CHANGE, UNPAID = 2.5, 9.0

# In runs of more than LONG evaluations gaps that are FAR_LONGER than usual are looked at only where they have to be.
LONG, FAR_LONGER = 200, 4

# The part that time has in a position by time. By time alone, skips would cost nothing where a level is evaluated twice
# (Heun).
TIME = 0.9
# The noise to a part of signal above which D moves less, and the part that its moves have in a position: models differ
# in when D moves.
HIGH_NOISE, MOVES = 12.0, 0.5
# So many times as much a skip outside of a window costs as it would inside: none is placed there.
OUTSIDE = 1e4


def positions(response: Response) -> np.ndarray:
    """p of its evaluations, (N,): from 0 to N - 1."""
    times, moves = np.array(response.distances), np.abs(np.diff(_moved(np.array(response.sigmas), response.signal)))
    numbers = np.arange(len(response.sigmas), dtype=float)
    by_time = (1 - TIME) * numbers + TIME * _laid_end_to_end(times)
    return (1 - MOVES) * by_time + MOVES * _laid_end_to_end(moves)


def _moved(sigmas: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """How far D moves up to these noise levels: the integral of the above."""
    return np.arcsinh((HIGH_NOISE**2 * signal - sigmas) / (HIGH_NOISE * (signal + sigmas)))


def _laid_end_to_end(lengths: np.ndarray) -> np.ndarray:
    """From 0 to N - 1, as far apart as these N - 1 lengths say, evenly where they are all 0."""
    where = np.append(0.0, np.cumsum(lengths))
    return where / where[-1] * len(lengths) if where[-1] else np.arange(len(where), dtype=float)


def costs_of_skips(influence: Sequence[float], both_signs: bool = False) -> np.ndarray:
    """Per evaluation, for a gap of one: (N,). influence: of either sign. both_signs: of the weights behind it."""
    squares = np.asarray(influence, dtype=float) ** 2
    if both_signs:
        around = np.pad(squares, 1, mode="edge")
        squares = squares + BESIDE * (around[:-2] + around[2:])
    costs = 1 + INFLUENCE**2 * squares
    size = len(costs)
    early = EARLY * max(size / SHORT - 1, 0)
    costs *= 1 + early * np.exp(-np.arange(size) / (EARLY_PART * max(size, 1)))
    costs[1:2] *= FIRST
    return costs


def place(costs: np.ndarray, positions: np.ndarray, count: int, changes: Collection[int] = ()) -> list[int]:
    """Which evaluations to compute, so that the gaps between them cost least: the first, the last and count - 2 more,
    as indices. costs, positions: of two evaluations or more, as from the functions above. count: 2 to len(costs).
    changes: evaluations from which on something else is asked. They are among them, if count suffices for all: nothing
    is predicted from before a change.
    """
    size, longest = len(costs), _longest_gap(len(costs), count)
    while True:
        chosen = _place(costs, positions, count, changes, longest)
        if longest >= size - 1 or (chosen and 2 * max(np.diff(chosen)) <= longest):
            return chosen
        longest = min(2 * longest, size - 1)


def _longest_gap(size: int, count: int) -> int:
    """From a computed evaluation to the next. Of gaps of all lengths there are size^2, at each of count; in a run of
    more than LONG those that are far longer than usual are looked at only where others turn out that long.
    """
    return size - 1 if size <= LONG else min(FAR_LONGER * (size // max(count - 1, 1) + FAR_LONGER), size - 1)


def _place(costs: np.ndarray, positions: np.ndarray, count: int, changes: Collection[int], longest: int) -> list[int]:
    """The same with no gap beyond the longest; [] if there is no way."""
    size = len(costs)
    gaps = _costs_of_gaps(costs, positions, longest)
    before = np.arange(size)[:, None] - np.arange(longest, 0, -1)  # the other end of each
    inside = [change for change in changes if 0 < change < size - 1]
    gaps[inside] *= UNPAID
    if len(inside) <= count - 2:
        for change in inside:
            gaps[change + 1 :][before[change + 1 :] < change] = np.inf
    padded = np.full(longest + size, np.inf)  # costs up to each evaluation
    up_to = np.lib.stride_tricks.sliding_window_view(padded, longest)[:size]  # up to those before each
    total, came_from = np.where(before == 0, gaps, np.inf).min(1), []
    for _ in range(count - 2):
        padded[longest:] = total
        sums = up_to + gaps
        best = sums.argmin(1)
        came_from.append(before[range(size), best])
        total = sums[range(size), best]
    if not math.isfinite(total[-1]):
        return []
    chosen = [size - 1]
    for origin in reversed(came_from):
        chosen.append(int(origin[chosen[-1]]))
    return [0, *reversed(chosen)]


def _costs_of_gaps(costs: np.ndarray, positions: np.ndarray, longest: int) -> np.ndarray:
    """Of those that lead to each evaluation (row), from the longest to the shortest: (N, longest); inf where one would
    begin before the run does.
    """
    size, padding = len(costs), np.zeros(longest)
    windows = np.lib.stride_tricks.sliding_window_view
    ahead, at = (windows(np.append(one, padding), longest)[:size] for one in (costs, positions))
    skipped = np.cumsum(ahead * np.maximum(at - positions[:, None], 0.0) ** GROWTH, axis=1)  # from each (row) on
    gaps = np.full((size, longest), np.inf)
    for length in range(1, longest + 1):
        gaps[length:, longest - length] = skipped[: size - length, length - 1] ** 2
    return gaps


class Plan:
    """Which evaluations of a run to compute. `place` before anything is asked."""

    def __init__(self, response: Response, window: Window | None = None):
        self._costs = costs_of_skips(response.influence() / response.size_at_the_end, response.both_signs)
        self._positions = positions(response)
        levels = () if window is None else response.sigmas
        self._outside = np.array([not window.has(level) for level in levels], dtype=bool)
        self.knows_window = window is not None
        self.size = len(self._costs)  # evaluations of the run
        self._changes: Collection[int] = ()
        self._computed: set[int] = set()  # indices

    def has(self, n: int) -> bool:
        """Whether evaluation n is one to compute."""
        return n in self._computed

    def foresee(self, changes: Collection[int]) -> None:
        """Something else is asked from these evaluations on, one or more. Once, and `place` after it."""
        self._changes = changes
        self._costs[min(changes) :] *= AFTER_CHANGE

    def place(self, now: int, left: int, follows: bool, factors: np.ndarray | float = 1.0) -> None:
        """Anew, from evaluation now on. left: how many may be computed; besides that one, where `follows` says that it
        was. factors: on the costs from there on. Where they do not suffice for the window, it has no effect any more.
        """
        costs, where = self._costs[now:] * factors, self._positions[now:]
        if not suffices(left, self._outside[now + follows :].tolist(), follows):
            self._outside = np.zeros(0, dtype=bool)
        if len(self._outside):
            costs = np.where(self._outside[now:], OUTSIDE, 1) * costs
        count = min(left if now == 0 and not follows else left + 1, len(where))
        if len(where) > 1:
            changes = [change - now for change in self._changes]
            self._computed = {now + k for k in place(costs, where, max(2, count), changes)}
