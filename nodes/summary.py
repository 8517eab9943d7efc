"""The totals of a run, as numbers and as one line of the log."""

from typing import NamedTuple

from ..easycache_core.budget import budget_of
from ..easycache_core.config import MAX_THRESHOLD
from .reasons import WINDOWS_MOVE
from .settings import Settings


def totals(settings: Settings, steps: int, computed: int, skipped: int, steps_chosen: bool = False) -> dict:
    """The totals of a run so far: numbers of its report. steps: of the sampler. steps_chosen: whether it chooses them
    by the answers.

    speedup is evaluations / computed, None if none was computed, and where an uncached run takes other steps.
    """
    config = settings.config
    known = computed and not steps_chosen
    return {
        "steps": steps,
        "evaluations": computed + skipped,
        "computed": computed,
        "skipped": skipped,
        "speedup": (computed + skipped) / computed if known else None,
        "threshold": config.threshold,
        "warmup_steps": config.warmup_steps,
        "predictor": config.predictor,
        "target_speedup": config.target_speedup,
        "start_percent": settings.start_percent,
        "end_percent": settings.end_percent,
    }


class Facts(NamedTuple):
    """What a run went through that its totals do not tell.

    steps: that the sampler took. steps_chosen: whether by the answers. steps_before: of the same schedule, in runs that
    this one continues. unfinished: whether another run goes on from here. reason: why nothing could be skipped, where
    the settings are not to blame. estimated: whether an error was, at any step. beyond_budget: why more was computed
    than target_speedup allows, None if it was not. parts, gradients: calls about a part of the latent, and
    differentiated ones, which are not among the evaluations. along: how often the network was asked what the guider
    leaves out at times. answered_by_sampler: steps at which the sampler asked nothing. end_unseen: whether the last
    evaluation was predicted, though the last one should be computed. noise_added: whether the latent is moved by more
    than answers, as by a sampler's noise. windows_move: whether context windows are others at most steps.
    predicted_in_part: evaluations that count as computed, but of which what was asked first was predicted.
    """

    steps: int
    steps_chosen: bool
    steps_before: int
    unfinished: bool
    reason: str | None
    estimated: bool
    beyond_budget: str | None
    parts: int
    gradients: int
    along: int
    answered_by_sampler: int
    end_unseen: bool
    noise_added: bool
    windows_move: bool
    predicted_in_part: int


def summarise(did: dict, settings: Settings, facts: Facts) -> str:
    """The line for the log, with the reason if nothing was skipped.

    did: as from `totals`, with `reason`, as from `nothing_skipped`, and `closeness`, in dB, None if not known.
    """
    if did["evaluations"] == 0 and facts.steps == 0:
        return "EasyCache: nothing was sampled, the run had no steps"
    if did["evaluations"] == 0:
        asked = facts.reason or "it asked nothing that the node sees"
        return f"EasyCache: the sampler took {facts.steps} steps; nothing was skipped: {asked}"
    ratio = "" if facts.steps_chosen else f" ({did['evaluations'] / max(did['computed'], 1):.2f}x)"
    line = (
        f"EasyCache: computed {did['computed']} of {did['evaluations']} evaluations, skipped {did['skipped']}{ratio}, "
        f"{did['predictor']}, {_rule(settings.config)}"
    )
    if facts.predicted_in_part:
        line += f"; of {facts.predicted_in_part} of those computed a part was predicted"
    if facts.beyond_budget:
        line += f"; that is more than it allows, {facts.beyond_budget}"
    if facts.parts:
        line += f"; besides, {facts.parts} calls about parts of the latent, or at another size, were computed"
    if facts.gradients:
        line += f"; besides, {facts.gradients} calls that the guider or sampler differentiates through were computed"
    if facts.along:
        line += f"; besides, what the guider leaves out at times was asked along {facts.along} times"
    line += "".join(f"; {warning}" for warning in _warnings(facts, did))
    if facts.noise_added and did["skipped"] and settings.config.target_speedup:
        line += f"; {NOISE_ADDED}: with target_speedup the result may drift, under a threshold less is skipped"
    if facts.windows_move and did["skipped"]:
        line += f"; {WINDOWS_MOVE}"
    if facts.steps_before:
        line += f"; it goes on from an earlier run, at step {facts.steps_before + 1} of the schedule"
    if did["closeness"] is not None:
        line += f"; {closeness_text(did['closeness'])}"
    return line if did["reason"] is None else f"{line}. Nothing was skipped: {did['reason']}"


def nothing_skipped(did: dict, settings: Settings, facts: Facts) -> str | None:
    """Why nothing was skipped, None if something was or nothing was sampled. did: as from `totals`."""
    if did["skipped"] or facts.predicted_in_part or not did["evaluations"]:
        return None
    if facts.reason is None or settings.config.threshold == 0 and not settings.config.target_speedup:
        return _reason(settings, facts)
    return facts.reason


