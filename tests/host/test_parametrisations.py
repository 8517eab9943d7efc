"""The paper's rule in the network's own terms, on one tiny model of each way ComfyUI's networks have to predict."""

import pytest
import torch
from steps import Steps

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Flux", id="flow"),
        pytest.param("SD15", id="eps"),
        pytest.param("StableAudio", id="v"),
        pytest.param("SVD_img2vid", id="v, EDM schedule"),
        pytest.param("CosmosT2V", id="EDM"),
        pytest.param("CosmosT2IPredict2", id="rectified flow at EDM noise levels"),
        pytest.param("Stable_Cascade_C", id="eps, cosine schedule"),
        pytest.param("LotusD", id="the picture itself"),
    ],
)
def test_a_reused_step_is_the_papers_rule_on_the_networks_own_input_and_output(comfy, tiny, name):
    """v_n = x_n + (v_i - x_i). Catches a v that is taken to be (x - denoised) / sigma, true of some models only."""
    scene = tiny(name)
    sampling = scene.model.get_model_object("model_sampling")
    with Steps(comfy.cached(scene.model, threshold=1.0, predictor="reuse")) as steps:
        comfy.sample(scene, steps.model, cfg=1.0, steps=12)
    reused = [step for step in steps if not step.computed]
    assert len(reused) > 4
    for step in reused:
        x, v = step.last_call
        own = step.x.shape[1]  # some networks get further channels to look at
        predicted = sampling.calculate_input(step.sigma, step.x) + (v - x[:, :own])
        expected = sampling.calculate_denoised(step.sigma, predicted, step.x)
        torch.testing.assert_close(step.denoised, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
