"""What a run tells of itself: its lines in the log, its report, and what the browser is shown meanwhile."""

import logging
from collections.abc import Sequence

import comfy.samplers
import torch

from ..easycache_core.budget import budget_of
from . import reasons
from .evaluation import Evaluation
from .question_history import QuestionHistory
from .settings import Settings
from .steps import UNKNOWN, Schedule
from .summary import ESTIMATE_MARGIN, Facts, notes, nothing_skipped, summarise, totals

log = logging.getLogger("easycache")

LEAST_ANSWERED = 2  # steps; some samplers call back once more as they end


class Account:
    """Run counts here what it does; the rest follows from that.

    steps_before: of the same schedule, in runs that this one continues. self_switching: names of ControlNets that
    change at noise levels which nothing tells.

    histories: all there have been. trace: (history, index of its record) of each evaluation. callbacks: of the sampler,
    one per step. unasked: those before which nothing was asked. parts, gradients: calls about a part of the latent, and
    differentiated ones. elsewhere: calls about a latent that lies another way than before: the guider's own, or the
    sampler's, rearranged from step to step. predicted: evaluations whose first question was predicted. along: questions
    that were asked along. memory: where the network keeps what one call leaves for the next, None if nowhere.
    weight_changes: at how many evaluations its weights were others than at the one before. switches: how often other
    parts of the conditionings become active. uncovered: whether a part of the latent has no positive prompt.
    other_caches: whether any are known to work on the same model. given_noise: whether the run was given a latent that
    another one left noisy.
    """

    def __init__(self, settings: Settings, schedule: Schedule, steps_before: int, self_switching: list[str]):
        self._settings, self._schedule, self._steps_before = settings, schedule, steps_before
        self._self_switching = self_switching
        self.histories: list[QuestionHistory] = []
        self.trace: list[tuple[QuestionHistory, int]] = []
        self.callbacks = self.unasked = self.parts = self.gradients = self.elsewhere = self.predicted = 0
        self.along = self.weight_changes = self.switches = 0
        self.memory: str | None = None
        self.uncovered = self.other_caches = self.given_noise = False
        self._whole_part_after = 0  # evaluations that were decided before the last one at another size
        self._closeness: float | None = None  # known once the sampler is through
        self._nothing_skipped: str | None = None  # why; known then, too
        self._notes: list[str] = []  # known then, too

    @property
    def controllers(self) -> list:
        return [history.controller for history in self.histories]

    def on_decided(self, history: QuestionHistory) -> None:
        """The newest evaluation of a history is decided."""
        self.trace.append((history, history.controller.evaluations - 1))

    def on_part(self, whole: bool) -> None:
        """A call about a part of the latent, or at another size, is computed. whole: an evaluation of its own."""
        self.parts += 1
        if whole:
            self._whole_part_after = len(self.trace)

    def on_elsewhere(self, who: str) -> None:
        """A call about a latent that lies another way than before. who: turns it."""
        self.elsewhere += 1
        if self.elsewhere == 1:
            log.info(f"EasyCache: {who}; where it lies another way than before, the network runs")

    def warn_of_self_switching(self) -> None:
        """Say what a ControlNet costs that changes at noise levels which nothing tells."""
        config, means = self._settings.config, "while it is active, everything is computed"
        if config.target_speedup:
            means = "with target_speedup, a step after that may still be predicted from before"
        for name in self._self_switching if config.target_speedup or config.threshold else ():
            log.warning(f"EasyCache: {reasons.switches_by_itself(name)}; {means}")

    def on_memory(self, place: str) -> None:
        """The network keeps there what one call leaves for the next."""
        self.memory = place
        log.warning(f"EasyCache: {reasons.remembers(place)}; from here on everything is computed")

    def log_evaluation(self, evaluation: Evaluation | None) -> None:
        """One line, with `verbose`, of an evaluation that is over; none where nothing was asked in it."""
        if not self._settings.verbose or evaluation is None or evaluation.history is None:
            return

        def shown(value):
            return "unknown" if value is None else f"{value:.4g}"

        history, index = self.trace[-1]
        record, config = history.controller.trace[index], self._settings.config
        error = "" if config.target_speedup else f" error {shown(record['error'])} of {config.threshold:g},"
        log.info(
            f"EasyCache: step {record['step'] + 1} of {self._steps}, sigma {shown(record['sigma'])}: "
            f"{'computed' if record['computed'] else 'skipped'},{error} transformation rate {shown(record['rate'])}"
        )

    def summary(self, ends: Sequence[torch.Tensor] | None, guidance, keeps_latents: bool) -> str:
        """The line for the log, once the sampler is through. ends: the least and the largest value of its denoised
        latent at its last callback. guidance: the guider's largest, None if it has none. keeps_latents: whether what
        guides keeps some for later steps. Waits for the device.
        """
        self._closeness = None if keeps_latents else self._estimate_closeness(ends, guidance)
        facts = Facts(
            steps=self.callbacks or self._steps,
            steps_chosen=self._schedule.steps_chosen,
            steps_before=self._steps_before,
            unfinished=self._schedule.unfinished,
            reason=self._reason,
            estimated=any(controller.estimated for controller in self.controllers),
            beyond_budget=self._beyond_budget,
            parts=self.parts,
            gradients=self.gradients,
            along=self.along,
            answered_by_sampler=self._answered_by_sampler,
            end_unseen=self._end_unseen,
            noise_added=any(controller.noise_added for controller in self.controllers),
            windows_move=self._windows_move,
            predicted_in_part=max(0, self.predicted - sum(controller.skipped for controller in self.controllers)),
        )
        did = self._totals()
        self._nothing_skipped = nothing_skipped(did, self._settings, facts)
        self._notes = notes(did, self._settings, facts)
        return summarise(self._totals(), self._settings, facts)

    def snapshot(self) -> tuple[dict, list, int]:
        """(report without trace, trace so far, how many of its first records have all their numbers).

        Does not wait for the device.
        """
        so_far = {id(history): history.controller.trace_so_far() for history in self.histories}
        records = [so_far[id(history)][0][index] for history, index in self.trace]
        resolved = [index < so_far[id(history)][1] for history, index in self.trace]
        return self._totals(), records, resolved.index(False) if False in resolved else len(records)

    def report(self) -> dict:
        """The report with its trace; waits for the device."""
        traces = {id(history): history.controller.trace for history in self.histories}
        return {**self._totals(), "trace": [traces[id(history)][index] for history, index in self.trace]}

    def _totals(self) -> dict:
        computed = sum(controller.computed for controller in self.controllers)
        skipped = sum(controller.skipped for controller in self.controllers)
        did = totals(self._settings, self._steps, computed, skipped, self._schedule.steps_chosen)
        return {
            **did,
            "reason": self._nothing_skipped,
            "notes": self._notes,
            "closeness": self._closeness,
            "closeness_margin": None if self._closeness is None else ESTIMATE_MARGIN,
        }

    @property
    def _steps(self) -> int:
        """Steps of the sampler; those so far where it follows a schedule of its own, or steps of its own."""
        if any(history.own_steps for history in self.histories):
            return max(self._schedule.steps, self.callbacks)
        return self._schedule.steps if self._schedule.steps < UNKNOWN else self.callbacks

    def _estimate_closeness(self, ends: Sequence[torch.Tensor] | None, guidance) -> float | None:
        """In dB, of the final latent in the sampler's own terms. Nothing is known where a guider keeps answers for
        later steps, where another cache or the sampler answers in the network's place, of a schedule that leads back to
        noise somewhere or leaps to its end, and of a piece of one: another run goes on with a latent that is mostly
        noise, or one before was off by more than is known here. Nor where no prompt covers a part of the latent: what
        is asked there tells nothing.
        """
        if ends is None or self.uncovered or len(self.histories) != 1:
            return None
        if self.other_caches or self._answered_by_sampler:
            return None
        if not isinstance(guidance, int | float | None):  # some guiders have one for each step
            return None
        if self._schedule.unfinished or self._schedule.rises or self._schedule.leaps:
            return None
        if self._steps_before or self.given_noise:
            return None
        (history,) = self.histories
        if not history.controller.skipped or history.absences.recurring:
            return None
        if history.asks_several and (guidance or 1.0) <= 1:  # it has a guidance of its own, under another name
            return None
        low, high = ends
        return history.controller.closeness(float(high - low), float(guidance or 1.0))

    @property
    def _answered_by_sampler(self) -> int:
        """Steps of the schedule at which the sampler called back without having asked anything."""
        each_is_a_step = self.callbacks + self.unasked == self._schedule.steps
        return self.unasked if each_is_a_step and self.unasked >= LEAST_ANSWERED else 0

    @property
    def _end_unseen(self) -> bool:
        """Whether the last evaluation was predicted, as the sampler stopped where its schedule goes on."""
        if not self.trace or self._schedule.last_sigma < 0:  # such schedules have no last one
            return False
        if self._whole_part_after == len(self.trace):  # the last one was at another size, and computed
            return False
        history, index = self.trace[-1]
        return not history.controller.trace_so_far()[0][index]["computed"]

    @property
    def _beyond_budget(self) -> str | None:
        """Why more was computed than target_speedup allows; None: it was not."""
        target = self._settings.config.target_speedup
        counts = [(one.computed, one.computed + one.skipped) for one in self.controllers if target]
        computed, evaluations = map(sum, zip(*counts, strict=True)) if counts else (0, 0)
        if not target or computed <= budget_of(evaluations, target):
            return None
        allowed = [budget_of(own, target) for _, own in counts]
        if computed <= sum(allowed):
            return reasons.IN_TURN
        if any(controller.not_finite for controller in self.controllers):
            return reasons.FROM_NOT_FINITE
        if len(counts) == 1 and computed <= 2:
            return reasons.BOTH_ENDS
        if self.elsewhere or any(history.unpredictable or history.cache_miss for history in self.histories):
            return reasons.UNPREDICTABLE
        if computed <= sum(max(2, own) for own in allowed):
            return reasons.IN_TURN
        if len(self.trace) < self._schedule.steps:
            return reasons.FEWER_EVALUATIONS
        return reasons.LAST_UNKNOWN

    @property
    def _reason(self) -> str | None:
        """Why nothing was skipped, where the settings are not to blame."""
        evaluations = len(self.trace)
        if self.memory:
            return reasons.remembers(self.memory)
        if sum(controller.not_finite for controller in self.controllers) > evaluations / 2:
            return reasons.NOT_FINITE
        if self.gradients > self.parts and not evaluations:
            return reasons.DIFFERENTIATED
        replaced = comfy.samplers.calc_cond_batch.__module__
        if not evaluations and not self.parts and replaced != comfy.samplers.__name__:
            return reasons.replaced_by(replaced)
        if self.parts > evaluations:
            return reasons.PARTS
        if sum(history.trail.far for history in self.histories) > evaluations / 2:
            return reasons.ANOTHER_LATENT
        if len(self.histories) == evaluations > 1:
            return reasons.ALWAYS_NEW
        if self.elsewhere > evaluations / 2:
            return reasons.REARRANGED
        if self._windows_move:
            return reasons.WINDOWS_MOVE
        if self._self_switching and not self._settings.config.target_speedup:
            return reasons.switches_by_itself(self._self_switching[0])
        if max(sum(history.moves for history in self.histories), self.switches) > evaluations / 2:
            return reasons.ALWAYS_CHANGED
        if self.weight_changes > evaluations / 2:
            return reasons.WEIGHTS_CHANGE
        in_turn, least = len(self.histories), 2 if self._settings.config.target_speedup else 4
        if in_turn > 1 and evaluations <= in_turn * least:
            return reasons.too_few_each(in_turn, evaluations)
        return None

    @property
    def _windows_move(self) -> bool:
        return sum(history.windows_moved for history in self.histories) > len(self.trace) / 2
