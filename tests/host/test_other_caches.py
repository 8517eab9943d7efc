"""Other caches on the same model are warned of by name."""

import functools
import itertools
import logging
import math

import pytest
import torch
from sampling import asking_twice, log_of, schedule
from scene import Scene

pytestmark = pytest.mark.usefixtures("one_thread")


def foreign(name, module="custom_nodes.another", qualname=None):
    """A function of another pack that fits wherever a wrapper does and changes nothing."""

    def function(call, *args, **kwargs):
        if args and isinstance(args[0], dict):
            return call(args[0]["input"], args[0]["timestep"], **args[0]["c"])
        return call(*args, **kwargs)

    function.__name__, function.__qualname__, function.__module__ = name, qualname or name, module
    return function


def wrapper(level, key, function=None):
    def add(model):
        from comfy.patcher_extension import WrappersMP

        model.add_wrapper_with_key(getattr(WrappersMP, level), key, function or foreign("around"))

    return add


def option(key, value=0.1):
    return lambda model: model.model_options["transformer_options"].__setitem__(key, value)


def around_the_network(function):
    return lambda model: model.set_model_unet_function_wrapper(function)


class MagCacheWrapper:
    """Packs put objects there as well as functions."""

    def __call__(self, network, given):
        return network(given["input"], given["timestep"], **given["c"])


OTHER_CACHES = {
    "a wrapper's key, around the network": (wrapper("DIFFUSION_MODEL", "teacache"), "TeaCache"),
    "a wrapper's key, around the model": (wrapper("APPLY_MODEL", "MagCache_v2"), "MagCache"),
    "a wrapper's key, around the guider": (wrapper("PREDICT_NOISE", "spectrum_forecaster"), "Spectrum"),
    "a wrapper's key, around the sampler": (wrapper("SAMPLER_SAMPLE", "dbcache"), "CacheDiT"),
    "a wrapper's key, around the run": (wrapper("OUTER_SAMPLE", "cache-dit"), "CacheDiT"),
    "a wrapper's name": (wrapper("DIFFUSION_MODEL", "patch", foreign("taylorseer_forward")), "TaylorSeer"),
    "TeaCache's option": (option("rel_l1_thresh"), "TeaCache"),
    "an option": (option("magcache_K", 2), "MagCache"),
    "a function within another": (
        around_the_network(foreign("wrapper", qualname="ApplyTeaCache.patch.<locals>.wrapper")),
        "TeaCache",
    ),
    "first-block cache": (
        around_the_network(foreign("wrapper", qualname="ApplyFBCacheOnModel.patch.<locals>.wrapper")),
        "WaveSpeed",
    ),
    "first-block cache in a pack's folder": (
        around_the_network(foreign("wrapper", "/srv/Comfy-WaveSpeed.nodes", "ApplyFBCacheOnModel.patch.wrapper")),
        "WaveSpeed",
    ),
    "a module": (around_the_network(foreign("wrapper", module="custom_nodes.magcache")), "MagCache"),
    "a pack's folder": (
        around_the_network(foreign("wrapper", module="/srv/ComfyUI/custom_nodes/ComfyUI-TeaCache.nodes")),
        "TeaCache",
    ),
    "an object": (around_the_network(MagCacheWrapper()), "MagCache"),
    "a bound method": (around_the_network(MagCacheWrapper().__call__), "MagCache"),
    "a partial function": (around_the_network(functools.partial(foreign("teacache_forward"))), "TeaCache"),
}


