"""Prompts that alternate from step to step: parts of one conditioning, each with its range of noise levels, that come
back again and again.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ..easycache_core.budget import budget_of
from ..easycache_core.config import MAX_SPEEDUP
from .identities import fingerprint
from .schedule_switches import entries_of, spans_of

RANGE = ("uuid", "start_percent", "end_percent", "timestep_start", "timestep_end")  # of a part; the rest is asked


class Alternation:
    """What is active at which noise level, where that alternates: each of these is a question of its own then.

    conds: as schedule_switches.Switches takes them. sigmas: of the run's evaluations, on the host; () where
    nobody knows. switches: how often something else becomes active. Waits for the device if that is often.
    """

    def __init__(self, conds: dict, sigmas: Sequence[float]):
        self._parts = [(part, spans_of(part)) for part in entries_of(conds)]
        self._names: list = [id(part) for part, _ in self._parts]
        self._there = [self.active_at(sigma) for sigma in sigmas]
        self.switches = sum(before != after for before, after in pairwise(self._there))
        if self.switches > 3:  # parts of the same content may take turns
            asked = [{key: value for key, value in part.items() if key not in RANGE} for part, _ in self._parts]
            self._names = [fingerprint(one) for one in asked]
            self._there = [self.active_at(sigma) for sigma in sigmas]
        # So that most of them come back more than once: what does so just once had better go on as one question.
        self.found = self.switches >= 2 * len(set(self._there))

    def active_at(self, sigma: float) -> tuple:
        """What is active at this noise level."""
        return tuple(self._active_at(sigma))

    def _active_at(self, sigma: float) -> Iterator[tuple]:
        for name, (_, spans) in zip(self._names, self._parts, strict=True):
            part, *nets = [(start is None or sigma <= start) and (end is None or sigma >= end) for start, end in spans]
            if part:
                yield name, *nets

    def evaluations(self, active: tuple) -> list[int]:
        """Indices of the evaluations at which these are."""
        return [n for n, there in enumerate(self._there) if there == active]

    def share(self, active: tuple, target_speedup: float) -> float:
        """target_speedup of these evaluations, so that all together keep it."""
        first = self._there.index(active)
        before = sum(self._there.index(there) < first for there in self._there)
        count = len(self.evaluations(active))
        allowed = budget_of(before + count, target_speedup) - budget_of(before, target_speedup)
        return min(count / max(allowed, 1), MAX_SPEEDUP)
