"""One sampling run with the cache, between the sampler and the network.

`sample_with_cache` wraps ComfyUI's OUTER_SAMPLE, which is called once per run. It makes a Run, and puts the Run's
wrappers into a copy of the model options: PREDICT_NOISE decides, once per evaluation; CALC_COND_BATCH computes and
stores the outputs, or predicts them. The state of a run is in its Run alone, so runs cannot affect each other.
"""

import logging
import math
from collections.abc import Sequence

import comfy.model_patcher
import torch
from comfy.model_management import soft_empty_cache
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..easycache_core import CacheController, Ranks
from ..easycache_core.predictors import PREDICTORS
from ..easycache_core.ranks import ALL_RANKS
from ..easycache_core.storage import is_out_of_memory
from .parametrisation import Parametrisation
from .progress_events import ProgressEvents
from .run_history import WRAPPER_KEY, RunHistory
from .schedule_switches import Switches
from .settings import Settings
from .steps import StepCounter, step_count_known, step_lengths
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
    """OUTER_SAMPLE wrapper: one run. Its state is freed on errors too; its report goes to `history` if it finishes."""
    guider = executor.class_obj
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    options = guider.model_options.get("transformer_options", {})
    ranks = options.get("easycache_ranks", ALL_RANKS)  # set where not all ranks share this run
    run = Run(settings, sigmas, model_sampling, packed_streams(*args, **kwargs), step_count_known(sampler), ranks)
    if "easycache" in options:
        log.warning(
            "EasyCache: the model also has ComfyUI's built-in EasyCache or LazyCache node; two caches add up "
            "their errors, so use one of them"
        )

    events, state = ProgressEvents(history.node), "stopped"

    def after_step(step, denoised, x, total_steps):
        run.step_counter.on_callback(step)
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
    """Elements per sample of each stream that is packed into the latent, [] for a single one.

    Newer ComfyUI packs a video and its sound into one tensor; latent_shapes, at the end of OUTER_SAMPLE's arguments,
    has the shapes of both.
    """
    return [math.prod(shape[1:]) for shape in latent_shapes] if len(latent_shapes) > 1 else []


def patched_layers(model_options: dict) -> tuple:
    """Sorted (kind, layer) of the layers that are replaced or skipped in a call of the network."""
    replaced = model_options.get("transformer_options", {}).get("patches_replace", {})
    return tuple(sorted((kind, str(layer)) for kind, layers in replaced.items() for layer in layers))


