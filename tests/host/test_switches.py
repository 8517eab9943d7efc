"""What changes by itself at noise levels of its own: ControlNets, keyframes, patches."""

import dataclasses
import functools
import logging
import math
import types

import numpy as np
import pytest
import tiny_models
import torch
from closeness import psnr
from sampling import BUDGET, STEPS, THRESHOLD, both, guiding, log_of, pair, schedule

pytestmark = pytest.mark.usefixtures("one_thread")


def levels_and_what_held(record):
    """{noise level: what was in force at it}, of calls in order; the first call at a level counts."""
    held = {}
    for level, what in record:
        held.setdefault(level, what)
    return held


def check_held(everywhere, computed):
    """everywhere: as from levels_and_what_held, of the uncached run. computed: of the cached one.

    What is predicted is predicted from a computed evaluation at which the same was in force.
    """
    assert 3 < len(computed) < len(everywhere)
    last = None
    for level, what in everywhere.items():
        if level in computed:
            last = what
            assert computed[level] == what, level
        assert last == what, f"at noise level {level:.3f}"


class Keyframe:
    def __init__(self, start_percent, strength, guarantee_steps=1):
        self.start_percent, self.strength, self.guarantee_steps = start_percent, strength, guarantee_steps
        self.start_t = 0.0


class KeyframeGroup:
    def __init__(self, keyframes):
        self.keyframes = keyframes


@pytest.fixture
def controlled(comfy, tiny):
    """controlled(strength_at, **attributes): (positive, negative, net, record of (noise level, strength)).

    A ControlNet of another pack for the tiny SD 1.5, of which `strength_at(net, sigma)` is the strength in force.
    """
    import comfy.cldm.cldm as cldm
    import comfy.controlnet as controlnet
    import comfy.model_management as management

    scene, record = tiny("SD15"), []
    network = cldm.ControlNet(hint_channels=3, **scene.model.model.model_config.unet_config)
    tiny_models.fill(network, torch.Generator().manual_seed(7))
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))

    def controlled(strength_at=None, start=0.0, end=1.0, **attributes):
        class Controlled(controlnet.ControlNet):
            def __init__(self, network):
                super().__init__(network, load_device=management.get_torch_device())
                self.__dict__.update(attributes)

            def pre_run(self, model, percent_to_timestep_function):
                super().pre_run(model, percent_to_timestep_function)
                for group in attributes.values():
                    for keyframe in group.keyframes:
                        keyframe.start_t = percent_to_timestep_function(keyframe.start_percent)

            def copy(self):
                net = Controlled(None)
                net.control_model, net.control_model_wrapped = self.control_model, self.control_model_wrapped
                self.copy_to(net)
                return net

        if strength_at is not None:

            def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
                sigma = float(t[0])
                strength = strength_at(self, sigma)
                record.append((sigma, strength))
                answers = controlnet.ControlNet.get_control(self, x_noisy, t, cond, batched_number, transformer_options)
                return answers and {key: [None if one is None else one * strength for one in part]
                                    for key, part in answers.items()}  # fmt: skip

            Controlled.get_control = get_control
        net = Controlled(network)
        conds = comfy.node("ControlNetApplyAdvanced", scene.positive, scene.negative, net, picture, 1.0, start, end)
        return *conds, record

    return controlled


@pytest.mark.parametrize("at", [6, 9, 13])
def test_a_controlnet_that_switches_by_itself(comfy, tiny, controlled, caplog, at):
    """Nothing tells at which noise level. Catches a step after the switch that is predicted from before it, and a log
    that blames the threshold.
    """
    scene = tiny("SD15")
    sigmas = schedule(comfy, scene)
    switch = float(sigmas[at - 1] + sigmas[at]) / 2
    positive, negative, record = controlled(lambda net, sigma: float(sigma > switch))
    conds = dict(positive=positive, negative=negative)
    plain = comfy.sample(scene, **conds)
    assert not torch.equal(comfy.sample(scene), plain)
    with caplog.at_level(logging.INFO):
        cached, computed = scene.counting(lambda: comfy.sample(scene, comfy.cached(scene.model, **THRESHOLD), **conds))
    assert torch.equal(cached, plain) and len(computed) == STEPS
    warning, summary = log_of(caplog)
    assert "ControlNet (Controlled) decides by itself" in warning and "everything is computed" in warning
    assert "decides by itself" in summary and "raise threshold" not in summary
    caplog.clear()
    _, computed = scene.counting(lambda: comfy.sample(scene, comfy.cached(scene.model, **BUDGET), **conds))
    assert len(computed) <= math.ceil(STEPS / 4)
    assert "may still be predicted" in log_of(caplog)[0]


