"""Frechet distance of generated digits to the real ones: whether a set of pictures is still of the same kind.

Features: the hidden layer (64 units) of scikit-learn's MLPClassifier, trained with a fixed seed on the real pictures,
32 x 32. Each set has as many pictures of every digit, drawn with the same start noises. A second uncached set from
other start noises tells how far two sets of that size are apart by chance.
"""

import csv
from pathlib import Path

import measures
import methods
import numpy as np
import torch
from digits import model as digits
from subjects import Digits

BATCH = 60
FIRST_SEED = 5000


def real_features():
    """(a function from pictures to features, the real pictures' features)."""
    from sklearn.neural_network import MLPClassifier

    pictures, labels = digits.real_pictures()
    pixels = pictures.flatten(1).numpy()
    classifier = MLPClassifier((64,), max_iter=200, random_state=0).fit(pixels, labels.numpy())
    weights, bias = classifier.coefs_[0], classifier.intercepts_[0]

    def features(pixels: np.ndarray) -> np.ndarray:
        return np.maximum(pixels @ weights + bias, 0)

    return features, features(pixels)


def sets(configuration) -> list[methods.Method]:
    uncached = methods.Method("uncached", "")
    return [
        uncached,
        *methods.budgets(configuration.speedups),
        *methods.paper({2: (0.03, 0.05, 0.08)}),
        *methods.fewer_steps(methods.budgeted_steps(configuration)),
        *methods.best_solver(methods.budgeted_steps(configuration)[-1:]),
    ]


def measure(subject: Digits, path: Path, batches: int) -> None:
    """Write the distances of every method's set; batches of 60 pictures each."""
    features, real = real_features()
    configuration = subject.configurations[0]
    scene = subject.scene_of(torch.arange(BATCH) % 10)
    model = subject.prepared(configuration, "fp32")

    def drawn(method, first_seed):
        patched, pixels, evaluations = method.patch(subject, model), [], []
        for seed in range(first_seed, first_seed + batches):
            sampled = subject.sample(patched, scene, method.sampled_in(configuration), seed)
            pixels.append(sampled.pictures[..., 0].reshape(BATCH, -1))
            evaluations.append(sampled.evaluations)
        return features(np.concatenate(pixels)), np.mean(evaluations)

    uncached = None
    rows = []
    for method in sets(configuration):
        own, evaluations = drawn(method, FIRST_SEED)
        uncached = own if uncached is None else uncached
        rows.append((method.name, method.setting, evaluations, own))
        print(f"Frechet distance: {method.name}, {method.setting}".rstrip(", "), flush=True)
    again, evaluations = drawn(methods.Method("uncached", "other start noises"), FIRST_SEED + batches)
    rows.append(("uncached", "other start noises", evaluations, again))

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "setting", "pictures", "evaluations", "to_real", "to_uncached"])
        for name, setting, evaluations, own in rows:
            distances = measures.frechet_distance(own, real), measures.frechet_distance(own, uncached)
            writer.writerow([name, setting, len(own), f"{evaluations:.4g}", *(f"{d:.5g}" for d in distances)])


def table(path: Path) -> str:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    uncached = float(rows[0]["to_real"])
    lines = ["| set | evaluations | distance to real digits | against uncached | distance to the uncached set |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        name = f"{row['method']}, {row['setting']}".rstrip(", ")
        change = float(row["to_real"]) / uncached - 1
        lines.append(
            f"| {name} | {row['evaluations']} | {row['to_real']} | {change:+.1%} | {float(row['to_uncached']):.3g} |"
        )
    return "\n".join(lines)
