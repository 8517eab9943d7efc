"""Around ComfyUI's OUTER_SAMPLE, which is called once per sampling run: the run gets a cache, and tells of it.

The wrappers of the Run (run.py) go into a copy of the model options, so that runs cannot affect each other.
"""

import logging
import math
from contextlib import contextmanager, nullcontext

import comfy.model_patcher
from comfy.patcher_extension import WrappersMP

from ..easycache_core.ranks import ALL_RANKS
from .callback_writes import CallbackWrites
from .continuation import Piece
from .held_options import wrapped_along
from .other_caches import warn_of_other_caches
from .own_wrappers import WRAPPER_KEY, set_own_wrapper
from .patch_switches import patch_levels
from .progress_events import ProgressEvents
from .run import Run
from .run_history import RunHistory
from .sampler_response import is_own, response_of, supposed_response
from .settings import Settings
from .steps import Schedule

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
    options = guider.model_options.get("transformer_options", {})
    others = warn_of_other_caches(guider.model_patcher, guider.model_options, WRAPPER_KEY)
    streams = packed_streams(*args, **kwargs)
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    levels = sigmas.detach().cpu()  # once: each look at them on their device waits for it
    schedule = Schedule(levels, model_sampling, sampler, settings)
    piece = Piece(history.unfinished, schedule, guider, noise, latent_image, streams)
    response = response_of(sampler, levels, model_sampling) if settings.config.needs_response else None
    if response is not None:
        schedule.ends_at(min(response.sigmas))
    run = Run(
        settings,
        schedule,
        guider,
        streams,
        options.get("easycache_ranks", ALL_RANKS),  # set where not all ranks share this run
        noise.shape,
        piece.steps_before,
        patch_levels(guider.model_options, WRAPPER_KEY, model_sampling, levels),
        response,
        is_own(sampler) or settings.exact,
        supposed_response(levels, model_sampling) if settings.config.target_speedup and schedule.steps_known else None,
    )
    run.account.warn_of_self_switching()
    run.account.other_caches = bool(others)
    run.account.given_noise = piece.given_noise
    events, writes, state = ProgressEvents(history.node), CallbackWrites(), "stopped"

    def after_step(step, denoised, x, total_steps):
        run.on_callback(denoised)
        events.send("running", run.account.snapshot)
        if callback is not None:
            with nullcontext() if settings.exact else writes.watch(callback, x, run.on_moved):
                callback(step, denoised, x, total_steps)

    original_options = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(original_options)
    for level, wrapper in (
        (WrappersMP.PREDICT_NOISE, run.predict_noise), (WrappersMP.CALC_COND_BATCH, run.calc_cond_batch),
    ):  # fmt: skip
        set_own_wrapper(level, wrapper, guider.model_options)
    set_own_wrapper(WrappersMP.APPLY_MODEL, None, guider.model_options)  # which warns of calls outside of a run
    try:
        with wrapped_along(guider.model_options, run.calc_cond_batch_within):
            samples = executor(noise, latent_image, sampler, sigmas, denoise_mask, after_step, *args, **kwargs)
        with not_lost("what the run did"):
            log.info(run.finish())
            if not others:
                run.repetitions.warn()
        with not_lost("where the run stopped"):
            piece.finish(samples, run.denoised)
        state = "done"
    finally:
        guider.model_options = original_options
        run.close()
        piece.close()
        events.send(state, run.account.snapshot)
    with not_lost("the run's report"):
        history.add(samples, run.account.report())
    return samples


@contextmanager
def not_lost(what: str):
    """A run that is through is not lost for what is looked at afterwards. what: cannot be told then."""
    try:
        yield
    except Exception:
        log.warning(f"EasyCache: {what} cannot be told; the result is not affected", exc_info=True)


def packed_streams(disable_pbar=False, seed=None, latent_shapes=(), **_) -> list[int]:
    """Elements per sample of each stream that is packed into the latent, [] for a single one.

    Newer ComfyUI packs a video and its sound into one tensor; latent_shapes, at the end of OUTER_SAMPLE's arguments,
    has the shapes of both.
    """
    return [math.prod(shape[1:]) for shape in latent_shapes] if len(latent_shapes) > 1 else []
