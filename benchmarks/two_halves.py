"""Two samplers that share a run, as with Wan 2.2, each with a cache of its own: python benchmarks/two_halves.py

The bundled video model, 20 Euler steps with CFG 3.5, cut after ten. Both halves are one network, as there is no tiny
Wan 2.2. PSNR of the video against the uncached run; rows go to benchmarks/results/two_halves.csv, means are printed.
"""

import csv
import json
import tempfile
from pathlib import Path
from statistics import fmean

from host import Host
from measures import psnr

RESULTS = Path(__file__).resolve().parent / "results" / "two_halves.csv"
SEEDS, STEPS, CUT, CFG = range(8), 20, 10, 3.5
SETTINGS = {  # of the first and of the second half
    "presets: 1.4 and 2.1": (dict(target_speedup=1.4), dict(target_speedup=2.1)),
    "the other way round: 2.1 and 1.4": (dict(target_speedup=2.1), dict(target_speedup=1.4)),
    "2.1 and 2.1": (dict(target_speedup=2.1), dict(target_speedup=2.1)),
    "defaults": ({}, {}),
}
FEWER = 13  # steps, cut in the middle


def sample(host: Host, subject, scene, seed: int, models, steps: int, cut: int):
    """The latent of two samplers one after the other."""

    def half(model, latent, first, last, begins):
        return host.node(
            "KSamplerAdvanced", model, "enable" if begins else "disable", seed, steps, CFG, "euler", "simple",
            scene.positive, scene.negative, latent, first, last, "enable" if begins else "disable",
        )[0]  # fmt: skip

    return half(models[1], half(models[0], scene.latent, 0, cut, True), cut, 10000, False)


def measure(host: Host):
    import subjects

    subject = subjects.SUBJECTS["video"](host)
    model = subject.prepared(subject.configurations[0], "fp32")
    for seed in SEEDS:
        scene = subject.scene(seed)
        exact = subject.decode(sample(host, subject, scene, seed, (model, model), STEPS, CUT))
        for name, halves in SETTINGS.items():
            cached = [host.node("EasyCacheAdaptive", model, **widgets)[0] for widgets in halves]
            latent = sample(host, subject, scene, seed, cached, STEPS, CUT)
            runs = [json.loads(host.node("EasyCacheReport", one, latent)[2]) for one in cached]
            yield name, seed, *(run["computed"] for run in runs), round(psnr(exact, subject.decode(latent)), 2)
        fewer = subject.decode(sample(host, subject, scene, seed, (model, model), FEWER, FEWER // 2))
        yield f"{FEWER} steps", seed, FEWER // 2, FEWER - FEWER // 2, round(psnr(exact, fewer), 2)
        print(f"seed {seed}", flush=True)


def main():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        rows = list(measure(Host(Path(base))))
    with RESULTS.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("settings", "seed", "first", "second", "psnr"), *rows])
    for name in dict.fromkeys(row[0] for row in rows):
        own = [row[2:] for row in rows if row[0] == name]
        first, second, closeness = map(fmean, zip(*own, strict=True))
        least = min(row[2] for row in own)
        print(f"| {name} | {first:.1f} + {second:.1f} of {STEPS} | **{closeness:.1f}** ({least:.1f}) |")


if __name__ == "__main__":
    main()
