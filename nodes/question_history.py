"""What one run knows of the questions that are asked together: cond and uncond, say.

Guides and editing samplers ask two prompts in turn at one noise level (source and target). Each prompt, with what is
asked along with it, then has a history, and decisions, of its own.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import torch

from ..easycache_core import CacheController
from ..easycache_core.absences import Absences
from ..easycache_core.asked_at import AskedAt
from ..easycache_core.weights import differ
from .latents import OwnLatents, Trail, level_of
from .overwrites import Overwrites
from .schedule_switches import Switches
from .settings import Settings
from .steps import UNKNOWN, Schedule, StepCounter, Strides
from .value_changes import SettledValues


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

    def begin(
        self, network_x: torch.Tensor, timestep: torch.Tensor, conds: dict, changed: bool = False,
        another: bool = False, level: float | None = None, weights: torch.Tensor | None = None,
        force: bool = False, before: int = 0, windows: frozenset | None = None,
    ) -> bool:  # fmt: skip
        """Decide an evaluation, as CacheController.begin does.

        conds: the guider's conditionings by name. changed: whether what is asked has other values than where it was
        computed last. another: whether the latent may be another one. level: the noise level, where it was read.
        weights: a sample of the network's. force: whether it had better be computed. before: evaluations of histories
        that share the budget and came first. windows: in which the network is asked, as from windows_of.
        """
        step, sigma = self.steps.next_evaluation(), level_of(timestep)
        if step >= self.controller.total_steps:  # a sampler that does not take the schedule's steps
            self.controller.total_steps = UNKNOWN
        # Guiders that ask prompts in turn, or answer by themselves, ask this at some steps only.
        response = self.asked_at.response_at(step)
        if response is not None:
            self.controller.follow(response, before)
            self._foresee_changes()
        self._misses = self._misses + 1 if self.cache_miss else 0
        self.unpredictable = self.unpredictable or self.cache_miss or another
        # A budget that is spent would not compute it, and so never again have all that is asked.
        if self._misses > 1 or another:
            self.controller.reset_cache()
        forced, changed = self._force_and_changed(step, sigma, conds, changed, force)
        changed = changed | differ(self._weights, weights)
        for tensors in (self.overwrites, self._made_anew):
            changed = changed | tensors.changed(sigma.device, self.steps.evaluations_per_step)
        last = self._at_last_level(timestep, sigma)
        may_end = level is not None and self._strides.may_end(level, step, self.steps.ambiguous)
        if self.own_steps:
            last = False
        if not self.controller.ends_as_planned(level):  # the last evaluation draws the detail
            force = force | last
        returns = self.absences.may_return  # and then it could be predicted from nothing
        self.unpredictable = self.unpredictable or returns
        force = force | forced
        if may_end:
            force, step = True, max(step, self._schedule.steps - 1)  # for which a budget keeps one
        self.cache_miss = False
        if self.absences.came_back:  # the guider keeps the answer for the steps at which it does not ask
            self.controller.answers_are_kept()
        windows_moved = None not in (windows, self._windows) and windows != self._windows
        self.windows_moved += windows_moved
        computing = self.controller.begin(
            network_x, sigma=sigma, step=step, force=force, changed=changed, windows_moved=windows_moved,
            unpredictable=returns,
        )  # fmt: skip
        if computing:
            self._windows = windows
            self._computed_sigma, self._weights = sigma.clone(), weights
            self.overwrites.on_computed()
            self._made_anew.on_computed()
            self._switches.on_computed()
        return computing

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

    def on_computed(self, branch: str) -> None:
        """The branch was computed with the values that were observed last."""
        self._values[branch].on_computed()
        self._own_latents.on_computed(branch)

    def _at_last_level(self, timestep: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Whether the schedule ends here for all of the batch, or for some rows that have noise levels of their own."""
        if len(timestep) == 1:
            return sigma <= self._schedule.last_sigma
        before, self._rows_done = self._rows_done, (timestep <= self._schedule.last_sigma).sum()
        return (self._rows_done > before) | (self._rows_done == len(timestep))

    def _force_and_changed(self, step: int, sigma: torch.Tensor, conds: dict, changed: bool, missing: bool):
        """(force, changed) as CacheController.begin takes them. changed: as begin takes it. missing: whether something
        is asked that was not computed last.

        force: compute whatever the error. changed: the conditioning is another one than was computed last.

        Samplers evaluate between the sigmas of the schedule, and some have a schedule of their own. Hence sigma itself
        is compared; it stays on the device, and so do the results.
        """
        if self._switches is None:
            first, ranges = self._schedule.first_sigma, not self._alternates
            self._switches = Switches(conds, sigma.device, self._levels, first, ranges)
            self._foresee_changes()
        self._switches.observe(sigma, conds)
        if self._computed_sigma is None:
            return True, False
        self.moves += self._switches.moved or changed or missing
        changed = changed or self.cache_miss or self._switches.changed(self._computed_sigma, sigma)
        force, config = False, self.controller.config
        if not config.target_speedup:  # a budget has no warm-up, and would be spent on all of these at once
            force = self._switches.must_compute(sigma)
            if self.steps.ambiguous:  # it may still be warm-up
                return True, changed
            if step == config.warmup_steps and self.steps.one_per_step:
                # A corrector's second evaluation at the sigma of the last warm-up step still belongs to that step.
                force = force | (sigma == self._computed_sigma)
        return force, changed

    def _foresee_changes(self) -> None:
        """Tell the budget at which evaluations to come something else is asked, once that is known."""
        if self._switches is not None:
            self.controller.foresee(self._switches.changes_at(self.controller.planned_levels))

    def close(self) -> None:
        """Free every tensor."""
        self._computed_sigma = self._switches = self._weights = None
        self._values, self.absences, self._rows_done = {}, Absences(), 0
        self.overwrites, self._made_anew = Overwrites(), Overwrites(anew=True)
        self.trail, self._own_latents = Trail(), OwnLatents()
        self.controller.release()
