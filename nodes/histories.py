"""Which history an evaluation goes on with. Prompts that take turns have one each, and so have latents."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..easycache_core import Response
from .account import Account
from .alternation import Alternation
from .evaluation import Evaluation, Question
from .latents import TRAIL, level_of, position_of, trail_of
from .question_history import QuestionHistory
from .settings import Settings
from .step_counter import StepCounter
from .steps import Schedule

log = logging.getLogger("easycache")

MAX_HISTORIES = TRAIL  # each holds tensors


class Key(NamedTuple):
    """What tells histories apart: what is asked first at their evaluations, and where.

    parts, switches, network: as of Question. depth: of guiders that call guiders. active: what of the conditionings is
    active, as from `_active_at`. number: tells latents apart that are asked the same; None stands for any.
    """

    parts: tuple
    switches: tuple
    network: int
    depth: int
    active: tuple
    number: int | None = None

    @property
    def of_any_latent(self) -> "Key":
        return self._replace(number=None)

    @property
    def of_any_parts(self) -> "Key":
        return self._replace(parts=(), number=None)

    @property
    def of_any_switches(self) -> "Key":
        return self._replace(switches=(), number=None)


class Histories:
    """Those of one run: found by the question that opens an evaluation, and by its latent.

    response, supposed, one_latent, steps_before, levels: as Run takes them. controller_options: as CacheController
    takes them, but for these.
    """

    def __init__(
        self, settings: Settings, schedule: Schedule, guider, account: Account, *, response: Response | None,
        supposed: Response | None, one_latent: bool, steps_before: int, levels: Sequence[float], **controller_options,
    ):  # fmt: skip
        self._settings, self._schedule, self._guider, self._account = settings, schedule, guider, account
        self._response, self._supposed, self._one_latent = response, supposed, one_latent
        self._steps_before, self._levels, self._controller_options = steps_before, levels, controller_options
        self._model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self._alternation: Alternation | None = None  # known once the conditionings are prepared
        self._by_key: dict[Key, QuestionHistory] = {}  # the one asked last at the end
        self._ended: set[Key] = set()  # of any latent: those under which no history goes on
        self._moved: set[QuestionHistory] = set()  # those whose latent was, since their last evaluation
        self._switched = True  # whether switches were for good so far
        # Other ranks wait for this one from here on.
        self._unused = self._new() if controller_options["ranks"] is not None else None

    def open(self, evaluation: Evaluation, tracked: Question) -> None:
        """Find the history of an evaluation. tracked: the question that is asked first, whose error decides."""
        evaluation.opened_by = tracked
        active = self._active_at(evaluation)
        asked = Key(tracked.parts, tracked.switches, tracked.network, evaluation.depth, active)
        alike = {key: one for key, one in self._by_key.items() if key.of_any_latent == asked}
        if not alike:  # some guiders ask the same in another order: it goes on where it was asked along
            others = {key: one for key, one in self._by_key.items() if key.of_any_parts == asked.of_any_parts}
            alike = {key: one for key, one in others.items() if one.absences.asked((tracked, 1))}
        alike = alike or self._before_a_switch(asked)
        history, another = self._among(list(alike.values()), evaluation, active)
        another, self._moved = another or history in self._moved, self._moved - {history}
        new = asked._replace(number=len(self._account.histories))
        key = next((key for key, one in alike.items() if one is history), new)
        self._by_key.pop(key, None)
        while len(self._by_key) >= MAX_HISTORIES:
            oldest = next(iter(self._by_key))
            self._by_key.pop(oldest).close()
        self._by_key[key] = evaluation.history = history
        history.next_evaluation()
        evaluation.another = another

    def _active_at(self, evaluation: Evaluation) -> tuple:
        """What of the conditionings is active there, where that alternates, which waits for the device; () else."""
        if self._alternation is None:
            sigmas = self._schedule.levels if self._response is None else self._response.sigmas
            self._alternation = Alternation(getattr(self._guider, "conds", {}), () if self._settings.exact else sigmas)
            if not self._alternation.found:
                self._account.switches = self._alternation.switches
        if not self._alternation.found:
            return ()
        return self._alternation.active_at(float(level_of(evaluation.timestep)))

    def _before_a_switch(self, asked: Key) -> dict[Key, QuestionHistory]:
        """The history, by its new key, that goes on with this: a word or switch in the options is another one from this
        step on. Empty if questions that differ by it are asked in turn.
        """
        self._switched = self._switched and asked not in self._ended
        others = [key for key in self._by_key if key.of_any_switches == asked.of_any_switches]
        if not self._switched or len(others) != 1 or not self._by_key[others[0]].steps.called_back:
            return {}
        (before,) = others
        self._ended.add(before.of_any_latent)
        key = asked._replace(number=before.number)
        self._by_key[key] = self._by_key.pop(before)
        return {key: self._by_key[key]}

    def _among(
        self, alike: list[QuestionHistory], evaluation: Evaluation, active: tuple
    ) -> tuple[QuestionHistory, bool]:
        """(which of them, or a new one, an evaluation goes on with; whether its latent may be another one)."""
        if self._one_latent or any(history.controller.shared for history in alike):  # ranks might not agree
            return alike[0] if alike else self._next(evaluation, active), False
        sigma, own_levels, sample = position_of(evaluation.x, evaluation.timestep)
        evaluation.sigma_on_host = sigma
        trail = trail_of([one.trail for one in alike], sigma, sample, evaluation.x) if alike else None
        history = next((one for one in alike if one.trail is trail), None) or self._next(evaluation, active)
        another = history.trail.add(sigma, sample, evaluation.x, own_levels)
        if history.trail.rearranged:
            self._account.on_elsewhere(
                "the sampler turns its latent from step to step, or puts its rows or frames into another order, as for "
                "what has no seams"
            )
        return history, another

    def _next(self, evaluation: Evaluation, active: tuple) -> QuestionHistory:
        """Another one. active: as from `_active_at`."""
        first, sigma = not self._account.trace, level_of(evaluation.timestep)
        own_schedule = first and not self._schedule.follow(float(sigma), self._model_sampling)
        if own_schedule:
            log.info("EasyCache: the sampler follows a schedule of its own; the number of its steps is unknown")
        shared = self._unused is not None and self._unused.controller.shared
        if own_schedule or (active and not shared):
            self._close_unused()
        history, self._unused = self._unused or self._new(active), None
        history.steps = StepCounter(self._account.callbacks)
        self._account.histories.append(history)
        return history

    def _new(self, active: tuple = ()) -> QuestionHistory:
        settings, response = self._settings, self._response or self._supposed
        which = self._alternation.evaluations(active) if active else []
        if which:
            response, target = response and response.of(which), settings.config.target_speedup
            config = replace(settings.config, target_speedup=target and self._alternation.share(active, target))
            settings = replace(settings, config=config)
        responses = dict(response=response) if self._response else dict(supposed=response)
        about = settings, self._schedule, self._steps_before, self._levels, bool(which)
        return QuestionHistory(*about, **self._controller_options, **responses)

    def on_callback(self) -> None:
        """The sampler has called back."""
        for history in self._by_key.values():
            history.steps.on_callback()

    def on_moved(self) -> None:
        """The sampler's latent is another one than at the last evaluation, by a callback."""
        self._moved = {one for one in self._account.histories if not one.controller.shared}  # ranks might not agree
        self._account.on_elsewhere("a callback turns or moves the sampler's latent")

    def close(self) -> None:
        """Free every tensor."""
        self._guider = self._alternation = None
        for history in self._account.histories:
            history.close()
        self._close_unused()

    def _close_unused(self) -> None:
        if self._unused is not None:
            self._unused.close()
        self._unused = None
