"""The methods compared and their settings.

A setting's name ends in the knob that is turned; what stands before the last comma is its family. Results are
interpolated between the settings of one family (tables.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from configurations import IN_FULL, MEDIUM, SHORT, VERY_SHORT, Configuration
from peers.calibration import Calibration
from peers.foca import FoCa
from peers.magcache import MagCache
from peers.spectrum import Spectrum
from peers.teacache import TeaCache
from peers.trunk import with_policy
from peers.vde import VDE
from peers.velocity import with_velocity_policy

UNTOUCHED = "EasyCache (Adaptive), untouched"
OURS, THRESHOLD = "EasyCache (Adaptive), budget", "EasyCache (Adaptive), threshold"
PAPER, SAME_STEPS = "the paper's rule", "reuse at the budget's steps"
FEWER, BEST_SOLVER = "fewer steps", "fewer steps, best solver"
BUILT_IN, LAZY = "built-in EasyCache", "built-in LazyCache"
TEACACHE, MAGCACHE, SPECTRUM, FOCA, VDE_NAME = "TeaCache", "MagCache", "Spectrum", "FoCa", "VDE"
ORDER = (
    OURS, THRESHOLD, UNTOUCHED, SAME_STEPS, PAPER, FEWER, BEST_SOLVER, VDE_NAME, FOCA, SPECTRUM, TEACACHE, MAGCACHE,
    BUILT_IN, LAZY,
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """patch: (subject, model) to the model that is sampled. changes: to the configuration, for fewer steps.

    The uncached run it is held against computes in the same dtype, in the configuration without the changes.
    """

    name: str
    setting: str
    patch: Callable[[Any, Any], Any] = lambda subject, model: model
    changes: tuple = ()
    dtype: str = "fp32"

    def sampled_in(self, configuration: Configuration) -> Configuration:
        return replace(configuration, **dict(self.changes))


def node(name: str, setting: str, kind: str, dtype: str = "fp32", **widgets) -> Method:
    def patch(subject, model):
        return subject.host.node(kind, model=model, **widgets)[0]  # by name: then defaults are filled in

    return Method(name, setting, patch, dtype=dtype)


def adaptive(name: str, setting: str, **widgets) -> Method:
    return node(name, setting, "EasyCacheAdaptive", **widgets)


def budgets(targets: tuple[float, ...], name: str = OURS, predictor: str = "forecast") -> list[Method]:
    return [
        adaptive(name, f"target speed-up {speedup:g}", predictor=predictor, target_speedup=speedup)
        for speedup in targets
    ]


def thresholds(values=(0.02, 0.05, 0.1, 0.2)) -> list[Method]:
    return [
        adaptive(THRESHOLD, f"warm-up 5, threshold {t:g}", predictor="forecast", threshold=t, warmup_steps=5)
        for t in values
    ]


def paper(warmups: dict[int, tuple[float, ...]]) -> list[Method]:
    """warmups: the thresholds to go with each warm-up."""
    return [
        adaptive(PAPER, f"warm-up {w}, threshold {t:g}", predictor="reuse", threshold=t, warmup_steps=w)
        for w, values in warmups.items()
        for t in values
    ]


def fewer_steps(steps) -> list[Method]:
    return [Method(FEWER, f"{n} steps", changes=(("steps", n),)) for n in steps]


def best_solver(steps) -> list[Method]:
    names = {"dpmpp_2m": "DPM++ 2M", "uni_pc": "UniPC"}
    return [
        Method(BEST_SOLVER, f"{name}, {n} steps", changes=(("steps", n), ("sampler", sampler)))
        for sampler, name in names.items()
        for n in steps
    ]


def built_in(targets: tuple[float, ...]) -> list[Method]:
    """In bf16, as a model computing in fp32 has its sampler's latent overwritten by the built-in EasyCache node."""
    sweeps = [
        (BUILT_IN, "EasyCache", {0.15: (0.03, 0.05, 0.1, 0.2, 0.4), 0.05: (0.1, 0.2, 0.4, 0.8)}),
        (LAZY, "LazyCache", {0.15: (0.05, 0.1, 0.2, 0.4), 0.05: (0.1, 0.2, 0.4, 0.8)}),
    ]
    swept = [
        node(name, f"bf16, start {start:g}, threshold {t:g}", kind, "bf16", start_percent=start, reuse_threshold=t)
        for name, kind, starts in sweeps
        for start, values in starts.items()
        for t in values
    ]
    in_bf16 = [replace(method, setting=f"bf16, {method.setting}", dtype="bf16") for method in budgets(targets)]
    broken = node(BUILT_IN, "fp32, start 0.15, threshold 0.2", "EasyCache", reuse_threshold=0.2)
    return [*swept, *in_bf16, broken]


