"""The other methods of the benchmark, each on a case with a known answer: a slip in one flatters ours."""

import pytest
import torch
from peers.foca import FoCa, calibrated_forecast
from peers.vde import VDE, joined, split


def test_vde_splits_along_and_across_the_input():
    """Catches a split whose parts do not add up, or that mixes the pictures of a batch."""
    x, velocity = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[2.0, 3.0], [1.0, 5.0]])
    parts = split(x, velocity)
    assert parts.alpha.flatten().tolist() == [2.0, 2.5]
    assert parts.beta.flatten().tolist() == [3.0, 0.5]
    assert parts.across.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    torch.testing.assert_close(joined(x, parts), velocity)


def test_vde_continues_its_coefficients_on_a_line():
    """Catches a line in the wrong variable: alpha is 2, 3, then 4.5 and beta 1, 2, then 3.5 at levels 1, 0.8, 0.5."""
    policy, across = VDE(total_steps=10, stable=1, interval=5), torch.tensor([[0.0, 1.0]])
    x = torch.tensor([[4.0, 0.0]])
    policy.store(0, 0, 1.0, x, 2.0 * x + 1.0 * 4 * across)
    policy.store(1, 0, 0.8, x, 3.0 * x + 2.0 * 4 * across)
    elsewhere = torch.tensor([[3.0, 4.0]])  # of length 5
    torch.testing.assert_close(policy.predict(0, 0.5, elsewhere), 4.5 * elsewhere + 3.5 * 5 * across)


@pytest.mark.parametrize(("interval", "computed"), [(3, 22), (4, 18), (5, 16)])
def test_vde_computes_as_many_steps_as_its_authors_say(interval, computed):
    """Catches a schedule other than theirs: FLUX, 50 steps, stable 6."""
    assert sum(VDE(50, 6, interval).wants(step) for step in range(50)) == computed


def test_foca_by_hand():
    """F_(k-1) = 1, F_k = 2, F'_full = 0.5: P = 8/3 - 1/3 + 2/3 = 3, its derivative 1; 2 + (0.5 + 1) / 2 = 2.75."""
    newest, before, full = torch.tensor(2.0), torch.tensor(1.0), torch.tensor(0.5)
    assert float(calibrated_forecast(newest, before, full)) == pytest.approx(2.75)


@pytest.mark.parametrize("recursive", [True, False])
def test_foca_follows_a_line(recursive):
    """Catches forecasts that drift where features change evenly, and steps that are counted wrongly."""
    policy, entering = FoCa(total_steps=12, interval=4, warmup=2, recursive=recursive), torch.tensor(10.0)
    computed = []
    for step in range(12):
        if policy.wants(step, 0, entering):
            computed.append(step)
            policy.store(step, 0, entering, entering + 3.0 * step)
        else:
            assert float(policy.predict(step, 0, entering)) == pytest.approx(10 + 3 * step)
    assert computed == [0, 1, 5, 9, 11]
