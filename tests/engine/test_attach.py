"""attach: the cache on any module, called as samplers of all kinds call theirs."""

import contextlib
import dataclasses
import functools
import gc
import types
import weakref

import pytest
import torch
from paper_rule import Recorder, assert_the_papers, predictions_of_the_rule
from pretended_gpu import GPU, PretendedGpu, by_the_cpu
from text_network import TextNetwork
from torch import nn

from easycache_core import CacheConfig, CacheController, attach, euler_response
from easycache_core.attach import Attachment
from easycache_core.interface import Layout
from easycache_core.prediction import Prediction
from easycache_core.predictors import PREDICTORS

STEPS = 30
PAPER = CacheConfig(threshold=0.1, warmup_steps=5, predictor="reuse")
EXACT = CacheConfig(threshold=0.0, predictor="reuse")
TIMES = torch.linspace(1, 0, STEPS + 1)


class Network(TextNetwork):
    """A smooth velocity towards data that depends on a text; batch of (4, 2, 6, 6) latents."""

    def denoised(self, x, text):
        mixed = self.mix(x.movedim(1, -1)) + self.text(text)[:, None, None, None]
        return 0.6 * torch.tanh(mixed).movedim(-1, 1)

    def forward(self, x, t, text):
        return (x - self.denoised(x, text)) / (0.3 + torch.as_tensor(t).reshape(-1, *[1] * (x.ndim - 1)))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def noise(batch=1):
    return torch.randn(batch, 4, 2, 6, 6, generator=torch.Generator().manual_seed(1))


COND, UNCOND = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.5, 0.0]])


def guided(cond, uncond):
    return uncond + 3 * (cond - uncond)


def two_calls(network, x, t):
    return guided(network(x, t, COND), network(x, t, UNCOND))


def one_batch(network, x, t):
    return guided(*network(torch.cat([x, x]), t.expand(2), torch.cat([COND, UNCOND])).chunk(2))


def distilled(network, x, t):
    return network(x, t.expand(1), text=COND)


def euler(network, ask, x=None, times=TIMES):
    x = noise() if x is None else x
    for t, following in zip(times[:-1], times[1:], strict=True):
        x = x + (following - t) * ask(network, x, t)
    return x


def recorded(network, **options):
    return Recorder(network, network.mix, **options)


class NetworkOnGpu(Network):
    def forward(self, x, t, text):
        return by_the_cpu(super().forward, x, t, text)


@pytest.mark.parametrize("known", [True, False], ids=["its response is known", "nothing is known"])
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("ask", [two_calls, one_batch, distilled])
def test_on_a_gpu(ask, predictor, known):
    """As far as can be told without one. Catches tensors of the CPU among those of the GPU, and waits that add up: some
    are made at the beginning of an evaluation, one after the other, and none elsewhere.
    """
    config = CacheConfig(threshold=0.05, warmup_steps=5, predictor=predictor)
    options = dict(sigma_of=float, response=euler_response(TIMES.tolist()) if known else None)

    def sampled(kind, **placed):
        network = kind()
        with attach(network, config, STEPS, **options) as cache:
            x = euler(network, ask, noise().to(**placed), TIMES.to(**placed))
        return x, cache

    expected, here = sampled(Network, device="cpu")
    with PretendedGpu() as gpu:
        x, there = sampled(NetworkOnGpu, device=GPU)
    assert (there.computed, there.skipped) == (here.computed, here.skipped) and there.skipped
    torch.testing.assert_close(x.held, expected)
    assert len(gpu.reads) <= 7 * STEPS


@pytest.mark.parametrize(("ask", "calls"), [(two_calls, 2), (one_batch, 1), (distilled, 1)])
def test_decisions_are_the_papers_however_guidance_is_asked_for(ask, calls):
    """Catches an evaluation that is counted twice, a branch answered from the other's cache, and another rule."""
    network = Network()
    with recorded(network) as seen, attach(network, PAPER, STEPS, by_row=False) as cache:
        euler(network, ask)
    x, v, ran = seen.tracked(calls)
    assert_the_papers(x, v, ran, PAPER)
    assert (cache.computed, cache.skipped) == (sum(ran), STEPS - sum(ran))
    assert cache.speedup == STEPS / sum(ran)
    assert [record["computed"] for record in cache.trace] == ran
    assert all(seen.ran[n::calls] == ran for n in range(calls)), "branches of an evaluation share its decision"
    for expected, got in predictions_of_the_rule(seen.x[calls - 1 :: calls], seen.v[calls - 1 :: calls], ran):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ask", [two_calls, one_batch, distilled])
def test_threshold_zero_is_bit_identical(ask):
    """Catches a cache that changes what the network is given or what it answered."""
    network = Network()
    plain = euler(network, ask)
    with attach(network, EXACT, STEPS) as cache:
        assert torch.equal(euler(network, ask), plain)
    assert cache.speedup == 1


