"""What each part of a forecast is worth: dB lost when it is left out (docs/method.md).

    python benchmarks/ablation.py

The models of the other figures (subjects.py), 20 and 50 steps, seeds 0 to 7, Euler and DPM++ 2M with CFG. Rows go to
benchmarks/results/ablation.csv as they come; those that are there already are not measured again. The table is printed
at the end.
"""

import argparse
import contextlib
import csv
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import measures
from configurations import DEVELOPMENT_SEEDS
from host import Host

RESULTS = Path(__file__).resolve().parent / "results" / "ablation.csv"
COLUMNS = ("subject", "sampler", "scheduler", "steps", "target_speedup", "part", "seed", "evaluations", "psnr")
SPEEDUPS = (2.0, 3.4)
SCHEDULES = [(sampler, "simple", steps) for steps in (20, 50) for sampler in ("euler", "dpmpp_2m")]


def parts(engine):
    """Name of each part, and what to put in its place to leave it out. engine(name): a module of easycache_core."""
    forecast, steps, correction, budget, response = map(
        engine, ("forecast", "steps", "correction", "budget", "response")
    )
    gains, payments = forecast.Gains, correction.Correction

    def without_theta(self, products):
        update(self, products)
        self.theta = 0.0

    def eulers(self, indices):
        """Euler's weights, whatever the sampler."""
        mine, self.response = self.response, response.euler_response([*self.response.sigmas, 0.0])
        try:
            return weights(self, indices)
        finally:
            self.response = mine

    init, update, weights = budget.Budget.__init__, gains.update, steps.StepHistory.weights
    return {
        "nothing": [],
        "extrapolation (g = 0)": [(gains, "gain", 0.0)],
        "gain from the last change (g = its limit)": [(gains, "gain", property(lambda self: self.limit))],
        "larger gain over short gaps": [(forecast, "MAX_GAIN_NEAR", forecast.MAX_GAIN)],
        "gain of the guided latent (cond's instead)": [(forecast.Forecast, "answered", lambda self, answer, x: None)],
        "limit of the step ratio": [(steps, "MAX_STEP_RATIO", 1e9)],
        "sensitivity to the input (theta = 0)": [
            (gains, "update", without_theta),
            (gains, "advance", lambda self, sigmas: None),
        ],
        "ridge of the regression for theta": [(forecast, "RIDGE", 0.0)],
        "forgetting in the regression for theta": [(forecast, "FORGETTING_FACTOR", 1.0)],
        "correction (c = 0)": [(payments, "pay", lambda self: [])],
        "correction where the network runs": [(forecast.Forecast, "correction", lambda self, branch: None)],
        "limits of payments (one defect instead)": [(correction, "LIMITS", correction.LIMITS[:1])],
        "the sampler's weights (Euler's instead)": [(steps.StepHistory, "weights", eulers)],
        "places by cost (by counting instead)": [
            (budget.Budget, "__init__", lambda self, speedup, lengths, *_: init(self, speedup, lengths))
        ],
        "a look at what was missed": [(budget.Budget, "adapt", lambda self, miss: None)],
    }


def matters(part: str, sampler: str) -> bool:
    """Whether a part can make a difference there: elsewhere it is not measured."""
    return sampler != "euler" or part != "the sampler's weights (Euler's instead)"


@contextlib.contextmanager
def left_out(replacements):
    with contextlib.ExitStack() as stack:
        for owner, name, value in replacements:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def rows(host: Host, subject, seeds, known: set):
    """What was measured of one model."""
    candidates = parts(lambda name: host.module(f"easycache_core.{name}"))
    for sampler, scheduler, steps in SCHEDULES:
        configuration = replace(subject.configurations[0], sampler=sampler, scheduler=scheduler, steps=steps)
        for seed in seeds:
            exact = None
            for speedup in SPEEDUPS:
                for part, replacements in candidates.items():
                    key = (subject.name, sampler, scheduler, steps, speedup, part, seed)
                    if not matters(part, sampler) or tuple(map(str, key)) in known:
                        continue
                    model, scene = subject.prepared(configuration, "fp32"), subject.scene(seed)
                    exact = exact or subject.sample(model, scene, configuration, seed)
                    cached = host.node("EasyCacheAdaptive", model, predictor="forecast", target_speedup=speedup)[0]
                    with left_out(replacements):
                        result = subject.sample(cached, scene, configuration, seed)
                    yield [*key, result.evaluations, round(measures.psnr(exact.pictures, result.pictures), 3)]


def table(path: Path) -> str:
    """dB lost, mean over the seeds, by part and by model, steps and speed-up."""
    found: dict[tuple, dict] = {}
    for row in csv.DictReader(path.open(encoding="utf-8")):
        place = row["subject"], int(row["steps"]), float(row["target_speedup"])
        schedule = row["sampler"], row["scheduler"]
        found.setdefault((schedule, row["part"]), {}).setdefault(place, {})[row["seed"]] = float(row["psnr"])
    places = sorted({place for by_place in found.values() for place in by_place}, key=lambda p: (p[0] != "video", p))
    heads = [f"{subject}, {steps} steps, {speedup:g}x" for subject, steps, speedup in places]
    lines = [f"| left out | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for (schedule, part), by_place in found.items():
        cells = []
        for place in places:
            whole, without = found[schedule, "nothing"].get(place, {}), by_place.get(place, {})
            seeds = whole.keys() & without.keys()
            if not seeds:
                cells.append("")
            elif part == "nothing":
                cells.append(f"{statistics.mean(whole.values()):.1f} dB")
            else:
                cells.append(f"{statistics.mean(whole[seed] - without[seed] for seed in seeds):+.1f}")
        where = "" if schedule == ("euler", "simple") else f" ({', '.join(schedule)})"
        lines.append(f"| {part}{where} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", default=["video", "digits"])
    parser.add_argument("--seeds", type=int, default=len(DEVELOPMENT_SEEDS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.results.is_file():
        args.results.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    with args.results.open(encoding="utf-8") as file:
        known = {tuple(row[name] for name in COLUMNS[:7]) for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host = Host(Path(base))
        from subjects import SUBJECTS  # it imports ComfyUI, which the host makes importable

        for name in args.subjects:
            SUBJECTS[name].require_weights()
            for row in rows(host, SUBJECTS[name](host), range(args.seeds), known):
                with args.results.open("a", newline="", encoding="utf-8") as file:
                    csv.writer(file, lineterminator="\n").writerow(row)
                print(*row, flush=True)
    print(table(args.results))


if __name__ == "__main__":
    main()