def warnings_of(comfy, scene, caplog, model):
    """What the cache warns of in two steps of this model."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        latent = comfy.sample(scene, model, steps=2)
    assert latent.isfinite().all()
    return log_of(caplog)


@pytest.mark.parametrize("cache_first", [False, True])
@pytest.mark.parametrize("other", OTHER_CACHES)
def test_another_cache_is_warned_of_by_name(comfy, tiny, caplog, other, cache_first):
    """Catches two caches whose errors add up without a word."""
    scene, (add, name) = tiny("SD15"), OTHER_CACHES[other]
    model = comfy.cached(scene.model) if cache_first else scene.model.clone()
    add(model)
    (warning,) = warnings_of(comfy, scene, caplog, model if cache_first else comfy.cached(model))
    assert f"also goes through {name}" in warning


@pytest.mark.parametrize(
    ("name", "who"),
    {
        "ComfyUI-TGate": "T-GATE", "t_gate": "T-GATE", "TGateApply": "T-GATE", "output_gate": None, "set_gate": None,
        "text_gate": None, "to_scale_shift_gate": None, "OutputGate": None, "DiCache": "DiCache", "di_cache": "DiCache",
        "flux_dicache_forward": "DiCache", "radicache": None, "RadiCache": None, "power_spectrum": None,
        "ops.PowerSpectrum": None, "SpectrumApplyWAN": "Spectrum", "ComfyUI-Spectrum-WAN-Proper.nodes": "Spectrum",
        "_spectrum_step": "Spectrum", "nodes ApplySpectrum.patch.<locals>.run": "Spectrum", "applyteacache": "TeaCache",
        "nunchaku_cache": "Nunchaku's cache", "FirstBlockCache": "a first-block cache", "CacheDiT_patch": "CacheDiT",
    }.items(),
)  # fmt: skip
def test_names_that_hold_the_name_of_a_cache(comfy, name, who):
    """Catches a warning of a cache that nobody uses as other words end alike, and a cache that is not known any more by
    its name.
    """
    assert comfy.module("nodes.other_caches")._who_is(name) == who


def test_how_close_two_caches_are_is_not_estimated(comfy, tiny, caplog):
    """What another one repeats shows neither how answers move nor how far off forecasts are: it was 12 to 29 dB too
    good. Catches an estimate beside the warning.
    """
    scene = tiny("SD15")
    other = scene.model.clone()
    wrapper("DIFFUSION_MODEL", "teacache")(other)
    for model, alone in ((other, False), (scene.model, True)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            comfy.sample(scene, comfy.cached(model, target_speedup=2.0), steps=20)
        assert ("(estimate)" in caplog.text) == alone


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_the_built_in_caches_are_warned_of_by_name(comfy, tiny, caplog, kind):
    """Catches an option of theirs that has another name in another version of ComfyUI."""
    scene = tiny("SD15")
    built_in = comfy.node(kind, scene.model, 0.2, 0.15, 0.95, False)[0]
    (warning,) = warnings_of(comfy, scene, caplog, comfy.cached(built_in))
    assert "built-in EasyCache or LazyCache" in warning


def answering_in_place(model, where, around):
    """A cache whose name says nothing: around(executor, x, ...) answers there in place of executor(x, ...)."""
    from comfy.patcher_extension import WrappersMP

    model = model.clone()
    if where == "a function":
        model.set_model_unet_function_wrapper(lambda call, given: around(call, given["input"], given["timestep"],
                                                                         **given["c"]))  # fmt: skip
    else:
        model.add_wrapper_with_key(getattr(WrappersMP, where), "a wrapper", around)
    return model


def repeating(model, where, distance=False):
    """A cache that makes each second answer, or distance of the answer from x, the one before."""
    answers = []

    def around(executor, x, *args, **kwargs):
        away = x if distance else 0.0 * x
        answers.append(answers[-1] if len(answers) % 2 else executor(x, *args, **kwargs) - away)
        return answers[-1] + away

    return answering_in_place(model, where, around)


def repeating_guidance(model):
    """A cache whose name says nothing: each second time, cond and uncond differ by as much as before."""
    from comfy.patcher_extension import WrappersMP

    differences = []

    def around(executor, network, conds, *args):
        repeats = len(differences) % 2
        cond, uncond = executor(network, [conds[0], None] if repeats else conds, *args)
        differences.append(differences[-1] if repeats else uncond - cond)
        return [cond, cond + differences[-1]]

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "a wrapper", around)
    return model


REPEATING = {
    "the network's answers": functools.partial(repeating, where="DIFFUSION_MODEL"),
    "denoised latents": functools.partial(repeating, where="APPLY_MODEL"),
    "denoised latents, as a function": functools.partial(repeating, where="a function"),
    "their distances from x": functools.partial(repeating, where="APPLY_MODEL", distance=True),
    "what guidance makes use of": repeating_guidance,
}


@pytest.mark.parametrize("repeated", REPEATING)
@pytest.mark.parametrize("predictor", ["forecast", "reuse"])
@pytest.mark.parametrize("name", ["SD15", "Flux", "CosmosT2V"])  # noise, velocity, EDM
def test_a_cache_without_a_name_is_known_by_its_repetitions(comfy, tiny, caplog, name, predictor, repeated):
    """Catches two caches of which nobody is told, and a network that is taken for one."""
    scene = tiny(name)
    for widgets in (dict(threshold=0.1), dict(target_speedup=2.0)):
        for model, warned in ((REPEATING[repeated](scene.model), 1), (scene.model, 0)):
            caplog.clear()
            with caplog.at_level(logging.INFO):
                comfy.sample(scene, comfy.cached(model, predictor=predictor, **widgets))
            assert sum("another cache repeats it" in line for line in log_of(caplog)) == warned
            assert not (warned and "(estimate)" in caplog.text)


def predicting(model, made_of, where="DIFFUSION_MODEL", distance=False):
    """A cache that makes each second answer, or distance of the answer from x, of those that the network gave."""
    computed, calls = [], itertools.count()

    def around(executor, x, *args, **kwargs):
        away = x if distance else 0.0 * x
        if next(calls) % 2 and len(computed) >= 3:
            return made_of(*computed[-3:]) + away
        computed.append(executor(x, *args, **kwargs) - away)
        return computed[-1] + away

    return answering_in_place(model, where, around)


def scaled(a, b, c):
    return 1.003 * c


def on_a_line(a, b, c):
    return c + 0.5 * (c - b)


def on_a_curve(a, b, c):
    return c + 0.5 * (c - b) + 0.125 * (c - 2 * b + a)


PREDICTING = {
    "the network's answer, scaled": dict(made_of=scaled),
    "the network's answers, on a line": dict(made_of=on_a_line),
    "the network's answers, on a curve": dict(made_of=on_a_curve),
    "a denoised latent, scaled": dict(made_of=scaled, where="APPLY_MODEL"),
    "denoised latents, as a function": dict(made_of=on_a_line, where="a function"),
    "their distances from x": dict(made_of=on_a_line, where="APPLY_MODEL", distance=True),
}


@pytest.mark.parametrize("predicted", PREDICTING)
@pytest.mark.parametrize("name", ["SD15", "Flux", "CosmosT2V"])  # noise, velocity, EDM
def test_a_cache_without_a_name_is_known_by_its_predictions(comfy, tiny, caplog, name, predicted):
    """As MagCache's kind scales and TaylorSeer's extrapolates. Catches two caches of which nobody is told, with an
    estimate that was 11 to 21 dB too good.
    """
    scene = tiny(name)
    for widgets in (dict(threshold=0.1), dict(target_speedup=2.0)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            comfy.sample(scene, comfy.cached(predicting(scene.model, **PREDICTING[predicted]), **widgets), steps=20)
        assert sum("another cache predicts it" in line for line in log_of(caplog)) == 1
        assert "(estimate)" not in caplog.text


@pytest.fixture(scope="module", params=["fp32", "bf16", "fp16"])
def typed_scene(comfy, small_scene, request):
    """The bundled video model, computing in that type."""
    if request.param == "fp32":
        return small_scene
    model = comfy.node("ModelComputeDtype", small_scene.model, request.param)[0]
    return Scene(model, small_scene.positive, small_scene.negative, small_scene.latent)


@pytest.mark.parametrize("made_of", [scaled, on_a_line])
def test_predictions_in_half_precision_are_known(comfy, typed_scene, caplog, made_of):
    """Catches rounding that hides a cache: most models compute in half precision."""
    model = comfy.cached(predicting(typed_scene.model, made_of), target_speedup=2.0)
    with caplog.at_level(logging.WARNING):
        comfy.sample(typed_scene, model, steps=30)
    assert sum("another cache" in line for line in log_of(caplog)) == 1


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", asking_twice])
def test_a_trained_network_is_not_taken_for_a_cache(comfy, run, typed_scene, caplog, sampler):
    """Of many short steps nearly each is computed, so answers follow each other closely. Catches networks whose answers
    pass for predictions.
    """
    with caplog.at_level(logging.WARNING):
        outcome = run(
            typed_scene,
            lambda model: comfy.node("CFGGuider", model, typed_scene.positive, typed_scene.negative, 4.0)[0],
            sampler,
            schedule(comfy, typed_scene, 40),
            target_speedup=1.05,
        )
    assert outcome.report["computed"] >= 36
    assert not any("another cache" in line for line in log_of(caplog))


ODD = {
    "nothing": lambda x: 0.0 * x,
    "noise in a few elements": lambda x: torch.nn.functional.pad(torch.randn_like(x[..., :1, :2]), (0, 14, 0, 15)),
    "NaN once in a while": lambda x: torch.where(torch.rand(()) < 0.2, math.nan, torch.randn_like(x)),
}


@pytest.mark.parametrize("answers", ODD)
def test_odd_answers_are_not_taken_for_those_of_a_cache(comfy, tiny, caplog, answers):
    """Catches answers that are combinations of any others, as there is nothing in them."""
    scene = tiny("Flux")
    model = answering_in_place(scene.model, "APPLY_MODEL", lambda executor, x, *args, **kwargs: ODD[answers](x))
    with caplog.at_level(logging.WARNING):
        comfy.sample(scene, comfy.cached(model, threshold=1e-9))
    assert not any("another cache" in line for line in log_of(caplog))


@torch.no_grad()
def asking_now_and_then(model, x, sigmas, extra_args=None, callback=None, disable=None, every=3):
    """Euler's steps, at each third of which the network is not asked; the answer goes on as it went before."""
    answers = []
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        asks = i % every < every - 1
        answers.append(model(x, sigma.expand(len(x)), **extra_args) if asks else 2 * answers[-1] - answers[-2])
        callback(dict(x=x, i=i, sigma=sigma, denoised=answers[-1]))
        x = x + (x - answers[-1]) / sigma * (following - sigma)
    return x


