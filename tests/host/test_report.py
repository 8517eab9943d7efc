"""EasyCache Report: which run it shows, its JSON, its plot."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import ImageDraw

KEYS = ["steps", "evaluations", "computed", "skipped", "speedup", "threshold", "warmup_steps", "predictor",
        "target_speedup", "start_percent", "end_percent", "reason", "notes", "closeness", "closeness_margin",
        "trace"]  # fmt: skip
RECORD = ["step", "sigma", "computed", "input_change", "rate", "error", "output_norm"]


def strict(text):
    """JSON as browsers and other languages read it, without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def report_on(comfy, model, samples):
    """(report, plot as bytes) of a latent tensor."""
    latent = {"samples": samples}
    handed_on, plot, text = comfy.node("EasyCacheReport", model, latent)
    assert handed_on is latent, "passed through"
    assert plot.shape == (1, 768, 1024, 3) and plot.dtype == torch.float32 and 0 <= plot.min() <= plot.max() <= 1
    return strict(text), (plot[0] * 255).round().byte().numpy()


@pytest.fixture(scope="module")
def runs(comfy, small_scene):
    """A model that was sampled three times, and for each run (latent, steps, noise levels the network really saw)."""
    model, results = comfy.cached(small_scene.model), []
    for steps in (8, 12, 10):
        latent, sigmas = small_scene.counting(lambda steps=steps: comfy.sample(small_scene, model, steps=steps))
        results.append((latent, steps, sigmas))
    return model, results


@pytest.fixture(scope="module")
def nodes(comfy):
    """The pack's package of nodes."""
    return comfy.module("nodes")


def test_the_report_is_what_the_network_saw(comfy, runs):
    """Keys other programs rest on; counts that disagree with the network's real calls."""
    model, results = runs
    latent, steps, sigmas = results[-1]
    report, _ = report_on(comfy, model, latent)
    assert list(report) == KEYS
    assert all(list(record) == RECORD for record in report["trace"])
    assert report["steps"] == report["evaluations"] == len(report["trace"]) == steps
    assert report["computed"] == len(sigmas) < steps
    assert report["computed"] + report["skipped"] == report["evaluations"]
    assert report["speedup"] == pytest.approx(steps / len(sigmas))
    assert [record["sigma"] for record in report["trace"] if record["computed"]] == pytest.approx(sigmas)
    assert [report[key] for key in KEYS[5:9]] == [0.1, 3, "forecast", 0.0]


def test_samplers_that_share_a_model_have_each_their_report(comfy, runs):
    """ComfyUI executes both samplers before either Report, or hands out an earlier latent from its cache: the last run
    is not the one that is asked for."""
    model, results = runs
    behind = comfy.node("ModelSamplingSD3", model, 3.0)[0]  # patched again behind the node, as by a LoRA
    for latent, steps, sigmas in results:
        for asked in (model, behind):
            report, _ = report_on(comfy, asked, latent.clone())
            assert (report["steps"], report["computed"]) == (steps, len(sigmas))


def test_a_latent_that_was_changed_on_the_way(comfy, runs):
    """In the job that sampled it is the last run that counts; in a later one, whose sampler came from the cache, that
    may be anybody's."""
    from comfy_execution.utils import CurrentNodeContext

    model, results = runs
    changed = results[0][0] * 2
    report, plot = report_on(comfy, model, changed)
    assert report["steps"] == results[-1][1] and "the model's last run" in report["message"]
    assert (plot != report_on(comfy, model, results[-1][0])[1]).any(), "it is said there, too"
    with CurrentNodeContext("another job", "1"):
        assert "left this latent" in report_on(comfy, model, changed)[0]["message"]
        assert report_on(comfy, model, results[0][0])[0]["steps"] == results[0][1], "as it is, it is known in any job"


