"""Whether a latent is where its answers lead it, is turned, or has new noise."""

import pytest
import torch

from easycache_core.path import Path

STEPS = 12
SHAPES = [(1, 4, 24, 24), (2, 4, 20, 28), (1, 8, 12, 8, 10)]
TURNS = {
    "rolled": lambda x: x.roll(3, -1),
    "rolled along both sides": lambda x: x.roll((3, 5), (-1, -2)),
    "flipped": lambda x: x.flip(-2),
    "rotated": lambda x: x.flip((-1, -2)),
    "rolled in time": lambda x: x.roll(1, 2),
}


def smooth(shape, generator):
    x = torch.randn(shape, generator=generator)
    for axis in range(2, len(shape)):
        x = sum(x.roll(by, axis) for by in range(-2, 3))
    return x / x.std()


def packed(x):
    """(batch, tokens, channels)"""
    return x.flatten(2).transpose(1, 2)


def seen(sampler, shape, turn=None, at_once=False, as_given=lambda x: x):
    """(leads to it, is turned) at each evaluation but the first. turn: of the latent, after each step. at_once: it is
    begun with the same look. as_given: how the network is given it.
    """
    generator = torch.Generator().manual_seed(1)
    x, picture, before = torch.randn(shape, generator=generator), smooth(shape, generator), None
    levels, path, found = torch.linspace(1, 0, STEPS + 1), Path(), []
    for sigma, following in zip(levels[:-1], levels[1:], strict=True):
        if path:
            given = [as_given(x)]
            found.append((path.leads_to(given), path.go_on(given) if at_once else path.is_rearranged(given)))
        if not at_once or not path:
            path.begin([as_given(x)])
        picture = 0.97 * picture + 0.15 * smooth(shape, generator)
        path.answer([as_given((x - picture) / sigma)])
        noise = torch.randn(shape, generator=generator)
        denoised = picture if before is None or sampler != "multistep" else 1.5 * picture - 0.5 * before
        before, x = picture, denoised + following / sigma * (x - denoised)
        if sampler == "renews the noise":
            x = (1 - following) * denoised + following * noise
        elif sampler == "adds noise of mean 0":
            x = 0.8 * x + 0.6 * following * (noise - noise.mean(list(range(2, noise.ndim)), keepdim=True))
        if turn is not None:
            x, picture, before = turn(x), turn(picture), turn(before)
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sampler", ["euler", "multistep"])
def test_where_a_sampler_goes(sampler, shape):
    """Catches a latent that is taken for another one, or a turned one, though its answers led it there."""
    assert seen(sampler, shape) == [(True, False)] * (STEPS - 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize("sampler", ["euler", "multistep"])
def test_a_latent_that_is_turned(sampler, turned, shape):
    """Catches a turn that is not seen: what is cached is then of a picture that lies another way."""
    assert all(is_turned for _, is_turned in seen(sampler, shape, TURNS[turned]))


@pytest.mark.parametrize("turned", [*TURNS, "rows in another order"])
@pytest.mark.parametrize("sampler", ["euler", "multistep"])
def test_packed_tokens_that_are_turned(sampler, turned):
    """Catches turns that are seen of five axes alone: FLUX, Qwen-Image and LTX are given tokens."""
    turn = TURNS.get(turned, lambda x: x.roll(1, 0))
    for shape in [(3, 16, 12, 16), (3, 64, 3, 8, 10)][: 2 if sampler == "euler" else 1]:
        assert all(is_turned for _, is_turned in seen(sampler, shape, turn, as_given=packed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sampler", ["renews the noise", "adds noise of mean 0"])
def test_new_noise_is_no_turn(sampler, shape):
    """Catches a sampler whose noise is taken for a turn: nothing would be skipped with it."""
    assert not any(is_turned for _, is_turned in seen(sampler, shape))


# As of Stable Audio and Hunyuan3D: (batch, channels, places).
SOUND = [(1, 64, 256), (2, 64, 40), (1, 64, 3072), (3, 8, 100)]


@pytest.mark.parametrize("shape", SOUND, ids=str)
@pytest.mark.parametrize("sampler", ["euler", "multistep", "renews the noise", "adds noise of mean 0"])
def test_sound_is_no_packed_tokens_that_are_turned(sampler, shape):
    """Catches sound, of which nothing would be skipped, as its channels are taken for tokens."""
    assert not any(is_turned for _, is_turned in seen(sampler, shape))


def test_packed_tokens_with_new_noise():
    """Catches a sampler whose noise is taken for a turn."""
    for shape in [(1, 16, 12, 16), (2, 64, 3, 8, 10)]:
        assert not any(is_turned for _, is_turned in seen("renews the noise", shape, as_given=packed))


def test_another_latent_is_no_turn():
    """Nor does the path lead there."""
    generator = torch.Generator().manual_seed(2)
    path = Path()
    path.begin([torch.randn(1, 4, 24, 24, generator=generator)])
    path.answer([torch.randn(1, 4, 24, 24, generator=generator)])
    other = torch.randn(1, 4, 24, 24, generator=generator)
    assert not path.leads_to([other]) and not path.is_rearranged([other])
    for shape in [(1, 4, 24, 20), (1, 96, 24)]:  # a part of it, or tokens
        assert not path.leads_to([torch.zeros(shape)]) and not path.is_rearranged([torch.zeros(shape)])
    assert not path.leads_to([other * torch.nan]) and not path.is_rearranged([other * torch.nan])


@pytest.mark.parametrize("turned", [None, *TURNS])
def test_an_evaluation_begins_with_the_look_at_it(turned):
    """Catches a look that says something else, or a beginning that keeps another latent, where both are one."""
    turn = turned and TURNS[turned]
    assert seen("euler", SHAPES[0], turn, at_once=True) == seen("euler", SHAPES[0], turn)


@pytest.mark.parametrize("every", [1, 2, 5], ids="one in {}".format)
def test_fourier_transforms_that_fail(monkeypatch, every):
    """A device may not have them at all, or run out of memory now and then. Catches an error in the middle of a run.
    What is flipped is still seen.
    """
    transform, calls = torch.fft.rfft2, []

    def failing(*args, **options):
        calls.append(None)
        if len(calls) % every == 0:
            raise NotImplementedError("not on this device") if every == 1 else torch.OutOfMemoryError("not now")
        return transform(*args, **options)

    monkeypatch.setattr(torch.fft, "rfft2", failing)
    shape = SHAPES[0]
    assert seen("euler", shape) == [(True, False)] * (STEPS - 1)
    assert all(is_turned for _, is_turned in seen("euler", shape, TURNS["flipped"]))
    assert len(seen("euler", shape, TURNS["rolled along both sides"])) == STEPS - 1  # which only they tell
