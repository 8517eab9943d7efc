"""A real ComfyUI in this process, with the pack loaded by ComfyUI's own loader. Nothing of it is mocked."""

import asyncio
import functools
import gc
import inspect
import json
import os
from collections import Counter

import comfy_host
import pytest
import tiny_models
import torch
from sampling import Outcome, schedule
from scene import Scene


class Comfy:
    """What the tests need of the running ComfyUI."""

    def __init__(self, base):
        self.pack_folder = comfy_host.import_comfy(base)
        import nodes

        processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
        torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // processes)))

        async def load():
            await nodes.init_builtin_extra_nodes()
            # As in ComfyUI's own start-up: ids that exist already are ignored.
            return await nodes.load_custom_node(str(self.pack_folder), ignore=set(nodes.NODE_CLASS_MAPPINGS))

        self.pack_loaded = asyncio.run(load())
        gc.collect()  # what earlier tests left would stay for good
        gc.freeze()  # many runs start with a collection, which need not look through all of ComfyUI each time
        self.classes = nodes.NODE_CLASS_MAPPINGS
        self.display_names = nodes.NODE_DISPLAY_NAME_MAPPINGS

    def node(self, kind, *args, **inputs):
        """Execute a node, old style or V3, and return its outputs. A widget that is left out has its default."""
        cls = self.classes[kind]
        v3 = hasattr(cls, "define_schema")
        execute = cls.execute if v3 else getattr(cls(), cls.FUNCTION)
        given = inspect.signature(execute).bind_partial(*args, **inputs).arguments
        for name, (_, *widget) in cls.INPUT_TYPES().get("required", {}).items():
            if name not in given and widget and "default" in widget[0]:
                inputs.setdefault(name, widget[0]["default"])
        outputs = execute(*args, **inputs)
        return getattr(outputs, "result", outputs)

    def module(self, name):
        """As comfy_host.loaded_module has it."""
        return comfy_host.loaded_module(self.classes, name)

    def cached(self, model, **widgets):
        """The model behind an EasyCache (Adaptive) node."""
        return self.node("EasyCacheAdaptive", model, **{"threshold": 0.1, "warmup_steps": 3, **widgets})[0]

    def sample(self, scene, model=None, **changes):
        """A KSampler run; returns the latent tensor."""
        inputs = dict(seed=5, steps=16, cfg=4.0, sampler_name="euler", scheduler="simple", positive=scene.positive,
                      negative=scene.negative, latent_image=scene.latent, denoise=1.0)  # fmt: skip
        inputs.update(changes)
        with torch.no_grad():  # ComfyUI's server samples without gradients, too
            return self.node("KSampler", scene.model if model is None else model, **inputs)[0]["samples"]


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    return Comfy(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def demo_scene(comfy):
    """The bundled video model."""
    model, positive, negative, latent = comfy.node("EasyCacheDemoModel", "rocket", "night", "zoom-out", 1)
    return Scene(model, positive, negative, latent)


@pytest.fixture(scope="session")
def small_scene(comfy):
    """The bundled video model on a tenth of its latent: for whatever does not ask how good a picture is."""
    model, positive, negative, latent = comfy.node("EasyCacheDemoModel", "rocket", "night", "zoom-out", 1)
    return Scene(model, positive, negative, {"samples": torch.zeros_like(latent["samples"][:, :, :2, :8, :8])})


@pytest.fixture(scope="session")
def tiny(comfy):
    """tiny(name): the Scene of the tiny model of that family, the same one each time."""
    return functools.cache(tiny_models.build)


@pytest.fixture
def run(comfy):
    """run(scene, make_guider, **widgets): one sampling run of `make_guider(model)`; without widgets uncached.

    sampler: a name, a function as k-diffusion has them, or a SAMPLER.
    """

    def run(scene, make_guider, sampler="euler", sigmas=None, latent=None, patch=None, **widgets):
        import comfy.samplers as samplers

        model = patch(scene.model) if patch else scene.model
        model = comfy.cached(model, **widgets) if widgets else model
        sigmas = schedule(comfy, scene) if sigmas is None else sigmas
        if not isinstance(sampler, samplers.Sampler):
            sampler = samplers.KSAMPLER(sampler) if callable(sampler) else samplers.sampler_object(sampler)
        noise, latent = comfy.node("RandomNoise", 5)[0], scene.latent if latent is None else latent
        scene.calls.clear()
        samples = comfy.node("SamplerCustomAdvanced", noise, make_guider(model), sampler, sigmas, latent)[0]["samples"]
        calls = Counter(sigma for _, sigma, _ in scene.calls)
        assert samples.isfinite().all()
        report = json.loads(comfy.node("EasyCacheReport", model, {"samples": samples})[2]) if widgets else None
        return Outcome(samples, calls, report)

    return run


@pytest.fixture(scope="module")
def one_thread(comfy):
    """Networks this small lose more time in waiting for each other's threads than they take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_run_left():
    """Call it to get the names of engine objects that are still alive; none may be once a run has ended."""

    def alive():
        gc.collect()
        names = (
            "CacheController",
            "Run",
            "Forecast",
            "Reuse",
            "Snapshot",
            "Branch",
            "StepCounter",
            "Piece",
            "Switches",
        )
        return [type(thing).__name__ for thing in gc.get_objects() if type(thing).__name__ in names]

    return alive
