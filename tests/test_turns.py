"""What is left of a product when one of its parameters is taken in turn."""

import itertools
from collections import Counter

import pytest
from turns import has_its_turn


@pytest.mark.parametrize("others", [(42,), (2, 42), (65,)])
@pytest.mark.parametrize("number", [2, 3])
def test_nothing_is_left_out_but_combinations(number, others):
    """Catches a sampler that no test takes any more, and a value that has its turn with one of two models only."""
    choices = {"in turn": range(number), **{f"other {i}": range(size) for i, size in enumerate(others)}}
    product = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    chosen = [values for values in product if has_its_turn("in turn", values, choices)]
    assert Counter(tuple(values.values())[1:] for values in chosen) == Counter(itertools.product(*map(range, others)))
    times = Counter(values["in turn"] for values in chosen)
    assert len(times) == number and max(times.values()) - min(times.values()) <= 1
    with_the_first = Counter((values["in turn"], values["other 0"]) for values in chosen)
    assert len(with_the_first) == (number * others[0] if len(others) > 1 else others[0])