def test_an_interrupted_run_is_none(comfy, small_scene, runs):
    """Half a run must not be shown as that of the latent which the sampler made before."""
    import comfy.model_management as management

    model, results = runs

    def interrupt(module, args, kwargs):
        raise management.InterruptProcessingException

    handle = small_scene.model.model.diffusion_model.register_forward_pre_hook(interrupt, with_kwargs=True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            comfy.sample(small_scene, model, steps=6)
    finally:
        handle.remove()
    assert report_on(comfy, model, results[-1][0])[0]["steps"] == results[-1][1]
    assert report_on(comfy, model, results[-1][0] + 1)[0]["steps"] == results[-1][1]


def test_nothing_to_report_is_said(comfy, small_scene):
    """Neither an exception nor an empty picture: the rest of the workflow goes on, and says what to connect."""
    model, samples, pages = small_scene.model, small_scene.latent["samples"], []
    for asked, said in ((model, "EasyCache (Adaptive)"), (comfy.cached(model), "has ended yet")):
        report, plot = report_on(comfy, asked, samples)
        assert list(report) == ["message"] and said in report["message"]
        assert (plot < 128).all(-1).mean() > 0.005, "words in the picture"
        pages.append(plot)
    assert (pages[0] != pages[1]).any()


def test_a_run_without_steps(comfy, small_scene):
    """Its speed-up is none, which is null in JSON; nothing is divided by it."""
    model = comfy.cached(small_scene.model)
    sampler = comfy.node("KSamplerSelect", "euler")[0]
    samples = comfy.node("SamplerCustom", model, True, 1, 4.0, small_scene.positive, small_scene.negative, sampler,
                         torch.tensor([1.0]), small_scene.latent)[0]["samples"]  # fmt: skip
    report, _ = report_on(comfy, model, samples)
    assert list(report) == KEYS
    assert (report["steps"], report["evaluations"], report["speedup"], report["trace"]) == (0, 0, None, [])


def test_a_latent_of_several_streams_is_known(nodes):
    """Samplers get video and sound packed into one tensor, and hand them out side by side."""
    from comfy.nested_tensor import NestedTensor
    from comfy.utils import pack_latents

    video, sound = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 2, 20)
    history = nodes.run_history.RunHistory()
    history.add(torch.randn(1, 1, 808), {"name": "another"})
    history.add(pack_latents([video, sound])[0], {"name": "it"})
    history.add(torch.randn(1, 1, 808), {"name": "the last"})
    assert history.find(NestedTensor([video, sound])) == {"name": "it"}


def test_a_history_does_not_grow_without_end(nodes):
    """A server runs for weeks, and a model may be sampled thousands of times."""
    history = nodes.run_history.RunHistory()
    for i in range(100):
        history.add(torch.full((1, 4), float(i)), {"name": i})
    assert len(history._runs) == nodes.run_history.MAX_RUNS and history.last == {"name": 99}


def made_up(evaluations, **changes):
    """A report of a run whose every third evaluation is computed."""
    trace = []
    for i in range(evaluations):
        computed, rate = i % 3 == 0, 1e4 / (i + 1) if i else None
        trace.append(dict(step=i, sigma=1 - i / evaluations, computed=computed, input_change=0.1, rate=rate,
                          error=0.02 * (i % 3), output_norm=1.0))  # fmt: skip
    computed = len(trace[::3])
    totals = dict(steps=evaluations, evaluations=evaluations, computed=computed, skipped=evaluations - computed,
                  speedup=evaluations / computed, threshold=0.05, warmup_steps=5, predictor="forecast",
                  target_speedup=0.0, closeness=41.3)  # fmt: skip
    return {**totals, "trace": trace, **changes}