def test_rows_that_decide():
    """Catches `tracked` being ignored, or the rest of the batch getting another's prediction."""
    network = Network()
    for rows in (slice(0, 1), slice(1, 2)):
        with recorded(network) as seen, attach(network, PAPER, STEPS, tracked=rows):
            euler(network, one_batch)
        first = [[tensor[rows] for tensor in tensors] for tensors in (seen.x, seen.v)]
        assert_the_papers(*first, seen.ran, PAPER)
        for expected, got in predictions_of_the_rule(seen.x, seen.v, seen.ran):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="tracked"), attach(network, PAPER, STEPS, tracked=slice(2, 3)):
        euler(network, one_batch)


class Listed(Network):
    """As Wan's own code: lists of latents without a batch axis, some larger than others."""

    def forward(self, x, t, context):
        each = zip(x, t, context, strict=True)
        return [super(Listed, self).forward(u[None], s, text[None])[0] for u, s, text in each]


def test_lists_of_latents():
    """Catches lists that are stacked, answered in another form, or judged by their first latent alone."""
    network = Listed()
    parts = [noise()[0], noise()[0, :, :, :3] * 2]

    def sample():
        x = [part.clone() for part in parts]
        for now, following in zip(TIMES[:-1], TIMES[1:], strict=True):
            t = torch.stack([now, now])
            cond = network(x, t=t, context=COND.expand(2, -1))
            uncond = network(x, t=t, context=UNCOND.expand(2, -1))
            assert isinstance(cond, list) and [v.shape for v in cond] == [part.shape for part in parts]
            x = [u + (following - now) * guided(a, b) for u, a, b in zip(x, cond, uncond, strict=True)]
        return x

    def flat(tensors):
        return torch.cat([tensor.flatten() for tensor in tensors])

    plain = sample()
    with attach(network, EXACT, STEPS):
        assert torch.equal(flat(sample()), flat(plain))
    record = Recorder(network, network.mix, lambda args, kwargs: flat(args[0]), flat)
    with record as seen, attach(network, PAPER, STEPS):
        sample()
    assert_the_papers(*seen.tracked(2), PAPER)
    with record as seen, attach(network, PAPER, STEPS, tracked=slice(1, 2)):
        sample()


class Learned(Network):
    """As Open-Sora 1.2: a learned variance comes out beside the velocity, in further channels."""

    def forward(self, x, timestep, y, mask=None, x_mask=None, fps=None, height=None, width=None):
        v = super().forward(x, timestep / 1000, y)
        return torch.cat([v, v * 0 + timestep.reshape(-1, 1, 1, 1, 1)], 1)


def open_sora_1(network, steps=STEPS):
    z = noise()
    arguments = dict(mask=torch.ones(2, 3), fps=torch.tensor([24.0]), height=torch.tensor([48.0]), width=None)
    timesteps = [torch.tensor([1000 * (1 - i / steps)]) for i in range(steps)]
    for i, t in enumerate(timesteps):
        out = network(torch.cat([z, z]), torch.cat([t, t]), y=torch.cat([COND, UNCOND]), **arguments)
        pred, variance = out.chunk(2, dim=1)
        assert variance.shape == pred.shape and variance.unique().numel() == 1
        dt = (t - timesteps[i + 1] if i < steps - 1 else t) / 1000
        z = z - guided(*pred.chunk(2)) * dt[:, None, None, None, None]
    return z


def test_outputs_with_a_learned_variance():
    """Catches further channels of the output being lost, or being taken for a part of the latent."""
    network = Learned()
    plain = open_sora_1(network)
    with attach(network, EXACT, STEPS):
        assert torch.equal(open_sora_1(network), plain)
    record = Recorder(network, network.mix, v_of=lambda output: output[:, :4])
    with record as seen, attach(network, PAPER, STEPS, by_row=False):
        open_sora_1(network)
    assert_the_papers(seen.x, seen.v, seen.ran, PAPER)


class Packed(Network):
    """As Open-Sora 2.0: packed latents, and a batch of three for the guidance of text and image."""

    def forward(self, img, img_ids, txt, txt_ids, timesteps, y_vec, cond=None, guidance=None, **kwargs):
        x = (img + 0.1 * cond if cond is not None else img).movedim(-1, 1)[..., None, None]
        return super().forward(x, timesteps, txt)[..., 0, 0].movedim(1, -1)


def open_sora_2(network, steps=STEPS):
    img = noise().flatten(2).movedim(1, -1)
    still = dict(img_ids=None, txt_ids=None, y_vec=None, txt=torch.cat([COND, UNCOND, UNCOND]), guidance=torch.ones(3))
    times = torch.linspace(1, 0, steps + 1).tolist()
    for t, following in zip(times[:-1], times[1:], strict=True):
        picture = torch.cat([torch.ones(2, *img.shape[1:]), torch.zeros(1, *img.shape[1:])])
        pred = network(img=img.repeat(3, 1, 1), timesteps=torch.full((3,), t), cond=picture, **still)
        cond, uncond, nothing = pred.chunk(3)
        img = img + (following - t) * (nothing + 2 * (uncond - nothing) + 3 * (cond - uncond))
    return img


