"""The grid of samplers and schedulers: which cells are measured, and what is held against what."""

import itertools
from collections import Counter

import grid
import pytest


def row(cell, **values):
    counts = dict.fromkeys(("forecast_evaluations", "reuse_evaluations", "fewer_steps", "fewer_evaluations"), 10)
    closeness = dict(forecast=40.0, reuse=35.0, fewer=41.0)
    given = dict(subject="sheet", seed=0, target_speedup=2.0, evaluations=20, **counts, **closeness)
    return grid.Row(**{**cell._asdict(), **given, **values})


def test_a_pairwise_sample_leaves_no_pair_out():
    """Catches a sampler that is never tried with a scheduler, or never at a number of steps or a CFG scale.

    And a sample nearly all of which has one CFG scale.
    """
    cells = grid.pairwise(grid.product())
    for i, j in itertools.combinations(range(len(grid.FACTORS)), 2):
        met = {(cell[i], cell[j]) for cell in cells}
        assert met == set(itertools.product(grid.FACTORS[i], grid.FACTORS[j]))
    assert len(cells) == len(set(cells)) < 110
    for i, values in enumerate(grid.FACTORS):
        often = Counter(cell[i] for cell in cells).values()
        assert max(often) < 1.5 * len(cells) / len(values)


@pytest.mark.parametrize(
    ("evaluations", "steps", "affordable", "expected"),
    [(20, 20, 7, 7), (39, 20, 13, 7), (39, 20, 14, 7), (39, 20, 39, 20), (8, 8, 0, 1)],
)
def test_fewer_steps_take_no_more_evaluations(evaluations, steps, affordable, expected):
    """Heun's 7 steps take 13 evaluations. Catches forecasts that are held against a run of twice the cost, or half."""
    assert grid.most_steps(evaluations, steps, affordable) == expected


def test_rows_come_back_from_the_file(tmp_path):
    """Catches a column that is written and read in two ways, after which no cell is known and all are run again."""
    path, cell = tmp_path / "grid.csv", grid.product()[5]
    grid.append(path, [row(cell)])
    grid.append(path, [row(cell, seed=1)])
    assert grid.read(path) == [row(cell), row(cell, seed=1)]


def test_rows_that_were_measured_anew_go_where_they_were(tmp_path):
    """Catches a table whose every line moves because a few cells were measured anew, and a row that is lost."""
    path, (first, second, *_) = tmp_path / "grid.csv", grid.product()
    rows = [row(cell, target_speedup=speedup) for cell in (first, second) for speedup in (1.3, 2.0)]
    grid.append(path, rows[2:])
    grid.append(path, rows[:2])
    grid.arrange(path)
    assert grid.read(path) == rows


def test_a_margin_is_over_the_better_of_the_others():
    """Catches a cell that counts as won because it beats the worse one; seeds are averaged first."""
    cell = grid.product()[0]
    found = grid.compared([row(cell), row(cell, seed=1, fewer=31.0, forecast=42.0)])
    assert found[cell, 2.0].margin == pytest.approx(41.0 - 36.0)


def test_models_are_told_of_apart():
    """Catches cells of one model in the averages of another."""
    cell = grid.product()[0]
    whole, second = grid.page([row(cell), row(cell, subject="video", forecast=45.0)]).split("\n## The model `video`\n")
    assert "| 2x | 1 | 0 | 1 | -1.0 | -1.0 |" in whole
    assert "| 2x | 1 | 0 | 0 | +4.0 | +4.0 |" in second
