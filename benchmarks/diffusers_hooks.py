"""`attach` beside diffusers' own caches on the same tiny pipelines: whose latent is closer to the uncached one.

python benchmarks/diffusers_hooks.py    writes results/diffusers_hooks.csv and .md (needs torch and diffusers)

Every method gets a grid of settings, and of those that cost no more than a budget of evaluations the one that came
closest counts, on the mean of the seeds. Cost is what the transformer's layers multiplied, in evaluations of all of
them: FirstBlockCache runs a block where it skips the others, and what lies around the blocks runs with all three.
Closeness is the signal-to-noise ratio of the final latent against the uncached run's, in dB.

The networks have random weights, which are a poor judge of caches. So each is looked at twice: as it is, and with its
last layer fitted by least squares to what a denoiser of simple data should answer.
"""

import contextlib
import csv
import io
import itertools
import re
import sys
from collections import defaultdict
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools")]
sys.path.append(str(ROOT))

from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig  # noqa: E402
from pipelines import FAMILIES, Subject, build  # noqa: E402

from easycache_core import CacheConfig, attach  # noqa: E402

STEPS, SEEDS, CALIBRATION_SEED = 30, (0, 1), 100
BUDGETS = (20, 15, 10)
WEIGHTS = ("random", "fitted")
LAYERS = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
RESULTS = ROOT / "benchmarks" / "results" / "diffusers_hooks"

THRESHOLDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)
BUDGET = "attach, forecast, target_speedup"
THRESHOLD = "attach, forecast, threshold"
PAPER = "attach, the paper's rule"
FEWER = "no cache, fewer steps"
NAMES = (BUDGET, THRESHOLD, PAPER, "FirstBlockCache", "MagCache", "TaylorSeer (lite)", FEWER)


def settings(method: str) -> list[dict]:
    """The grid of a method."""
    if method == BUDGET:
        return [dict(target_speedup=STEPS / budget) for budget in BUDGETS]
    if method in (THRESHOLD, PAPER):
        return [dict(threshold=tau, warmup_steps=warmup) for tau in THRESHOLDS[2:] for warmup in (3, 5)]
    if method == "FirstBlockCache":
        return [dict(threshold=threshold) for threshold in THRESHOLDS]
    if method == "MagCache":
        return [dict(threshold=tau, max_skip_steps=most) for tau in (0.02, 0.06, 0.2, 0.6) for most in (1, 2, 3, 5)]
    if method == "TaylorSeer (lite)":
        return [dict(cache_interval=every, max_order=order) for every in (2, 3, 4, 5) for order in (1, 2)]
    return [dict(steps=budget) for budget in BUDGETS]


@contextlib.contextmanager
def applied(method: str, setting: dict, subject: Subject, ratios: list[float]):
    """The method at work on the subject's transformer."""
    transformer = subject.pipe.transformer
    if method in (BUDGET, THRESHOLD, PAPER):
        config = CacheConfig(predictor="reuse" if method == PAPER else "forecast", **setting)
        options = dict(sigma_of=subject.sigma_of, prediction=subject.prediction, scheduler=subject.pipe.scheduler)
        with attach(transformer, config, STEPS, **options):
            yield
        return
    if method == "FirstBlockCache":
        transformer.enable_cache(FirstBlockCacheConfig(**setting))
    elif method == "MagCache":
        transformer.enable_cache(MagCacheConfig(num_inference_steps=STEPS, mag_ratios=ratios, **setting))
    elif method == "TaylorSeer (lite)":
        full = dict(use_lite_mode=True, taylor_factors_dtype=torch.float32)
        transformer.enable_cache(TaylorSeerCacheConfig(**full, **setting))
    yield
    if method != FEWER:
        transformer.disable_cache()


def calibrated(subject: Subject) -> list[float]:
    """MagCache's ratios by its own calibration, which prints them; those of the conditional branch come first."""
    said = io.StringIO()
    subject.pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    with contextlib.redirect_stdout(said):
        subject.sample(STEPS, CALIBRATION_SEED)
    return [float(number) for number in re.search(r"\n\[([\d., ]+)\]", said.getvalue())[1].split(",")]


def fit(subject: Subject, rank: int = 8, examples: int = 96) -> None:
    """Give the last layer, by ridge regression, what the network should answer if data were combinations of a few
    latents drawn at random. Everything before it stays random."""
    transformer, calls = subject.pipe.transformer, []
    hook = transformer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    subject.sample(STEPS, CALIBRATION_SEED)
    hook.remove()
    layer, features = transformer.proj_out, []
    shape = calls[0]["hidden_states"].shape[1:]

    # Where each number that the last layer gives goes: it is asked to count.
    def count(module, args, output):
        return torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape)

    hook = layer.register_forward_hook(count)
    places = transformer(**calls[0])[0].flatten().long()
    hook.remove()

    hook = layer.register_forward_pre_hook(lambda module, args: features.append(args[0].flatten(0, -2)))
    generator = torch.Generator().manual_seed(CALIBRATION_SEED)
    basis = torch.randn(rank, *shape, generator=generator)
    targets = []
    for call in itertools.islice(itertools.cycle(calls), examples):
        sigma = subject.sigma_of(float(call["timestep"].flatten()[0]))
        data = torch.tensordot(torch.randn(rank, generator=generator), basis, 1) / rank**0.5
        noise = torch.randn(shape, generator=generator)
        if subject.prediction == "v_prediction":
            c = (1 + sigma * sigma) ** 0.5
            x, v = (data + sigma * noise) / c, (noise - sigma * data) / c
        else:
            x, v = (1 - sigma) * data + sigma * noise, noise - data
            v = -v if subject.prediction == "reverse_flow" else v
        batch = len(call["hidden_states"])
        transformer(**{**call, "hidden_states": x.expand(batch, *shape)})
        target = torch.empty(places.numel())
        target[places] = v.expand(batch, *shape).flatten()
        targets.append(target.reshape(-1, layer.out_features))
    hook.remove()
    inputs = torch.cat(features).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    gram = inputs.T @ inputs + 1e-3 * len(inputs) * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram, inputs.T @ torch.cat(targets).double()).float()
    layer.weight.copy_(solution[:-1].T)
    layer.bias.copy_(solution[-1])


