"""Where in the schedule evaluations may be skipped (`start_percent` and `end_percent`)."""

from collections.abc import Sequence
from typing import NamedTuple

from .config import MAX_SPEEDUP
from .steps import ROUNDING


class Window(NamedTuple):
    """The noise levels between which evaluations may be skipped. levels: of each step, () where they are not known."""

    highest: float
    lowest: float
    levels: Sequence[float] = ()

    def has(self, sigma: float) -> bool:
        return self.lowest * (1 - ROUNDING) <= sigma <= self.highest * (1 + ROUNDING)


def suffices(left: int, outside: Sequence[bool], follows: bool) -> bool:
    """Whether so many computed evaluations are enough for all that lie outside of a window, and leave no longer gaps
    inside of it than the largest speed-up does. outside: whether each evaluation to come is. follows: whether they
    follow on a computed one.
    """
    if not any(outside):
        return True
    inside = len(outside) - sum(outside)
    computed = left - sum(outside)
    gaps = computed + outside[-1] - (not outside[0] and not follows)
    return computed >= 0 and inside - computed <= (MAX_SPEEDUP - 1) * max(gaps, 0)