@pytest.fixture
def words(monkeypatch):
    """The texts that are drawn meanwhile, each with its box."""
    drawn, draw_text = [], ImageDraw.ImageDraw.text

    def text(self, xy, text, fill=None, font=None, anchor=None, **more):
        drawn.append((text, self.textbbox(xy, text, font, anchor)))
        draw_text(self, xy, text, fill, font, anchor, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return drawn


@pytest.mark.parametrize("target", [0.0, 3.0])
@pytest.mark.parametrize("evaluations", [1, 2, 4, 20, 50, 99, 200, 1000])
def test_the_plot_is_legible(nodes, words, evaluations, target):
    """No text over another or beyond the edge, none too small at 512 pixels, whatever the length of the run."""
    report = made_up(evaluations, target_speedup=target)
    picture = np.asarray(nodes.plot.draw_report(report))
    texts = dict(words)
    summary = f"{report['speedup']:.2f}x, {report['computed']} of {evaluations} evaluations computed"
    assert {summary, "computed", "skipped", "rate", "transformation rate", "evaluation"} <= set(texts)
    assert ("threshold" in texts) is not bool(target), "with a target it is not the rule"
    assert (f"budget: {report['computed']}" in texts) is bool(target)
    for i, (text, (left, top, right, bottom)) in enumerate(words):
        assert min(left, top) >= 0 and right <= 1024 and bottom <= 768, text
        for other, (left2, top2, right2, bottom2) in words[:i]:
            apart = left >= right2 or left2 >= right or top >= bottom2 or top2 >= bottom
            assert apart, f"{text!r} lies over {other!r}"
    assert min(nodes.plot.TEXT, nodes.plot.SCALE * 512 / picture.shape[1] * nodes.plot.TEXT) >= 10


def test_the_plot_has_a_bar_for_each_evaluation(nodes):
    """Catches bars that run into each other or are left out at the edges."""
    report = made_up(50)
    picture = np.asarray(nodes.plot.draw_report(report)).astype(int)
    row = picture[2 * 344]  # through the feet of the bars
    for colour, bars in ((nodes.plot.COMPUTED, report["computed"]), (nodes.plot.SKIPPED, report["skipped"])):
        inside = (np.abs(row - colour) < 8).all(-1)
        assert (inside[1:] & ~inside[:-1]).sum() == bars


def test_the_plot_follows_the_numbers(nodes):
    """Two runs that differ in one number look different; catches a curve that is not drawn at all."""
    before = np.asarray(nodes.plot.draw_report(made_up(20)))
    for name in ("rate", "error"):
        report = made_up(20)
        report["trace"][10][name] *= 0.5
        assert (np.asarray(nodes.plot.draw_report(report)) != before).any(), name
    for name in ("rate", "error"):
        report = made_up(20)
        for record in report["trace"]:
            record[name] = None
        nodes.plot.draw_report(report)  # a number may not be known at any evaluation


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 20), ("uni_pc", 30)])
def test_how_close_a_run_is_comes_with_it(comfy, demo_scene, caplog, sampler, steps):
    """Catches a report that leaves out how close the run is, a log that says something else, and an estimate that has
    nothing to do with the run: it is in dB of the latent against that of the uncached run.
    """
    model = comfy.cached(demo_scene.model, target_speedup=2.0)
    exact = comfy.sample(demo_scene, demo_scene.model, steps=steps, sampler_name=sampler).double()
    with caplog.at_level(logging.INFO):
        latent = comfy.sample(demo_scene, model, steps=steps, sampler_name=sampler)
    report, _ = report_on(comfy, model, latent)
    closeness, margin = report["closeness"], report["closeness_margin"]
    assert f"; {closeness - margin:.0f} to {closeness + margin:.0f} dB of the uncached latent (estimate)" in caplog.text
    error = (latent.double() - exact).square().mean()
    measured = float(20 * torch.log10(exact.max() - exact.min()) - 10 * torch.log10(error))
    assert abs(report["closeness"] - measured) < 12, "a few dB either way, seldom more"


def with_momentum(model):
    """Guidance that keeps what it was, for the next step."""
    kept = None

    def momentum(given):
        nonlocal kept
        cond, uncond = given["conds_out"]
        kept = cond - uncond if kept is None else cond - uncond - 0.5 * kept
        return [uncond + kept, uncond]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(momentum)
    return model


def with_momentum_in_the_options(model):
    """The same after CFG; what it was is kept in the options that it is given."""

    def momentum(given):
        group = given["model_options"].setdefault("momentum", {})
        before, group["kept"] = group.get("kept", given["denoised"]), given["denoised"]
        return given["denoised"] + 0.5 * (given["denoised"] - before)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(momentum)
    return model


def first_half(comfy, scene, model):
    return comfy.node("KSamplerAdvanced", model, "enable", 5, 24, 4.0, "euler", "simple", scene.positive,
                      scene.negative, scene.latent, 0, 12, "enable")[0]["samples"]  # fmt: skip


def second_half(comfy, scene, model):
    latent = {"samples": first_half(comfy, scene, model)}
    return comfy.node("KSamplerAdvanced", model, "disable", 5, 24, 4.0, "euler", "simple", scene.positive,
                      scene.negative, latent, 12, 24, "disable")[0]["samples"]  # fmt: skip