def calling_back_twice(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's steps, with a preview before each and after it."""
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma.expand(len(x)), **extra_args)
        for _ in range(2):
            callback(dict(x=x, i=i, sigma=sigma, denoised=denoised))
        x = x + (x - denoised) / sigma * (following - sigma)
    return x


SKIPPING = {
    "it skips each third": (asking_now_and_then, 5),
    "it skips none": (functools.partial(asking_now_and_then, every=100), 0),
    "it calls back twice per step": (calling_back_twice, 0),
}


@pytest.mark.parametrize("sampler", SKIPPING)
@pytest.mark.parametrize("widgets", [dict(threshold=0.15), dict(target_speedup=2.0)], ids=str)
def test_a_sampler_that_skips_evaluations_itself_is_told_of(comfy, run, tiny, caplog, sampler, widgets):
    """As ComfyUI-FSampler's do. Catches two caches of which nobody is told, with an estimate that knows of one."""
    function, skipped = SKIPPING[sampler]
    scene = tiny("SD15")
    with caplog.at_level(logging.INFO):
        run(
            scene,
            lambda model: comfy.node("CFGGuider", model, scene.positive, scene.negative, 2.0)[0],
            function,
            **widgets,
        )
    assert (f"the sampler leaves out {skipped} evaluations of its own accord" in caplog.text) == (skipped > 0)
    assert not (skipped and "(estimate)" in caplog.text)


