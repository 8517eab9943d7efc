"""How good the chart's "what if" is: estimated against counted evaluations, and against measured closeness.

    python benchmarks/what_if.py

The bundled video model is sampled at several thresholds. From each of these runs the browser's own module
(web/what_if.js, in Chromium) estimates how many evaluations every other one computes, and how close it comes to the
uncached run. Rows go to benchmarks/results/what_if.csv.
"""

import argparse
import base64
import csv
import dataclasses
import itertools
import math
import statistics
import tempfile
from pathlib import Path

from host import ROOT, Host
from measures import latent_psnr

RESULTS = Path(__file__).resolve().parent / "results" / "what_if.csv"
THRESHOLDS = (0.03, 0.05, 0.08, 0.12, 0.18, 0.27)
STEPS = (20, 50)
WARMUP = 2
NEAR = 2.5  # times the threshold of the run that is asked
COLUMNS = ("predictor", "steps", "seed", "run_at", "threshold", "estimated", "computed", "evaluations",
           "estimated_db", "measured_db")  # fmt: skip


def sample(seeds: int):
    """(predictor, steps, seed) and the reports of its runs by threshold, with their traces, and each run's dB."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host = Host(Path(base))
        from subjects import Video

        video, history_of = Video(host), host.module("nodes.run_history").history_of
        for steps in STEPS:
            configuration = dataclasses.replace(video.configurations[0], steps=steps)
            for seed in range(seeds):
                exact = video.latent(video.prepared(configuration, "fp32"), video.scene(seed), configuration, seed)
                for predictor in ("forecast", "reuse"):
                    reports, measured = {}, {}
                    for threshold in THRESHOLDS:
                        widgets = dict(threshold=threshold, warmup_steps=WARMUP, predictor=predictor)
                        model = host.node("EasyCacheAdaptive", video.prepared(configuration, "fp32"), **widgets)[0]
                        latent = video.latent(model, video.scene(seed), configuration, seed)
                        reports[threshold] = history_of(model).last
                        measured[threshold] = latent_psnr(exact, latent)
                    counts = [report["computed"] for report in reports.values()]
                    print(f"{predictor}, {steps} steps, seed {seed}: {counts}", flush=True)
                    yield (predictor, steps, seed), reports, measured


def estimates(page, reports: dict):
    """(threshold of the run, threshold asked for, estimated evaluations, estimated dB)."""
    module = base64.b64encode((ROOT / "web" / "what_if.js").read_bytes()).decode()
    for run_at, report in reports.items():
        for threshold in reports:
            if threshold == run_at:
                continue
            settings = {**report, "threshold": threshold, "max_consecutive_skips": 0,
                        "start_percent": 0, "end_percent": 1}  # fmt: skip
            answer = page.evaluate(
                """async ([module, report, settings]) => {
                    const { whatIf } = await import(`data:text/javascript;base64,${module}`);
                    return whatIf({ report, records: report.trace }, settings);
                }""",
                [module, report, settings],
            )
            yield run_at, threshold, answer.get("computed"), answer.get("closeness")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    import browser

    measured = list(sample(args.seeds))
    with browser.chromium() as chromium, args.results.open("w", newline="") as file:
        page = chromium.new_page()
        table = csv.writer(file)
        table.writerow(COLUMNS)
        misses, misses_db, apart = {}, {}, []
        for key, reports, close in measured:
            estimated = {}
            for run_at, threshold, estimate, decibels in estimates(page, reports):
                report, actual = reports[threshold], close[threshold]
                row = [*key, run_at, threshold, estimate, report["computed"], report["evaluations"]]
                known = [value is not None and math.isfinite(value) for value in (decibels, actual)]
                row += [round(value, 1) if here else "" for value, here in zip((decibels, actual), known, strict=True)]
                table.writerow(row)
                kind = key[0], "near" if 1 / NEAR <= threshold / run_at <= NEAR else "far"
                if estimate is not None:
                    misses.setdefault(kind, []).append(abs(estimate - report["computed"]))
                if all(known):
                    misses_db.setdefault(kind, []).append(abs(decibels - actual))
                    estimated.setdefault(run_at, []).append(decibels - actual)
            pairs = (pair for found in estimated.values() for pair in itertools.combinations(found, 2))
            apart += [abs(one - other) for one, other in pairs]
    three, six = (sum(miss < limit for miss in apart) / len(apart) for limit in (3, 6))
    print(f"by how much two thresholds differ, asked of one run: {three:.0%} within 3 dB, {six:.0%} within 6")
    for (predictor, distance), found in sorted(misses_db.items()):
        three, six = (sum(miss < limit for miss in found) / len(found) for limit in (3, 6))
        print(f"{predictor}, threshold {distance}: {three:.0%} within 3 dB, {six:.0%} within 6 ({len(found)} of them)")
    for (predictor, distance), found in sorted(misses.items()):
        found.sort()
        print(
            f"{predictor}, threshold {distance}: off by {statistics.mean(found):.1f} evaluations in the mean, "
            f"{found[len(found) * 9 // 10]} or less in nine of ten, {found[-1]} at most ({len(found)} estimates)"
        )


if __name__ == "__main__":
    main()
