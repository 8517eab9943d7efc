"""One sampling run: reads the device once per evaluation, decides, and keeps the trace."""

import contextlib
import logging
import math
import sys
import weakref
from collections.abc import Collection, Sequence

import torch

from .budget import Budget
from .closeness import decibels
from .config import CacheConfig, require_kind
from .norms import Norms, upcast
from .prediction import Prediction
from .predictors import PREDICTORS
from .ranks import ALL_RANKS, Ranks, join
from .reading import Measurements, Reading, read_scalars
from .response import Response
from .storage import copy_for_cache, is_out_of_memory
from .trace import Record, of_stream, plain
from .window import Window

log = logging.getLogger("easycache")


class CacheController(contextlib.AbstractContextManager):
    """Decides at each evaluation whether the network must run, and predicts its output where it need not.

    For each evaluation call `begin`. If it returns True, run the network and `store` the output of every branch (cond,
    uncond, ...), the tracked one first; if False, take every branch from `predict`. In the end `release` it, or use it
    as a context manager. It never holds the caller's own tensors. Where there is no room for its copies the cache is
    given up, not the run: everything is computed until enough is known again.

    Args:
        config, total_steps: what a user may set, and the sampler's steps.
        streams: sizes of the latents that are packed one after the other along the last axis of what `begin` is given
            (video and its sound). Each has a rate and an error of its own, and the worst of them decides.
        by_row: so has each row of a batch, along the first axis. False: the latent is measured as a whole. None: as a
            whole under the paper's rule alone ("reuse"), as in the authors' code.
        denoised: what `store` takes and `predict` returns for a predictor that follows the denoised latent
            ("forecast"). False: the sampler's derivative v = (x - D) / sigma, which is the velocity of flow models and
            the noise of eps models. True: the denoised latent D itself.
        step_count_known: whether there will be at least one evaluation per step, so that a budget may count on it.
        step_lengths: how long each step is, in any unit, by which a budget is spread. None: all alike.
        response: what the sampler makes of the network's answers at each evaluation of the run (response.py; of Euler's
            method: `euler_response`). With it a budget knows where skips cost least, and the correction is paid in the
            sampler's own weights, also where the network runs: see `corrected`. Once the sampler evaluates at another
            noise level than it says, it is not believed any more.
        supposed: a response by which a budget is placed where the sampler's own is not known, as long as the noise
            levels are those that it says; corrections do without.
        window: the noise levels between which evaluations may be skipped. A budget goes first where it does not suffice
            for those outside. None: all.
        ranks: the processes that sample together and must decide alike. By default all that torch.distributed knows of,
            which is this one where it is not initialised. None: decide alone. All ranks make a controller with the same
            settings and call `begin` for the same evaluations, and `release` whatever happens, or others wait for them.

    Raises:
        TypeError: response, supposed, by_row or ranks is of another kind.
        ValueError: total_steps, step_lengths or denoised make no sense.
        RanksDiffer, RankLost: the ranks cannot begin together.
    """

    def __init__(
        self, config: CacheConfig, total_steps: int, streams: Sequence[int] = (), denoised: bool = False,
        step_count_known: bool = True, step_lengths: Sequence[float] | None = None, ranks: Ranks | None = ALL_RANKS,
        by_row: bool | None = None, response: Response | None = None, supposed: Response | None = None,
        window: Window | None = None,
    ):  # fmt: skip
        if total_steps < 0:
            raise ValueError(f"total_steps must not be negative, got {total_steps}")
        lengths = [1.0] * total_steps if step_lengths is None else [float(length) for length in step_lengths]
        if len(lengths) != total_steps or not all(0 <= length < math.inf for length in lengths):
            raise ValueError(f"step_lengths must be {total_steps} finite numbers of 0 or more, got {lengths}")
        kind = PREDICTORS[config.predictor]
        require_kind("response", isinstance(response, Response | None), "a Response or None", response)
        require_kind("supposed", isinstance(supposed, Response | None), "a Response or None", supposed)
        require_kind("by_row", by_row in (None, False, True), "True, False or None", by_row)
        if denoised and not kind.follows_denoised:
            raise ValueError(f"predictor {config.predictor!r} needs the network's output: leave denoised=True out")
        self.config, self.total_steps, self._window = config, total_steps, window
        self._norms = Norms(streams, kind.follows_denoised if by_row is None else by_row)
        self._conversion = Prediction("flow") if kind.follows_denoised and not denoised else None
        settings = f"{config}, {total_steps} steps, streams={len(streams)}, {denoised=}, {step_count_known=}"
        settings += f", response={response is not None}, {window=}"
        self._ranks = join(ranks, f"{settings}, step_lengths={step_lengths and lengths}")
        if self._ranks is not None:
            weakref.finalize(self, self._ranks.leave, "its controller is gone")
        self._budget = None
        if config.target_speedup:
            lengths = lengths if step_count_known else []
            self._budget = Budget(config.target_speedup, lengths, response or supposed, window)
        self._response, self._planned = response, response or supposed
        self._adds_noise = response is not None and response.adds_noise
        self._records: list[Record] = []
        self._warnings: set[str] = set()
        self._final_error: float | None = None  # once the run is over
        self._unmeasured = False  # whether answers were given that the predictor does not know of
        self.estimated = False  # whether E was, at any evaluation
        self.not_finite = 0  # evaluations that had to be computed because of NaN or inf
        self._corrections_stopped = False
        self._steps_per_answer = 1
        self.reset_cache()
        self._cache_lost = False

    def __exit__(self, *exception) -> None:
        self.release()

    def reset_cache(self) -> None:
        """Let go of every tensor; the run continues as if nothing were known of the network yet."""
        # A new predictor does not know which evaluation it begins with.
        response = None if self._records else self._response
        self._predictor = PREDICTORS[self.config.predictor](self.config.cache_device, self._norms, response)
        if self._corrections_stopped:
            self._predictor.stop_corrections()
        self._cache_lost = True  # which other ranks have to know
        self._x: torch.Tensor | None = None  # x_(n-1), then x_n once `begin` is through
        self._device: torch.device | None = None  # where the caller's latent lives
        self._sigma: float | None = None  # of this evaluation
        self._output_dtype: torch.dtype | None = None
        self._worst = 0  # index of the part (stream, row) with the largest E when it was last estimated
        self._sums: list[torch.Tensor] = []  # of what was stored last; finite if all of it is; not read yet
        self._finite = True  # whether what was stored last is, as far as it was read
        self._comparable = True  # whether the last evaluation could be compared with the one before
        self._tracked: str | None = None  # the branch whose error decides
        self._awaiting_tracked = False
        self._stored: list[str] = []  # branches, at the last computed evaluation
        self._gap_length = 0

    def begin(
        self, x: torch.Tensor, *, sigma: float | torch.Tensor | None = None, step: int,
        force: bool | torch.Tensor = False, changed: bool | torch.Tensor = False, windows_moved: bool = False,
        unpredictable: bool = False,
    ) -> bool:  # fmt: skip
        """Open evaluation n. Waits for x's device once, and then for other ranks if there are any.

        Args:
            x: latent handed to the network, any shape; copied.
            sigma: its noise level, a number or a tensor whose first element counts; "forecast" needs it.
            step: the sampler step it belongs to, from 0.
            force: compute whatever the error says. A scalar tensor is read with the rest.
            changed: the network is asked something else from here on (another prompt): compute, and compare nothing
                with what was before. Read likewise.
            windows_moved: the network is asked about the latent in other windows than where it ran last. Answers are
                expected to differ by as much as they did where windows had moved before. A budget no longer goes by
                what forecasts missed.
            unpredictable: compute, also beyond a budget: not all that will be asked can be predicted. With other ranks,
                which may not agree, it is as `force`.

        Returns:
            True: run the network and `store`. False: `predict`. A budget (target_speedup) overrides force and changed
            once it is spent.

        Raises:
            ValueError: no sigma for a predictor that needs it.
            RankLost, RanksDiffer: the ranks cannot continue together.
        """
        if sigma is None and self._predictor.follows_denoised:
            raise ValueError(f'sigma must be given: predictor "{self.config.predictor}" needs the noise level')
        if self._x is not None and (self._x.shape != x.shape or self._x.dtype != x.dtype):
            self.reset_cache()
        # Not force | unpredictable, which is an operation on the device.
        now = self._read(x, sigma, step, True if unpredictable else force, changed, windows_moved)
        now = now._replace(unpredictable=unpredictable and not self.shared)
        self._sigma = now.sigma
        self._learn(now)
        finite = now.finite and all(map(math.isfinite, (*(now.input_change or ()), now.sigma or 0.0)))
        if not finite:
            self.not_finite += 1
            self._warn_once(
                "NaN or inf in the latent, its noise level or the network's output; such steps are not reused"
            )
        self._comparable = finite and not now.changed
        if self._planned is not None and not self._planned.expects(len(self._records), now.sigma):
            self.forget_response()
        self._predictor.advance(now.sigma, self._comparable, now.input_change, now.windows_moved)
        if now.windows_moved and self._budget is not None:
            self._budget.adapts = False
        skipping, errors = self._decide(step, now, finite)
        self._gap_length = self._gap_length + 1 if skipping else 0
        if not skipping:
            if self._awaiting_tracked:  # it was not asked there
                self._tracked = next(iter(self._stored), None)
            self._awaiting_tracked, self._stored = True, []
        self._predictor.commit(skipping)
        input_change, error = of_stream(now.input_change, self._worst), of_stream(errors, self._worst)
        record = dict(step=step, sigma=plain(now.sigma), computed=not skipping, input_change=input_change)
        self._records.append(Record(**record, rate=None, error=error if skipping else 0.0, output_norm=None))
        if skipping:
            self._record_output()
        else:
            self._finite = True
        return not skipping

    def answers_are_kept(self) -> None:
        """A guider keeps answers for later evaluations. From here on nothing is corrected, as the guider would apply a
        correction again each time it uses the answer, and a budget no longer goes by what forecasts missed.
        """
        self._corrections_stopped = True
        self._predictor.stop_corrections()
        if self._budget is not None:
            self._budget.adapts = False

    def answers_serve(self, steps: int) -> None:
        """Each answer is kept for so many of the sampler's steps, and what a forecast misses is missed at all of them:
        a budget is larger then, and computes everything where an answer serves more than two.
        """
        if self._budget is not None and steps > 1:
            self._budget.ease()
        self._steps_per_answer = steps

    def _is_kept_long(self, step: int) -> bool:
        """Whether an answer given at this step is kept for more than two, or until the end."""
        steps = self._steps_per_answer
        return steps > 2 or (steps > 1 and step + steps >= self.total_steps)

    @property
    def exceeds_budget(self) -> bool:
        """Whether more was computed than target_speedup allows."""
        return self._budget is not None and self._budget.exceeded

    def ends_as_planned(self, sigma: float | None) -> bool:
        """Whether a budget knows which evaluation is the last one, and keeps one for it; with the next one at this
        noise level, None stands for any.
        """
        planned = self._planned is not None and self._planned.expects(len(self._records), sigma)
        return self._budget is not None and planned

    def follow(self, response: Response, before: int = 0) -> None:
        """The evaluations are those of another response, of which the ones so far are the first: a question that takes
        turns with others is asked at some of a sampler's evaluations only (`Response.of`). before: evaluations of those
        that share a budget with it and came first. No effect where the sampler does otherwise than it says.
        """
        if self._planned is None:
            return
        self._planned = response
        if self._response is not None:
            self._response = response
            self._predictor.follow(response)
        if self._budget is not None:
            self._budget.follow(response, before)

    def suppose(self, response: Response) -> None:
        """Place what is left of a budget by this response, as by `supposed`. No effect where one is known."""
        if self._budget is not None and self._planned is None:
            self._planned = response
            self._budget.follow(response)

    @property
    def planned_levels(self) -> Sequence[float]:
        """Noise levels of the evaluations among which a budget is placed; () where none is, or they are not known."""
        return () if self._budget is None or self._planned is None else self._planned.sigmas

    def foresee(self, changes: Collection[int]) -> None:
        """Known beforehand: `begin` will get changed=True at these of the planned evaluations, as indices. A budget
        keeps some for them. Once per response.
        """
        if self._budget is not None:
            self._budget.foresee(changes)

    def forget_total_steps(self) -> None:
        """The sampler takes more steps than it was supposed to: which one is the last is not known."""
        self.total_steps = math.inf

    def forget_response(self) -> None:
        """The sampler does not do what its response says."""
        self._response = self._planned = None
        self._predictor.forget_response()
        if self._budget is not None:
            self._budget.forget_plan()

    def _read(self, x: torch.Tensor, sigma, step: int, force, changed, windows_moved: bool) -> Reading:
        """What decides about this evaluation, from the device and from all ranks."""
        input_change = self._next_input(x)
        sigma = sigma.flatten()[0] if isinstance(sigma, torch.Tensor) else sigma
        now = self._read_device(x.device, sigma, force, changed, input_change)
        now = now._replace(windows_moved=windows_moved)
        if self._ranks is None:
            return now
        now = now._replace(step=step, cache_lost=self._cache_lost, numel=self._norms.numel(x))
        now = self._ranks.reduce(now)
        if now.cache_lost:
            self.reset_cache()
            self._cache_lost = False
            self._next_input(x)
        return now

    def _read_device(self, device: torch.device, sigma=None, force=False, changed=False, input_change=None) -> Reading:
        """These values, and what the last evaluation left to be read."""
        groups = [(sigma, force, changed), input_change or (), self._sums, *(self._predictor.measured or ())]
        self._predictor.measured, self._sums = None, []
        (sigma, force, changed), input_change, *left = read_scalars(groups, device)
        finite = self._finite and all(math.isfinite(number) for group in left for number in group)
        measured = Measurements.of(left[1:]) if left[1:] else None
        return Reading(sigma, bool(force), bool(changed), finite, input_change or None, measured)

    def _learn(self, now: Reading) -> None:
        """Take in what the last evaluation showed."""
        self._finite = now.finite
        if now.measured is not None:
            self._predictor.update(now.measured, self._comparable and now.finite)
            if self._budget is not None and self._predictor.miss is not None:
                self._budget.adapt(self._predictor.miss)
            self._record_output()

    def _decide(self, step: int, now: Reading, finite: bool) -> tuple[bool, list[float] | None]:
        """(whether to skip, E per part where it was estimated). finite: whether all that it would go by is."""
        forced = now.force or not finite or self._gap_limit_reached
        outside = self._is_outside_window(now.sigma)
        if self._budget is not None:
            return not self._budget_computes(step, now, finite, forced, outside), None
        if forced or now.changed or self._predictor.jumped or outside:
            return False, None
        return self._is_below_threshold(step, now)

    @property
    def _gap_limit_reached(self) -> bool:
        """Whether max_consecutive_skips says to compute. A budget could not keep a limit below its own gaps."""
        limit = self.config.max_consecutive_skips
        return limit + 1 >= self.config.target_speedup and 0 < limit <= self._gap_length

    def _is_outside_window(self, sigma: float | None) -> bool:
        return self._window is not None and sigma is not None and not self._window.has(sigma)

    def _budget_computes(self, step: int, now: Reading, finite: bool, forced: bool, outside: bool) -> bool:
        """Whether the network runs, by the budget, which is charged for it."""
        # Nothing is predicted from, or for, what is not finite: not even where the budget is spent.
        must = now.unpredictable or not finite or self._predictor.empty or self._is_kept_long(step)
        urgent = forced or self._is_urgent(now, outside)
        due = self._budget.should_compute(step, urgent)
        computing = must or (due and (urgent or not self._is_answered(now)))
        if computing:
            self._budget.spend(anew=self._predictor.empty)
        elif outside:
            self._warn_once(
                "target_speedup allows for too few evaluations to compute all that are outside of start_percent "
                "and end_percent; some are predicted"
            )
        elif forced or now.changed or self._predictor.jumped:
            self._warn_once(
                "target_speedup does not suffice: a step that had better be computed is predicted, if it can be"
            )
        return computing

    def _is_urgent(self, now: Reading, outside: bool) -> bool:
        """Whether a budget should be spent now on a change, on added noise or on what is outside of the window. It
        counts changes and noise: where there are many, they are not urgent.
        """
        if now.changed and self._budget.change_is_urgent():
            return True
        if self._predictor.jumped and self._budget.noise_is_urgent():
            return True
        return outside and not self._budget.places_window

    def _is_below_threshold(self, step: int, now: Reading) -> tuple[bool, list[float] | None]:
        """(whether E is below the threshold, E per part; None where it is not estimated and the network runs)."""
        config = self.config
        in_range = config.warmup_steps <= step < self.total_steps - 1
        if not in_range or config.threshold == 0 or not self._predictor.ready:
            return False, None
        errors = self._predictor.errors(now.input_change)
        self.estimated = True
        self._worst = max(range(len(errors)), key=lambda n: math.inf if math.isnan(errors[n]) else errors[n])
        return all(error < config.threshold for error in errors), errors

    def _is_answered(self, now: Reading) -> bool:
        """Whether the network ran last for the same latent at the same noise level: some samplers ask twice."""
        same = self._records and self._records[-1]["computed"] and now.sigma == self._records[-1]["sigma"]
        return bool(same and not now.changed and now.input_change and not any(now.input_change))

    def _warn_once(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            log.warning(f"EasyCache: {text}")

    def _record_output(self) -> None:
        predictor = self._predictor
        rate, output_norm = of_stream(predictor.rate, self._worst), of_stream(predictor.output_norm, self._worst)
        self._records[-1].update(rate=rate, output_norm=output_norm)

    def _next_input(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        """Put x in the place of the previous input and return ||x_n - x_(n-1)||, None if there was none."""
        change = None
        with self.cache_dropped_on_oom():
            subsample = self._predictor.subsample
            if self._x is not None:
                change = self._norms.of_difference(subsample(x), subsample(self._x))
            self._x, self._device = copy_for_cache(x, self.config.cache_device), x.device
        return None if self._x is None else change

    @contextlib.contextmanager
    def cache_dropped_on_oom(self):
        """Where what is entered finds no room, the cache is given up, and the run goes on."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.give_up_cache()

    def give_up_cache(self) -> None:
        """There was no room for it; the run goes on."""
        log.warning("EasyCache: no memory left for the cache; it starts anew")
        self.reset_cache()

    def store(self, branch: str, output: torch.Tensor, x: torch.Tensor | None = None) -> None:
        """Keep a branch's output at an evaluation for which `begin` returned True; copied. Once: where something failed
        and is asked again, the first output stays.

        The branch stored first is the tracked one: its rate decides. It stays so where another one comes before it, as
        long as it is stored; then the one that was stored first without it. x: the branch's own input where it is not
        what `begin` was given (a part of it, say).
        """
        if self._x is None or branch in self._stored:  # given up in this evaluation, or asked again
            return
        with self.cache_dropped_on_oom():
            self._stored.append(branch)
            tracked = self._awaiting_tracked and self._tracked in (None, branch)
            if tracked:
                self._tracked, self._awaiting_tracked = branch, False
            kept_x = self._x if x is None else copy_for_cache(x, self.config.cache_device)
            self._output_dtype = output.dtype
            if self._conversion is not None:
                dtype = torch.promote_types(kept_x.dtype, output.dtype)
                self._conversion.set_sigma(self._sigma)
                output = self._conversion.denoised(output, kept_x.to(output.device)).to(dtype)
            self._sums.append(self._predictor.store(branch, output, kept_x, tracked))

    def corrected(self, branch: str, output: torch.Tensor) -> torch.Tensor:
        """What to hand to the sampler in place of the output that was just stored: it makes up for what forecasts
        before it got wrong (correction.py). A new tensor, or `output` itself where nothing is to be made up for.
        """
        if self._x is None or not self._predictor.has(branch) or (self._conversion is not None and not self._sigma):
            return output
        with self.cache_dropped_on_oom():
            correction = self._predictor.correction(branch)
            if correction is None:
                return output
            factor = 1.0 if self._conversion is None else -1.0 / self._sigma
            return upcast(output).add(correction.to(output.device), alpha=factor).to(output.dtype)
        return output

    def answered(self, answer: torch.Tensor) -> None:
        """What a guider made of all branches at an evaluation that was computed, in the terms of `store`; with
        corrections where `corrected` was asked. Some elements of it are copied. It may be left out: but guidance
        amplifies what differs between branches, and by how much that goes on is learnt from it.
        """
        if self._x is None or answer.shape != self._x.shape:
            return
        with self.cache_dropped_on_oom():
            if self._conversion is not None:
                self._conversion.set_sigma(self._sigma)
                answer = self._conversion.denoised(answer, self._x.to(answer.device))
            self._predictor.answered(answer, self._x)

    def has(self, branch: str) -> bool:
        """Whether `predict` has something to start from for this branch."""
        return self._predictor.has(branch)

    def predict(self, branch: str, x: torch.Tensor | None = None) -> torch.Tensor:
        """A new tensor in place of the branch's output; x as in `store`, on its own device.

        Raises KeyError if the branch was not stored at the last computed evaluation.
        """
        if x is None and self._x is not None:
            x = self._x.to(self._device)
        predicted = self._predictor.predict(branch, x)
        if self._conversion is None:
            return predicted
        self._conversion.set_sigma(self._sigma)
        return self._conversion.output(predicted, x).to(self._output_dtype)

    def count_as_computed(self, charged: bool = True) -> None:
        """The network had to run after all, for a branch that could not be predicted. charged: to a budget."""
        self._unmeasured = True
        if not self._records[-1]["computed"]:
            self._records[-1].update(computed=True, error=0.0)
            if self._budget is not None and charged:
                self._budget.spend(anew=self._predictor.empty)

    def stop_estimating(self) -> None:
        """An answer was given of which nothing tells how far off it is: no closeness is estimated."""
        self._unmeasured = True

    @property
    def trace(self) -> list[Record]:
        """One record per evaluation; reading it waits for the device if the last evaluation was computed. With other
        ranks, rate and output norm of a computed evaluation are known from the next one on.
        """
        if not self.shared:
            self._learn_at_once()
        return [record.copy() for record in self._records]

    def trace_so_far(self) -> tuple[list[Record], int]:
        """The same without waiting for a device, and how many of the first records have all their numbers. Only the
        last one may lack some: rate and output norm, where it was computed.
        """
        on_host = self._device is not None and self._device.type == "cpu"
        records = self.trace if on_host else [record.copy() for record in self._records]
        return records, len(records) - (self._predictor.measured is not None)

    def _learn_at_once(self) -> None:
        """Take in what the last evaluation showed, if anything, without another one."""
        if self._predictor.measured is not None:
            self._learn(self._read_device(self._device))

    def closeness(self, extent: float, guidance: float = 1.0) -> float | None:
        """How close the final latent is to that of the same run without skips, in dB: an estimate (closeness.py), once
        all evaluations are through or the controller is released. Waits for the device if the last one was computed.

        extent: peak-to-peak of the final latent. guidance: cfg. None if it is not known, or nothing was skipped.
        """
        if not self.skipped or self._unmeasured:
            return None
        if not self.shared:
            self._learn_at_once()
        error = self._predictor.final_error if self._final_error is None else self._final_error
        return decibels(error, extent, guidance, self.total_steps)

    @property
    def noise_added(self) -> bool:
        """Whether the sampler adds noise at its steps, or moves the latent as noise does, as far as that is known."""
        return self._adds_noise or self._predictor.noise_added

    shared = property(lambda self: self._ranks is not None, doc="Whether other ranks decide, and compute, along.")
    holds_tensors = property(lambda self: self._x is not None, doc="Whether there is anything to free.")
    evaluations = property(lambda self: len(self._records), doc="How many there have been.")
    computed = property(
        lambda self: sum(one["computed"] for one in self._records), doc="Evaluations that were computed."
    )
    skipped = property(lambda self: len(self._records) - self.computed, doc="Predicted evaluations.")

    def release(self) -> None:
        """Let go of every tensor; the trace stays. Other ranks that are still running are told, and why."""
        error = sys.exc_info()[1]
        if self._ranks is not None:
            self._ranks.leave("it has finished" if error is None else f"{type(error).__name__}: {error}"[:300])
        elif error is None:
            self._learn_at_once()
        self._final_error = self._predictor.final_error if self._final_error is None else self._final_error
        self.reset_cache()
