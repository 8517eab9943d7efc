"""One sampling run with the cache: what happens between a sampler and the network.

`sample_with_cache` wraps ComfyUI's OUTER_SAMPLE, which is called once a run. It makes a Run, and puts the
Run's own wrappers into that run's copy of the model options: PREDICT_NOISE, where the one decision an
evaluation is taken, and CALC_COND_BATCH, where conditions are either computed and recorded or answered from
the cache. Model, node and module hold no state, so runs cannot disturb each other.
"""

import logging
import math
from collections.abc import Sequence

import comfy.model_patcher
import torch
from comfy.model_management import OOM_EXCEPTION, soft_empty_cache
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..easycache_core import CacheController, Ranks
from ..easycache_core.ranks import EVERYONE
from .activity import Switches, patched_layers
from .parametrisation import Denoised, Parametrisation
from .progress_events import ProgressEvents
from .run_history import WRAPPER_KEY, RunHistory
from .settings import Settings
from .steps import StepClock, foreseen, lengths
from .summary import summarise, totals
from .windows import CachedWindows

log = logging.getLogger("easycache")


def sample_with_cache(
    settings: Settings,
    history: RunHistory,
    executor,
    noise,
    latent_image,
    sampler,
    sigmas,
    denoise_mask=None,
    callback=None,
    *args,
    **kwargs,
):
    """OUTER_SAMPLE wrapper: opens a run and closes it whatever happens; its report goes to the history."""
    guider = executor.class_obj
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    options = guider.model_options.get("transformer_options", {})
    ranks = options.get("easycache_ranks", EVERYONE)  # a worker with replicas of its own says which belong together
    run = Run(settings, sigmas, model_sampling, packed_streams(*args, **kwargs), foreseen(sampler), ranks)
    if "easycache" in options:
        log.warning(
            "EasyCache: the model also has ComfyUI's built-in EasyCache or LazyCache node; two caches add up "
            "their errors, so use one of them"
        )

    events, state = ProgressEvents(history.node), "stopped"

    def after_step(step, denoised, x, total_steps):
        run.clock.report(step)
        events.send("running", run.snapshot)
        if callback is not None:
            callback(step, denoised, x, total_steps)

    original_options = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(original_options)
    add_wrapper_with_key(
        WrappersMP.PREDICT_NOISE, WRAPPER_KEY, run.predict_noise, guider.model_options, is_model_options=True
    )
    add_wrapper_with_key(
        WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, run.calc_cond_batch, guider.model_options, is_model_options=True
    )
    try:
        samples = executor(noise, latent_image, sampler, sigmas, denoise_mask, after_step, *args, **kwargs)
        log.info(run.summary())
        state = "done"
    finally:
        guider.model_options = original_options
        run.close()
        events.send(state, run.snapshot)
    history.add(samples, run.report())
    return samples


def packed_streams(disable_pbar=False, seed=None, latent_shapes=(), **_) -> list[int]:
    """Sizes of the streams of a latent, from the end of OUTER_SAMPLE's arguments.

    Newer ComfyUI packs video and its sound into one tensor and hands on the shapes of both.
    """
    return [math.prod(shape[1:]) for shape in latent_shapes] if len(latent_shapes) > 1 else []