@pytest.mark.parametrize("tracked", [None, slice(0, 1)])
def test_a_batch_of_three_given_by_keywords(tracked):
    """Catches arguments being found by their place alone."""
    network = Packed()
    plain = open_sora_2(network)
    with attach(network, EXACT, STEPS):
        assert torch.equal(open_sora_2(network), plain)
    record = Recorder(network, network.mix, lambda args, kwargs: kwargs["img"])
    with record as seen, attach(network, PAPER, STEPS, tracked=tracked, by_row=False):
        open_sora_2(network)
    rows = tracked or slice(None)
    assert_the_papers([x[rows] for x in seen.x], [v[rows] for v in seen.v], seen.ran, PAPER)


class Animated(Network):
    """As image-to-video models: a picture follows the latent in further channels of the input."""

    def forward(self, x, t, text):
        return super().forward(x[:, :4] + 0.1 * x[:, 4:], t, text)


def test_inputs_with_a_picture_to_be_animated():
    """Catches the picture, which never changes, being counted as latent: rates would then be wrong."""
    network, picture = Animated(), noise()

    def ask(network, x, t):
        return distilled(network, torch.cat([x, picture], 1), t)

    plain = euler(network, ask)
    with attach(network, EXACT, STEPS):
        assert torch.equal(euler(network, ask), plain)
    record = recorded(network, x_of=lambda args, kwargs: args[0][:, :4])
    with record as seen, attach(network, PAPER, STEPS):
        euler(network, ask)
    assert_the_papers(seen.x, seen.v, seen.ran, PAPER)


@pytest.mark.parametrize("form", [dict, tuple, list])
def test_answers_have_the_form_that_the_network_gives_them(form):
    """Catches predictions that come bare where the caller unpacks a dict or a tuple, or reads a word beside it."""

    class Wrapped(Network):
        def forward(self, x, t, text):
            v = super().forward(x, t, text)
            return {"x": v, "note": None} if form is dict else form([v, None])

    network = Wrapped()

    def ask(network, x, t):
        answer = distilled(network, x, t)
        assert type(answer) is form and len(answer) == 2
        v, note = answer.values() if form is dict else answer
        assert note is None
        return v

    with attach(network, PAPER, STEPS) as cache:
        euler(network, ask)
    assert cache.skipped


def heun(network, x, times=TIMES):
    for t, following in zip(times[:-1], times[1:], strict=True):
        slope = two_calls(network, x, t)
        there = x + (following - t) * slope
        if following > 0:
            slope = (slope + two_calls(network, there, following)) / 2
        x = x + (following - t) * slope
    return x


@dataclasses.dataclass(frozen=True)
class Velocity:
    sample: torch.Tensor
    note: str = "word"


@pytest.mark.parametrize("kind", [Velocity, types.SimpleNamespace])
def test_answers_in_an_object_of_the_networks_own(kind):
    """Catches a network that is refused, or predictions of another kind, because its answers are dataclasses."""

    class Wrapped(Network):
        def forward(self, x, t, text):
            return kind(sample=super().forward(x, t, text))

    network = Wrapped()

    def ask(network, x, t):
        answer = distilled(network, x, t)
        assert type(answer) is kind and getattr(answer, "note", "word") == "word"
        return answer.sample

    plain = euler(network, ask)
    with attach(network, EXACT, STEPS):
        assert torch.equal(euler(network, ask), plain)
    with attach(network, PAPER, STEPS) as cache:
        euler(network, ask)
    assert cache.skipped


def test_a_network_within_an_attached_one():
    """Both are attached. Catches two caches whose errors add up."""

    class Outer(Network):
        def __init__(self):
            super().__init__()
            self.inner = Network()

        def forward(self, x, t, text):
            return self.inner(x, t, text)

    network = Outer()
    with attach(network, PAPER, STEPS) as alone:
        expected = euler(network, distilled)
    with attach(network, PAPER, STEPS) as cache, attach(network.inner, PAPER, STEPS) as inner:
        got = euler(network, distilled)
        network.inner(noise(), torch.tensor([1.0]), COND)
    assert torch.equal(got, expected) and cache.computed == alone.computed and len(inner.trace) == 1


def test_two_looks_at_one_timestep_are_two_evaluations():
    """Catches a second-order sampler's corrector being answered as if it were the uncond of the step before."""
    network = Network()
    evaluations = 2 * STEPS - 1
    with recorded(network) as seen, attach(network, PAPER, evaluations) as cache:
        heun(network, noise())
    assert len(cache.trace) == evaluations
    assert_the_papers(*seen.tracked(2), PAPER)


def test_timesteps_that_half_precision_makes_equal():
    """Catches steps being told apart by their timestep alone: near 1 bfloat16 has no other number for the next one."""
    network = Network()

    def ask(network, x, t):
        t = t.to(torch.bfloat16).expand(1)
        return guided(network(x, t, COND), network(x.clone(), t, UNCOND))

    times = 17 * TIMES / (1 + 16 * TIMES)
    assert len(set(times.bfloat16().tolist())) < len(times)
    with recorded(network) as seen, attach(network, PAPER, STEPS) as cache:
        euler(network, ask, times=times)
    assert len(cache.trace) == STEPS
    assert_the_papers(*seen.tracked(2), PAPER)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tensors_that_are_overwritten(mode):
    """Catches aliases: a sampler may step in place, refill its timestep, and write over what the network returned."""
    network = Network()

    def in_place():
        x, t = noise(), torch.ones(1)
        for now, following in zip(TIMES[:-1], TIMES[1:], strict=True):
            t.fill_(now)
            cond, uncond = network(x, t, COND), network(x, t, UNCOND)
            x.add_(cond.sub_(uncond).mul_(3).add_(uncond), alpha=float(following - now))
            uncond.fill_(torch.nan)
        return x

    with mode():
        with attach(network, PAPER, STEPS) as cache:
            expected = euler(network, two_calls)
        with attach(network, PAPER, STEPS) as again:
            torch.testing.assert_close(in_place(), expected)
    assert cache.skipped == again.skipped > 0