def subject_of(family: str, weights: str) -> Subject:
    subject = build(family)
    if weights == "fitted":
        fit(subject)
    return subject


def measured(subject: Subject, steps: int, seed: int) -> tuple[torch.Tensor, float]:
    """The final latent, and how much the linear and convolutional layers that ran for it have multiplied."""
    multiplied = 0

    def count(layer, args, output):
        nonlocal multiplied
        multiplied += output.numel() * layer.weight[0].numel()

    layers = [one for one in subject.pipe.transformer.modules() if isinstance(one, LAYERS)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    latent = subject.sample(steps, seed)
    for hook in hooks:
        hook.remove()
    return latent, multiplied


def decibels(latent: torch.Tensor, reference: torch.Tensor) -> float:
    return float(10 * torch.log10(reference.square().mean() / (latent - reference).square().mean()))


def runs(family: str, weights: str):
    """Rows (family, weights, method, setting, seed, cost, snr); of a hook that fails, one with what it said."""
    subject = subject_of(family, weights)
    references = {seed: measured(subject, STEPS, seed) for seed in SEEDS}
    evaluation = references[SEEDS[0]][1] / STEPS
    ratios = calibrated(subject_of(family, weights))
    for method in NAMES:
        for setting in settings(method):
            for seed in SEEDS:
                steps = setting.get("steps", STEPS)
                try:
                    with applied(method, setting, subject, ratios):
                        latent, multiplied = measured(subject, steps, seed)
                except (ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
                    yield family, weights, method, setting, seed, None, f"{type(error).__name__}: {error}"
                    subject = subject_of(family, weights)
                    break
                snr = decibels(latent, references[seed][0])
                yield family, weights, method, setting, seed, round(multiplied / evaluation, 2), round(snr, 2)


def best(rows: list[tuple], budget: float) -> str:
    """The closest of the settings that cost at most so much, as a table's field."""
    by_setting = defaultdict(list)
    for row in rows:
        by_setting[str(row[3])].append(row)
    found = [
        (sum(row[6] for row in group) / len(group), sum(row[5] for row in group) / len(group))
        for group in by_setting.values()
        if all(row[5] is not None for row in group)
    ]
    if not found:
        return "does not run"
    fitting = [one for one in found if one[1] <= budget + 0.01]
    return f"{max(fitting)[0]:.1f} ({max(fitting)[1]:.1f})" if fitting else ""


def page(rows: list[tuple]) -> str:
    lines = [
        "# attach and diffusers' own caches",
        "",
        f"Signal-to-noise ratio in dB of the final latent against the uncached run of {STEPS} steps, mean of "
        f"{len(SEEDS)} seeds, and in brackets what it cost, in evaluations. Each field is the best setting of a "
        "method's grid that costs at most the column's evaluations; empty: none does. Tiny networks on a CPU, with "
        "random weights: they say little about trained models. Made by `benchmarks/diffusers_hooks.py`.",
        "",
        "MagCache is calibrated by its own mode on a seed of its own and keeps its retention ratio; TaylorSeer is in "
        "its lite mode, as by default it predicts attention alone and runs the rest, with its warm-up of three steps.",
        "",
    ]
    for weights in WEIGHTS:
        title = "Random weights" if weights == "random" else "Random weights, the last layer fitted"
        lines += [f"## {title}", "", "| pipeline | method |" + "".join(f" {b} evaluations |" for b in BUDGETS)]
        lines += ["|---|---|" + "---|" * len(BUDGETS)]
        for family, method in itertools.product(FAMILIES, NAMES):
            mine = [row for row in rows if row[:3] == (family, weights, method)]
            if mine:
                fields = " | ".join(best(mine, budget) for budget in BUDGETS)
                lines.append(f"| {family} | {method} | {fields} |")
        lines.append("")
    failures = sorted({(row[0], row[2], row[6]) for row in rows if row[5] is None})
    lines += [f"- {family}, {method} does not run: {said}" for family, method, said in failures]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    with RESULTS.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["pipeline", "weights", "method", "setting", "seed", "cost", "snr_db"])
        for family, weights in itertools.product(FAMILIES, WEIGHTS):
            for row in runs(family, weights):
                rows.append(row)
                writer.writerow([*row[:3], " ".join(f"{k}={v:.4g}" for k, v in row[3].items()), *row[4:]])
            file.flush()
    RESULTS.with_suffix(".md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
