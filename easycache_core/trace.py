"""What happened, one record per evaluation."""

import math
from collections.abc import Sequence
from typing import TypedDict


class Record(TypedDict):
    """One evaluation.

    step: sampler step, from 0. sigma: noise level. computed: whether the network ran.
    input_change: ||x_n - x_(n-1)||. rate: k after the evaluation. error: E after it (0 where computed).
    output_norm: ||v_i|| of the last computed output. Of several streams or rows, the values of the one whose E was
    largest when it was last estimated. None where a value is not known or not finite.
    """

    step: int
    sigma: float | None
    computed: bool
    input_change: float | None
    rate: float | None
    error: float | None
    output_norm: float | None


def plain(number: float | None) -> float | None:
    """For a record: None where it is not finite."""
    return number if number is not None and math.isfinite(number) else None


def of_stream(numbers: Sequence[float] | None, stream: int) -> float | None:
    """For a record: the number of that stream, or the only one."""
    return plain(numbers[stream if len(numbers) > 1 else 0]) if numbers else None