def test_a_latent_changed_in_place_at_the_same_timestep():
    """Catches x being told by its identity: in inference mode nothing else says that it was overwritten."""
    network = Network()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), attach(network, PAPER, 4) as cache:
            x, t = noise(), torch.ones(1)
            for _ in range(4):
                distilled(network, x, t)
                x.mul_(0.9)
        assert len(cache.trace) == 4


FORECAST = dict(config=CacheConfig(target_speedup=2), sigma_of=float)


def test_requests_of_all_kinds_one_after_another():
    """A service attaches once: a warm-up of one step, then requests with other numbers of steps, sizes and batches.
    Catches a request that goes on with another one's state, or that is not cached since.
    """
    requests = {steps: noise() for steps in (1, STEPS, 20)} | {40: noise(2), 29: noise()[..., :3]}

    def sample(network, steps, x):
        return euler(network, distilled_in_rows, x, torch.linspace(1, 0, steps + 1))

    with attach(shared := Network(), total_steps=STEPS, **FORECAST) as cache:
        for steps, x in requests.items():
            together, computed = sample(shared, steps, x), cache.computed
            with attach(alone := Network(), total_steps=STEPS, **FORECAST) as own:
                assert torch.equal(together, sample(alone, steps, x)) and computed == own.computed, steps
            assert steps == 1 or computed <= 0.6 * steps


def distilled_in_rows(network, x, t):
    return network(x, t.expand(len(x)), COND.expand(len(x), -1))


class Prefilled(Network):
    """As models that keep keys and values of a prefix: the first call answers for that, too."""

    prefilled = False

    def forward(self, x, t, text, prefill=False):
        answer = super().forward(x, t, text)
        return torch.cat([torch.full_like(answer[:, :, :1], 9.0), answer], 2) if prefill else answer


def test_a_prefix_in_the_first_answer():
    """Catches an error, or a prefix that decides, where outputs have another shape from the second step on."""

    def ask(network, x, t):
        answers = [network(x, t, text, prefill=t == 1)[:, :, -2:] for text in (COND, UNCOND)]
        return guided(*answers)

    plain = euler(Prefilled(), ask)
    with attach(exact := Prefilled(), EXACT, STEPS):
        assert torch.equal(euler(exact, ask), plain)
    with attach(network := Prefilled(), total_steps=STEPS, **FORECAST) as cache:
        got = euler(network, ask)
    assert cache.computed <= STEPS / 2 and (got - plain).abs().mean() < 0.02 * plain.abs().mean()


@pytest.mark.parametrize("order", ["before", "within", "beyond"])
def test_weights_that_are_fetched_for_each_call(order):
    """Offloading replaces the module's forward, before attach, while it is entered, or until after it. Catches a cache
    that is never asked, one that looks at weights that are away, and a forward that is not put back.
    """
    network = Network()
    places = [(owner, name) for owner in network.modules() for name in dict(owner.named_parameters(recurse=False))]
    kept = [getattr(owner, name) for owner, name in places]

    def put(there):
        for (owner, name), one in zip(places, kept, strict=True):
            setattr(owner, name, one if there else nn.Parameter(torch.empty(one.shape, device="meta"), False))

    def offload():
        forward = network.forward

        def fetching(*args, **kwargs):
            put(True)
            try:
                return forward(*args, **kwargs)
            finally:
                put(False)

        network.forward = functools.update_wrapper(fetching, forward)
        put(False)

    plain = euler(Network(), two_calls)
    if order == "before":
        offload()
    with attach(network, total_steps=STEPS, **FORECAST) as cache:
        if order != "before":
            offload()
        got = euler(network, two_calls)
        if order == "within":
            network.forward = network.forward.__wrapped__
    assert cache.computed == STEPS / 2 and (got - plain).abs().mean() < 0.02 * plain.abs().mean()
    put(True)
    assert torch.equal(euler(network, two_calls), plain) and cache.computed == STEPS / 2


def test_runs_after_one_another():
    """Catches a second run that goes on from the first: its warm-up would be skipped, and the picture another."""
    network = Network()
    with attach(network, PAPER, STEPS) as cache:
        first = euler(network, two_calls)
        trace = cache.trace
        assert torch.equal(euler(network, two_calls), first)
        assert cache.trace == trace
        euler(network, two_calls, times=TIMES[:12])  # given up on the way
        assert len(cache.trace) == 11
        assert torch.equal(euler(network, two_calls), first)
        distilled(network, noise(), torch.tensor(0.5))
        cache.reset()
        assert torch.equal(euler(network, two_calls), first)


