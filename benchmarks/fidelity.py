"""How close to the uncached run, for how many network evaluations: every method over configurations and seeds."""

from collections.abc import Iterator
from pathlib import Path

import measures
import methods
import records
from configurations import CALIBRATION_SEEDS, DEVELOPMENT_SEEDS, IN_FULL, Configuration
from peers.calibration import Calibration, calibrate
from subjects import Sampled, Subject


class Fidelity:
    """The rows of one subject that are not in the file yet."""

    def __init__(self, subject: Subject, path: Path):
        self._subject, self._path = subject, path
        self._known = {run.key for run in records.read(path)}
        self._calibrations: dict[str, Calibration] = {}

    def _calibration(self, configuration: Configuration) -> Calibration:
        name = configuration.name
        if name not in self._calibrations:
            self._calibrations[name] = calibrate(self._subject, configuration, CALIBRATION_SEEDS)
        return self._calibrations[name]

    def missing(self, configuration: Configuration, seed: int, names: list[str] | None) -> list[methods.Method]:
        """names: of methods, None for all of them."""
        subject = self._subject
        place = subject.name, configuration.name
        # With all of them the benchmark would take a day.
        main_only = configuration.name not in IN_FULL or seed not in DEVELOPMENT_SEEDS
        return [
            method
            for method in methods.of_configuration(
                configuration, main_only, subject.transformer, lambda: self._calibration(configuration)
            )
            if (names is None or method.name in names)
            and (*place, method.name, method.setting, seed) not in self._known
        ]

    def run(self, configuration: Configuration, seed: int, wanted: list[methods.Method]) -> Iterator[records.Run]:
        """Sample the methods, write their rows and yield them."""
        subject, scene = self._subject, self._subject.scene(seed)
        references: dict[str, Sampled] = {}
        for method in wanted:
            model = subject.prepared(configuration, method.dtype)
            if method.dtype not in references:
                references[method.dtype] = subject.sample(model, scene, configuration, seed)
            candidate = subject.sample(method.patch(subject, model), scene, method.sampled_in(configuration), seed)
            run = self._compared(configuration, method, seed, references[method.dtype], candidate)
            records.append(self._path, run)
            self._known.add(run.key)
            yield run

    def _compared(self, configuration, method, seed, reference: Sampled, candidate: Sampled) -> records.Run:
        pictures = reference.pictures, candidate.pictures
        return records.Run(
            subject=self._subject.name,
            configuration=configuration.name,
            steps=configuration.steps,
            sampler=configuration.sampler,
            scheduler=configuration.scheduler,
            shift=configuration.shift,
            cfg=configuration.cfg,
            noise=configuration.noise,
            dtype=method.dtype,
            method=method.name,
            setting=method.setting,
            seed=seed,
            evaluations=candidate.evaluations,
            reference_evaluations=reference.evaluations,
            seconds=candidate.seconds,
            reference_seconds=reference.seconds,
            psnr=measures.psnr(*pictures),
            ssim=measures.ssim(*pictures),
            lpips=measures.lpips(*pictures),
        )
