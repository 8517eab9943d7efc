"""attach where only a part of what the network gets is latent, and where a batch holds several pictures."""

import numpy as np
import pytest
import torch
from torch import nn

from easycache_core import CacheConfig, attach

STEPS, TOKENS = 30, 16
PAPER = CacheConfig(threshold=0.1, warmup_steps=1, predictor="reuse")
CONFIGS = {
    "paper": PAPER,
    "forecast": CacheConfig(threshold=0.1, warmup_steps=3),
    "budget": CacheConfig(target_speedup=3),
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Tokens(nn.Module):
    """A velocity of the tokens at `place`; what comes out for the others is noise, and nobody reads it."""

    def __init__(self, place):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.mix = nn.Linear(8, 8)
        self.place, self.ran = place, []
        self.eval()

    def forward(self, hidden_states, timestep, text):
        self.ran[-1] = True
        x, t = hidden_states[:, self.place].float(), timestep.reshape(-1, 1, 1)
        v = (x - 0.7 * torch.tanh(self.mix(x) + text) * (1 + 0.5 * torch.cos(5 * t))) / (0.3 + t)
        out = 8 * random(int(t.flatten()[0] * 1e6), *hidden_states.shape).to(hidden_states.dtype)
        out[:, self.place] = v
        return (out,)


def join(x, reference, place):
    """x at its place among the tokens of the reference."""
    return torch.cat([reference[:, : place.start], x, reference[:, place.start :]], 1)


def edit(network, references, place, guided=True, dtype=torch.float32, shift=1.0):
    """Euler's steps. references: at each step, (of the cond, of the uncond); without tokens for a plain run."""
    x = random(1, 1, TOKENS, 8).to(dtype)
    times = torch.linspace(1, 0, STEPS + 1)
    times = shift * times / (1 + (shift - 1) * times)
    for t, following, (of_cond, of_uncond) in zip(times[:-1], times[1:], references, strict=True):
        network.ran.append(False)
        place_of_x = place if of_cond.shape[1] else slice(0, TOKENS)
        v = network(join(x, of_cond, place_of_x), t.expand(1), torch.full((8,), 0.3))[0][:, place_of_x]
        if guided:
            uncond = network(join(x, of_uncond, place_of_x), t.expand(1), torch.zeros(8))[0][:, place_of_x]
            v = uncond + 2 * (v - uncond)
        x = (x + (following - t) * v.float()).to(dtype)
    return x


PLACES = {"first": slice(0, TOKENS), "last": slice(32, 32 + TOKENS), "between": slice(8, 8 + TOKENS)}
REFERENCE, NONE = random(2, 1, 32, 8), torch.zeros(1, 0, 8)


def cached(config, references, place, options=(), **how):
    network = Tokens(place if references[0][0].shape[1] else slice(0, TOKENS))
    with attach(network, config, STEPS, sigma_of=float, **dict(options)) as cache:
        x = edit(network, references, place, **how)
    return network.ran, x, cache


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("place", PLACES)
def test_an_edit_skips_what_it_would_without_its_reference(place, config):
    """Catches tokens of the picture to be edited having a say, from the first step on: what the network answers for
    them is noise here, which nobody reads.
    """
    place, config = PLACES[place], CONFIGS[config]
    alone, expected, _ = cached(config, [(NONE, NONE)] * STEPS, place)
    beside, x, cache = cached(config, [(REFERENCE, REFERENCE)] * STEPS, place)
    assert beside == alone and cache.skipped and len(cache.trace) == STEPS
    torch.testing.assert_close(x, expected)
    told, x, _ = cached(config, [(REFERENCE, REFERENCE)] * STEPS, place, dict(latent=np.s_[:, place]))
    assert told == alone
    torch.testing.assert_close(x, expected)


def test_an_edit_in_half_precision():
    """Catches tokens that are too coarse to move in a short step being taken for a reference."""
    how = dict(dtype=torch.bfloat16, shift=3.0, guided=False)
    alone, expected, _ = cached(PAPER, [(NONE, NONE)] * STEPS, PLACES["first"], **how)
    beside, x, _ = cached(PAPER, [(REFERENCE.bfloat16(), NONE)] * STEPS, PLACES["first"], **how)
    assert beside == alone and not all(alone)
    torch.testing.assert_close(x, expected, rtol=0.02, atol=0.02)


def test_no_reference_for_the_negative_prompt():
    """Catches an uncond that is shown a blank picture being answered from the wrong cache."""
    place = PLACES["first"]
    references = [(REFERENCE, torch.zeros_like(REFERENCE))] * STEPS
    exact = cached(CacheConfig(threshold=0.0), references, place)[1]
    _, x, cache = cached(CONFIGS["budget"], references, place)
    assert cache.skipped and (x - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_what_stood_still_and_moves_later(caplog):
    """Catches frames that join on the way (diffusion forcing) being answered with what came out for them when they
    stood still: once they have moved they are latent.
    """
    caplog.set_level("INFO")

    class Frames(nn.Module):
        def forward(self, x, t):
            return x * t.reshape(-1, 1, 1) + 0.1 * x.mean(1, keepdim=True)

    def sample():
        x, outputs = random(1, 1, 8, 4), []
        for n in range(STEPS):
            outputs.append(network(x, torch.full((1,), 1 - n / STEPS)))
            v = outputs[-1].clone()
            v[:, 4 if n < 15 else 8 :] = 0
            x = x - v / STEPS
        return torch.stack(outputs)

    network = Frames().eval()
    exact = sample()
    with attach(network, CacheConfig(target_speedup=2), STEPS, sigma_of=float) as cache:
        outputs = sample()
    off = (outputs - exact).abs().flatten(1).mean(1) / exact.abs().mean()
    assert cache.computed == STEPS / 2
    assert cache.trace[16]["computed"] and off[22:].max() < 0.05, "they moved first between 15 and 16"
    assert "more of the input moves" in caplog.text


@pytest.mark.parametrize(
    "latent", [np.s_[:, 2:2], np.s_[:, ::2], np.s_[1:], np.s_[:, :4, :2], np.s_[:, 1], np.s_[:, :, :, :4]]
)
def test_a_latent_that_is_no_piece_is_refused(latent):
    """Catches a mistake that shows as a crash in the middle of a run, or not at all."""
    with pytest.raises(ValueError, match="latent="):
        cached(PAPER, [(REFERENCE, REFERENCE)] * STEPS, PLACES["first"], dict(latent=latent))


class Pictures(nn.Module):
    """A velocity towards data that swing along the way, by how much depends on the picture."""

    def forward(self, x, t, swing):
        t = torch.as_tensor(t).reshape(-1, 1, 1, 1)
        return (x - 0.5 - swing.reshape(-1, 1, 1, 1) * torch.cos(9 * t) * torch.sin(x)) / (0.3 + t)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("scalar_time", [False, True])
@pytest.mark.parametrize("predictor", ["forecast", "reuse"])
def test_a_hard_picture_in_a_batch_is_as_good_as_alone(predictor, scalar_time, listed):
    """Catches the mean of a batch deciding: who draws eight at once gets the hard one worse than alone."""

    class Listed(Pictures):
        def forward(self, x, t, swing):
            return list(super().forward(torch.stack(list(x)), t, swing)) if listed else super().forward(x, t, swing)

    def flags(rows):
        x, swing = random(1, 8, 4, 4, 4)[rows], torch.tensor([0.6, *[0.01] * 7])[rows]
        network = Listed().eval()
        with attach(network, CacheConfig(threshold=0.1, predictor=predictor), STEPS, sigma_of=float) as cache:
            for n in range(STEPS):
                t = torch.tensor(1 - n / STEPS)
                v = network(list(x) if listed else x, t if scalar_time else t.expand(len(x)), swing)
                x = x - (torch.stack(v) if listed else v) / STEPS
        return [record["computed"] for record in cache.trace]

    easy, alone, together = flags(slice(1, 8)), flags(slice(0, 1)), flags(slice(0, 8))
    assert sum(easy) < sum(alone) <= sum(together)


def test_channels_are_no_batch():
    """Catches a latent without a batch axis having an error for each of its channels."""

    class Unbatched(nn.Module):
        def forward(self, x, t):
            return x * torch.linspace(0.2, 2, len(x)).reshape(-1, 1, 1) * torch.cos(6 * torch.as_tensor(t))

    def flags(x):
        network = Unbatched() if x.ndim == 3 else (batched := Unbatched())
        if x.ndim == 4:
            batched.forward = lambda x, t: Unbatched.forward(batched, x[0], t)[None]
        network.eval()
        with attach(network, CacheConfig(threshold=0.1), STEPS, sigma_of=float) as cache:
            for n in range(STEPS):
                x = x - network(x, 1 - n / STEPS) / STEPS
        return [record["computed"] for record in cache.trace]

    x = random(1, 4, 6, 6)
    assert flags(x) == flags(x[None])