# The knobs that are turned. MagCache: thresholds by retention and K; Spectrum: growths by weight and warm-up; FoCa:
# intervals by warm-up; VDE: intervals by `stable`. What authors published is among them, for 50 steps.
PEERS = dict(
    teacache=(0.03, 0.05, 0.07, 0.1, 0.15, 0.2),
    magcache={
        (0.2, 4): (0.01, 0.03, 0.06, 0.12, 0.24),
        (0.1, 6): (0.03, 0.06, 0.12, 0.5),
        (0.04, 6): (0.06, 0.24, 0.5),
    },
    spectrum={(weight, 5): (0.1, 0.25, 0.75, 1.5, 3.0) for weight in (1.0, 0.5)},
    foca={5: (2, 3, 4, 5, 6, 8), 3: (3, 4, 5, 6)},
    vde={6: (2, 3, 4, 5, 6, 8, 12), 10: (3, 5), 3: (3, 4, 5, 7)},
)
SHORT_PEERS = dict(
    teacache=(0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.35),
    magcache={
        (0.2, 2): (0.03, 0.06, 0.12, 0.24),
        (0.1, 2): (0.03, 0.06, 0.12, 0.24),
        (0.1, 4): (0.06, 0.12, 0.24, 0.5),
    },
    spectrum={(weight, warmup): (0.1, 0.25, 0.75, 1.5) for weight in (1.0, 0.5) for warmup in (3, 5, 8)},
    foca={2: (2, 3), 3: (2, 3, 4, 5), 5: (2, 3, 4, 5), 7: (2, 3, 4)},
    vde={2: (2, 3, 4, 5), 4: (2, 3, 4, 5), 6: (2, 3, 4)},
)


def peers(calibration: Callable[[], Calibration], knobs: dict) -> list[Method]:
    """calibration: asked for when first needed."""

    def teacache(threshold):
        def patch(subject, model):
            polynomial = calibration().polynomial
            return with_policy(model, lambda steps: TeaCache(steps, threshold, polynomial))

        return Method(TEACACHE, f"threshold {threshold:g}", patch)

    def magcache(threshold, retention, longest):
        def patch(subject, model):
            ratios = calibration().ratios
            return with_policy(model, lambda steps: MagCache(steps, threshold, longest, retention, ratios))

        return Method(MAGCACHE, f"retention {retention:g}, K {longest}, threshold {threshold:g}", patch)

    def spectrum(growth, weight, warmup):
        def patch(subject, model):
            return with_policy(model, lambda steps: Spectrum(steps, growth, weight, warmup))

        family = f"weight {weight:g}" if warmup == 5 else f"weight {weight:g}, warm-up {warmup}"
        return Method(SPECTRUM, f"{family}, growth {growth:g}", patch)

    def foca(interval, warmup, recursive):
        def patch(subject, model):
            return with_policy(model, lambda steps: FoCa(steps, interval, warmup, recursive))

        reading = "recursive" if recursive else "computed"
        return Method(FOCA, f"{reading}, warm-up {warmup}, interval {interval}", patch)

    def vde(interval, stable):
        def patch(subject, model):
            return with_velocity_policy(model, lambda steps: VDE(steps, stable, interval))

        return Method(VDE_NAME, f"stable {stable}, interval {interval}", patch)

    return [
        *(teacache(threshold) for threshold in knobs["teacache"]),
        *(magcache(threshold, *family) for family, values in knobs["magcache"].items() for threshold in values),
        *(spectrum(growth, *family) for family, values in knobs["spectrum"].items() for growth in values),
        *(
            foca(interval, warmup, recursive)
            for recursive in (True, False)
            for warmup, values in knobs["foca"].items()
            for interval in values
        ),
        *(vde(interval, stable) for stable, values in knobs["vde"].items() for interval in values),
    ]


def budgeted_steps(configuration: Configuration) -> tuple[int, ...]:
    return tuple(math.ceil(configuration.steps / speedup - 1e-9) for speedup in configuration.speedups)


def of_configuration(
    configuration: Configuration, main_only: bool, transformer: bool, calibration: Callable[[], Calibration]
) -> list[Method]:
    """All methods and settings, or the main ones."""
    steps, targets, short = budgeted_steps(configuration), configuration.speedups, configuration.name in (SHORT, MEDIUM)
    main = [*budgets(targets), *budgets(targets, SAME_STEPS, "reuse"), *thresholds((0.05,)), *fewer_steps(steps)]
    main += [adaptive(UNTOUCHED, "defaults")] if short or configuration.name in VERY_SHORT else []
    if main_only:
        strict = {2: (0.015, 0.03, 0.06, 0.12)}
        loose = {2: (0.2, 0.4, 0.6, 0.8, 1.0)}  # injected noise counts as a change of the input
        solvers = best_solver(steps) if configuration.name in IN_FULL else []
        return [*main, *paper(loose if "ancestral" in configuration.sampler else strict), *solvers]
    warmups = {2: (0.015, 0.02, 0.03, 0.05, 0.08, 0.12), 5: (0.015, 0.02, 0.03, 0.05, 0.08, 0.12),
               10: (0.03, 0.05, 0.1, 0.2)}  # fmt: skip
    short_warmups = {2: (0.03, 0.05, 0.08, 0.12, 0.2, 0.3), 5: (0.03, 0.05, 0.08, 0.12, 0.2, 0.3)}
    return [
        *main,
        *thresholds((0.02, 0.1, 0.2)),
        *paper(short_warmups if short else warmups),
        *fewer_steps((configuration.steps // 2,) if configuration.steps // 2 not in steps else ()),
        *best_solver(steps),
        *(peers(calibration, SHORT_PEERS if short else PEERS) if transformer else ()),
        *built_in(targets),
    ]
