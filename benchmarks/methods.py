"""The methods compared and their settings.

A setting's name ends in the knob that is turned; what stands before the last comma is its family. Results are
interpolated between the settings of one family (tables.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from configurations import Configuration
from peers.calibration import Calibration
from peers.magcache import MagCache
from peers.spectrum import Spectrum
from peers.teacache import TeaCache
from peers.trunk import with_policy

SPEEDUPS = (2.2, 3.4, 4.6)  # 23, 15 and 11 of 50 evaluations

OURS, THRESHOLD = "EasyCache (Adaptive), budget", "EasyCache (Adaptive), threshold"
PAPER, SAME_STEPS = "the paper's rule", "reuse at the budget's steps"
FEWER, BEST_SOLVER = "fewer steps", "fewer steps, best solver"
BUILT_IN, LAZY = "built-in EasyCache", "built-in LazyCache"
TEACACHE, MAGCACHE, SPECTRUM = "TeaCache", "MagCache", "Spectrum"
ORDER = (
    OURS, THRESHOLD, SAME_STEPS, PAPER, FEWER, BEST_SOLVER, SPECTRUM, TEACACHE, MAGCACHE, BUILT_IN, LAZY,
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
        return subject.host.node(kind, model, **widgets)[0]

    return Method(name, setting, patch, dtype=dtype)


def adaptive(name: str, setting: str, **widgets) -> Method:
    return node(name, setting, "EasyCacheAdaptive", **widgets)


def budgets(name: str = OURS, predictor: str = "forecast") -> list[Method]:
    return [
        adaptive(name, f"target speed-up {speedup:g}", predictor=predictor, target_speedup=speedup)
        for speedup in SPEEDUPS
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


def built_in() -> list[Method]:
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
    in_bf16 = [replace(method, setting=f"bf16, {method.setting}", dtype="bf16") for method in budgets()]
    broken = node(BUILT_IN, "fp32, start 0.15, threshold 0.2", "EasyCache", reuse_threshold=0.2)
    return [*swept, *in_bf16, broken]


def peers(calibration: Callable[[Any], Calibration]) -> list[Method]:
    """calibration: of a subject, asked for when first needed."""

    def teacache(threshold):
        def patch(subject, model):
            polynomial = calibration(subject).polynomial
            return with_policy(model, lambda steps: TeaCache(steps, threshold, polynomial))

        return Method(TEACACHE, f"threshold {threshold:g}", patch)

    def magcache(threshold, longest, retention):
        def patch(subject, model):
            ratios = calibration(subject).ratios
            return with_policy(model, lambda steps: MagCache(steps, threshold, longest, retention, ratios))

        return Method(MAGCACHE, f"retention {retention:g}, K {longest}, threshold {threshold:g}", patch)

    def spectrum(growth, weight):
        def patch(subject, model):
            return with_policy(model, lambda steps: Spectrum(steps, growth, weight))

        return Method(SPECTRUM, f"weight {weight:g}, growth {growth:g}", patch)

    return [
        *(teacache(threshold) for threshold in (0.03, 0.05, 0.07, 0.1, 0.15, 0.2)),
        *(magcache(threshold, 4, 0.2) for threshold in (0.01, 0.03, 0.06, 0.12, 0.24)),
        *(magcache(threshold, 6, 0.1) for threshold in (0.03, 0.06, 0.12, 0.5)),
        *(magcache(threshold, 6, 0.04) for threshold in (0.06, 0.24, 0.5)),
        *(spectrum(growth, weight) for weight in (1.0, 0.5) for growth in (0.1, 0.25, 0.75, 1.5, 3.0)),
    ]


def budgeted_steps(configuration: Configuration) -> tuple[int, ...]:
    return tuple(math.ceil(configuration.steps / speedup) for speedup in SPEEDUPS)


def of_configuration(
    configuration: Configuration, main_only: bool, transformer: bool, calibration: Callable[[Any], Calibration]
) -> list[Method]:
    """All methods and settings, or the main ones."""
    steps = budgeted_steps(configuration)
    main = [*budgets(), *budgets(SAME_STEPS, "reuse"), *thresholds((0.05,)), *fewer_steps(steps)]
    if main_only:
        strict = {2: (0.015, 0.03, 0.06, 0.12)}
        loose = {2: (0.2, 0.4, 0.6, 0.8, 1.0)}  # injected noise counts as a change of the input
        solvers = best_solver(steps) if configuration.name == "base" else []
        return [*main, *paper(loose if "ancestral" in configuration.sampler else strict), *solvers]
    return [
        *main,
        *thresholds((0.02, 0.1, 0.2)),
        *paper(
            {
                2: (0.015, 0.02, 0.03, 0.05, 0.08, 0.12),
                5: (0.015, 0.02, 0.03, 0.05, 0.08, 0.12),
                10: (0.03, 0.05, 0.1, 0.2),
            }
        ),
        *fewer_steps((configuration.steps // 2,)),
        *best_solver(steps),
        *(peers(calibration) if transformer else ()),
        *built_in(),
    ]