class FailsOnce(Network):
    fails = False

    def forward(self, x, t, text):
        if self.fails:
            self.fails = False
            raise MemoryError
        return super().forward(x, t, text)


@pytest.mark.parametrize("ask", [distilled, two_calls])
@pytest.mark.parametrize("given_up", [0, 1, 11], ids=["at once", "soon", "later"])
@pytest.mark.parametrize("start", [0.7, 1.0], ids=["from above", "from the same level"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_run_after_one_that_failed(ask, given_up, start, predictor):
    """Without a word to the cache, and by another schedule, which begins at a higher level or at the same one. Catches
    a run without a warm-up, and one whose last step is not where it is supposed.
    """
    config = CacheConfig(threshold=0.1, warmup_steps=5, predictor=predictor)
    schedule = TIMES**1.2
    with attach(network := FailsOnce(), config, STEPS, sigma_of=float) as cache:
        expected, trace = euler(network, ask, schedule[0] * noise(), schedule), cache.trace
    with attach(network := FailsOnce(), config, STEPS, sigma_of=float) as cache:
        x = start * euler(network, ask, noise().flip(-1), (start * TIMES)[: given_up + 1])
        network.fails = True
        with contextlib.suppress(MemoryError):  # where it is not predicted
            ask(network, x, start * TIMES[given_up])
        network.fails = False
        assert torch.equal(euler(network, ask, schedule[0] * noise(), schedule), expected)
        assert cache.trace == trace


def test_a_latent_whose_first_answer_fails():
    """Another one is there beside it. Catches an error of our own at the next step."""
    network, xs = FailsOnce(), (noise(), noise().flip(-1))
    with attach(network, PAPER, STEPS):
        network(xs[0], TIMES[0], COND)
        network.fails = True
        with pytest.raises(MemoryError):
            network(xs[1], TIMES[0], UNCOND)
        for x, text in zip(xs, (COND, UNCOND), strict=True):
            assert torch.equal(network(x, TIMES[1], text), Network()(x, TIMES[1], text))


@pytest.mark.parametrize("speedup", [4.6, 7.0])
@pytest.mark.parametrize("response", [None, euler_response(TIMES.tolist())], ids=["", "with a response"])
def test_guidance_that_begins_when_a_budget_is_spent(response, speedup):
    """Catches an uncond that is computed at each step, and never kept, beside a cond that is predicted from long ago:
    three quarters of the steps then cost a call, and count as computed.
    """
    steps = iter(range(STEPS))

    def ask(network, x, t):
        return two_calls(network, x, t) if next(steps) >= STEPS // 2 else distilled(network, x, t)

    with attach(Network(), CacheConfig(target_speedup=speedup), STEPS, sigma_of=float, response=response) as cache:
        euler(cache._module, ask)
    assert cache.computed <= -(-STEPS // speedup) + 3


def test_evaluations_past_the_end_are_computed(caplog):
    """Catches a wrong total_steps making a run restart, with its warm-up, or skip its real last step unnoticed."""
    network = Network()
    with recorded(network) as seen, attach(network, PAPER, STEPS - 5) as cache:
        euler(network, distilled)
    assert len(cache.trace) == STEPS and all(seen.ran[-6:])
    assert "total_steps=25" in caplog.text


def test_a_branch_that_joins_on_the_way_is_computed_until_it_is_known():
    """Catches guidance that sets in later being answered from a cache that has nothing, or something else, for it."""
    network = Network()
    late = [n >= 12 for n in range(STEPS)]
    steps = iter(late)

    def ask(network, x, t):
        return two_calls(network, x, t) if next(steps) else distilled(network, x, t)

    with recorded(network) as seen, attach(network, PAPER, STEPS):
        euler(network, ask)
    first = seen.ran[:12]
    pairs = list(zip(seen.ran[12::2], seen.ran[13::2], strict=True))
    assert not first[-1] and pairs[0] == (False, True) and pairs[1] == (True, True)
    assert all(cond == uncond for cond, uncond in pairs[1:]) and (False, False) in pairs


def test_batches_of_changing_size():
    """Catches predictions in the shape of an earlier batch: guidance may end and halve it."""
    network = Network()
    steps = iter(range(STEPS))

    def ask(network, x, t):
        return one_batch(network, x, t) if next(steps) < 15 else distilled(network, x, t)

    with attach(network, PAPER, STEPS) as cache:
        euler(network, ask)
    flags = [record["computed"] for record in cache.trace]
    assert not all(flags[:15]) and flags[15] and flags[16] and not all(flags[17:-1])


def test_half_precision():
    """Catches predictions in another type than the network's."""
    network = Network().bfloat16()
    record = recorded(network)
    with record as seen, attach(network, PAPER, STEPS) as cache:
        x = noise().bfloat16()
        for t, following in zip(TIMES[:-1], TIMES[1:], strict=True):
            v = network(x, t.bfloat16(), COND.bfloat16())
            assert v.dtype == torch.bfloat16
            x = (x.float() + (following - t) * v.float()).bfloat16()
    assert cache.skipped and seen.ran == [one["computed"] for one in cache.trace]


@pytest.mark.parametrize("failing", [False, True])
def test_the_module_is_left_as_it_was(failing):
    """Catches anything that stays behind, be it a forward, a hook, a latent or the module in what was yielded."""
    network = Network()
    network(noise(), 1.0, COND)
    before, tensors = dict(network.__dict__), _tensors()
    try:
        with attach(network, PAPER, STEPS) as cache:
            euler(network, two_calls, times=TIMES[:14])
            if failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert network.__dict__ == before and list(network.__dict__) == list(before)
    assert _tensors() == tensors
    assert len(cache.trace) == 13 and cache.skipped
    holders = [holder for holder in gc.get_referrers(network) if holder is cache.__dict__]
    assert not holders, "a trace that somebody keeps must not keep the network on its device"


def _tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def test_a_forward_of_the_module_s_own_is_put_back():
    """Catches modules that set self.forward themselves (Open-Sora 2.0, offloading hooks) losing it."""
    network = Network()
    own = network.forward = lambda x, t, text: Network.forward(network, x, t, text)
    with attach(network, PAPER, STEPS) as cache:
        euler(network, two_calls)
    assert cache.skipped and network.__dict__["forward"] is own


def test_a_forward_that_was_wrapped_meanwhile_stays_wrapped():
    """Catches the end of the cache tearing down what somebody else has put around it."""
    network = Network()
    calls = []
    with attach(network, PAPER, STEPS):
        inner = network.forward

        def outer(*args, **kwargs):
            calls.append(args)
            return inner(*args, **kwargs)

        network.forward = outer
    assert torch.equal(euler(network, two_calls), euler(Network(), two_calls))
    assert len(calls) == 2 * STEPS


class Fails(Network):
    """At the very first call, and once or twice at each second step: at its cond, its uncond, or both."""

    def __init__(self):
        super().__init__()
        self.faults = {(0, True), *((n, True) for n in range(1, STEPS, 4)), *((n, False) for n in range(1, STEPS, 2))}

    def forward(self, x, t, text):
        fault = round((1 - float(t)) * STEPS), text is COND
        if fault in self.faults:
            self.faults.remove(fault)
            raise MemoryError
        return super().forward(x, t, text)


def trying(call, *args):
    for _ in range(2):
        try:
            return call(*args)
        except MemoryError:
            pass
    return call(*args)


def each_call_again(network, x, t):
    return guided(trying(network, x, t, COND), trying(network, x, t, UNCOND))


def both_calls_again(network, x, t):
    return trying(two_calls, network, x, t)


@pytest.mark.parametrize("ask", [each_call_again, both_calls_again])
@pytest.mark.parametrize("response", [None, euler_response(TIMES.tolist())], ids=["", "with a response"])
@pytest.mark.parametrize(
    "config",
    [EXACT, PAPER, CacheConfig(target_speedup=2), CacheConfig(target_speedup=2, predictor="reuse")],
    ids=["exact", "reuse", "budget", "budget, reuse"],
)
def test_a_network_that_fails_and_is_asked_again(config, response, ask):
    """Makes no difference. Catches a half-done evaluation that is taken for a whole one, one that is counted and
    charged to a budget twice, and an answer that is not corrected when it is given again.
    """
    traces, results = [], []
    for network in (Network(), Fails()):
        with attach(network, config, STEPS, sigma_of=float, response=response) as cache:
            results.append(euler(network, ask))
            traces.append(cache.trace)
    assert len(network.faults) < len(Fails().faults) and torch.equal(*results)
    assert traces[0] == traces[1] and len(traces[0]) == STEPS


def test_a_network_that_fails_and_is_not_asked_again():
    """Catches a half-done evaluation that is taken for a whole one where its caller goes on without it."""
    network = Fails()
    network.faults = {(n, False) for n in range(1, STEPS, 3)}

    def ask(network, x, t):
        try:
            return two_calls(network, x, t)
        except MemoryError:
            return torch.zeros_like(x)

    with attach(network, CacheConfig(target_speedup=1.5, predictor="reuse"), STEPS) as cache:
        euler(network, ask)
        computed = [record["computed"] for record in cache.trace]
    failed = [n for n in range(1, STEPS, 3) if (n, False) not in network.faults]
    assert len(computed) == STEPS and failed and False in computed
    assert all(computed[n + 1] for n in failed[:-1])


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("no room"), RuntimeError("CUDA error: out of memory")])
@pytest.mark.parametrize("where", ["predict", "output", "store", "extra_channels", "network"])
@pytest.mark.parametrize("predictor", ["reuse", "forecast"])
def test_no_memory_costs_the_cache_not_the_run(monkeypatch, caplog, predictor, where, error):
    """Catches a pipeline that dies because there is no room for a prediction or a copy, or, twice in a row, for the
    network beside the cache: each is answered by the network, and the cache starts anew.
    """
    network, calls, failures = Network(), [], []

    def fails(function):
        def wrapped(*args, **kwargs):
            calls.append(None)
            if len(calls) - 10 in range(2 if where == "network" else 1):
                failures.append(None)
                raise error
            return function(*args, **kwargs)

        return wrapped

    owners = {
        "predict": CacheController, "store": PREDICTORS[predictor], "output": Prediction, "extra_channels": Layout,
    }  # fmt: skip
    config = CacheConfig(threshold=0.2, warmup_steps=5, predictor=predictor)
    with attach(network, config, STEPS, sigma_of=float) as cache:
        if where == "network":
            monkeypatch.setattr(cache, "_network", fails(cache._network))
        else:
            monkeypatch.setattr(owners[where], where, fails(getattr(owners[where], where)))
        x = euler(network, two_calls)
    exact = euler(Network(), two_calls)
    with attach(network, config, STEPS, sigma_of=float):
        usual = euler(network, two_calls)
    assert (x - exact).abs().mean() < 1.2 * (usual - exact).abs().mean()
    assert bool(failures) == (where != "output" or predictor == "forecast"), "only forecasts are converted back"
    said = "out of memory" if where == "network" else "no memory left"
    assert sum(said in message for message in caplog.messages) == len(failures)
    assert cache.computed + cache.skipped == STEPS and cache.skipped


def test_memory_that_is_short_for_a_moment():
    """Makes no difference. Catches a cache that is given up though the network has room beside it a moment later, and
    the tensors of the call that failed being held while it runs again.
    """
    tensors, results = [], []

    class Short(Network):
        calls = 0

        def forward(self, x, t, text):
            self.calls += 1
            if self.calls in faults:
                activations = x * 2
                tensors.append(weakref.ref(activations))
                raise torch.cuda.OutOfMemoryError("no room")
            assert not any(one() is not None for one in tensors)
            return super().forward(x, t, text)

    for faults in ([], [3, 6, 10]):  # noqa: B007
        with attach(Short(), CacheConfig(target_speedup=2), STEPS, sigma_of=float) as cache:
            results.append((euler(cache._module, two_calls), cache.trace))
    (smooth, trace), (short, short_trace) = results
    assert torch.equal(smooth, short) and trace == short_trace and len(tensors) == 3


def test_training_and_gradients():
    """Catches a network being trained on cached outputs, and a gradient with respect to x or a prompt that is none."""
    network = Network().train()
    with torch.enable_grad(), attach(network, PAPER, STEPS):
        with pytest.raises(RuntimeError, match="eval"):
            distilled(network, noise(), torch.ones(()))
        network.eval()
        assert distilled(network, noise(), torch.ones(())).requires_grad
        x = noise().requires_grad_()
        for t in TIMES[:-1]:
            (gradient,) = torch.autograd.grad(distilled(network, x, t).sum(), x)
            assert gradient.abs().sum() > 0
            text = COND.clone().requires_grad_()
            for prompt in (text, 2 * text):
                (gradient,) = torch.autograd.grad(network(t * noise(), t.expand(1), prompt).sum(), text)
                assert gradient.abs().sum() > 0
    network.eval()

    def carried(x, t):  # forwards
        return torch.func.jvp(lambda x: distilled(network, x, t), (x,), (torch.ones_like(x),))[1]

    seen = []
    with attach(network, PAPER, STEPS) as cache:
        euler(network, lambda network, x, t: seen.append((x, t, carried(x, t))) or distilled(network, x, t))
    assert cache.skipped and all(torch.equal(slope, carried(x, t)) for x, t, slope in seen)
    tensors = _tensors()
    with torch.enable_grad(), attach(network, PAPER, STEPS) as cache:
        euler(network, lambda *call: distilled(*call).detach())
        assert cache.skipped
    assert _tensors() == tensors


def flow_of(denoised):
    return lambda x, sigma: (x - denoised(x, sigma)) / sigma


NOISY = CacheConfig(threshold=0.05, warmup_steps=4)  # forecasts


class Speaks(nn.Module):
    """One denoiser in all the terms in which networks speak; x and t as such networks get them."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction, self.core = prediction, Network()

    def forward(self, x, t):
        sigma = float(t)
        c = (1 + sigma**2) ** 0.5
        flow = self.prediction in ("flow", "reverse_flow")
        noisy = x if flow else c * x
        # The same function of noise level and of noisy latent for all, both in the terms of D + sigma noise.
        denoised = self.core.denoised(noisy / (1 + sigma), COND)
        derivative = (noisy - denoised) / sigma
        if self.prediction == "v_prediction":
            return (derivative - sigma * denoised) / c
        return -derivative if self.prediction == "reverse_flow" else derivative


def follow(prediction, config, sigmas):
    """Euler's steps on D + sigma noise; the network is given what it is used to."""
    network, noisy = Speaks(prediction), noise() * sigmas[0]
    with attach(network, config, len(sigmas) - 1, sigma_of=float, prediction=prediction) as cache:
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            sigma, c = float(sigma), (1 + float(sigma) ** 2) ** 0.5
            flow = prediction in ("flow", "reverse_flow")
            v = network(noisy if flow else noisy / c, torch.tensor(sigma))
            if prediction == "v_prediction":  # x = noisy / c, D = x / c - sigma / c v
                derivative = (noisy - (noisy / c**2 - sigma / c * v)) / sigma
            else:
                derivative = -v if prediction == "reverse_flow" else v
            noisy = noisy + (float(following) - sigma) * derivative
    return noisy, cache


def test_forecasts_are_the_same_in_all_terms():
    """Catches a wrong formula for what a network predicts: the denoised latent would then be another."""
    sigmas = torch.linspace(1, 0, STEPS + 1)
    exact, _ = follow("flow", CacheConfig(threshold=0.0), sigmas)
    expected, reference = follow("flow", NOISY, sigmas)
    assert reference.skipped > STEPS / 3
    assert (expected - exact).abs().mean() < 0.02 * exact.abs().mean()
    for prediction in ("reverse_flow", "epsilon", "v_prediction"):
        got, cache = follow(prediction, NOISY, sigmas)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
        assert [one["computed"] for one in cache.trace] == [one["computed"] for one in reference.trace]


def test_a_budget_and_the_options_of_the_controller():
    """Catches options that do not reach the controller."""
    network = Network()
    config = CacheConfig(target_speedup=3)
    with attach(network, config, STEPS, sigma_of=float) as cache:
        euler(network, two_calls)
    assert cache.computed == 10
    with attach(network, config, STEPS, sigma_of=float, step_count_known=False) as cache:
        euler(network, two_calls)
    assert cache.computed <= 10
    with pytest.raises(TypeError, match="unheard_of"), attach(network, config, STEPS, sigma_of=float, unheard_of=1):
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(config=CacheConfig()), "sigma_of"),
        (dict(total_steps=0), "total_steps"),
        (dict(input="img"), "input='img'"),
        (dict(time="clock"), "time='clock'"),
        (dict(prediction="x0"), "prediction"),
        (dict(input="x", time="x"), "time='x'"),
        (dict(config=dict(threshold=0.1)), "config"),
        (dict(sigma_of=0.5), "sigma_of"),
        (dict(tracked=0), "tracked"),
        (dict(scheduler="euler"), "scheduler"),
        (dict(response=[1, 2]), "response"),
        (dict(by_row="all"), "by_row"),
        (dict(ranks=3), "ranks"),
        (dict(denoised=True), "denoised"),
    ],
)
def test_bad_arguments_are_named(options, said):
    """Catches a mistake that shows as a crash within the network, or not at all; the module stays as it was."""
    network = Network()
    before = dict(network.__dict__)
    options = {"config": PAPER, "total_steps": 5, **options}
    with pytest.raises((ValueError, TypeError), match=said), attach(network, **options):
        pass
    assert network.__dict__ == before


