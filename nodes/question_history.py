"""What one run knows of the questions that are asked together: cond and uncond, say.

Guides and editing samplers ask two prompts in turn at one noise level (source and target). Each prompt, with what is
asked along with it, then has a history, and decisions, of its own.
"""

import dataclasses
from collections.abc import Sequence

import torch

from ..easycache_core import CacheController
from .latents import Trail
from .schedule_switches import Switches
from .settings import Settings
from .steps import Schedule, StepCounter


class QuestionHistory:
    """controller: the engine. steps: counts evaluations of this history by step. steps_before: of the same schedule, in
    runs that this one continues; they count as warm-up. levels: as Switches takes them.

    Raises ValueError, RankLost and RanksDiffer as CacheController does.
    """

    def __init__(
        self, settings: Settings, schedule: Schedule, steps_before: int = 0, levels: Sequence[float] = (),
        **controller_options,
    ):  # fmt: skip
        self._schedule, self._levels = schedule, levels
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
            **controller_options,
        )
        self.trail = Trail()
        self.cache_miss = False  # whether the last evaluation had a branch that could not be predicted
        self._misses = 0  # how many evaluations in a row had one
        self.moves = 0  # evaluations at which keyframes or strengths were others than at the last computed one
        self._switches: Switches | None = None
        self._computed_sigma: torch.Tensor | None = None  # of the last computed evaluation

    def begin(
        self, network_x: torch.Tensor, timestep: torch.Tensor, conds: dict, values: dict, another: bool = False
    ) -> bool:
        """Decide an evaluation; True: it is predicted. conds: the guider's conditionings by name. values: in the
        model's options, by name. another: whether the latent may be another one.
        """
        step = self.steps.next_evaluation()
        self._misses = self._misses + 1 if self.cache_miss else 0
        # A budget that is spent would not compute it, and so never again have all that is asked.
        if self._misses > 1 or another:
            self.controller.reset_cache()
        force, changed = self._force_and_changed(step, timestep, conds, values)
        self.cache_miss = False
        computing = self.controller.begin(network_x, sigma=timestep, step=step, force=force, changed=changed)
        if computing:
            self._computed_sigma = timestep[0].clone()
            self._switches.on_computed()
        return not computing

    def _force_and_changed(self, step: int, timestep: torch.Tensor, conds: dict, values: dict):
        """(force, changed) as CacheController.begin takes them. timestep: sigma, (batch,).

        force: compute whatever the error. changed: the conditioning is another one than was computed last.

        Samplers evaluate between the sigmas of the schedule, and some have a schedule of their own. Hence sigma itself
        is compared; it stays on the device, and so do the results.
        """
        sigma = timestep[0]
        if self._switches is None:
            self._switches = Switches(conds, sigma.device, self._levels, self._schedule.first_sigma)
        self._switches.observe(sigma, conds, values)
        if self._computed_sigma is None:
            return True, False
        self.moves += self._switches.moved
        changed = self.cache_miss or self._switches.changed(self._computed_sigma, sigma)
        force = timestep.min() <= self._schedule.last_sigma  # the last evaluation draws the detail
        config = self.controller.config
        if not config.target_speedup:  # a budget has no warm-up, and would be spent on all of these at once
            switching = self._switches.must_compute(sigma)
            force = force if switching is False else force | switching  # each | is a launch
            if self.steps.ambiguous:  # it may still be warm-up
                return True, changed
            if step == config.warmup_steps and self.steps.one_per_step:
                # A corrector's second evaluation at the sigma of the last warm-up step still belongs to that step.
                force = force | (sigma == self._computed_sigma)
        if self._schedule.restricted:
            force = force | (sigma > self._schedule.sigma_start) | (sigma < self._schedule.sigma_end)
        return force, changed

    def close(self) -> None:
        """Free every tensor."""
        self._computed_sigma = self._switches = None
        self.trail = Trail()
        self.controller.release()
