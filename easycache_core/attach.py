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
from .interface import Layout, find_arguments, level_of, tensors_of
from .terms import Raw, Terms
from .trace import Record

log = logging.getLogger("easycache")


@contextmanager
def attach(
    module: torch.nn.Module,
    config: CacheConfig,
    total_steps: int,
    *,
    sigma_of: Callable[[float], float] | None = None,
    prediction: str = "flow",
    input: str | None = None,
    time: str | None = None,
    tracked: slice | None = None,
    **controller_options,
) -> Iterator["Attachment"]:
    """Answer calls of the module from the cache where it can, while entered; afterwards the module is as it was.

    Every call of `module(x, t, ...)` at another t, or with another x, is an evaluation of the sampler and a step in
    the terms of `config`. Calls with the same t and the same x belong to one evaluation: cond and uncond one after the
    other. The first of them decides for all, and each has a cache of its own. A batch of cond and uncond is one call,
    and so is guidance that was distilled into the network. After total_steps evaluations, and where t is back where it
    started, another run begins; `Attachment.reset` begins one in any other case.

    module: takes a latent, a tensor or a list of them of any shape, and a timestep, a number or a tensor (the largest
        counts). Returns the prediction as a tensor, a list, a tuple, a dict or one of diffusers' output classes; a
        predicted call is answered with the same. It must not be training.
    total_steps: evaluations of one run: the steps of samplers that look once a step, 2 N - 1 for N steps of Heun's.
    sigma_of: noise level at a timestep as a number. The predictor "forecast" needs it. For flow models it is from 1 to
        0, mostly `lambda t: t / 1000`.
    prediction: what the network predicts, for "forecast": "flow" (noise minus data), "reverse_flow" (data minus noise),
        "epsilon" or "v_prediction", of latents whose variance is kept (terms.py has the formulas).
    input, time: names of x and t among forward's parameters. Else x is the first, and t the one that is called
        timestep, timesteps, t, time, sigma or sigmas, or the second.
    tracked: rows of a batch that decide for all of it, such as slice(0, 1). None: all of them, which is what the
        authors' code does with a batch. Calls that follow the first in an evaluation never decide.
    controller_options: handed on to CacheController; `step_lengths` where a budget meets steps of unequal length.

    Raises ValueError for bad arguments, for "forecast" without sigma_of, for a module that is attached already, and,
    when the module is called, for outputs that are no prediction for x. RuntimeError if it is called while training.

    Calls whose x requires a gradient go past the cache. Reading t waits for its device, at most once a call.

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
    arguments = find_arguments(module, input, time)
    network = getattr(module, slot)
    cache = Attachment(
        module, network, arguments, config, total_steps, sigma_of, prediction, tracked, controller_options
    )
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


class Answer(NamedTuple):
    """What a call returned beside its predictions."""

    structure: pytree.TreeSpec
    leaves: list  # TENSOR in the places of predictions
    rest: list[torch.Tensor | None]
    dtype: torch.dtype


class Asked:
    """t and x of the newest evaluation, as far as one must know them to tell whether another call belongs to it."""

    def __init__(self, level: float, x: list[torch.Tensor]):
        self.level = level
        # A tensor may be overwritten before the next call. Its version says so, if it has one.
        self._x = [tensor.clone() if tensor.is_inference() else tensor for tensor in x]
        self._versions = [None if tensor.is_inference() else tensor._version for tensor in x]

    def again(self, level: float, x: list[torch.Tensor], layout: Layout | None) -> bool:
        if level != self.level or _shapes(x) != _shapes(self._x):
            return False
        if any(
            version is not None and version != ours._version
            for ours, version in zip(self._x, self._versions, strict=True)
        ):
            return False
        if all(ours is theirs for ours, theirs in zip(self._x, x, strict=True)):
            return True
        pairs = zip(layout.groups(self._x), layout.groups(x), strict=True)
        return all(torch.equal(ours, theirs) for ours, theirs in pairs)


class Attachment:
    """The cache of an attached module, and its forward meanwhile. Numbers are those of the newest run."""

    def __init__(self, module, network, arguments, config, total_steps, sigma_of, prediction, tracked, options):
        require_integer("total_steps", total_steps, 1, 1_000_000)
        forecasts = config.predictor == "forecast"
        if forecasts and sigma_of is None:
            raise ValueError(
                'predictor "forecast" follows the noise level: pass sigma_of, a function of the timestep, for most '
                'flow models lambda t: t / 1000; or choose CacheConfig(predictor="reuse")'
            )
        terms = Terms(prediction)
        self._terms = terms if forecasts else Raw()
        self._module, self._network = module, network
        self._config, self._total_steps, self._sigma_of = config, total_steps, sigma_of
        self._x, self._time = arguments
        self._tracked = tracked
        self._options = {**options, "denoised": forecasts}
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
        self._asked: Asked | None = None
        self._answers: dict[str, Answer] = {}
        self._evaluations = self._calls = 0  # of this run, and of this evaluation
        self._first: float | None = None  # the run's first timestep
        self._sigma: float | None = None
        self._computing = True
        self._missed = False  # whether this evaluation asked for something that was not in the cache

    @property
    def trace(self) -> list[Record]:
        """One record an evaluation; sigma is None without sigma_of. Reading it waits for the device."""
        return self._controller.trace

    @property
    def computed(self) -> int:
        """Evaluations for which the network ran."""
        return self._controller.computed

    @property
    def skipped(self) -> int:
        """Evaluations that were predicted."""
        return self._controller.skipped

    @property
    def speedup(self) -> float:
        """Evaluations for each one that was computed."""
        return (self.computed + self.skipped) / max(self.computed, 1)

    def close(self, keep_network: bool) -> None:
        """Let go of every tensor; the trace stays. keep_network: somebody still calls this as the module's forward."""
        self._active = False
        self._controller.release()
        self._asked, self._answers, self._layouts = None, {}, {}
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
            self._controller.forget()
            self._asked = None
            raise

    def _answer(self, x: list[torch.Tensor], args: tuple, kwargs: dict):
        level, layout, output = level_of(self._time.of(args, kwargs)), self._layouts.get(_shapes(x)), None
        new = self._asked is None or not self._asked.again(level, x, layout)
        if new:
            self._arrive(level, x)
        branch, self._calls = f"{self._calls} {kwargs.get('return_dict')}", self._calls + 1
        if layout is None:  # what the output looks like tells what of x is latent
            unspoilt = [tensor.clone() for tensor in x]
            output = self._network(*args, **kwargs)
            listed = not isinstance(self._x.of(args, kwargs), torch.Tensor)
            layout = Layout(x, _predictions(output), listed, self._tracked)
            self._layouts[_shapes(x)] = layout
            x = unspoilt
        groups = [self._terms.latent(group) for group in layout.groups(x)]
        if new:
            force, self._missed = self._missed or output is not None, False
            step = self._evaluations - 1
            self._computing = self._controller.begin(groups[0], sigma=self._sigma, step=step, force=force)
        if not self._computing and output is None and self._controller.knows(f"{branch} 0"):
            return self._predicted(branch, layout, x, groups)
        if output is None:
            output = self._network(*args, **kwargs)
        if self._computing:
            self._store(branch, layout, x, groups, output)
        else:
            self._missed = True
        return output

    def _arrive(self, level: float, x: list[torch.Tensor]) -> None:
        """Come to another evaluation, of this run or of the next one."""
        if self._asked is not None and self._starts_over(level):
            self.reset()
        self._first = level if self._first is None else self._first
        self._asked = Asked(level, x)
        self._evaluations, self._calls = self._evaluations + 1, 0
        self._sigma = None if self._sigma_of is None else float(self._sigma_of(level))
        self._terms.at(self._sigma)
        if self._evaluations == self._total_steps + 1:
            log.warning(
                f"EasyCache: more evaluations than total_steps={self._total_steps}; those after it are computed"
            )

    def _starts_over(self, level: float) -> bool:
        """Whether the timestep is that of another run's beginning."""
        last = self._asked.level
        if level == self._first != last:
            return True
        turned = (level - last) * (last - self._first) < 0 or last == self._first
        return turned and self._evaluations >= self._total_steps

    def _store(self, branch: str, layout: Layout, x, groups, output) -> None:
        leaves, structure = pytree.tree_flatten(output)
        predictions = [tensor.detach() for tensor in _predictions(output)]
        others = [TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        rest = layout.rest(predictions, self._config.cache_device)
        if self._calls == 1:
            self._answers.clear()
        self._answers[branch] = Answer(structure, others, rest, predictions[0].dtype)
        trio = zip(layout.groups(predictions), layout.groups(x), groups, strict=True)
        for i, (prediction, network_x, latent) in enumerate(trio):
            stored = self._terms.denoised(prediction, network_x)
            self._controller.store(f"{branch} {i}", stored, latent if i else None)

    def _predicted(self, branch: str, layout: Layout, x, groups):
        """The network's output, predicted, in the form in which it was returned last."""
        answer = self._answers[branch]
        outputs = []
        for i, (network_x, latent) in enumerate(zip(layout.groups(x), groups, strict=True)):
            predicted = self._controller.predict(f"{branch} {i}", latent)
            outputs.append(self._terms.output(predicted, network_x).to(answer.dtype))
        tensors = iter(layout.outputs(outputs, answer.rest))
        leaves = [next(tensors) if leaf is TENSOR else leaf for leaf in answer.leaves]
        return pytree.tree_unflatten(leaves, answer.structure)


def _predictions(output) -> list[torch.Tensor]:
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise ValueError(f"the network returned {type(output).__name__}, in which attach finds no tensor")
    return tensors


def _shapes(x: list[torch.Tensor]) -> tuple:
    return tuple((tensor.shape, tensor.dtype) for tensor in x)
