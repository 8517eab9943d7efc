"""The cache for any network that is a torch.nn.Module, whatever samples with it."""

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from .asked_at import AskedAt
from .config import CacheConfig, require_integer, require_kind
from .controller import CacheController
from .gradients import are_differentiated
from .interface import (
    TENSOR,
    Layout,
    OutputTemplate,
    copy_of,
    find_arguments,
    flattened,
    predictions_of,
    tensors_among,
    tensors_of,
    timestep_of,
    unflattened,
)
from .prediction import Prediction
from .predictors import PREDICTORS
from .question import Questions
from .run_schedule import RunSchedule
from .samples import sample_of
from .step_numbers import StepNumbers
from .storage import Retries, is_out_of_memory
from .trace import Record
from .turns import ANOTHER_QUESTION, ASTRAY, MAX_HISTORIES, History, choose
from .weights import Weights, differ

log = logging.getLogger("easycache")

_running = threading.local()  # .network: whether an attached network runs in this thread


@contextmanager
def attach(
    module: torch.nn.Module, config: CacheConfig, total_steps: int, *,
    sigma_of: Callable[[float], float] | None = None, prediction: str = "flow",
    input: str | Sequence[str] | None = None, time: str | None = None, tracked: slice | None = None,
    latent: tuple[slice, ...] | None = None, scheduler=None, **controller_options,
) -> Iterator["Attachment"]:  # fmt: skip
    """Answer calls of the module from the cache where possible, while entered; afterwards the module is as it was.

    Every call of `module(x, t, ...)` at another t, or with another x, is an evaluation of the sampler and a step in the
    sense of `config`. Calls with the same t and x belong to one evaluation: cond and uncond one after the other. The
    first of them decides for all, and each has a cache of its own. A batch of cond and uncond is one call, and so is
    distilled guidance. Where other arguments change, nothing from before is used. Several latents, or questions, that
    take turns are told apart (turns.py); each has a history, decisions and a budget of its own, and what cannot be told
    apart is computed. After total_steps evaluations, and where t is back where it started, another run begins;
    `Attachment.reset` begins one in any other case. Calls whose x, or prompt, requires a gradient go past the cache.

    Args:
        module: takes a latent, a tensor or a list of them of any shape, and a timestep, a number or a tensor (its
            largest is the noise level). Returns the prediction as a tensor, a list, a tuple, a dict or one of
            diffusers' output classes; so does a predicted call. It must not be training.
        config: what a user may set.
        total_steps: evaluations of one latent: the steps of most samplers, 2 N - 1 for N steps of Heun's.
        sigma_of: noise level at a timestep. "forecast" needs it. For flow models mostly `lambda t: t / 1000`.
        prediction: what the network predicts, for "forecast": "flow" (noise minus data), "reverse_flow" (data minus
            noise), "epsilon" or "v_prediction", of latents whose variance is kept (prediction.py has the formulas).
        input, time: names of x and t among forward's parameters. Else x is the first, and t the one that is called
            timestep, timesteps, t, time, sigma or sigmas, or the second. Several inputs, such as a video and its sound,
            are denoised together: there is a prediction for each, in their order, and an error of each.
        tracked: rows of a batch that decide for all of it, such as slice(0, 1). None: all of them, and the worst one
            counts; with by_row=False their mean, as in the authors' code. Calls that follow the first in an evaluation
            never decide.
        latent: which part of x, and of the output, is latent, as an index along one axis, such as np.s_[:, :4096]; the
            rest, tokens of a picture to be edited, has no say. None: what moves between the first two evaluations.
        scheduler: diffusers' scheduler of the run. From it a budget learns the lengths of steps, and a forecast, noise
            levels that no timestep has rounded and in which weights its errors are to be made up for.
        controller_options: handed on to CacheController, all but `denoised`; `step_lengths` where no scheduler tells
            them.

    Returns:
        A context manager that gives the Attachment: `trace`, `computed`, `skipped`, `speedup`, `reset()`.

    Raises:
        TypeError: the network is no torch.nn.Module; an argument of another kind.
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
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"attach needs a torch.nn.Module, got {type(module).__name__}; wrap other networks in a module whose "
            "forward(x, t) calls them and returns a tensor"
        )
    # Compiled by module.compile(), which would trace the decision, a module is cached around its graph.
    slot = "forward" if getattr(module, "_compiled_call_impl", None) is None else "_compiled_call_impl"
    before = module.__dict__.get(slot)
    if isinstance(before, Attachment):
        raise ValueError(f"{type(module).__name__} is attached already; two caches would add up their errors")
    network = module, getattr(module, slot), find_arguments(module, input, time)
    options = sigma_of, prediction, tracked, latent, scheduler, controller_options
    cache = Attachment(*network, config, total_steps, *options)
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


class Attachment:
    """The cache of an attached module, and its forward meanwhile. Numbers are those of the newest run."""

    def __init__(
        self, module, network, arguments, config, total_steps, sigma_of, prediction, tracked, latent, scheduler, options
    ):
        require_integer("total_steps", total_steps, 1, 1_000_000)
        require_kind("config", isinstance(config, CacheConfig), "a CacheConfig", config)
        require_kind("sigma_of", sigma_of is None or callable(sigma_of), "a function of the timestep or None", sigma_of)
        require_kind("tracked", tracked is None or isinstance(tracked, slice), "a slice of the batch or None", tracked)
        steps = scheduler is None or (hasattr(scheduler, "step") and hasattr(scheduler, "config"))
        require_kind("scheduler", steps, "a diffusers scheduler or None", scheduler)
        if "denoised" in options:
            raise TypeError("attach converts what the network returns by prediction= itself: leave denoised out")
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
        self._arguments, self._x, self._time = arguments, arguments.x, arguments.time
        self._tracked, self._latent, self._scheduler = tracked, latent, scheduler
        self._options = {"by_row": True, **options, "denoised": predictor.follows_denoised}
        self._active = True
        self._lock = threading.RLock()
        self._weights, self._retries = Weights(module), Retries()
        self._histories: list[History] = []
        self._unused: CacheController | None = None
        self.reset()
        functools.update_wrapper(self, self._network, updated=())

    def reset(self) -> None:
        """Begin another run with the next call; what is known of this one goes. No effect once the module is left."""
        if not self._active:
            return
        self._check_end()
        self._release()  # other ranks that go on with it are told
        self._histories, self._questions = [], Questions()
        self._evaluations: list[tuple[History, int]] = []  # of this run: where the record of each is
        self._first_timesteps: dict[tuple, float] = {}  # by form
        self._steps = StepNumbers()
        self._said: set[str] = set()
        known = self._scheduler, self._sigma_of, self._total_steps, self._config, self._conversion
        self._schedule = RunSchedule(*known, self._options.get("response"), self._say)
        self._unused = self._new_controller()  # other ranks wait for this one from here on

    def _check_end(self) -> None:
        """Say it where the run was of another length than was expected: a budget was placed among steps that never
        came, and nothing makes up for what a predicted last evaluation missed. Not where something failed, or nothing
        was predicted.
        """
        predicted = any(history.controller.skipped for history in self._histories)
        if not predicted or sys.exc_info()[1] is not None:
            return
        length, ends_early = self._length, self._length < self._total_steps
        expected = f"as total_steps={self._total_steps} were expected"
        ends = [history for history in self._histories if history.step == length - 1]
        goes_on = any(history.evaluations > self._total_steps for history in ends)
        if (ends_early or goes_on) and not all(history.computing for history in ends):
            log.warning(f"EasyCache: the last of {length} evaluations was predicted, {expected}")
        elif ends_early and self._config.target_speedup:
            log.warning(f"EasyCache: target_speedup was not spread over the run's {length} evaluations, {expected}")
        elif ends_early:
            self._say(f"the run ended after {length} evaluations, {expected}")

    def _new_controller(self) -> CacheController:
        return CacheController(self._config, self._total_steps, **{**self._options, **self._schedule.options})

    def _release(self) -> None:
        for history in self._histories:
            history.release()
        if self._unused is not None:
            self._unused.release()
        self._unused = None

    def __reduce__(self):
        """A copy of the module is not attached."""
        return _itself, (self._network,)

    @property
    def trace(self) -> list[Record]:
        """As CacheController's, of all latents in the order of their evaluations; sigma is None without sigma_of."""
        traces = {id(history): history.controller.trace for history, _ in self._evaluations}
        return [traces[id(history)][index] for history, index in self._evaluations]

    computed = property(lambda self: sum(one["computed"] for one in self.trace), doc="Where the network ran.")
    skipped = property(lambda self: len(self._evaluations) - self.computed, doc="Evaluations that were predicted.")
    speedup = property(lambda self: len(self._evaluations) / max(self.computed, 1), doc="Evaluations per computed one.")

    def close(self, keep_network: bool) -> None:
        """Let go of every tensor; the trace stays. keep_network: somebody still calls this as the module's forward."""
        self._active = False
        self._check_end()
        self._release()
        self._questions, self._scheduler, self._schedule = Questions(), None, None
        self._weights.close()
        if not keep_network:
            del self._module, self._network, self.__wrapped__

    def __call__(self, *args, **kwargs):
        if not self._active:
            return self._network(*args, **kwargs)
        x = tensors_of(self._x.of(args, kwargs))
        graph = torch.is_grad_enabled()
        if graph and self._module.training and any(one.requires_grad for one in self._module.parameters()):
            raise RuntimeError("a cache is for sampling: call module.eval(), or sample under torch.no_grad()")
        given = tensors_among(*args, *kwargs.values())
        if (graph and any(one.requires_grad for one in x)) or are_differentiated(given):
            told = ": sample under torch.no_grad()" if graph else ""
            self._say(f"calls whose x, or prompt, requires a gradient go past the cache{told}")
            return self._network(*args, **kwargs)
        if getattr(_running, "network", False):
            self._say("the network runs within another attached one, whose cache answers for both")
            return self._network(*args, **kwargs)
        with self._lock:  # several threads may ask
            try:
                return self._answer(x, args, kwargs)
            except BaseException:
                if self._histories:
                    self._histories[-1].fail()
                raise

    def _answer(self, x: list[torch.Tensor], args: tuple, kwargs: dict):
        (timestep, largest), output = timestep_of(self._time.of(args, kwargs)), None
        others = {"": str([(one.shape, one.dtype) for one in x]), **self._arguments.others(args, kwargs)}
        here = [one for one in self._histories[::-1] if one.matches(timestep, x)]
        history = next((one for one in here if not one.aside), None)
        form = self._arguments.form_of(x, args, kwargs)
        if history is None and self._histories and self._starts_over(timestep, form, x):
            self.reset()
        line, new = self._questions.line_of(others, () if history is None else history.asked)
        computing = False
        if history is not None and not history.controller.shared and history.leaves_out(line):
            # Guidance amplifies the difference between two answers, so they had better be of one kind.
            computing = history.computing
            history = next((one for one in here if one.aside and one.line == line), None)
        opening = history is None or not history.decided
        if history is None:
            history = self._open_evaluation(timestep, largest, x, form, line, new)
            if here:
                self._set_aside(history, here)
        self._histories.remove(history)
        self._histories.append(history)
        controller = history.controller
        branch = history.ask(line)
        if self._conversion is not None:
            self._conversion.set_sigma(history.sigma)
        if history.layout is None:  # the form of the output shows what of x is latent
            output = self._run_network(args, kwargs)
            history.layout = self._layout(history.x, output, args, kwargs)
        if opening:
            if history.lacking:  # a budget that is spent would not compute it, and so never again have all of it
                controller.reset_cache()
            self._begin(history, bool(history.missed_before) or output is not None or computing)
        if not history.computing and output is None and controller.has(f"{branch} 0"):
            try:
                return self._predicted(branch, history)
            except Exception as error:
                if controller.shared or not is_out_of_memory(error):
                    raise
            controller.give_up_cache()
        if output is None:
            output = self._run_network(args, kwargs)
        if history.computing:
            with controller.cache_dropped_on_oom():
                if history.evaluations == 1 and self._finds_parts:
                    history.first.append((branch, copy_of(output)))
                output = self._store(branch, history, output)
        else:
            history.missed.add(line)
            history.answer(history.layout.groups([one.detach() for one in predictions_of(output)]))
            controller.count_as_computed()
        return output

    def _set_aside(self, history: History, others: list[History]) -> None:
        """Its question is left out at times, and what is answered is kept for the evaluations that do, the others."""
        history.aside = True
        if self._config.target_speedup:
            self._say("a question that is left out at some steps is predicted less often than target_speedup says")
        for one in (history, *others):
            one.controller.answers_are_kept()
            self._stop_supposing(one)

    def _run_network(self, args: tuple, kwargs: dict):
        _running.network = True
        try:
            return self._retries.call(
                lambda: self._network(*args, **kwargs), lambda: [one.controller for one in self._histories]
            )
        finally:
            _running.network = False

    def _layout(self, x: list[torch.Tensor], output, args: tuple, kwargs: dict) -> Layout:
        listed = not isinstance(self._x.of(args, kwargs), torch.Tensor)
        batched = self._tracked is not None or self._arguments.have_rows_of(x[0], args, kwargs)
        return Layout(x, predictions_of(output), listed, batched, self._tracked, self._latent, self._x.several)

    def _open_evaluation(
        self, timestep: float, largest: float, x: list[torch.Tensor], form: tuple, line: int, new: bool
    ) -> History:
        """Of a history that the call goes on with, or of a new one. timestep, largest: as from timestep_of. form: as
        from Arguments.form_of.
        """
        sample, again = sample_of(x), self._steps.has(timestep)
        alone = not again and len(self._histories) == 1
        adds_noise = self._schedule.adds_noise(largest, self._histories[0].records) if alone else None
        history, doubt = choose(self._histories[::-1], line, new, again, timestep, x, sample, adds_noise)
        if history is None and self._histories and self._histories[0].controller.shared:
            # Ranks might not agree to begin another history.
            history, doubt = self._histories[0], "several latents or questions in turn"
        if history is None:
            if self._histories:
                self._say("several latents or questions take turns; each is cached by itself")
            history = self._new_history(line, largest, x)
        step = self._steps.number(timestep, form, history.step + 1)
        if history.evaluations and step - history.step > max(4, 2 * history.gap):
            doubt = "something after a long time"
        if adds_noise is False and history.evaluations and not history.controller.shared:  # ranks might not agree
            history.strays = history.strays + 1 if doubt == ASTRAY else 0
            if history.strays > 1:
                self._distrust_scheduler(history)
        if doubt == ANOTHER_QUESTION:
            doubt += self._what_differs()
        if doubt:  # a budget would predict what it cannot afford
            self._say(f"the network is asked about {doubt}: nothing of the steps before is used")
            history.controller.reset_cache()
        history.form, history.line = form, line
        self._first_timesteps.setdefault(form, timestep)
        if self._finds_parts and history.layout is not None and history.has_shapes_of(x):
            self._find_part(history, x)
        history.open(x, sample, timestep, step)
        history.sigma = self._schedule.sigma(largest, history.records)
        return history

    def _what_differs(self) -> str:
        """Between the question that is asked and the one before it, for the log."""
        names = [name or "the shape of the latent" for name in self._questions.differing()]
        return f" ({', '.join(names)} changed)" if names else ""

    def _distrust_scheduler(self, history: History) -> None:
        """Time and again the latent is not where the scheduler leads it, though it is one and the same: noise is added,
        or it is changed otherwise.
        """
        self._say("the latent is not where the scheduler leads it; from here on the scheduler is not believed")
        self._schedule.distrust()
        history.asked_at = AskedAt(None)
        history.controller.forget_response()

    def _new_history(self, line: int, largest: float, x: list[torch.Tensor]) -> History:
        if len(self._histories) == MAX_HISTORIES:
            self._histories.pop(0).release()
        told = not self._histories and self._schedule.read(largest)
        if self._x.several:
            self._options["streams"] = [one[0].numel() for one in x]
        if self._unused is None or told or self._x.several:
            if self._unused is not None:
                self._unused.release()
            self._unused = self._new_controller()
        planned = self._schedule.planned
        if planned is not None:
            self._unused.suppose(planned)
        history, self._unused = History(self._unused, line, AskedAt(planned)), None
        self._histories.append(history)
        return history

    @property
    def _finds_parts(self) -> bool:
        """Not where ranks may each have another part of x."""
        return self._latent is None and not self._histories[-1].controller.shared

    def _find_part(self, history: History, x: list[torch.Tensor]) -> None:
        """See which part of x moved since the history's last evaluation: the rest is a picture for reference."""
        first, history.first = history.first, []
        if history.evaluations > 1 and history.layout.part is None:
            return
        layout = history.layout.narrowed(history.x, x)
        if layout is history.layout:
            return
        history.layout = layout
        if not first:
            self._say("more of the input moves than did before; the cache starts anew")
            return
        axis, start, stop = layout.part
        self._say(f"only {start} to {stop} along axis {axis} of the input moves; the rest is taken for a reference")
        history.controller.release()
        history.controller, history.records = self._new_controller(), 0
        history.asked_at = AskedAt(self._schedule.response)
        self._evaluations.remove((history, 0))
        self._begin(history)
        for branch, output in first:
            self._store(branch, history, output)

    @property
    def _length(self) -> int:
        """Of the run so far, in steps of a latent, of which each evaluation of it is one."""
        return max((history.step + 1 for history in self._histories), default=0)

    def _starts_over(self, timestep: float, form: tuple, x: list[torch.Tensor]) -> bool:
        """Whether another run begins here. A latent of another size may come along with those of the run, from a later
        step on: two requests to one network.
        """
        if all(history.came_to_nothing for history in self._histories):
            return True
        histories = [history for history in self._histories if history.form == form]
        if not histories and self._length >= self._total_steps:
            histories = self._histories
        if not histories:
            return False
        last, first = histories[-1].timestep, self._first_timesteps[histories[-1].form]
        if timestep == first != last:
            return True
        turned = (timestep - last) * (last - first) < 0 or last == first
        if turned and max(history.evaluations for history in histories) >= self._total_steps:
            return True
        moved = [history for history in histories if history.has_moved]
        if not moved or not all(one.is_back(timestep) for one in moved) or moved[0].controller.shared:
            return False
        # Of another schedule, unless latents take turns that have timesteps of their own. Ranks might not agree. That a
        # latent leads there says nothing: the noise of the same seed is still in it.
        sample, still = sample_of(x), [history for history in histories if not history.has_moved]
        turns = any(one.goes_to_and_fro and one.takes_turns(sample) for one in moved)
        return not turns and not any(one.leads_to(x) for one in still)

    def _begin(self, history: History, force: bool = False) -> None:
        (_, x), *_ = self._inputs(history)
        step, weights = history.step, self._weights.sample()
        changed = differ(history.weights, weights)
        response = history.asked_at.response_at(step)
        if history.aside:
            history.controller.answers_serve(history.gap)
        if response is not None:  # it takes turns with others
            history.controller.follow(response)
        elif history.evaluations == 2 and len(self._histories) == 1:
            supposed = self._schedule.supposed(self._first_timesteps[history.form], history.timestep)
            if supposed is not None:
                history.controller.suppose(supposed)
                history.asked_at = AskedAt(supposed, [history.step - history.gap, history.step])
        if history.missed_before:
            self._stop_supposing(history)
        # How answers changed over steps of other questions is no guide; a budget is spent better elsewhere.
        force = force or (history.unsettled and not self._config.target_speedup)
        if history.evaluations > self._total_steps:
            self._say_that_it_goes_on()
        history.computing = history.controller.begin(
            x, sigma=history.sigma, step=step, force=force, changed=changed, unpredictable=history.may_return
        )
        history.decided = True
        if history.controller.exceeds_budget and not history.aside:
            self._say("more evaluations are computed than target_speedup allows, as some cannot be predicted")
        self._evaluations.append((history, history.records))
        history.records += 1
        if history.computing:
            history.weights = weights
            history.templates.clear()

    def _say_that_it_goes_on(self) -> None:
        """Past total_steps any evaluation may be the last one."""
        told = f"after total_steps={self._total_steps} are computed"
        if self._config.target_speedup:
            told += " as often as target_speedup says: the last one may be predicted"
        self._say(f"evaluations {told}", logging.WARNING)

    def _stop_supposing(self, history: History) -> None:
        """Not all of it is asked at each step, which a supposed schedule says nothing of."""
        if self._schedule.response is None:
            history.controller.forget_response()

    def _inputs(self, history: History) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The groups of the newest evaluation, each as the network gets it and as the engine does."""
        groups = history.layout.groups(history.x)
        if self._conversion is None:
            return [(group, group) for group in groups]
        self._conversion.set_sigma(history.sigma)
        return [(group, self._conversion.latent(group)) for group in groups]

    def _store(self, branch: str, history: History, output):
        """Take in what the network returned; what to return in its place, itself where nothing is to be made up for."""
        layout, controller = history.layout, history.controller
        leaves, form = flattened(output)
        predictions = [tensor.detach() for tensor in predictions_of(output)]
        others = [TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        rest = layout.extra_channels(predictions, self._config.cache_device)
        history.templates[branch] = OutputTemplate(form, others, rest, predictions[0].dtype)
        groups, corrected = layout.groups(predictions), False
        for i, (network_x, latent) in enumerate(self._inputs(history)):
            if self._conversion is None:
                controller.store(f"{branch} {i}", groups[i], latent if i else None)
                continue
            denoised = self._conversion.denoised(groups[i], network_x)
            controller.store(f"{branch} {i}", denoised, latent if i else None)
            answer = controller.corrected(f"{branch} {i}", denoised)
            if answer is not denoised:
                groups[i], corrected = self._conversion.output(answer, network_x), True
        history.answer(groups)
        return self._returned(branch, history, groups) if corrected else output

    def _predicted(self, branch: str, history: History):
        """The network's output, predicted."""
        outputs = []
        for i, (network_x, latent) in enumerate(self._inputs(history)):
            predicted = history.controller.predict(f"{branch} {i}", latent)
            outputs.append(predicted if self._conversion is None else self._conversion.output(predicted, network_x))
        history.answer(outputs)
        return self._returned(branch, history, outputs)

    def _returned(self, branch: str, history: History, outputs: list[torch.Tensor]):
        """Outputs, one per group, as the network returned its own at the last computed evaluation."""
        template = history.templates[branch]
        outputs = [output.to(template.dtype) for output in outputs]
        tensors = iter(history.layout.outputs(outputs, template.rest))
        leaves = [next(tensors) if leaf is TENSOR else leaf for leaf in template.leaves]
        return unflattened(leaves, template.form)

    def _say(self, text: str, level: int = logging.INFO) -> None:
        """Once per run."""
        if text not in self._said:
            self._said.add(text)
            log.log(level, f"EasyCache: {text}")


def _itself(thing):
    return thing
