"""A schedule that is cut into several runs."""

import json
import logging

import pytest
import tiny_models
import torch
from sampling import log_of, plain_prompt, schedule

pytestmark = pytest.mark.usefixtures("one_thread")


class Noise:
    """A NOISE node's output; None is no noise."""

    def __init__(self, seed):
        self.seed = seed or 0

    def generate_noise(self, latent):
        import comfy.sample

        samples = latent["samples"]
        if self.seed:
            return comfy.sample.prepare_noise(samples, self.seed)
        return comfy.sample.prepare_noise(samples, 0) * 0  # of whatever kind the latent is


@pytest.fixture
def run_pieces(comfy, caplog):
    """run_pieces(scene, model, pieces): runs one after the other. Returns (latent, noise levels computed, log lines).

    A piece is a dict: sigmas; seed (of its noise, None: no noise); output: what the next one gets, 0 for the noisy
    latent or 1 for the picture in it; between: what is done to that; positive; latent.
    """

    def run_pieces(scene, model, pieces, sampler="euler"):
        caplog.clear()
        scene.calls.clear()
        latent, sampler = scene.latent, comfy.node("KSamplerSelect", sampler)[0]
        with caplog.at_level(logging.INFO):
            for piece in pieces:
                guider = comfy.node("CFGGuider", model, piece.get("positive", scene.positive), scene.negative, 4.0)[0]
                latent = piece.get("latent", latent)
                noise = Noise(piece.get("seed"))
                outputs = comfy.node("SamplerCustomAdvanced", noise, guider, sampler, piece["sigmas"], latent)
                latent = outputs[piece.get("output", 0)]
                latent = {**latent, "samples": piece.get("between", lambda samples: samples)(latent["samples"])}
        return latent["samples"], {sigma for _, sigma, _ in scene.calls}, log_of(caplog)

    return run_pieces


def cut(sigmas, *ends, **of_each):
    """Pieces of a schedule: the first one with noise."""
    starts = [0, *ends[:-1]]
    pieces = [{"sigmas": sigmas[a : b + 1], **of_each} for a, b in zip(starts, ends, strict=True)]
    return [{"seed": 5, **pieces[0]}, *pieces[1:]]


def goes_on(lines):
    """For each run that was logged, the step at which it goes on, None if it does not."""
    seen = [line for line in lines if "evaluations, skipped" in line]
    return [int(line.split("at step ")[1].split()[0]) if "goes on" in line else None for line in seen]


def of_twenty_steps(comfy, scene):
    """Evenly for video models."""
    return schedule(comfy, scene, 20) if scene.latent["samples"].ndim == 4 else torch.linspace(1, 0, 21)


def rescale(samples):
    """As a sampler that keeps video and sound within bounds: each stream in its own way."""
    streams = getattr(samples, "tensors", [samples])
    streams = [samples * 0.25 + 0.1 if i else samples * 0.9 for i, samples in enumerate(streams)]
    if len(streams) == 1:
        return streams[0]
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(streams)


