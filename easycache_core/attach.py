"""The cache for any network that is a torch.nn.Module, whatever samples with it."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils import _pytree as pytree  # where diffusers registers its output classes

from .config import CacheConfig, require_integer
from .controller import CacheController
from .interface import Layout, find_arguments, tensors_of, timestep_of
from .prediction import Prediction
from .predictors import PREDICTORS
from .storage import is_out_of_memory

log = logging.getLogger("easycache")


@contextmanager
def attach(
    module: torch.nn.Module, config: CacheConfig, total_steps: int, *,
    sigma_of: Callable[[float], float] | None = None, prediction: str = "flow", input: str | None = None,
    time: str | None = None, tracked: slice | None = None, **controller_options,
) -> Iterator["Attachment"]:  # fmt: skip
    """Answer calls of the module from the cache where possible, while entered; afterwards the module is as it was.

    Every call of `module(x, t, ...)` at another t, or with another x, is an evaluation of the sampler and a step in the
    sense of `config`. Calls with the same t and x belong to one evaluation: cond and uncond one after the other. The
    first of them decides for all, and each has a cache of its own. A batch of cond and uncond is one call, and so is
    distilled guidance. After total_steps evaluations, and where t is back where it started, another run begins;
    `Attachment.reset` begins one in any other case. Reading t waits for its device, at most once per call. Calls whose
    x requires a gradient go past the cache.

    Args:
        module: takes a latent, a tensor or a list of them of any shape, and a timestep, a number or a tensor (the
            largest counts). Returns the prediction as a tensor, a list, a tuple, a dict or one of diffusers' output
            classes; so does a predicted call. It must not be training.
        config: what a user may set.
        total_steps: evaluations of one run: the steps of most samplers, 2 N - 1 for N steps of Heun's.
        sigma_of: noise level at a timestep. "forecast" needs it. For flow models mostly `lambda t: t / 1000`.
        prediction: what the network predicts, for "forecast": "flow" (noise minus data), "reverse_flow" (data minus
            noise), "epsilon" or "v_prediction", of latents whose variance is kept (prediction.py has the formulas).
        input, time: names of x and t among forward's parameters. Else x is the first, and t the one that is called
            timestep, timesteps, t, time, sigma or sigmas, or the second.
        tracked: rows of a batch that decide for all of it, such as slice(0, 1). None: all of them, which is what the
            authors' code does with a batch. Calls that follow the first in an evaluation never decide.
        controller_options: handed on to CacheController; `step_lengths` where a budget meets steps of unequal length.

    Returns:
        A context manager that gives the Attachment: `trace`, `computed`, `skipped`, `speedup`, `reset()`.

    Raises:
        ValueError: bad arguments; a module that is attached already; in a call, outputs that are no prediction for x.
        RuntimeError: the module is called while training.

    >>> network = torch.nn.Bilinear(4, 1, 4).eval()  # any module: here f(x, t), a velocity
    >>> x, times = torch.randn(2, 4), torch.linspace(1, 0, 31)
    >>> config = CacheConfig(threshold=0.1, warmup_steps=5, predictor="reuse")
    >>> with torch.no_grad(), attach(network, config, total_steps=30) as cache:
    ...     for t, following in zip(times[:-1], times[1:]):
    ...         x = x + (following - t) * network(x, t.expand(2, 1))
    >>> cache.computed + cache.skipped
    30
    """
    # Compiled by module.compile(), which would trace the decision, a module is cached around its graph.
    slot = "forward" if getattr(module, "_compiled_call_impl", None) is None else "_compiled_call_impl"
    before = module.__dict__.get(slot)
    if isinstance(before, Attachment):
        raise ValueError(f"{type(module).__name__} is attached already; two caches would add up their errors")
    network = module, getattr(module, slot), find_arguments(module, input, time)
    cache = Attachment(*network, config, total_steps, sigma_of, prediction, tracked, controller_options)
    setattr(module, slot, cache)
    try:
        yield cache
    finally:
        ours = module.__dict__.get(slot) is cache
        if ours and before is None:
            delattr(module, slot)
        elif ours:
            setattr(module, slot, before)
        cache.close(keep_network=not ours)


TENSOR = object()


class OutputTemplate(NamedTuple):
    """What a call returned beside its predictions."""

    structure: pytree.TreeSpec
    leaves: list  # TENSOR in the places of predictions
    extra: list[torch.Tensor | None]
    dtype: torch.dtype


class EvaluationKey:
    """t and x of the newest evaluation: other calls with both belong to it."""

    def __init__(self, timestep: float, x: list[torch.Tensor]):
        self.timestep = timestep
        # A tensor may be overwritten before the next call. Its version says so, if it has one.
        self._x = [tensor.clone() if tensor.is_inference() else tensor for tensor in x]
        self._versions = [None if tensor.is_inference() else tensor._version for tensor in x]

    def matches(self, timestep: float, x: list[torch.Tensor], layout: Layout | None) -> bool:
        if timestep != self.timestep or _shapes(x) != _shapes(self._x):
            return False
        versions = zip(self._x, self._versions, strict=True)
        if any(version is not None and version != ours._version for ours, version in versions):
            return False
        if all(ours is theirs for ours, theirs in zip(self._x, x, strict=True)):
            return True
        pairs = zip(layout.groups(self._x), layout.groups(x), strict=True)
        return all(torch.equal(ours, theirs) for ours, theirs in pairs)


class Attachment:
    """The cache of an attached module, and its forward meanwhile. Numbers are those of the newest run."""

    def __init__(self, module, network, arguments, config, total_steps, sigma_of, prediction, tracked, options):
        require_integer("total_steps", total_steps, 1, 1_000_000)
        predictor = PREDICTORS[config.predictor]
        if predictor.follows_denoised and sigma_of is None:
            raise ValueError(
                f'predictor "{config.predictor}" needs the noise level: pass sigma_of, a function of the timestep, for '
                'most flow models lambda t: t / 1000; or choose CacheConfig(predictor="reuse")'
            )
        conversion = Prediction(prediction)
        self._conversion = conversion if predictor.follows_denoised else None
        self._module, self._network = module, network
        self._config, self._total_steps, self._sigma_of = config, total_steps, sigma_of
        self._x, self._time = arguments
        self._tracked = tracked
        self._options = {**options, "denoised": predictor.follows_denoised}
        self._active = True
        self._layouts: dict[tuple, Layout] = {}  # by the shapes of x
        self._controller: CacheController | None = None
        self.reset()
        functools.update_wrapper(self, self._network, updated=())

    def reset(self) -> None:
        """Begin another run with the next call; what is known of this one goes."""
        if self._controller is not None:
            self._controller.release()  # other ranks that go on with it are told
        self._controller = CacheController(self._config, self._total_steps, **self._options)
        self._key: EvaluationKey | None = None
        self._templates: dict[str, OutputTemplate] = {}
        self._evaluations = self._calls = 0  # of this run, and of this evaluation
        self._first_timestep: float | None = None  # the run's first timestep
        self._sigma: float | None = None
        self._computing = True
        self._cache_miss = False  # whether this evaluation asked for something that was not in the cache

    trace = property(lambda self: self._controller.trace, doc="As CacheController's; sigma is None without sigma_of.")
    computed = property(lambda self: self._controller.computed, doc="Evaluations for which the network ran.")
    skipped = property(lambda self: self._controller.skipped, doc="Evaluations that were predicted.")

    speedup = property(lambda self: len(self.trace) / max(self.computed, 1), doc="Evaluations per computed one.")

    def close(self, keep_network: bool) -> None:
        """Let go of every tensor; the trace stays. keep_network: somebody still calls this as the module's forward."""
        self._active = False
        self._controller.release()
        self._key, self._templates, self._layouts = None, {}, {}
        if not keep_network:
            del self._module, self._network, self.__wrapped__

    def __call__(self, *args, **kwargs):
        if not self._active:
            return self._network(*args, **kwargs)
        x = tensors_of(self._x.of(args, kwargs))
        if torch.is_grad_enabled():
            if self._module.training and any(parameter.requires_grad for parameter in self._module.parameters()):
                raise RuntimeError("a cache is for sampling: call module.eval(), or sample under torch.no_grad()")
            if any(tensor.requires_grad for tensor in x):
                return self._network(*args, **kwargs)
        try:
            return self._answer(x, args, kwargs)
        except BaseException:  # the evaluation is not whole
            self._controller.reset_cache()
            self._key = None
            raise

    def _answer(self, x: list[torch.Tensor], args: tuple, kwargs: dict):
        timestep, layout, output = timestep_of(self._time.of(args, kwargs)), self._layouts.get(_shapes(x)), None
        new = self._key is None or not self._key.matches(timestep, x, layout)
        if new:
            self._open_evaluation(timestep, x)
        branch, self._calls = f"{self._calls} {kwargs.get('return_dict')}", self._calls + 1
        if layout is None:  # the form of the output shows what of x is latent
            x_before = [tensor.clone() for tensor in x]
            output = self._run_network(args, kwargs)
            listed = not isinstance(self._x.of(args, kwargs), torch.Tensor)
            layout = Layout(x, _predictions(output), listed, self._tracked)
            self._layouts[_shapes(x)] = layout
            x = x_before
        latents = layout.groups(x)
        if self._conversion is not None:
            latents = [self._conversion.latent(group) for group in latents]
        if new:
            force, self._cache_miss = self._cache_miss or output is not None, False
            step = self._evaluations - 1
            self._computing = self._controller.begin(latents[0], sigma=self._sigma, step=step, force=force)
        if not self._computing and output is None and self._controller.has(f"{branch} 0"):
            try:
                return self._predicted(branch, layout, x, latents)
            except Exception as error:
                if self._controller.shared or not is_out_of_memory(error):
                    raise
            self._controller.give_up_cache()
        if output is None:
            output = self._run_network(args, kwargs)
        if self._computing:
            with self._controller.cache_dropped_on_oom():
                self._store(branch, layout, x, latents, output)
        else:
            self._cache_miss = True
            self._controller.count_as_computed()
        return output

    def _run_network(self, args: tuple, kwargs: dict):
        """Its output; a second time without the cache if there was no room for both. Not where other ranks run along:
        the network exchanges data with theirs, and one rank alone must not run it again.
        """
        try:
            return self._network(*args, **kwargs)
        except Exception as error:
            if self._controller.shared or not self._controller.holds_tensors or not is_out_of_memory(error):
                raise
        self._controller.give_up_cache()
        return self._network(*args, **kwargs)

    def _open_evaluation(self, timestep: float, x: list[torch.Tensor]) -> None:
        """Begin another evaluation, of this run or of the next one."""
        if self._key is not None and self._starts_over(timestep):
            self.reset()
        self._first_timestep = timestep if self._first_timestep is None else self._first_timestep
        self._key = EvaluationKey(timestep, x)
        self._evaluations, self._calls = self._evaluations + 1, 0
        self._sigma = None if self._sigma_of is None else float(self._sigma_of(timestep))
        if self._conversion is not None:
            self._conversion.set_sigma(self._sigma)
        if self._evaluations == self._total_steps + 1:
            log.warning(f"EasyCache: evaluations after total_steps={self._total_steps} are computed")

    def _starts_over(self, timestep: float) -> bool:
        """Whether the timestep is that of another run's beginning."""
        last = self._key.timestep
        if timestep == self._first_timestep != last:
            return True
        turned = (timestep - last) * (last - self._first_timestep) < 0 or last == self._first_timestep
        return turned and self._evaluations >= self._total_steps

    def _store(self, branch: str, layout: Layout, x, latents, output) -> None:
        leaves, structure = pytree.tree_flatten(output)
        predictions = [tensor.detach() for tensor in _predictions(output)]
        others = [TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        extra = layout.extra_channels(predictions, self._config.cache_device)
        if self._calls == 1:
            self._templates.clear()
        self._templates[branch] = OutputTemplate(structure, others, extra, predictions[0].dtype)
        groups = zip(layout.groups(predictions), layout.groups(x), latents, strict=True)
        for i, (stored, network_x, latent) in enumerate(groups):
            if self._conversion is not None:
                stored = self._conversion.denoised(stored, network_x)
            self._controller.store(f"{branch} {i}", stored, latent if i else None)

    def _predicted(self, branch: str, layout: Layout, x, latents):
        """The network's output, predicted, in the form in which it was returned last."""
        template = self._templates[branch]
        outputs = []
        for i, (network_x, latent) in enumerate(zip(layout.groups(x), latents, strict=True)):
            predicted = self._controller.predict(f"{branch} {i}", latent)
            if self._conversion is not None:
                predicted = self._conversion.output(predicted, network_x)
            outputs.append(predicted.to(template.dtype))
        tensors = iter(layout.outputs(outputs, template.extra))
        leaves = [next(tensors) if leaf is TENSOR else leaf for leaf in template.leaves]
        return pytree.tree_unflatten(leaves, template.structure)


def _predictions(output) -> list[torch.Tensor]:
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise ValueError(f"the network returned {type(output).__name__}, in which attach finds no tensor")
    return tensors


def _shapes(x: list[torch.Tensor]) -> tuple:
    return tuple((tensor.shape, tensor.dtype) for tensor in x)
