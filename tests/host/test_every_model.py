"""Every model family of the host, tiny: nothing of the pack knows a model, so it has to work alike on all of them."""

import logging
from collections import Counter

import comfy_host
import pytest
import tiny_models
import torch
from sampling import log_of
from streams import streams

FAMILIES = dict(tiny_models.families(comfy_host.find()))
NOT_SAMPLED = tiny_models.NOT_SAMPLED
NAMES = [name for name, recipe in FAMILIES.items() if recipe or name in NOT_SAMPLED]
STEPS, WARMUP = 8, 2

# With a budget for forecasts, as they do not trust themselves on some random networks, whatever the threshold.
WAYS = [dict(threshold=1.0, warmup_steps=WARMUP, predictor="reuse"), dict(target_speedup=2.0, predictor="forecast")]

PRECISIONS = {
    "bf16": dict(weights=torch.bfloat16),
    "fp16": dict(weights=torch.float16),
    "fp8 weights": dict(weights=torch.float8_e4m3fn, computed_in=torch.bfloat16),
}


class Family:
    """A tiny model and its uncached run."""

    def __init__(self, comfy, name, **precision):
        self._comfy = comfy
        self.scene = tiny_models.build(name, **precision)
        self.plain, self.evaluations = self.sample(self.scene.model)

    def sample(self, model):
        """(the latent's streams, how often the network was called at each noise level): one level is one step."""
        latent, _ = self.scene.counting(lambda: self._comfy.sample(self.scene, model, steps=STEPS, cfg=2.5))
        return streams(latent), Counter(sigma for _, sigma, _ in self.scene.calls)

    def cached(self, **widgets):
        return self.sample(self._comfy.cached(self.scene.model, **{"warmup_steps": WARMUP, **widgets}))


@pytest.fixture(scope="module", params=NAMES)
def family(comfy, one_thread, request):
    return Family(comfy, sampled(request.param))


def sampled(name):
    """The name of a family; skips the test for one that nothing is sampled with."""
    if name in NOT_SAMPLED:
        pytest.skip(NOT_SAMPLED[name])
    return name


def test_every_family_has_a_recipe(comfy):
    """A model that a new ComfyUI brings must not go untested unnoticed."""
    from comfy import supported_models

    assert set(FAMILIES) == {family.__name__ for family in supported_models.models}
    missing = [name for name, recipe in FAMILIES.items() if recipe is None and name not in NOT_SAMPLED]
    assert not missing, f"no recipe in tests/support/tiny_models.py for {', '.join(missing)}"


def assert_sound(latent, shapes):
    assert [stream.shape for stream in latent] == shapes
    assert all(stream.isfinite().all() for stream in latent)


@pytest.mark.verifies("models", "steps are skipped, the result is sound")
def test_reused_steps_do_not_reach_the_network(family):
    shapes = [stream.shape for stream in streams(family.scene.latent["samples"])]
    assert_sound(family.plain, shapes)
    assert len(family.evaluations) == STEPS, "every step without the node is computed"

    levels = sorted(family.evaluations, reverse=True)
    for widgets in WAYS:
        latent, evaluations = family.cached(**widgets)
        assert_sound(latent, shapes)
        assert len(evaluations) < STEPS, "nothing was reused"
        assert {levels[0], levels[-1]} <= set(evaluations), "the first and the last step are always computed"
        assert set(levels[:WARMUP]) <= set(evaluations) or "target_speedup" in widgets, "the warm-up is computed"
        assert evaluations == {level: family.evaluations[level] for level in evaluations}, "both branches or none"


def test_no_network_is_taken_for_a_cache(family, caplog):
    """Catches answers that pass for repeated or predicted ones: random networks hardly look at x."""
    with caplog.at_level(logging.WARNING):
        family.cached(threshold=1e-9)
    assert not any("another cache" in line for line in log_of(caplog))


@pytest.mark.verifies("models", "threshold 0 is bit-identical")
def test_threshold_0_changes_nothing(family):
    latent, evaluations = family.cached(threshold=0.0)
    assert all(map(torch.equal, latent, family.plain))
    assert evaluations == family.evaluations


@pytest.mark.verifies("models", "the same decisions with cond and uncond apart")
def test_decisions_do_not_depend_on_free_memory(family, request, monkeypatch):
    """With little of it ComfyUI runs cond and uncond one after the other."""
    recipe = FAMILIES[request.node.callspec.params["family"]]
    if recipe.one_batch:
        pytest.skip("ComfyUI itself can run this network only with cond and uncond in one batch")
    if recipe.apart:
        pytest.skip("ComfyUI itself runs cond and uncond of this network one after the other")
    together = {}
    for threshold in (0.1, 1.0):
        _, together[threshold] = family.cached(threshold=threshold)
        assert all(len(kinds) == 2 for _, _, kinds in family.scene.calls)
    monkeypatch.setattr(family.scene.model.model, "memory_required", lambda *args, **kwargs: 1e30)
    for threshold, evaluations in together.items():
        latent, apart = family.cached(threshold=threshold)
        assert all(len(kinds) == 1 for _, _, kinds in family.scene.calls), "the batch was really split"
        assert all(stream.isfinite().all() for stream in latent)
        assert apart == {level: 2 * count for level, count in evaluations.items()}


@pytest.mark.verifies("models", "{precision}")
@pytest.mark.in_turn("precision")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_precisions(comfy, one_thread, name, precision):
    """Catches rates that overflow or stall in half precision, and cached outputs of another type."""
    sampled(name)
    try:
        family = Family(comfy, name, **PRECISIONS[precision])
    except Exception as error:
        pytest.skip(f"ComfyUI itself fails here: {error!r}")
    if not all(stream.isfinite().all() for stream in family.plain):
        pytest.skip("ComfyUI itself samples NaN or inf here")
    same, _ = family.cached(threshold=0.0)
    assert all(map(torch.equal, same, family.plain))
    for widgets in WAYS:
        latent, evaluations = family.cached(**widgets)
        assert_sound(latent, [stream.shape for stream in family.plain])
        assert {stream.dtype for stream in latent} == {stream.dtype for stream in family.plain}
        assert len(evaluations) < STEPS, "nothing was reused"