def test_a_run_that_begins_once_the_module_is_left(monkeypatch):
    """Catches a controller, and with ranks a run that others wait for, that nobody uses or releases any more; and a
    trace that is gone.
    """
    made, new = [], Attachment._new_controller
    monkeypatch.setattr(Attachment, "_new_controller", lambda self: made.append(new(self)) or made[-1])
    network = Network()
    with attach(network, PAPER, 5) as cache:
        network(torch.randn(1, 4, 2, 6, 6), torch.ones(1), torch.ones(1, 3))
    known = len(made)
    cache.reset()
    assert len(made) == known and len(cache.trace) == 1


def test_attached_twice():
    """Catches two caches on top of each other, which add up their errors."""
    network = Network()
    with attach(network, PAPER, STEPS):
        with pytest.raises(ValueError, match="already"), attach(network, PAPER, STEPS):
            pass
        euler(network, distilled)


def test_a_network_that_is_no_module_is_refused_with_what_to_do():
    """Catches an AttributeError in the face of somebody whose network is a function, or one of JAX."""
    with pytest.raises(TypeError, match=r"torch.nn.Module, got function; wrap"), attach(lambda x, t: x, PAPER, STEPS):
        pass


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda v: None, "no tensor"),
        (lambda v: (v, v), "2 tensors"),
        (lambda v: v.flatten(2), "each element"),
        (lambda v: v[:, :2, :, :3], "each element"),
    ],
)
def test_outputs_that_are_no_prediction_are_refused(answer, said):
    """Catches a network of another kind getting nonsense in place of its output."""

    class Odd(Network):
        def forward(self, x, t, text):
            return answer(super().forward(x, t, text))

    network = Odd()
    with attach(network, PAPER, STEPS), pytest.raises(ValueError, match=said):
        distilled(network, noise(), torch.ones(()))
    with attach(network, PAPER, STEPS), pytest.raises(TypeError, match="str"):
        network("x", 1.0, COND)
    with attach(network, PAPER, STEPS), pytest.raises(TypeError, match="'t'"):
        network(noise())


@pytest.mark.parametrize("way", ["in place", "around", "data parallel"])
def test_networks_within_wrappers(way):
    """Catches the decision being traced into a compiled network's graph, anew in every step; and hidden arguments."""
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    network = Network()
    torch._dynamo.reset()
    if way == "in place":
        network.compile(backend=backend, fullgraph=True)
    elif way == "around":
        network = torch.compile(network, backend=backend)
    else:
        network = nn.DataParallel(network)
    before = dict(network.__dict__)
    with attach(network, PAPER, STEPS) as cache:
        euler(network, one_batch)
    assert network.__dict__ == before
    expected = Network()
    with attach(expected, PAPER, STEPS) as reference:
        euler(expected, one_batch)
    assert cache.skipped == reference.skipped > 0
    assert len(graphs) == (way != "data parallel"), "the network alone is one graph"
