"""Context windows: a long latent is computed window by window, and the windows may lie elsewhere at every step.

What is cached is therefore what the windows add up to, and a reused evaluation needs no window at all.
"""

from collections.abc import Callable


class CachedWindows:
    """Stands in for ComfyUI's context handler during one evaluation.

    handler: the one that was set up. conditions: called with (compute, conds, x, timestep, model_options), as
    Run.conditions; `compute` has the handler go through its windows.
    """

    def __init__(self, handler, conditions: Callable):
        self._handler = handler
        self._conditions = conditions

    def __getattr__(self, name):
        return getattr(self._handler, name)

    def execute(self, calc_cond_batch, model, conds, x, timestep, model_options):
        def compute():
            # A handler's callbacks may ask the model options for the handler itself.
            own_options = {**model_options, "context_handler": self._handler}
            return self._handler.execute(calc_cond_batch, model, conds, x, timestep, own_options)

        return self._conditions(compute, conds, x, timestep, model_options)