def test_a_controlnet_that_switches_by_itself_while_it_is_active(comfy, tiny, controlled):
    """Catches a run that is computed to its end for what acted at its beginning only."""
    scene = tiny("SD15")
    end = scene.model.get_model_object("model_sampling").percent_to_sigma(0.3)
    positive, negative, _ = controlled(lambda net, sigma: sigma, end=0.3)
    conds = dict(positive=positive, negative=negative)
    _, computed = scene.counting(lambda: comfy.sample(scene, comfy.cached(scene.model, **THRESHOLD), **conds))
    everywhere = [float(sigma) for sigma in schedule(comfy, scene)[:-1]]
    rounded = [round(sigma, 3) for sigma in computed]
    assert all(round(sigma, 3) in rounded for sigma in everywhere if sigma >= end) and len(computed) < STEPS


KEYFRAMES = {
    "two": [(0.0, 1.0, 0), (0.5, 0.0, 1)],
    "several in one step": [(0.0, 1.0, 0), (0.4, 0.2, 1), (0.401, 0.4, 1), (0.402, 0.6, 1), (0.403, 0.0, 1)],
    "guaranteed for longer": [(0.0, 1.0, 4), (0.1, 0.5, 3), (0.15, 0.0, 1), (0.9, 1.0, 1)],
}


@pytest.mark.parametrize("keyframes", KEYFRAMES)
def test_keyframes_of_a_controlnet(comfy, tiny, controlled, keyframes):
    """Catches a strength that lasts beyond its keyframe: in what is predicted, or as its count of steps missed some."""
    from comfy.hooks import HookKeyframeGroup

    scene, groups = tiny("SD15"), []

    def strength_at(net, sigma):
        groups[-1].prepare_current_keyframe(sigma, {"sample_sigmas": sigmas})
        return groups[-1].strength

    sigmas = schedule(comfy, scene, 24)
    given = KeyframeGroup([Keyframe(*one) for one in KEYFRAMES[keyframes]])
    for keyframe in given.keyframes:  # ComfyUI's own choice among them
        keyframe.get_effective_guarantee_steps = functools.partial(
            lambda one, highest: 0 if one.start_t > highest else one.guarantee_steps, keyframe
        )
    positive, negative, record = controlled(strength_at, schedule_of_strength=given)

    def sample(model):
        record.clear()
        groups.append(HookKeyframeGroup())
        groups[-1].keyframes = given.keyframes
        groups[-1].reset()
        comfy.sample(scene, model, steps=24, positive=positive, negative=negative)
        return levels_and_what_held(record)

    everywhere = sample(scene.model)
    assert len(everywhere) == 24 and len(set(everywhere.values())) > 1
    check_held(everywhere, sample(comfy.cached(scene.model, threshold=1.0, max_consecutive_skips=2)))


def test_a_keyframe_for_each_step(comfy, tiny, controlled, caplog):
    """Catches a log that blames the threshold, which would not help."""
    scene = tiny("SD15")
    group = KeyframeGroup([Keyframe(i / 48, 1 - i / 48) for i in range(48)])
    positive, negative, _ = controlled(lambda net, sigma: 1.0, schedule_of_strength=group)
    with caplog.at_level(logging.INFO):
        comfy.sample(scene, comfy.cached(scene.model, **THRESHOLD), positive=positive, negative=negative)
    (line,) = log_of(caplog)
    assert "skipped 0" in line and "keyframes or strengths" in line and "raise threshold" not in line


