"""A compiled network: the cache stays outside the graph, so it costs neither recompilations nor graph breaks."""

import logging
import re

import pytest
import tiny_models
import torch
from closeness import psnr

pytestmark = pytest.mark.usefixtures("one_thread")


class CountingBackend:
    """Compiles nothing, but notes what a real backend would have to compile, and each call of that."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1

        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def sample(comfy, caplog):
    """sample(scene, model): (latent, how many evaluations the pack says were computed)."""

    def sample(scene, model):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            latent = comfy.sample(scene, model, steps=12)
        lines = re.findall(r"EasyCache: computed (\d+) of", caplog.text)
        return latent, int(lines[0]) if lines else None

    yield sample
    torch.compiler.reset()


@pytest.mark.in_turn("cache_first")
@pytest.mark.parametrize("cache_first", [False, True])
@pytest.mark.parametrize("name", ["SD15", "SD3", "Flux", "WAN21_T2V"])
def test_one_graph_and_the_same_decisions(comfy, sample, name, cache_first):
    """Catches what broke the built-in node (ComfyUI issue 14795): state of the cache inside the compiled graph."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    scene = tiny_models.build(name)
    eager, computed = sample(scene, comfy.cached(scene.model))
    scene.leave_alone()  # a hook would be compiled too
    backend = CountingBackend()
    model = comfy.cached(scene.model) if cache_first else scene.model.clone()
    set_torch_compile_wrapper(model, backend=backend, fullgraph=True)  # a graph break would be an error
    model = model if cache_first else comfy.cached(model)
    for _ in range(2):
        backend.calls = 0
        compiled, also_computed = sample(scene, model)
        assert also_computed == computed == backend.calls < 12
        assert torch.equal(compiled, eager)
        assert backend.graphs == 1, "a run of its own must not make the graph stale"


def test_the_node_that_compiles(comfy, sample):
    """TorchCompileModel with torch's own compiler, which needs one for C++ on the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler on this machine")
    scene = tiny_models.build("Flux")
    eager, computed = sample(scene, comfy.cached(scene.model))
    scene.leave_alone()
    model = comfy.cached(comfy.node("TorchCompileModel", scene.model, "inductor")[0])
    compiled, also_computed = sample(scene, model)
    assert also_computed == computed < 12
    assert psnr(compiled, eager) > 60
