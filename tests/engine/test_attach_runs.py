"""attach over runs after one another, and over runs whose steps show on the way only."""

import copy
import io
import logging

import pytest
import torch
from text_network import TextNetwork

from easycache_core import CacheConfig, attach
from easycache_core.response import euler_response
from easycache_core.run_schedule import RunSchedule

STEPS = 30
BUDGET, THRESHOLD = CacheConfig(target_speedup=2), CacheConfig(threshold=0.1, warmup_steps=3)
REUSE = CacheConfig(target_speedup=2, predictor="reuse")
A, B = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.5, 0.0]])


class Network(TextNetwork):
    """A smooth velocity towards data that depend on a text; x is (1, tokens, 4), t a number or one per token."""

    def forward(self, x, t, text):
        t = torch.as_tensor(t)
        mixed = torch.tanh(self.mix(x) + self.text(text).reshape(1, 1, 4))
        return (x - 0.6 * mixed) / (0.3 + (t[..., None] if t.ndim else t))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def noise(seed=0, tokens=36):
    return torch.randn(1, tokens, 4, generator=torch.Generator().manual_seed(seed))


def levels(steps=STEPS, start=1.0, shift=1.0):
    t = torch.linspace(start, 0, steps + 1)
    return shift * t / (1 + (shift - 1) * t)


def pairs(times):
    return zip(times[:-1], times[1:], strict=True)


def euler(network, x, times):
    for t, following in pairs(times):
        a, b = network(x, t, A), network(x, t, B)
        x = x + (following - t) * (b + 2 * (a - b))
    return x


def off(got, exact):
    return float((got - exact).abs().mean() / exact.abs().mean())


@pytest.mark.parametrize("config", [BUDGET, THRESHOLD], ids=["budget", "threshold"])
@pytest.mark.parametrize("done", [2, 5, 18], ids=["given up early", "given up", "whole"])
def test_text_to_image_after_image_to_image_with_its_seed(done, config):
    """Catches two runs that are taken for one: of the same seed, the noise is in the last latent of the one, and the
    first of the other lies where its answers lead.
    """
    network, part = Network(), levels(18, 0.6)
    with attach(network, config, STEPS, sigma_of=float) as cache:
        alone, trace = euler(network, noise(), levels()), cache.trace
    with attach(network, config, STEPS, sigma_of=float) as cache:
        euler(network, (1 - part[0]) * noise(9) + part[0] * noise(), part[: done + 1])
        after = euler(network, noise(), levels())
    assert cache.trace == trace and torch.equal(after, alone)


@pytest.mark.parametrize(("texts", "limit"), [(2, 0.006), (3, 0.025)])
def test_a_budget_without_a_scheduler_for_questions_in_turn(texts, limit):
    """Catches budgets that count on all steps for each question, as where it is not known how many there are."""
    prompts = [A, B, 0.5 * (A - B)][:texts]

    def sample(network):
        x = noise()
        for n, (t, following) in enumerate(pairs(levels())):
            x = x + (following - t) * network(x, t, prompts[n % texts])
        return x

    exact, network = sample(Network()), Network()
    with attach(network, BUDGET, STEPS, sigma_of=float) as cache:
        got = sample(network)
    assert off(got, exact) < limit and cache.trace[-1]["computed"] and cache.computed <= STEPS / 2 + texts - 1