def test_keyframes_are_chosen_as_comfyui_does(comfy):
    """Catches a keyframe that is taken for over, or for begun, at any noise level of any schedule."""
    from comfy.hooks import HookKeyframe, HookKeyframeGroup

    switches = comfy.module("nodes.schedule_switches")
    rng = torch.Generator().manual_seed(1)

    def between(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=rng))

    for _ in range(200):
        group = HookKeyframeGroup()
        for _ in range(between(1, 5)):
            keyframe = HookKeyframe(1.0, 0.0, between(0, 3))
            keyframe.start_t = between(0, 24) / 20
            group.keyframes.append(keyframe)
        group.keyframes.sort(key=lambda keyframe: -keyframe.start_t)
        group.reset()
        sigmas = torch.linspace(1, 0, between(3, 21))
        ours, theirs = switches.Keyframes(group.keyframes, 0, 1.0), []
        levels = sigmas[:-1].repeat_interleave(2).tolist()
        foreseen = ours.in_force(levels)
        for sigma in levels:
            group.prepare_current_keyframe(sigma, {"sample_sigmas": sigmas})
            theirs.append(group._current_index)
            assert ours.observe(sigma) == ours.index == theirs[-1]
        assert foreseen == ours.in_force(levels) == theirs


def test_the_strength_of_a_controlnet_is_changed_from_outside(comfy, tiny, controlled):
    """By another pack's wrapper, at a noise level that only it knows. Catches a strength that is no longer set."""
    from comfy.patcher_extension import WrappersMP

    scene = tiny("SD15")
    middle = float(schedule(comfy, scene)[9])
    positive, negative, record = controlled(None)

    def set_strength(executor, x, timestep, *args, **kwargs):
        for entries in executor.class_obj.conds.values():
            for cond in entries:
                cond["control"].strength = 1.0 if timestep[0] > middle else 0.25
                record.append((float(timestep[0]), cond["control"].strength))
        return executor(x, timestep, *args, **kwargs)

    model = scene.model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "strength", set_strength)
    conds = dict(positive=positive, negative=negative)
    comfy.sample(scene, model, **conds)
    everywhere = levels_and_what_held(record)
    _, computed = scene.counting(lambda: comfy.sample(scene, comfy.cached(model, **THRESHOLD), **conds))
    ran = {level: what for level, what in everywhere.items() if any(abs(level - one) < 1e-3 for one in computed)}
    check_held(everywhere, ran)


@dataclasses.dataclass(slots=True)
class Ends:
    sigma_end: float


class Slots:
    __slots__ = ("sigma_end",)

    def __init__(self, sigma_end):
        self.sigma_end = sigma_end


def by_noise_level(kind, at, step):
    """A patch that acts at this noise level and above, as other packs write them; it knows the level by a name. step:
    the first one below that.
    """

    def patch(model):
        model = model.clone()
        start_sigma = at

        def wrapper(network, given):
            output = network(given["input"], given["timestep"], **given["c"])
            return output * 3.0 if given["timestep"][0] >= start_sigma else output

        class Attention:
            def __init__(self):
                self.sigma_end = at

            def __call__(self, q, k, v, extra):
                return q, k, v * 3.0 if extra["sigmas"][0] >= self.sigma_end else v

        class Attentions:  # of several pictures, say
            def __init__(self):
                self.arguments = [{"sigma_end": 0.0, "weight": 1.0}, {"sigma_end": at, "weight": 3.0}]

            def __call__(self, q, k, v, extra):
                weights = [one["weight"] for one in self.arguments if extra["sigmas"][0] >= one["sigma_end"]]
                return q, k, v * math.prod(weights)

        def held(ends_of):
            """A wrapper that takes the ends of its part from something that it holds."""

            def held_by(network, given):
                start, end = ends_of()
                output = network(given["input"], given["timestep"], **given["c"])
                return output * 3.0 if start >= given["timestep"][0] >= end else output

            return held_by

        def with_arguments(network, given, percent=0.0, sigma_end=at):
            return held(lambda: (math.inf, sigma_end))(network, given)

        sigma_end, sigma_range = torch.tensor([at]), (1e6, np.float32(at))
        config, slots = types.SimpleNamespace(ends=types.SimpleNamespace(sigma_end=at)), Ends(sigma_end=at)
        own_slots = Slots(at)
        sampling = model.get_model_object("model_sampling")
        timestep_end = float(sampling.timestep(torch.tensor(at)))
        end_percent, end_step, scales = 100 - timestep_end / 9.99, step, [3.0] * step + [1.0] * (STEPS - step)

        def by_step(network, given):
            levels = given["c"]["transformer_options"]["sample_sigmas"]
            return network(given["input"], given["timestep"], **given["c"]), int((levels > given["timestep"][0]).sum())

        def until_step(network, given):
            output, now = by_step(network, given)
            return output * 3.0 if now < end_step else output

        end_at, start_at = step, (step - 0.5) / STEPS

        def until_a_step(network, given):
            output, now = by_step(network, given)
            return output * 3.0 if now < end_at else output

        def from_a_part(network, given):
            output, now = by_step(network, given)
            return output if now < start_at * STEPS else output * 3.0

        def step_for_step(network, given):
            output, now = by_step(network, given)
            return output * scales[now]

        wrappers = {
            "a wrapper": wrapper,
            "with a tensor": held(lambda: (math.inf, sigma_end)),
            "with a range": held(lambda: sigma_range),
            "with an object": held(lambda: (math.inf, config.ends.sigma_end)),
            "with an object that has slots": held(lambda: (math.inf, slots.sigma_end)),
            "with an object that has slots of its own": held(lambda: (math.inf, own_slots.sigma_end)),
            "with a percent of 100": held(lambda: (math.inf, sampling.percent_to_sigma(end_percent / 100))),
            "with a timestep": held(lambda: (math.inf, sampling.sigma(torch.tensor(timestep_end)))),
            "with a step": until_step,
            "with a number for each step": step_for_step,
            "with a step by another name": until_a_step,
            "with a part of the steps": from_a_part,
            "with an argument": with_arguments,
            "with an argument that is given": functools.partial(
                lambda sigma_end, *call: held(lambda: (math.inf, sigma_end))(*call), at
            ),
        }
        if kind in wrappers:
            model.set_model_unet_function_wrapper(wrappers[kind])
        elif kind == "a wrapper around another one":
            model.set_model_unet_function_wrapper(lambda network, given: wrapper(network, given))
        else:
            model.set_model_attn1_patch(Attentions() if kind == "attention patches in one" else Attention())
        return model

    return patch