def ends_earlier(comfy, scene, model):
    return comfy.node("KSamplerAdvanced", model, "enable", 5, 20, 4.0, "euler", "simple", scene.positive,
                      scene.negative, scene.latent, 0, 14, "disable")[0]["samples"]  # fmt: skip


def by(name):
    return lambda comfy, scene, model: comfy.sample(scene, model, steps=12, sampler_name=name)


def first_level(comfy, scene, model):
    guider = comfy.node("CFGGuider", model, scene.positive, scene.negative, 4.0)[0]
    sigmas = comfy.node("BasicScheduler", scene.model, "simple", 20, 1.0)[0]
    return guided_by(guider, comfy, scene, comfy.node("SetFirstSigma", sigmas, 0.9)[0])


def own_guidance(comfy, scene, model):
    guider = comfy.node("DualCFGGuider", model, scene.positive, scene.negative, scene.negative, 4.0, 4.0, "regular")[0]
    return guided_by(guider, comfy, scene, comfy.node("BasicScheduler", scene.model, "simple", 12, 1.0)[0])


def guided_by(guider, comfy, scene, sigmas):
    noise, sampler = comfy.node("RandomNoise", 5)[0], comfy.node("KSamplerSelect", "euler")[0]
    return comfy.node("SamplerCustomAdvanced", noise, guider, sampler, sigmas, scene.latent)[0]["samples"]


def stronger_on_the_way(comfy, scene, model):
    """A wrapper that exchanges the guider's cfg while it guides, as a node of newer ComfyUI has."""
    from comfy.patcher_extension import WrappersMP

    calls = []

    def stronger(executor, *args, **kwargs):
        guider = executor.class_obj
        before, guider.cfg = guider.cfg, 9.0 if 4 <= len(calls) < 8 else guider.cfg
        calls.append(guider.cfg)
        try:
            return executor(*args, **kwargs)
        finally:
            guider.cfg = before

    model = model.clone()
    model.add_wrapper(WrappersMP.PREDICT_NOISE, stronger)
    return comfy.sample(scene, model, steps=12)


def half_of_it(comfy, scene):
    """The positive conditioning, for the left half of the picture."""
    height, width = scene.latent["samples"].shape[-2:]
    mask = torch.zeros(1, 8 * height, 8 * width)
    mask[..., : 4 * width] = 1
    return comfy.node("ConditioningSetMask", scene.positive, mask, "default", 1.0)[0]


def no_prompt_for_a_part(comfy, scene, model):
    return comfy.sample(scene, model, steps=12, positive=half_of_it(comfy, scene))


NOT_ESTIMATED = {
    "the guidance is exchanged on the way": stronger_on_the_way,
    "a part of the latent has no prompt": no_prompt_for_a_part,
    "guidance under another name than cfg": own_guidance,
    "noise is added": by("euler_ancestral"),
    "noise is added within steps": by("dpmpp_sde"),
    "the sampler uses the negative by itself": by("euler_cfg_pp"),
    "the sampler uses many earlier answers": by("ipndm"),
    "and corrects the latent by them": by("uni_pc"),
    "guidance with momentum": lambda comfy, scene, model: comfy.sample(scene, with_momentum(model), steps=12),
    "guidance that keeps latents in its options": lambda comfy, scene, model: comfy.sample(
        scene, with_momentum_in_the_options(model), steps=12
    ),
    "strong guidance in few steps": lambda comfy, scene, model: comfy.sample(scene, model, steps=15, cfg=5.0),
    "another run goes on": first_half,
    "it goes on from another run": second_half,
    "the first noise level is below the second": first_level,
    "it ends earlier": ends_earlier,
}


@pytest.mark.parametrize("way", NOT_ESTIMATED)
def test_no_closeness_is_made_up(comfy, small_scene, caplog, way):
    """Catches a number where there is none. Estimates were 20 dB too good for samplers that add noise, 7 to 21 for
    CFG++, 10 to 30 for samplers that swing at the end, 15 for momentum, 3 to 14 for a run that goes on from another
    one, 10 to 15 for one that ends earlier, 4 for a guider whose guidance is not known, 11 for a first noise level that
    is too low, 18 for a strong cfg that is not the guider's own or in few steps, 25 for a part of the picture without a
    prompt, and a latent that is mostly noise was said to be within 100 dB.
    """
    model = comfy.cached(small_scene.model, target_speedup=2.0)
    with caplog.at_level(logging.INFO):
        latent = NOT_ESTIMATED[way](comfy, small_scene, model)
    report, _ = report_on(comfy, model, latent)
    assert report["closeness"] is report["closeness_margin"] is None
    assert report["skipped"] and "uncached" not in caplog.text


