"""How often the node makes the sampler wait for the GPU, counted without one: a read of a tensor's value is a wait."""

import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 16
READS = {"item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__"}


class ReadsByThePack(TorchFunctionMode):
    """Notes where the pack's own code reads a value, while `armed`."""

    def __init__(self, pack: Path):
        super().__init__()
        self._folders = tuple(f"{pack / name}/" for name in ("nodes", "easycache_core"))
        self.armed, self.places = False, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if self.armed and getattr(function, "__name__", "") in READS:
            frame = sys._getframe(1)
            while frame is not None and "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            if frame is not None and frame.f_code.co_filename.startswith(self._folders):
                self.places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        return function(*args, **(kwargs or {}))


SETTINGS = {
    "budget": dict(target_speedup=2.0),
    "threshold": dict(threshold=0.1, warmup_steps=2),
    "reuse": dict(threshold=0.1, warmup_steps=2, predictor="reuse"),
    "start_percent": dict(threshold=0.1, warmup_steps=2, start_percent=0.3, end_percent=0.8),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("settings", SETTINGS)
def test_one_wait_per_evaluation(comfy, tiny, settings, mode):
    """From one of the sampler's callbacks to the next. Catches a comparison of tensors that is taken for a flag, and
    anything else that lets the GPU run dry in each step.
    """
    scene = tiny("SD15")
    reads = ReadsByThePack(comfy.pack_folder)
    since_the_last_callback = []

    def count(executor, guider, sigmas, extra_args, callback, *args, **kwargs):
        def note(*state):
            callback(*state)
            since_the_last_callback.append(list(reads.places))
            reads.places.clear()

        reads.armed = True
        result = executor(guider, sigmas, extra_args, note, *args, **kwargs)
        reads.armed = False
        return result

    from comfy.patcher_extension import WrappersMP

    model = comfy.cached(scene.model, **SETTINGS[settings])
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "count", count)
    with reads, mode():
        comfy.sample(scene, model, steps=STEPS)
    first, *others = since_the_last_callback
    assert len(first) <= 2, f"the schedule is looked at once per run: {first}"
    assert len(others) == STEPS - 1 and all(len(places) == 1 for places in others), others