@pytest.mark.parametrize("at", [5, 8, 11])
@pytest.mark.parametrize("kind", ["a wrapper", "a wrapper around another one", "an attention patch",
                                  "attention patches in one", "with a tensor", "with a range", "with an object",
                                  "with an object that has slots", "with an object that has slots of its own",
                                  "with a percent of 100", "with a timestep", "with a step",
                                  "with a number for each step", "with a step by another name",
                                  "with a part of the steps", "with an argument",
                                  "with an argument that is given"])  # fmt: skip
def test_a_patch_that_acts_by_noise_level(comfy, tiny, run, kind, at):
    """Catches the step after it, predicted from before."""
    scene = tiny("SD15")
    sigmas = schedule(comfy, scene)
    switch = float(sigmas[at - 1] + sigmas[at]) / 2
    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    patch = by_noise_level(kind, switch, at)
    plain, exact = run(scene, make_guider, patch=patch), run(scene, make_guider, patch=patch, threshold=0.0)
    assert torch.equal(exact.latent, plain.latent)
    cached = run(scene, make_guider, patch=patch, **THRESHOLD)
    assert max(level for level in plain.levels if level < switch) in cached.levels
    assert len(cached.levels) < STEPS


def test_a_patch_that_holds_what_tells_nothing(comfy, tiny, run):
    """All noise levels of the schedule, say, both ends of it, and switches. Catches levels at which nothing changes:
    with those of the schedule everything is computed, and with the first one what came before the second evaluation is
    lost.
    """
    scene = tiny("SD15")
    sigmas = schedule(comfy, scene)
    first = float(sigmas[0])
    held = types.SimpleNamespace(sigmas=sigmas, all_sigmas=sigmas.tolist(), use_sigma=True, percents=[0.5] * 30,
                                 sigma_start=first, sigma_max=first * (1 - 1e-6), sigma_end=0.0, end_step=STEPS,
                                 start_step=0, start_percent=0.0, end_percent=1.0)  # fmt: skip

    def patch(model):
        model = model.clone()
        model.set_model_unet_function_wrapper(
            lambda network, given: network(given["input"], given["timestep"], **given["c"]) if held else None
        )
        return model

    make_guider = functools.partial(guiding, conds=pair(scene), predict=both)
    for widgets in (THRESHOLD, BUDGET):
        patched, plain = (run(scene, make_guider, patch=one, **widgets) for one in (patch, lambda model: model))
        assert patched.levels == plain.levels and torch.equal(patched.latent, plain.latent)