@pytest.mark.parametrize(
    ("sampler", "widgets", "note"),
    [
        ("euler_ancestral", dict(target_speedup=2.0), "with target_speedup the result may drift"),
        ("euler_ancestral", dict(threshold=1.0), "less is skipped"),
        ("euler", dict(target_speedup=2.0), None),
        ("euler", dict(target_speedup=8.0), "as the first and the last one are computed"),
    ],
)
def test_a_report_says_what_the_log_warns_of(comfy, small_scene, sampler, widgets, note):
    """Catches a chart that says nothing of a result that drifts, nor why there is no estimate, and a needless note."""
    model = comfy.cached(small_scene.model, **widgets)
    steps = 5 if note and "the first and the last" in note else 16
    latent = comfy.sample(small_scene, model, steps=steps, sampler_name=sampler)
    report, _ = report_on(comfy, model, latent)
    assert report["skipped"]
    if note is None:
        assert report["notes"] == []
    else:
        (said,) = report["notes"]
        assert note in said and said[0].isupper() and said.endswith(".")
        assert not sampler.endswith("ancestral") or said.endswith("how close it is cannot be estimated.")


def test_a_sampler_that_chooses_its_steps(comfy, small_scene, caplog):
    """It takes more of them where answers are forecast. Catches a speed-up over evaluations that no uncached run makes:
    3.9x was told where 1.5x is true.
    """
    model = comfy.cached(small_scene.model, target_speedup=4.0)
    with caplog.at_level(logging.INFO):
        latent = comfy.sample(small_scene, model, steps=8, sampler_name="dpm_adaptive")
    report, _ = report_on(comfy, model, latent)
    assert report["skipped"] and report["speedup"] is None
    assert any("uncached it may need fewer" in note for note in report["notes"])
    (line,) = (line for line in caplog.messages if "evaluations, skipped" in line)
    assert "uncached it may need fewer" in line and "x), " not in line


def test_each_warning_is_a_note(nodes):
    """In the log they are one line; a program that reads reports has each by itself."""
    summary, course = nodes.summary, dict.fromkeys(nodes.summary.Facts._fields, 0)
    did = {"skipped": 8, "closeness": None}
    settings = nodes.settings.Settings(nodes.adaptive.CacheConfig(target_speedup=2.0))
    found = [
        summary.notes(did, settings, summary.Facts(**{**course, name: value}))
        for name, value in (
            ("beyond_budget", "as it is"), ("answered_by_sampler", 3), ("end_unseen", True), ("noise_added", True),
            ("windows_move", True), ("along", 3),
        )
    ]  # fmt: skip
    assert list(map(len, found)) == [1, 1, 1, 1, 1, 0]
    said = ["More was computed than target_speedup allows, as it is.", "The sampler leaves out 3 evaluations",
            "The last evaluation was predicted", "The sampler adds noise", "Its context windows move"]  # fmt: skip
    assert all(note.startswith(start) for (note,), start in zip(found[:-1], said, strict=True))
    everything = summary.Facts(**{**course, **dict.fromkeys(("end_unseen", "noise_added", "windows_move"), True)})
    assert len(summary.notes(did, settings, everything)) == 3


def test_a_budget_of_any_size_is_drawn(comfy):
    """Catches a report that ends the prompt with an error: at some sizes a line of the plot lies between two pixels."""
    plot = comfy.module("nodes.plot")
    record = dict(step=0, sigma=1.0, computed=True, input_change=0.1, rate=0.5, error=0.0, output_norm=1.0)
    for size in range(1, 41):
        report = dict(steps=2 * size, evaluations=2 * size, computed=size, skipped=size, speedup=2.0, threshold=0.05,
                      warmup_steps=5, predictor="forecast", target_speedup=2.0,
                      trace=[{**record, "computed": i < size} for i in range(2 * size)])  # fmt: skip
        assert plot.draw_report(report).size == (1024, 768), size
