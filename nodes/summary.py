"""The one log line at the end of a run."""

from .settings import Settings


def summarise(settings: Settings, steps: int, computed: int, skipped: int) -> str:
    """What a run did, and if nothing was skipped, why.

    steps: sampler steps of the run.
    """
    config = settings.config
    evaluations = computed + skipped
    if evaluations == 0:
        return "EasyCache: nothing was sampled, the run had no steps"
    line = (
        f"EasyCache: computed {computed} of {evaluations} evaluations, skipped {skipped} "
        f"({evaluations / max(computed, 1):.2f}x), {config.predictor}, {_rule(config)}"
    )
    if skipped:
        return line
    return f"{line}. Nothing was skipped: {_reason(settings, steps)}"


def _rule(config) -> str:
    if config.target_speedup:
        return f"target speed-up {config.target_speedup:g}"
    return f"threshold {config.threshold:g}, warm-up {config.warmup_steps}"


def _reason(settings: Settings, steps: int) -> str:
    config = settings.config
    if config.target_speedup:
        return f"target_speedup {config.target_speedup:g} allows each of them to be computed"
    if config.threshold == 0:
        return "threshold is 0"
    if steps <= config.warmup_steps + 1:
        return (
            f"the run has {steps} steps, of which the first {config.warmup_steps} (warmup_steps) and the last "
            "are always computed"
        )
    if settings.start_percent > 0 or settings.end_percent < 1:
        return (
            f"the error reached the threshold at every step between start_percent {settings.start_percent:g} "
            f"and end_percent {settings.end_percent:g}; widen them or raise threshold"
        )
    return "the error reached the threshold at every step; raise threshold, or set target_speedup, to skip some"