@pytest.mark.parametrize("where", ["an object patch", "an attribute of the network"])
def test_a_cache_within_the_network_is_warned_of_by_name(comfy, tiny, caplog, where, monkeypatch):
    """Catches a cache that replaces the network's forward: none of the model's options tells of it."""
    scene, network = tiny("SD15"), tiny("SD15").model.model.diffusion_model
    model = scene.model.clone()
    if where == "an object patch":
        model.add_object_patch("diffusion_model.forward", foreign("teacache_forward").__get__(network.forward))
    else:
        monkeypatch.setitem(network.__dict__, "teacache_skipped_steps", 0)
    (warning,) = warnings_of(comfy, scene, caplog, comfy.cached(model))
    assert "also goes through TeaCache" in warning


HARMLESS = {
    "wrappers": wrapper("DIFFUSION_MODEL", "another pack"),
    "a wrapper without a key": wrapper("APPLY_MODEL", None),
    "a wrapper around the network": around_the_network(foreign("scale")),
    "options": option("cfg_scale"),
    "our own option": option("easycache_ranks", None),
    "a user's folder": around_the_network(foreign("scale", module="/home/teacache/ComfyUI/custom_nodes/another.nodes")),
    "a cache of text": wrapper("OUTER_SAMPLE", "prompt cache", foreign("cache_prompts")),
    "patches": lambda model: model.set_model_attn2_patch(lambda query, context, value, extra: (query, context, value)),
    "functions of guidance": lambda model: model.set_model_sampler_post_cfg_function(lambda given: given["denoised"]),
}


@pytest.mark.parametrize("patch", HARMLESS)
def test_a_harmless_patch_is_not_warned_of(comfy, tiny, caplog, patch):
    """Catches a warning that says nothing: users then overlook the one that does."""
    model = tiny("SD15").model.clone()
    HARMLESS[patch](model)
    assert warnings_of(comfy, tiny("SD15"), caplog, comfy.cached(model)) == []


def test_nodes_that_cache_nothing_are_not_warned_of(comfy, tiny, caplog):
    """Catches a name of ComfyUI's own that is taken for that of a cache."""
    scene = tiny("SD15")
    model = comfy.node("FreeU_V2", scene.model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)[0]
    model = comfy.node("PerturbedAttentionGuidance", model, scale=3.0)[0]
    model = comfy.node("FreSca", model, scale_low=1.0, scale_high=1.25, freq_cutoff=20)[0]
    model = comfy.node("RescaleCFG", model, multiplier=0.7)[0]
    assert warnings_of(comfy, scene, caplog, comfy.cached(comfy.cached(model))) == [], "not even of itself"