@pytest.mark.parametrize("shift", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("speedup", [2, 3])
def test_a_budget_without_a_scheduler(monkeypatch, speedup, shift):
    """Its first two timesteps show where a run goes, and so where skips cost least. Catches places as where nothing is
    known: worse than half as many steps with two trained models.
    """
    times, network, errors = levels(20, shift=shift), Network(), []
    exact = euler(network, noise(), times)
    for knows in (True, False):
        if not knows:
            monkeypatch.setattr(RunSchedule, "supposed", lambda self, first, second: None)
        with attach(network, CacheConfig(target_speedup=speedup), 20, sigma_of=float) as cache:
            errors.append(off(euler(network, noise(), times), exact))
        assert cache.computed <= -(-20 // speedup) and cache.trace[-1]["computed"]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("config", [BUDGET, REUSE, THRESHOLD], ids=["budget", "reuse", "threshold"])
def test_a_video_and_sound_with_timesteps_of_their_own(config):
    """Catches steps that are counted for both together: the schedule is over half way through, and the last evaluation
    is predicted.
    """

    def sample(network):
        xs, times = [noise(), noise(1, 12)], [levels(shift=3.0), levels()]
        for steps in zip(*map(pairs, times), strict=True):
            moves = [(following - t) * network(x, t, A) for x, (t, following) in zip(xs, steps, strict=True)]
            xs = [x + move for x, move in zip(xs, moves, strict=True)]
        return xs

    network, exact = Network(), sample(Network())
    with attach(network, config, STEPS, sigma_of=float) as cache:
        got = sample(network)
    flags = [record["computed"] for record in cache.trace]
    assert all(flags[-2:]) and [record["step"] for record in cache.trace[-2:]] == [STEPS - 1] * 2
    assert flags[STEPS:].count(False) > STEPS / 4 and max(map(off, got, exact)) < 0.03


@pytest.mark.parametrize("config", [BUDGET, THRESHOLD], ids=["budget", "threshold"])
@pytest.mark.parametrize("groups", [2, 6])
def test_frames_that_are_further_on_than_others(groups, config):
    """As in diffusion forcing. Catches steps of which the largest timestep stays, being taken for latents in turn."""
    lag, base = 5, levels()
    total = STEPS + lag * (groups - 1)

    def at(step):
        each = [base[min(max(step - lag * group, 0), STEPS)] for group in range(groups)]
        return torch.stack(each).repeat_interleave(36 // groups)[None]

    def sample(network):
        x = noise()
        for step in range(total):
            x = x + (at(step + 1) - at(step))[..., None] * network(x, at(step), A)
        return x

    network, exact = Network(), sample(Network())
    with attach(network, config, total, sigma_of=float) as cache:
        got = sample(network)
    assert len(cache.trace) == total and cache.trace[-1]["computed"]
    assert cache.skipped > total / 4 and off(got, exact) < 0.03


@pytest.mark.parametrize("steps", [4, 8, 10])
@pytest.mark.parametrize("config", [BUDGET, REUSE], ids=["forecast", "reuse"])
def test_few_steps_that_renew_the_noise(config, steps, caplog):
    """Catches a last evaluation that is predicted, as what could not be told from another latent took its budget."""
    caplog.set_level(logging.INFO)
    generator, network, x = torch.Generator().manual_seed(7), Network(), noise()
    with attach(network, config, steps, sigma_of=float) as cache:
        for t, following in pairs(levels(steps)):
            denoised = x - t * network(x, t, A)
            x = (1 - following) * denoised + following * torch.randn(x.shape, generator=generator)
    assert cache.trace[-1]["computed"]
    assert cache.computed <= steps / 2 or "more evaluations are computed than target_speedup allows" in caplog.text


@pytest.mark.parametrize("every", [2, 3, 4])
def test_a_negative_that_is_kept_for_some_steps(every):
    """Catches one that is predicted from far back: what is missed once is missed at all steps that it is kept for. All
    of its answers predicted by half, they were further off than `reuse`.
    """

    def sample(network):
        x = noise()
        for n, (t, following) in enumerate(pairs(levels())):
            a = network(x, t, A)
            if n % every == 0:
                b = network(x, t, B)
            x = x + (following - t) * (b + 3 * (a - b))
        return x

    exact, network, found = sample(Network()), Network(), {}
    for name, config in dict(forecast=BUDGET, reuse=REUSE).items():
        with attach(network, config, STEPS, sigma_of=float) as cache:
            found[name] = off(sample(network), exact)
        assert cache.skipped > 0.37 * len(cache.trace)
    assert found["forecast"] < min(0.025, found["reuse"])


@pytest.mark.parametrize(("every", "until"), [(4, 15), (5, 21)])
def test_a_negative_that_is_kept_in_a_part_of_the_run(every, until):
    """And asked at each step from there on. Catches a budget that has not heard of all evaluations: the last one of the
    negative was predicted.
    """
    network, x, times = Network(), noise(), levels()
    with attach(
        network, CacheConfig(target_speedup=3), STEPS, sigma_of=float, response=euler_response(times.tolist())
    ) as cache:
        for n, (t, following) in enumerate(pairs(times)):
            a = network(x, t, A)
            if n % every == 0 or n >= until:
                b = network(x, t, B)
            x = x + (following - t) * (b + 2 * (a - b))
    assert [one["computed"] for one in cache.trace if one["step"] == STEPS - 1] == [True] * 2


@pytest.mark.parametrize("latents", [1, 2])
def test_a_run_that_ends_early_is_said(latents, caplog):
    """Catches a last evaluation that was predicted, without a word: it was not known to be the last."""
    network, xs = Network(), [noise(seed) for seed in range(latents)]
    with attach(network, CacheConfig(target_speedup=3), STEPS, sigma_of=float) as cache:
        for t, following in pairs(levels()[:21]):
            xs = [x + (following - t) * network(x, t, A) for x in xs]
    assert not cache.trace[-1]["computed"]
    assert "the last of 20 evaluations was predicted, as total_steps=30" in caplog.text


@pytest.mark.parametrize(("config", "level"), [(BUDGET, "WARNING"), (REUSE, "WARNING"), (THRESHOLD, "INFO")])
def test_a_run_that_ends_early_with_a_computed_evaluation(config, level, caplog):
    """Catches silence about a budget that was placed among 50 steps of which 20 came."""
    caplog.set_level(logging.INFO)
    network, x, times = Network(), noise(), levels(20)
    with attach(network, config, 50, sigma_of=float) as cache:
        for n, (t, following) in enumerate(pairs(times)):
            v = network(x, t, A)
            x = x + (following - t) * v
            if n > 6 and cache.trace[-1]["computed"]:
                break
    assert cache.skipped and cache.trace[-1]["computed"]
    (said,) = [record for record in caplog.records if "total_steps=50 were expected" in record.message]
    assert f"{len(cache.trace)} evaluations" in said.message and said.levelname == level


@pytest.mark.parametrize("total", [8, 12, 19])
@pytest.mark.parametrize("known", [{}, dict(response=euler_response(levels(20).tolist()))], ids=["", "response"])
@pytest.mark.parametrize("config", [BUDGET, CacheConfig(target_speedup=3), REUSE, THRESHOLD], ids=str)
def test_a_run_that_goes_on_past_total_steps(config, known, total, caplog):
    """Under a threshold; a budget is kept. Catches a log that says that they all are, though every second one is
    predicted, and the last one of all without a word.
    """
    caplog.set_level(logging.INFO)
    with attach(network := Network(), config, total, sigma_of=float, **known) as cache:
        euler(network, noise(), levels(20))
    flags = [record["computed"] for record in cache.trace]
    assert len(flags) == 20 and not all(flags[:total])
    said, *at_the_end = [record.message for record in caplog.records if "total_steps" in record.message]
    assert f"evaluations after total_steps={total} are computed" in said
    assert all(flags[total:]) or "as often as target_speedup says" in said
    assert any("the last of 20 evaluations was predicted" in line for line in at_the_end) == (not flags[-1])
    assert all(flags[total:]) or config is not THRESHOLD


def test_a_run_that_is_given_up_is_not_told_of(caplog):
    """Catches a warning about a run of which nobody keeps the result."""
    network = Network()
    with pytest.raises(KeyboardInterrupt), attach(network, CacheConfig(target_speedup=3), STEPS, sigma_of=float):
        euler(network, noise(), levels()[:21])
        raise KeyboardInterrupt
    assert "was predicted" not in caplog.text


def test_gradients_that_nobody_asked_for_are_said(caplog):
    """Catches a network that is never answered for, without a word: its weights make a graph of the whole run."""
    caplog.set_level(logging.INFO)
    with torch.enable_grad(), attach(network := Network(), BUDGET, STEPS, sigma_of=float):
        euler(network, noise(), levels())
    assert "torch.no_grad()" in caplog.text


def saved_and_loaded(network):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_a_copy_of_an_attached_module(copied):
    """Catches a module that cannot be copied, and a copy that is answered from the cache of the other one."""
    network = Network()
    with attach(network, BUDGET, STEPS, sigma_of=float) as cache:
        other = copied(network)
        got = euler(other, noise(), levels())
        assert not cache.trace
        euler(network, noise(), levels())
    assert cache.skipped and torch.equal(got, euler(network, noise(), levels()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("places", [range(STEPS), [8], [9]], ids=["all", "one", "the next one"])
def test_a_noise_level_that_is_no_number(bad, places, caplog):
    """Catches the latent being blamed for what sigma_of says, and a prediction for a level that is none: it would make
    NaN of the latent.
    """
    caplog.set_level(logging.INFO)
    known = {float(t): n for n, t in enumerate(levels()[:-1])}
    with attach(network := Network(), BUDGET, STEPS, sigma_of=lambda t: bad if known[t] in places else t) as cache:
        latent = euler(network, noise(), levels())
    assert f"is {bad}, which is no noise level" in caplog.text and latent.isfinite().all()
    assert all(cache.trace[place]["computed"] for place in places)
