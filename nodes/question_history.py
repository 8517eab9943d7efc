"""What one run knows of the questions that are asked together: cond and uncond, say.

Guides and editing samplers ask two prompts in turn at one noise level (source and target). Each prompt, with what is
asked along with it, then has a history, and decisions, of its own.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from ..easycache_core import CacheController
from ..easycache_core.absences import Absences
from ..easycache_core.asked_at import AskedAt
from ..easycache_core.weights import differ
from .latents import OwnLatents, Trail, level_of
from .overwrites import Overwrites
from .schedule_switches import Switches
from .settings import Settings
from .step_counter import StepCounter
from .steps import Schedule
from .strides import Strides
from .value_changes import SettledValues

MAX_UNCHARGED = 2  # evaluations beyond a budget, for what could not be predicted


class EvaluationInput(NamedTuple):
    """What is known of an evaluation before it is decided.

    network_x: what the engine takes for the latent. timestep: sigma, (batch,), on the device. sigma_on_host: its
    highest one where it was read, else None. conds: the guider's conditionings by name. changed: whether what is asked
    has other values than where it was computed last. missing: whether some of it was not computed then. another_latent:
    whether the latent may be another one. weights: a sample of the network's. windows: in which the network is asked,
    as from windows_of. evaluations_before: of histories that share the budget and came first.
    """

    network_x: torch.Tensor
    timestep: torch.Tensor
    sigma_on_host: float | None
    conds: dict
    changed: bool
    missing: bool
    another_latent: bool
    weights: torch.Tensor | None
    windows: frozenset | None
    evaluations_before: int


class QuestionHistory:
    """controller: the engine. steps: counts evaluations of this history by step. steps_before: of the same schedule, in
    runs that this one continues; they count as warm-up. levels: as Switches takes them. alternates: whether it is of
    one of several sets of conditionings that take turns by their ranges of noise levels; then these say nothing new.

    Raises ValueError, RankLost and RanksDiffer as CacheController does.
    """

    def __init__(
        self, settings: Settings, schedule: Schedule, steps_before: int = 0, levels: Sequence[float] = (),
        alternates: bool = False, **controller_options,
    ):  # fmt: skip
        self._schedule, self._levels, self._alternates = schedule, levels, alternates
        self.steps = StepCounter()
        config = settings.config
        config = dataclasses.replace(config, warmup_steps=max(1, config.warmup_steps - steps_before))
        # The engine computes the last step: of an unfinished schedule, one that is still to come.
        to_come = 1 if schedule.unfinished and not config.target_speedup else 0
        self.controller = CacheController(
            config,
            schedule.steps + to_come,
            step_count_known=schedule.steps_known,
            step_lengths=schedule.step_lengths if config.target_speedup else None,
            window=schedule.window,
            **controller_options,
        )
        self.trail, self._own_latents = Trail(), OwnLatents()
        self._strides = Strides(schedule)
        self._weights: torch.Tensor | None = None  # of the network, at the last computed evaluation
        self.cache_miss = False  # whether the last evaluation had a branch that could not be predicted
        self.unpredictable = False  # whether that, or another latent, was seen
        self._answers: dict = {}  # branches, by question
        self._stood_in = False  # whether another question's answer was given at the last evaluation
        self._uncharged = 0  # evaluations at which a budget did not pay for what could not be predicted
        self._misses = 0  # how many evaluations in a row had one
        self.moves = 0  # evaluations at which something was another one than at the last computed one, or missing
        self._windows: frozenset | None = None  # in which the network was asked, at the last computed evaluation
        self.windows_moved = 0  # evaluations at which they were others
        self._switches: Switches | None = None
        response = controller_options.get("response") or controller_options.get("supposed")
        one_per_step = response is not None and len(response.sigmas) == schedule.steps and not alternates
        self.asked_at = AskedAt(response if one_per_step else None)
        self._values: dict[str, SettledValues] = {}  # by branch
        self.overwrites = Overwrites()  # of tensors that the network is given
        self._made_anew = Overwrites(anew=True)
        # Of questions, each with how often it was asked then; with them, the conditionings of the calls that asked them
        # last, once: what may tell another time from the first one is not known.
        self.absences = Absences()
        self._computed_sigma: torch.Tensor | None = None  # of the last computed evaluation
        self._rows_done: torch.Tensor | int = 0  # of the batch, at the last noise level

    def next_evaluation(self) -> None:
        """An evaluation begins; what is asked in it comes with `observe`."""
        self.absences.next_evaluation()

    def begin(self, given: EvaluationInput) -> bool:
        """Decide an evaluation: True to run the network, False to predict, as CacheController.begin has it."""
        step, sigma = self._next_step(given.evaluations_before), level_of(given.timestep)
        self._drop_unusable(given.another_latent)
        self._observe_switches(sigma, given.conds)
        changed = self._is_changed(sigma, given)
        may_end = self._may_end(given, step)  # first, as it tells whether the sampler takes steps of its own
        unmeasured, self._stood_in = self._stood_in and not self.controller.config.target_speedup, False
        force = given.missing | unmeasured | self._is_last(given, sigma) | self._must_compute(step, sigma)
        if may_end:
            force, step = True, max(step, self._schedule.steps - 1)  # for which a budget keeps one
        may_return = self.absences.may_return  # and then it could be predicted from nothing
        self.unpredictable = self.unpredictable or may_return
        self.cache_miss = False
        if self.absences.came_back:  # the guider keeps the answer for the steps at which it does not ask
            self.controller.answers_are_kept()
        windows_moved = None not in (given.windows, self._windows) and given.windows != self._windows
        self.windows_moved += windows_moved
        computing = self.controller.begin(
            given.network_x, sigma=sigma, step=step, force=force, changed=changed, windows_moved=windows_moved,
            unpredictable=may_return,
        )  # fmt: skip
        if computing:
            self._mark_computed(given, sigma)
        return computing

    def _next_step(self, evaluations_before: int) -> int:
        """The step of this evaluation, from 0. evaluations_before: as of EvaluationInput."""
        step = self.steps.next_evaluation()
        if step >= self.controller.total_steps:  # a sampler that does not take the schedule's steps
            self.controller.forget_total_steps()
        # Guiders that ask prompts in turn, or answer by themselves, ask this at some steps only.
        response = self.asked_at.response_at(step)
        if response is not None:
            self.controller.follow(response, evaluations_before)
            self._foresee_changes()
        return step

    def _drop_unusable(self, another_latent: bool) -> None:
        """Drop what the cache holds where it is of no use for this evaluation."""
        self._misses = self._misses + 1 if self.cache_miss else 0
        self.unpredictable = self.unpredictable or self.cache_miss or another_latent
        # A budget that is spent would not compute it, and so never again have all that is asked.
        if self._misses > 1 or another_latent:
            self.controller.reset_cache()

    def _observe_switches(self, sigma: torch.Tensor, conds: dict) -> None:
        if self._switches is None:
            first, ranges = self._schedule.first_sigma, not self._alternates
            self._switches = Switches(conds, sigma.device, self._levels, first, ranges)
            self._foresee_changes()
        self._switches.observe(sigma, conds)

    def _is_changed(self, sigma: torch.Tensor, given: EvaluationInput) -> torch.Tensor | bool:
        """Whether the network is asked something else than where it ran last, or is another one.

        Samplers evaluate between the sigmas of the schedule, and some have a schedule of their own. Hence sigma itself
        is compared; it stays on the device, and so does the result.
        """
        changed: torch.Tensor | bool = False
        if self._computed_sigma is not None:
            self.moves += self._switches.moved or given.changed or given.missing
            changed = given.changed or self.cache_miss or self._switches.changed(self._computed_sigma, sigma)
        changed = changed | differ(self._weights, given.weights)
        for tensors in (self.overwrites, self._made_anew):
            changed = changed | tensors.changed(sigma.device, self.steps.evaluations_per_step)
        return changed

    def _may_end(self, given: EvaluationInput, step: int) -> bool:
        """Whether this may be the last evaluation, as far as noise levels that were read tell."""
        sigma = given.sigma_on_host
        return sigma is not None and self._strides.may_end(sigma, step, self.steps.ambiguous)

    def _is_last(self, given: EvaluationInput, sigma: torch.Tensor) -> torch.Tensor | bool:
        """Whether the schedule ends here, as the last evaluation draws the detail. False where a budget knows the last
        one and keeps one for it, and where the sampler takes steps of its own.
        """
        last = self._at_last_level(given.timestep, sigma)
        if self.own_steps or self.controller.ends_as_planned(given.sigma_on_host):
            return False
        return last

    def _at_last_level(self, timestep: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Whether the schedule ends here for all of the batch, or for some rows that have noise levels of their own."""
        if len(timestep) == 1:
            return sigma <= self._schedule.last_sigma
        before, self._rows_done = self._rows_done, (timestep <= self._schedule.last_sigma).sum()
        return (self._rows_done > before) | (self._rows_done == len(timestep))

    def _must_compute(self, step: int, sigma: torch.Tensor) -> torch.Tensor | bool:
        """Whether the network has to run whatever the error, for reasons of the questions' own."""
        if self._computed_sigma is None:
            return True
        config = self.controller.config
        if config.target_speedup:  # a budget has no warm-up, and would be spent on all of these at once
            return False
        if self.steps.ambiguous:  # it may still be warm-up
            return True
        force = self._switches.must_compute(sigma)
        if step == config.warmup_steps and self.steps.one_per_step:
            # A corrector's second evaluation at the sigma of the last warm-up step still belongs to that step.
            force = force | (sigma == self._computed_sigma)
        return force

    def _mark_computed(self, given: EvaluationInput, sigma: torch.Tensor) -> None:
        self._windows, self._weights = given.windows, given.weights
        self._computed_sigma = sigma.clone()
        self.overwrites.on_computed()
        self._made_anew.on_computed()
        self._switches.on_computed()

    def _foresee_changes(self) -> None:
        """Tell the budget at which evaluations to come something else is asked, once that is known."""
        if self._switches is not None:
            self.controller.foresee(self._switches.changes_at(self.controller.planned_levels))

    def observe(self, branch: str, values: dict) -> bool:
        """A branch, the answer to a question, is asked for with these values; whether they are others than where it
        was computed last.
        """
        settled = self._values.setdefault(branch, SettledValues())
        settled.observe(values, self.steps.last)
        return settled.changed

    def look_at_moving(self, branch: str, tensors_of: Callable) -> None:
        """Of values that move on, as they are made anew for each call, it is looked at what they hold.
        tensors_of(name): those that a value holds.
        """
        moving = [(name, tensors_of(name)) for name in self._values[branch].moving]
        self._made_anew.note({(branch, name, k): one for name, held in moving for k, one in enumerate(held)})

    def elsewhere(self, branches: Collection[str], x: torch.Tensor, sampler_x: torch.Tensor) -> bool:
        """Whether a latent of the guider's own moved away from the sampler's since these branches were computed."""
        return self._own_latents.went_elsewhere(branches, x, sampler_x)

    @property
    def own_steps(self) -> bool:
        """Whether the sampler was seen to take other steps than its schedule has."""
        return self._strides.own_steps

    @property
    def asks_several(self) -> bool:
        """Whether there is more than one conditioning among its questions."""
        return len({question.parts for question, _ in self.absences.questions}) > 1

    def note_answer(self, question, branch: str) -> None:
        """The name of its answer, where it is asked first in an evaluation."""
        self._answers[question] = branch

    def of_other_layers(self, question, opened_by) -> list:
        """The questions so far that differ from this one by what is patched alone, and are not asked as the one is that
        opened the evaluation; with it.
        """
        known = [one for one, time in self.absences.questions if time == 1]
        return [one for one in known if one._replace(patches=()) == question._replace(patches=())
                and one.patches != opened_by.patches]  # fmt: skip

    def stand_in(self, question, opened_by) -> str | None:
        """The branch to predict the answer to a question from that was not computed: of one in whose place it is asked,
        with other layers patched. None if there is none.
        """
        if question.patches == opened_by.patches:
            return None
        others = [one for one in self.of_other_layers(question, opened_by) if not self.absences.asked((one, 1))]
        branches = [self._answers[one] for one in others[::-1] if one in self._answers]
        return next(filter(self.controller.has, branches), None)

    def on_stand_in(self) -> None:
        """It was predicted from. Nothing tells how far off that is: under a threshold the network runs next. A budget
        is spent as planned, as such questions may be others at each step.
        """
        self._stood_in = True
        self.controller.stop_estimating()

    def count_as_computed(self, alone: bool) -> None:
        """The network ran for what could not be predicted. alone: for that alone, and what decides was predicted: of a
        budget that would take an evaluation that is missing at the end.
        """
        self.cache_miss = True
        uncharged = alone and self._uncharged < MAX_UNCHARGED
        self._uncharged += uncharged
        self.controller.count_as_computed(charged=not uncharged)

    def on_computed(self, branch: str) -> None:
        """The branch was computed with the values that were observed last."""
        self._values[branch].on_computed()
        self._own_latents.on_computed(branch)

    def close(self) -> None:
        """Free every tensor."""
        self._computed_sigma = self._switches = self._weights = None
        self._values, self._answers, self.absences, self._rows_done = {}, {}, Absences(), 0
        self.overwrites, self._made_anew = Overwrites(), Overwrites(anew=True)
        self.trail, self._own_latents = Trail(), OwnLatents()
        self.controller.release()