@pytest.mark.parametrize("widgets", [THRESHOLD, BUDGET], ids=["threshold", "budget"])
def test_a_patch_that_keeps_a_number_from_its_first_call_on(tiny, run, widgets):
    """Catches a change at the second evaluation, of which nothing can be learnt then."""
    scene = tiny("SD15")

    class Attention:
        def __init__(self, scale):
            if scale is not None:
                self.scale = scale

        def __call__(self, q, k, v, extra):
            self.scale = 0.25
            return q, k, v * (1 + self.scale)

    def sample(scale):
        def patch(model):
            model = model.clone()
            model.set_model_attn1_patch(Attention(scale))
            return model

        return run(scene, functools.partial(guiding, conds=pair(scene), predict=both), patch=patch, **widgets)

    late, early = sample(None), sample(0.25)
    assert late.calls == early.calls and torch.equal(late.latent, early.latent)


def in_ranges(comfy, scene, prompts):
    """A conditioning that has these prompts one after the other, each in its part of the schedule."""
    sampling, sigmas = scene.model.get_model_object("model_sampling"), schedule(comfy, scene)
    between = [float(before + after) / 2 for before, after in zip(sigmas[:-2], sigmas[1:-1], strict=True)]
    percents = [next(p / 2000 for p in range(2001) if sampling.percent_to_sigma(p / 2000) < one) for one in between]
    ranges = zip(prompts, [0.0, *percents], [*percents, 1.0], strict=True)
    return [part for prompt, *ends in ranges for part in comfy.node("ConditioningSetTimestepRange", prompt, *ends)[0]]


@pytest.fixture
def prompted(comfy, demo_scene, run):
    """prompted(prompts, **widgets): a run in which each step has its own of these prompts."""

    def prompted(prompts, **widgets):
        positive = in_ranges(comfy, demo_scene, prompts)
        return run(demo_scene, lambda model: comfy.node("CFGGuider", model, positive, demo_scene.negative, 4.0)[0],
                   **widgets)  # fmt: skip

    return prompted


@pytest.mark.parametrize(("count", "dB"), [(2, 6), (3, 1)])
def test_prompts_that_alternate_from_step_to_step(comfy, demo_scene, prompted, count, dB):
    """[rocket|owl], as packs for prompts have it. Catches one past for all of them: a budget is then spent in the first
    half, and the other one is predicted from another prompt (3 to 9 dB less); a threshold skips nothing.
    """
    words = [("rocket", "night"), ("owl", "night"), ("rocket", "meadow")][:count]
    prompts = [comfy.node("EasyCacheDemoModel", *pair, "zoom-out", 1)[1] for pair in words]
    prompts = [prompts[i % count] for i in range(STEPS)]
    plain = prompted(prompts)
    assert torch.equal(prompted(prompts, threshold=0.0).latent, plain.latent)
    for predictor in ("forecast", "reuse"):
        cached = prompted(prompts, target_speedup=2.0, predictor=predictor)
        assert cached.report["computed"] == len(cached.levels) == STEPS / 2
        assert psnr(cached.latent, plain.latent) > dB
    cached = prompted(prompts, threshold=0.2, warmup_steps=2)
    assert cached.report["skipped"] and psnr(cached.latent, plain.latent) > 15


def test_a_prompt_that_moves_on_from_step_to_step(comfy, demo_scene, prompted, caplog):
    """From one to another. Catches a budget that is spent in the first half, and a log that blames the threshold."""
    ends = [comfy.node("EasyCacheDemoModel", "rocket", scene, "zoom-out", 1)[1][0] for scene in ("night", "meadow")]
    parts = torch.linspace(0, 1, STEPS)
    prompts = [[[torch.lerp(ends[0][0], ends[1][0], part), {}]] for part in parts]
    plain = prompted(prompts)
    cached = prompted(prompts, target_speedup=2.0)
    assert cached.report["computed"] == STEPS / 2 and psnr(cached.latent, plain.latent) > 15
    with caplog.at_level(logging.INFO):
        cached = prompted(prompts, threshold=0.1)
    assert torch.equal(cached.latent, plain.latent) and "change at nearly every step" in log_of(caplog)[-1]