class Run:
    """The cache's whole state during one sampling run.

    In the terms of the engine, a branch is one conditioning of one call to calc_cond_batch. Inputs and outputs are what
    the network gets and what it answers for that conditioning (Parametrisation), or, for forecasts, the sampler's
    latent and the denoised one (Denoised).
    """

    def __init__(
        self,
        settings: Settings,
        sigmas: torch.Tensor,
        model_sampling,
        streams: Sequence[int] = (),
        steps_are_foreseen: bool = True,
        ranks: Ranks | None = EVERYONE,
    ):
        self.settings = settings
        self.clock = StepClock()
        self._total_steps = max(len(sigmas) - 1, 0)  # a schedule may be empty
        forecasting = settings.config.predictor == "forecast"
        self._network = Denoised() if forecasting else Parametrisation(model_sampling)
        self._highest = float(model_sampling.percent_to_sigma(settings.start_percent))
        self._lowest = float(model_sampling.percent_to_sigma(settings.end_percent))
        self._controller = CacheController(
            settings.config,
            self._total_steps,
            streams,
            denoised=forecasting,
            foreseen=steps_are_foreseen,
            step_lengths=lengths(model_sampling, sigmas) if settings.config.target_speedup else None,
            ranks=ranks,
        )
        self._switches: Switches | None = None
        self._computed_at: torch.Tensor | None = None  # noise level of the last computed evaluation
        self._missed = False  # whether the last evaluation asked for something that was not in the cache
        # Of the current evaluation:
        self._x: torch.Tensor | None = None
        self._reusing = False
        self._positive: list[dict] | None = None
        self._calls = 0
        self._computing = False

    def predict_noise(self, executor, x, timestep, model_options, *args, **kwargs):
        """PREDICT_NOISE wrapper, once an evaluation: decide.

        x: the sampler's latent, (batch, channels, ...). timestep: sigma, (batch,).
        """
        step, conds = self.clock.tick(), getattr(executor.class_obj, "conds", {})
        force, changed = self._must_compute(step, timestep[0], conds)
        self._x, self._positive, self._calls, self._missed = x, conds.get("positive"), 0, False
        network_x = self._with_room(self._network.network_input, x, timestep)
        self._reusing = not self._controller.begin(network_x, sigma=timestep, step=step, force=force, changed=changed)
        if not self._reusing:
            self._computed_at = timestep[0].clone()
        handler = model_options.get("context_handler")
        if handler is not None:
            model_options = {**model_options, "context_handler": CachedWindows(handler, self.conditions)}
        denoised = executor(x, timestep, model_options, *args, **kwargs)
        self._x = self._positive = None
        if self.settings.verbose:
            self._log_evaluation()
        return denoised

    def _must_compute(self, step: int, sigma: torch.Tensor, conds: dict):
        """(whether something outside the engine's view rules out reuse of this evaluation, whether the network is asked
        something new), at noise level sigma.

        Samplers evaluate between the noise levels of the schedule, and some follow one of their own. Hence the level
        itself is looked at, which is on the device, and so are the answers.
        """
        if self._computed_at is None:
            self._switches = Switches(conds, sigma.device)
            return True, False
        changed = self._missed or self._switches.passed(self._computed_at, sigma)
        config = self.settings.config
        force = False
        if not config.target_speedup:  # a budget has no warm-up
            if self.clock.unsettled:  # it may still be warm-up
                return True, changed
            if step == config.warmup_steps and self.clock.single:
                # A corrector that looks again at the noise level of the last step of the warm-up belongs to that step.
                force = sigma == self._computed_at
        if self.settings.start_percent > 0 or self.settings.end_percent < 1:
            force = force | (sigma > self._highest) | (sigma < self._lowest)
        return force, changed

    def calc_cond_batch(self, executor, model, conds, x, timestep, model_options):
        """CALC_COND_BATCH wrapper: denoised latents for a list of conditionings, computed or predicted."""

        def compute():
            return executor(model, conds, x, timestep, model_options)

        return compute() if self._computing else self.conditions(compute, conds, x, timestep, model_options)

    def conditions(self, compute, conds, x, timestep, model_options) -> list[torch.Tensor]:
        """Denoised latents for a list of conditionings: predicted where possible, else from `compute()`.

        Guidance add-ons (perturbed attention, skip-layer ...) call again within one evaluation. Calls are told
        apart by their order and by the layers they patch, as an add-on may end on the way and the next one
        move up.
        """
        call, self._calls = f"{self._calls} {patched_layers(model_options)}", self._calls + 1
        branches = {i: f"{call} {i}" for i, cond in enumerate(conds) if cond is not None}
        own_x = None if x is self._x else self._with_room(self._network.network_input, x, timestep)
        if self._reusing and all(map(self._controller.knows, branches.values())):
            try:
                predicted = {i: self._controller.predict(branch, own_x) for i, branch in branches.items()}
                return [
                    self._network.denoised(predicted[i], x, timestep) if i in predicted else torch.zeros_like(x)
                    for i in range(len(conds))
                ]
            except OOM_EXCEPTION:
                if self._controller.shared:
                    raise
                self._controller.forget()
        denoised = self._computed(compute)
        if self._reusing:
            self._missed = True
            return denoised
        # The first one stored is the tracked one; some guiders list the negative first.
        for i in sorted(branches, key=lambda i: conds[i] is not self._positive):
            output = self._with_room(self._network.network_output, denoised[i], x, timestep)
            self._controller.store(branches[i], output, own_x)
        return denoised

    def _computed(self, compute) -> list[torch.Tensor]:
        """compute(), without looking at what it calls on its way."""
        self._computing = True
        try:
            return self._with_room(compute)
        finally:
            self._computing = False

    def _with_room(self, make, *args):
        """make(*args), a second time without the cache if there was no room for both.

        Not where other ranks run along: the network talks to theirs, and one rank alone must not run it again.
        """
        try:
            return make(*args)
        except OOM_EXCEPTION:
            if self._controller.shared or not self._controller.holds_tensors:
                raise
            log.warning("EasyCache: out of memory; the cache is freed and what failed is done again")
            self._controller.forget()
        soft_empty_cache()
        return make(*args)

    def _log_evaluation(self):
        def shown(value):
            return "unknown" if value is None else f"{value:.4g}"

        record, config = self._controller.trace[-1], self.settings.config
        error = "" if config.target_speedup else f" error {shown(record['error'])} of {config.threshold:g},"
        log.info(
            f"EasyCache: step {record['step'] + 1} of {self._total_steps}, sigma {shown(record['sigma'])}: "
            f"{'computed' if record['computed'] else 'skipped'},{error} transformation rate {shown(record['rate'])}"
        )

    def summary(self) -> str:
        return summarise(self._totals(), self.settings, self.clock.steps)

    def snapshot(self) -> tuple[dict, list, int]:
        """The report without its trace, the trace so far, and how many of its records have all their numbers."""
        return self._totals(), *self._controller.trace_so_far()

    def report(self) -> dict:
        """The report as the user gets it; waits for the device."""
        return {**self._totals(), "trace": self._controller.trace}

    def _totals(self) -> dict:
        return totals(self.settings, self._total_steps, self._controller)

    def close(self) -> None:
        """Let go of every tensor, even if somebody still holds this run."""
        self._x = self._positive = self._computed_at = self._switches = None
        self._controller.release()