class Run:
    """The state of the cache during one sampling run.

    A branch of the engine is one conditioning of one call to calc_cond_batch. The engine's inputs and outputs are the
    noisy and the denoised latent, or, for predictors that do not follow the denoised latent, those of the network.

    sigmas: the sampler's schedule, (steps + 1,). streams: as from packed_streams. step_count_is_known: whether the
    sampler takes the steps of its schedule. ranks: as CacheController takes them.
    """

    def __init__(
        self,
        settings: Settings,
        sigmas: torch.Tensor,
        model_sampling,
        streams: Sequence[int] = (),
        step_count_is_known: bool = True,
        ranks: Ranks | None = ALL_RANKS,
    ):
        self.settings = settings
        self.step_counter = StepCounter()
        self._total_steps = max(len(sigmas) - 1, 0)  # a schedule may be empty
        follows_denoised = PREDICTORS[settings.config.predictor].follows_denoised
        self._conversion = None if follows_denoised else Parametrisation(model_sampling)
        self._sigma_start = float(model_sampling.percent_to_sigma(settings.start_percent))
        self._sigma_end = float(model_sampling.percent_to_sigma(settings.end_percent))
        self._controller = CacheController(
            settings.config,
            self._total_steps,
            streams,
            denoised=follows_denoised,
            step_count_known=step_count_is_known,
            step_lengths=step_lengths(model_sampling, sigmas) if settings.config.target_speedup else None,
            ranks=ranks,
        )
        self._switches: Switches | None = None
        self._computed_sigma: torch.Tensor | None = None  # of the last computed evaluation
        self._cache_miss = False  # whether the last evaluation had a branch that could not be predicted
        # Of the current evaluation:
        self._x: torch.Tensor | None = None
        self._reusing = False
        self._positive: list[dict] | None = None  # conditioning
        self._calls = 0  # to calc_cond_batch
        self._computing = False  # whether such a call is being computed

    def predict_noise(self, executor, x, timestep, model_options, *args, **kwargs):
        """PREDICT_NOISE wrapper, once per evaluation: decide whether to compute it.

        x: the sampler's latent, (batch, channels, ...). timestep: sigma, (batch,). Returns the denoised latent.
        """
        step, conds = self.step_counter.next_evaluation(), getattr(executor.class_obj, "conds", {})
        force, changed = self._force_and_changed(step, timestep[0], conds)
        self._x, self._positive, self._calls, self._cache_miss = x, conds.get("positive"), 0, False
        network_x = self._network_input(x, timestep)
        self._reusing = not self._controller.begin(network_x, sigma=timestep, step=step, force=force, changed=changed)
        if not self._reusing:
            self._computed_sigma = timestep[0].clone()
        handler = model_options.get("context_handler")
        if handler is not None:
            model_options = {**model_options, "context_handler": CachedWindows(handler, self.predict_or_compute)}
        denoised = executor(x, timestep, model_options, *args, **kwargs)
        self._x = self._positive = None
        if self.settings.verbose:
            self._log_evaluation()
        return denoised

    def _force_and_changed(self, step: int, sigma: torch.Tensor, conds: dict):
        """(force, changed) as CacheController.begin takes them, at noise level sigma, a one-element tensor.

        force: compute whatever the error. changed: the conditioning is another one than was computed last.

        Samplers evaluate between the sigmas of the schedule, and some have a schedule of their own. Hence sigma itself
        is compared; it stays on the device, and so do the results.
        """
        if self._computed_sigma is None:
            self._switches = Switches(conds, sigma.device)
            return True, False
        changed = self._cache_miss or self._switches.crossed(self._computed_sigma, sigma)
        config = self.settings.config
        force = False
        if not config.target_speedup:  # a budget has no warm-up
            if self.step_counter.ambiguous:  # it may still be warm-up
                return True, changed
            if step == config.warmup_steps and self.step_counter.one_per_step:
                # A corrector's second evaluation at the sigma of the last warm-up step still belongs to that step.
                force = sigma == self._computed_sigma
        if self.settings.start_percent > 0 or self.settings.end_percent < 1:
            force = force | (sigma > self._sigma_start) | (sigma < self._sigma_end)
        return force, changed

    def calc_cond_batch(self, executor, model, conds, x, timestep, model_options):
        """CALC_COND_BATCH wrapper: as predict_or_compute. Nested calls are computed."""

        def compute():
            return executor(model, conds, x, timestep, model_options)

        return compute() if self._computing else self.predict_or_compute(compute, conds, x, timestep, model_options)

    def predict_or_compute(self, compute, conds, x, timestep, model_options) -> list[torch.Tensor]:
        """Denoised latents, one per conditioning: predicted where possible, else from `compute()`.

        Guidance add-ons (perturbed attention, skip-layer ...) call again within one evaluation. Calls are distinguished
        by their order and by the layers that they patch, as an add-on may end during the run and the next one move up.
        """
        call, self._calls = f"{self._calls} {patched_layers(model_options)}", self._calls + 1
        branches = {i: f"{call} {i}" for i, cond in enumerate(conds) if cond is not None}
        own_x = None if x is self._x else self._network_input(x, timestep)
        if self._reusing and all(map(self._controller.has, branches.values())):
            try:
                predicted = {i: self._predict(branch, own_x, x, timestep) for i, branch in branches.items()}
                return [predicted[i] if i in predicted else torch.zeros_like(x) for i in range(len(conds))]
            except Exception as error:
                if self._controller.shared or not is_out_of_memory(error):
                    raise
            self._controller.give_up_cache()
        denoised = self._compute_nested(compute)
        if self._reusing:
            self._cache_miss = True
            return denoised
        # The branch stored first is the one whose error decides; some guiders list the negative first.
        for i in sorted(branches, key=lambda i: conds[i] is not self._positive):
            output = denoised[i]
            if self._conversion is not None:
                output = self._retry_on_oom(self._conversion.network_output, output, x, timestep)
            self._controller.store(branches[i], output, own_x)
        return denoised

    def _network_input(self, x, timestep) -> torch.Tensor:
        """What the engine takes for x."""
        return x if self._conversion is None else self._retry_on_oom(self._conversion.network_input, x, timestep)

    def _predict(self, branch: str, own_x, x, timestep) -> torch.Tensor:
        """The denoised latent of a branch. own_x: x as the engine takes it; None if it is that of the evaluation."""
        predicted = self._controller.predict(branch, own_x)
        return predicted if self._conversion is None else self._conversion.denoised(predicted, x, timestep)

    def _compute_nested(self, compute) -> list[torch.Tensor]:
        """compute(), with nested calls to calc_cond_batch left alone."""
        self._computing = True
        try:
            return self._retry_on_oom(compute)
        finally:
            self._computing = False

    def _retry_on_oom(self, make, *args):
        """make(*args); if memory runs out, once more with the cache freed.

        Raises the error if the cache is empty, and with other ranks: the network exchanges data with theirs, so one
        rank alone must not run it again.
        """
        try:
            return make(*args)
        except Exception as error:
            if self._controller.shared or not self._controller.holds_tensors or not is_out_of_memory(error):
                raise
        log.warning("EasyCache: out of memory; the cache is freed and what failed is done again")
        self._controller.reset_cache()
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
        return summarise(self._totals(), self.settings, self.step_counter.steps)

    def snapshot(self) -> tuple[dict, list, int]:
        """(report without trace, trace so far, how many of its first records have all their numbers).

        Does not wait for the device.
        """
        return self._totals(), *self._controller.trace_so_far()

    def report(self) -> dict:
        """The report with its trace; waits for the device."""
        return {**self._totals(), "trace": self._controller.trace}

    def _totals(self) -> dict:
        return totals(self.settings, self._total_steps, self._controller)

    def close(self) -> None:
        """Free every tensor, even if a reference to this run remains."""
        self._x = self._positive = self._computed_sigma = self._switches = None
        self._controller.release()
