"""Context windows: a long latent is computed window by window, and the windows may move from step to step.

So the combined output of all windows is cached, and a reused evaluation computes no window at all. Where the windows
lie is a part of what is asked: a frame's answer depends on the frames that it is seen with.
"""

from collections.abc import Callable

import torch


def windows_of(handler, model, conds, x: torch.Tensor, timestep: torch.Tensor, model_options: dict) -> frozenset | None:
    """The frames of each window in which `handler` is about to ask; None if it does not tell. Waits for the device."""
    try:
        handler.set_step(timestep, model_options)
        state = getattr(handler, "_build_window_state", None)  # of latents that are packed together
        latent = x if state is None else state(x, conds, model).latents[0]
        return frozenset(tuple(one.index_list) for one in handler.get_context_windows(model, latent, model_options))
    except Exception:  # another pack's handler, or a level that is none of the schedule's: ComfyUI's raises Exception
        return None


class CachedWindows:
    """Stands in for ComfyUI's context handler during one evaluation.

    handler: the one it replaces. predict_or_compute: as Run.predict_or_compute; its `compute` runs all windows. exact:
    whether nothing is ever predicted; then nobody has to know where they lie, which waits for the device.
    """

    def __init__(self, handler, predict_or_compute: Callable, exact: bool):
        self._handler = handler
        self._predict_or_compute = predict_or_compute
        self._exact = exact

    def __getattr__(self, name):
        if name.startswith("__"):  # asked for by copies, which have no handler yet
            raise AttributeError(name)
        return getattr(self._handler, name)

    def execute(self, calc_cond_batch, model, conds, x, timestep, model_options):
        def compute(conds):
            # A handler's callbacks may look for the handler itself in the model options.
            own_options = {**model_options, "context_handler": self._handler}
            return self._handler.execute(calc_cond_batch, model, conds, x, timestep, own_options)

        asked = model, conds, x, timestep, model_options
        windows = None if self._exact else windows_of(self._handler, *asked)
        return self._predict_or_compute(compute, *asked, windows)