def notes(did: dict, settings: Settings, facts: Facts) -> list[str]:
    """What there is to know of a run beside its numbers, in sentences. did: as for `summarise`."""
    targeted, said = settings.config.target_speedup > 0, []
    if facts.beyond_budget and did["skipped"]:  # else it is the reason
        said.append(f"more was computed than target_speedup allows, {facts.beyond_budget}")
    said += _warnings(facts, did)
    if facts.noise_added and did["skipped"]:
        effect = "with target_speedup the result may drift" if targeted else "less is skipped"
        unknown = ", and how close it is cannot be estimated" if did["closeness"] is None else ""
        said.append(f"{NOISE_ADDED}: {effect}{unknown}")
    if facts.windows_move and did["skipped"]:
        said.append(WINDOWS_MOVE)
    return [f"{note[0].upper()}{note[1:]}." for note in said]


def _warnings(facts: Facts, did: dict) -> list[str]:
    """Of what may be wrong whatever the settings are."""
    said = []
    if facts.steps_chosen and did["skipped"]:
        said.append(
            "the sampler chooses its steps by the answers, and takes more of them where they are forecast: uncached it "
            "may need fewer evaluations than these"
        )
    if facts.answered_by_sampler:
        said.append(
            f"the sampler leaves out {facts.answered_by_sampler} evaluations of its own accord: two caches add up "
            "their errors, so use one of them"
        )
    if facts.end_unseen:
        said.append("the last evaluation was predicted, as nothing told that it was the last")
    return said


NOISE_ADDED = "the sampler adds noise, or moves the latent as noise does, which nothing forecasts"

COMPUTED_BEFORE = 2  # evaluations; before that a predictor has nothing to go by

# Three of four estimates were right within this many dB, half to four of five by model (benchmarks/closeness.py).
ESTIMATE_MARGIN = 6


def closeness_text(closeness: float) -> str:
    """closeness: in dB."""
    least, most = closeness - ESTIMATE_MARGIN, closeness + ESTIMATE_MARGIN
    return f"{least:.0f} to {most:.0f} dB of the uncached latent (estimate)"


def _rule(config) -> str:
    if config.target_speedup:
        return f"target speed-up {config.target_speedup:g}"
    return f"threshold {config.threshold:g}, warm-up {config.warmup_steps}"


def _reason(settings: Settings, facts: Facts) -> str:
    config, steps, steps_before = settings.config, facts.steps, facts.steps_before
    if config.threshold == 0 and not config.target_speedup:
        return "threshold is 0"
    if steps_before and steps <= (1 if config.target_speedup else 2):
        first = "step is" if config.target_speedup else "two steps are"
        return (
            f"each run starts with an empty cache, so its first {first} always computed; sample in fewer, longer runs "
            "to skip some"
        )
    if config.target_speedup and steps == 2 > budget_of(steps, config.target_speedup):
        return "the run has two steps, and the first and the last one are always computed"
    if config.target_speedup and facts.beyond_budget:
        return f"each of them had to be computed, {facts.beyond_budget}"
    if config.target_speedup:
        return f"target_speedup {config.target_speedup:g} allows each of them to be computed"
    if facts.estimated and (few := _few_steps(settings, facts)):
        return f"{few} the error reached the threshold; take more steps, or {_advice(settings)}"
    if facts.estimated:
        return f"the error reached the threshold at every step{_between(settings)}; {_advice(settings)}"
    if steps_before and steps_before + steps <= config.warmup_steps:
        return f"the schedule is still in its first {config.warmup_steps} steps (warmup_steps)"
    if not steps_before and steps <= config.warmup_steps + 1:
        return (
            f"the run has {steps} step{'s' * (steps > 1)}, of which the first {config.warmup_steps} (warmup_steps) and "
            "the last are always computed"
        )
    more = "widen them, or take more steps, to skip some" if _between(settings) else "of more steps some can be skipped"
    return (
        f"at no step{_between(settings)} could an error be estimated: the first ones are computed, and so are the last "
        f"ones and those at which something changes; {more}"
    )


def _few_steps(settings: Settings, facts: Facts) -> str | None:
    """Which steps are open to skipping, where that is one or two by their number alone; None: it is another one."""
    if facts.steps_before or _between(settings):
        return None
    first = max(settings.config.warmup_steps, COMPUTED_BEFORE)
    left = facts.steps - first - (not facts.unfinished)
    if left not in (1, 2):
        return None
    computed = f"the first {first} are" if facts.unfinished else f"the first {first} and the last are"
    return (
        f"with {facts.steps} steps hardly anything can be skipped: {computed} always computed, and at the "
        f"{'one' if left == 1 else 'two'} left"
    )


def _between(settings: Settings) -> str:
    """Which steps may be skipped, where not all may."""
    if settings.start_percent == 0 and settings.end_percent == 1:
        return ""
    return f" between start_percent {settings.start_percent:g} and end_percent {settings.end_percent:g}"


def _advice(settings: Settings) -> str:
    """How to skip some where an error reached the threshold."""
    if _between(settings):
        return "widen them" if settings.config.threshold == MAX_THRESHOLD else "widen them or raise threshold"
    if settings.config.threshold == MAX_THRESHOLD:
        return "set target_speedup to skip some"
    return "raise threshold, or set target_speedup, to skip some"