@pytest.mark.parametrize("handed_on", ["the noisy latent", "the picture, rescaled, with the same noise anew"])
@pytest.mark.parametrize("name", ["Flux", "LTXV", "LTXAV", "SD15"])
def test_a_schedule_cut_into_runs(comfy, tiny, run_pieces, name, handed_on):
    """Of 3, 3 and 14 steps. Catches a warm-up in each of them: half of what could be skipped is then computed."""
    from comfy import supported_models

    if not hasattr(supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    scene = tiny(name)
    sigmas = of_twenty_steps(comfy, scene)
    again = {} if handed_on == "the noisy latent" else dict(seed=5, output=1, between=rescale)
    pieces, widgets = cut(sigmas, 3, 6, 20, **again), dict(threshold=0.3, warmup_steps=5)
    plain, everywhere, _ = run_pieces(scene, scene.model, pieces)
    exact, _, lines = run_pieces(scene, comfy.cached(scene.model, threshold=0.0), pieces)
    streams = [getattr(samples, "tensors", [samples]) for samples in (plain, exact)]
    assert all(torch.equal(*pair) for pair in zip(*streams, strict=True)) and len(everywhere) == 20
    _, whole, _ = run_pieces(scene, comfy.cached(scene.model, **widgets), cut(sigmas, 20))
    _, computed, lines = run_pieces(scene, comfy.cached(scene.model, **widgets), pieces)
    assert goes_on(lines) == [None, 4, 7]
    assert 20 - len(computed) >= 0.75 * (20 - len(whole))
    levels = sorted(everywhere, reverse=True)
    assert {*levels[:5], *levels[6:8], levels[-1]} <= computed


def test_stages_of_a_schedule_and_their_report(comfy, tiny, run_pieces):
    """Two stages, the first one with noise left. The second one's report counts its own steps. Catches a stage whose
    last step is predicted: nothing in the next one makes up for it.
    """
    scene = tiny("SD15")
    sigmas = schedule(comfy, scene, 20)
    model = comfy.cached(scene.model, threshold=1.0, warmup_steps=6)
    latent, computed, lines = run_pieces(scene, model, cut(sigmas, 10, 20))
    assert goes_on(lines) == [None, 11]
    report = json.loads(comfy.node("EasyCacheReport", model, {"samples": latent})[2])
    assert report["steps"] == report["evaluations"] == 10 and report["warmup_steps"] == 6
    assert [record["step"] for record in report["trace"]] == list(range(10))
    assert [record["computed"] for record in report["trace"]][:3] == [True, True, False]
    assert report["trace"][-1]["computed"]
    levels = [round(float(sigma), 2) for sigma in sigmas]
    assert levels[9] in [round(sigma, 2) for sigma in computed]


@pytest.mark.parametrize(
    ("widgets", "reason"),
    [
        (dict(threshold=1.0), "each run starts with an empty cache"),
        (dict(target_speedup=2.0), "each run starts with an empty cache"),
        (dict(threshold=0.0), "threshold is 0"),
    ],
    ids=["threshold", "budget", "off"],
)
def test_one_step_at_a_time(comfy, tiny, run_pieces, widgets, reason):
    """Runs of one step. The cache starts anew in each, so there is nothing to predict from. Catches a log that blames
    the threshold, the warm-up or the budget: to change these would not help; with threshold 0 longer runs would not.
    """
    scene = tiny("SD15")
    pieces = cut(schedule(comfy, scene, 12), *range(1, 13))
    plain, _, _ = run_pieces(scene, scene.model, pieces)
    cached, _, lines = run_pieces(scene, comfy.cached(scene.model, **widgets), pieces)
    assert torch.equal(cached, plain)
    assert goes_on(lines) == [None, *range(2, 13)]
    assert all(f"Nothing was skipped: {reason}" in line for line in lines[4:]), lines


def not_continued(sigmas, scene, what):
    first, second = cut(sigmas, 8, 16)
    if what == "another latent":
        second["latent"] = {"samples": torch.randn(scene.latent["samples"].shape)}
    elif what == "noise of another seed":
        first["output"], second["seed"] = 1, 6
    elif what == "more noise on what is noisy":
        second["seed"] = 5
    elif what == "another noise level":
        second["sigmas"] = sigmas[9:]
    elif what == "another prompt":
        second["positive"] = plain_prompt(1)
    elif what == "other words":
        first["positive"], second["positive"] = plain_prompt(0), plain_prompt(0)
        for piece, place in ((first, 1), (second, 2)):
            piece["positive"][0][0][0, 0, place] = 1.0
    elif what == "a picture that was finished in between":
        first["sigmas"] = torch.cat([first["sigmas"][:-1], torch.zeros(1)])
    elif what == "a crop":
        first["between"] = lambda samples: samples[..., :12]
    return [first, second]


@pytest.mark.parametrize(
    "what",
    ["another latent", "noise of another seed", "more noise on what is noisy", "another noise level", "another prompt",
     "other words", "a picture that was finished in between", "a crop"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_what_does_not_continue_a_run(comfy, tiny, run_pieces, name, what):
    """Catches a run without a warm-up that is none that goes on."""
    scene = tiny(name)
    pieces = not_continued(schedule(comfy, scene), scene, what)
    _, computed, lines = run_pieces(scene, comfy.cached(scene.model, threshold=1.0, warmup_steps=5), pieces)
    assert goes_on(lines) == [None, None]
    second = [round(float(sigma), 4) for sigma in pieces[1]["sigmas"]]
    assert set(second[:5]) <= {round(sigma, 4) for sigma in computed}


def test_a_stage_with_another_model(comfy, tiny, run_pieces, caplog):
    """One model for high and one for low noise, and a LoRA behind the node. Catches another one's warm-up."""
    high, low = tiny("WAN21_T2V"), tiny_models.build("WAN21_T2V", seed=1)
    first, second = cut(schedule(comfy, high), 8, 16)
    cached = comfy.cached(high.model, threshold=1.0)
    latent, _, lines = run_pieces(high, cached, [first])
    for other in (comfy.cached(low.model, threshold=1.0), comfy.cached(high.model, threshold=1.0), cached.clone()):
        if other.model is high.model.model:
            weight = next(key for key in other.model.state_dict() if key.endswith("ffn.0.weight"))
            other.add_patches({weight: ("diff", (torch.ones_like(other.model.state_dict()[weight]) * 1e-3,))})
        _, _, lines = run_pieces(high, other, [{**second, "latent": {"samples": latent}}])
        assert goes_on(lines) == [None]
    _, _, lines = run_pieces(high, cached, [{**second, "latent": {"samples": latent}}])
    assert goes_on(lines) == [9]


def test_stages_are_executed_again(comfy, tiny, run_pieces):
    """Twice in full; then the second stage alone, as ComfyUI has the first one's latent, after another seed's first
    stage. Catches a picture that depends on what ran in between.
    """
    scene = tiny("Flux")
    first, second = cut(schedule(comfy, scene), 8, 16)
    model = comfy.cached(scene.model, threshold=1.0, warmup_steps=5)
    noisy, _, _ = run_pieces(scene, model, [first])
    second["latent"] = {"samples": noisy}
    once, computed, lines = run_pieces(scene, model, [second])
    for pieces in ([first, second], [{**first, "seed": 6}, second], [second]):
        again, _, lines = run_pieces(scene, model, pieces)
        assert goes_on(lines)[-1] == 9 and goes_on(lines)[0] in (None, 9)
        assert torch.equal(again, once)


@pytest.mark.parametrize("cut_at", [4, 8])
def test_how_close_the_second_of_two_models_is(comfy, demo_scene, run_pieces, cut_at):
    """Wan 2.2's two models have a node each. Catches an estimate of the second one, which knows nothing of what the
    first one got wrong: it was 10 to 28 dB too good. With noise of its own, a run is no other one's second half.
    """
    sigmas = schedule(comfy, demo_scene, 20)
    pieces = [{"sigmas": sigmas[: cut_at + 1], "seed": 5}, {"sigmas": sigmas[cut_at:]}]
    latent = demo_scene.latent
    reports = []
    for piece, speedup in zip([*pieces, {**pieces[1], "seed": 6}], [4.0, 1.3, 1.3], strict=True):
        model = comfy.cached(demo_scene.model, target_speedup=speedup)
        samples, _, lines = run_pieces(demo_scene, model, [{**piece, "latent": latent}])
        reports.append(json.loads(comfy.node("EasyCacheReport", model, {"samples": samples})[2]))
        latent = {**latent, "samples": samples}
        assert reports[-1]["skipped"] and (reports[-1]["closeness"] is None) == ("dB" not in lines[-1])
    assert [report["closeness"] is None for report in reports] == [True, True, False]
