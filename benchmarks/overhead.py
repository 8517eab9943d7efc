"""What the node costs: time, waits for the device and memory per evaluation, beside the built-in node's.

The network is replaced by one that answers at once, and every ComfyUI wrapper that a node installs is timed without
what it calls, so that what is counted is the node's own work. Two sizes: the bundled model's latent, in relation to
its own network's time, and that of HunyuanVideo at 720p and 129 frames, where it is the tensors that count.
Milliseconds are this machine's; only ratios mean anything elsewhere.

Reads are calls that look at a tensor's value on the host (item, bool, float, tolist ...); with a GPU each one may wait
for it. Memory is what is held between two evaluations on top of a run without a node, in latents of fp32.
"""

import csv
import gc
import time
from pathlib import Path
from typing import NamedTuple

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from reads import Reads
from subjects import Video

# Shapes, and how often each run is repeated.
SIZES = {"bundled model": ((1, 16, 5, 16, 16), 10), "HunyuanVideo 720p": ((1, 16, 33, 90, 160), 3)}
STEPS, SETTLED = 14, 5  # evaluations; those before the second are not looked at
ALWAYS, SELDOM = 1e-6, 1.0  # thresholds at which the error is asked for, and the network is run so often

NODES = {
    "EasyCache (Adaptive), forecast, threshold": (
        "EasyCacheAdaptive",
        [dict(predictor="forecast", warmup_steps=3, threshold=threshold) for threshold in (ALWAYS, SELDOM)],
    ),
    "EasyCache (Adaptive), forecast, budget": (
        "EasyCacheAdaptive",
        [dict(predictor="forecast", target_speedup=speedup) for speedup in (1.2, 2.0)],
    ),
    "EasyCache (Adaptive), reuse": (
        "EasyCacheAdaptive",
        [dict(predictor="reuse", warmup_steps=3, threshold=threshold) for threshold in (ALWAYS, SELDOM)],
    ),
    "built-in EasyCache": (
        "EasyCache",
        [dict(start_percent=0.0, end_percent=1.0, reuse_threshold=threshold) for threshold in (ALWAYS, SELDOM)],
    ),
}


class Evaluation(NamedTuple):
    computed: bool
    seconds: float
    reads: int
    held: int  # bytes of all tensors afterwards


class OwnWork:
    """Time and reads in the wrappers around evaluations, without those in what they call.

    Put in place of WrapperExecutor.execute, through which ComfyUI calls wrappers and what they are wrapped around.
    """

    def __init__(self, ignored, counting: bool):
        """ignored: a wrapper that is not the node's. counting: reads, which takes time of its own."""
        self._ignored, self._counting = ignored, counting
        self._execute = WrapperExecutor.execute
        self._inner: list[list[float]] = []  # seconds and reads of what is called, one entry per level
        self._reads = Reads()
        self.seconds, self.reads = 0.0, 0

    def __enter__(self):
        own = self

        def execute(executor, *args, **kwargs):
            return own._measured(executor, args, kwargs)

        WrapperExecutor.execute = execute
        if self._counting:
            self._reads.__enter__()
        return self

    def __exit__(self, *exception):
        if self._counting:
            self._reads.__exit__(*exception)
        WrapperExecutor.execute = self._execute

    def reset(self):
        self.seconds, self.reads = 0.0, 0

    def _measured(self, executor, args, kwargs):
        counted = not executor.is_last and executor.wrappers[executor.idx] != self._ignored
        reads, started = self._reads.count, time.perf_counter()
        self._inner.append([0.0, 0])
        result = self._execute(executor, *args, **kwargs)
        seconds, reads = time.perf_counter() - started, self._reads.count - reads
        inner_seconds, inner_reads = self._inner.pop()
        if counted:
            self.seconds += seconds - inner_seconds
            self.reads += reads - inner_reads
        if self._inner:
            self._inner[-1][0] += seconds
            self._inner[-1][1] += reads
        return result


class Laboratory:
    """The bundled model with a network that answers at once, and an observer around its evaluations."""

    def __init__(self, subject: Video, shape: tuple, dtype: str):
        self._subject, self._scene = subject, subject.scene(0)
        self._latent = {"samples": torch.zeros(shape)}
        self._configuration = subject.configurations[0]
        self._ran = self._counting = False
        self._evaluations: list[Evaluation] = []
        self._own: OwnWork | None = None
        self.model = subject.prepared(self._configuration, dtype).clone()
        self.model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "observer", self._evaluation)

    def node(self, kind: str, **widgets):
        """The model behind that node."""
        return self._subject.host.node(kind, self.model, **widgets)[0]

    def answer(self, x, *_args, **_kwargs):
        """In place of the network: smooth, and a new tensor."""
        self._ran = True
        return x * 0.1

    def _evaluation(self, executor, *args, **kwargs):
        self._ran = False
        self._own.reset()
        result = executor(*args, **kwargs)
        held = _held() if self._counting else 0
        self._evaluations.append(Evaluation(self._ran, self._own.seconds, self._own.reads, held))
        return result

    def evaluations(self, model, counting: bool = False) -> list[Evaluation]:
        """Of one run, once it has settled. counting: reads and what is held, too, which takes time."""
        self._evaluations, self._counting, scene = [], counting, self._scene
        with OwnWork(self._evaluation, counting) as self._own:
            self._subject.host.node(
                "KSampler", model, 0, STEPS, self._configuration.cfg, "euler", "simple", scene.positive,
                scene.negative, self._latent,
            )  # fmt: skip
        return self._evaluations[SETTLED:-1]


def _held() -> int:
    gc.collect()  # what is left of earlier runs may go at any time
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor
    }
    return sum(storage.nbytes() for storage in storages.values())


def network_seconds(subject: Video) -> float:
    """Of one evaluation of the bundled model, both branches."""
    configuration, scene = subject.configurations[0], subject.scene(0)
    model = subject.prepared(configuration, "fp32")
    return min(subject.sample(model, scene, configuration, 0).seconds for _ in range(3)) / configuration.steps


def measure(subject: Video, path: Path) -> None:
    network = subject.model.model.diffusion_model
    answers_in = network_seconds(subject)
    rows = []
    for size, (shape, repeats) in SIZES.items():
        for dtype in ("fp32", "bf16"):
            laboratory = Laboratory(subject, shape, dtype)
            network._forward = laboratory.answer
            try:
                rows += [[size, dtype, *row] for row in _rows(laboratory, repeats, answers_in, shape)]
            finally:
                del network._forward
            print(f"overhead: {size}, {dtype}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["size", "dtype", "node", "computed_ms", "skipped_ms", "computed_of_bundled_network",
             "skipped_of_bundled_network", "computed_reads", "skipped_reads", "held_latents"]
        )  # fmt: skip
        writer.writerows(rows)


def _rows(laboratory: Laboratory, repeats: int, answers_in: float, shape: tuple):
    """One for each node. Times are the least of all evaluations: what else the machine does only adds to them."""
    latent = 4 * torch.Size(shape).numel()
    held_alone = max(e.held for e in laboratory.evaluations(laboratory.model, counting=True))
    for name, (kind, settings) in NODES.items():
        models = [laboratory.node(kind, **widgets) for widgets in settings]
        timed = [e for model in models for _ in range(repeats) for e in laboratory.evaluations(model)]
        counted = [e for model in models for e in laboratory.evaluations(model, counting=True)]
        seconds = [min(e.seconds for e in timed if e.computed is kind) for kind in (True, False)]
        reads = [max(e.reads for e in counted if e.computed is kind) for kind in (True, False)]
        yield [
            name,
            *(f"{1000 * s:.3f}" for s in seconds),
            *(f"{s / answers_in:.5f}" for s in seconds),
            *reads,
            f"{(max(e.held for e in counted) - held_alone) / latent:.2f}",
        ]


def table(path: Path) -> str:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| latent | node | computed evaluation | skipped evaluation | reads | held latents |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        built_in = next(
            r for r in rows if (r["size"], r["dtype"]) == (row["size"], row["dtype"]) and "built" in r["node"]
        )
        cells = []
        for kind in ("computed", "skipped"):
            if row["size"].startswith("bundled"):
                cells.append(f"{float(row[f'{kind}_of_bundled_network']):.2%} of the network")
            else:
                cells.append(f"{float(row[f'{kind}_ms']) / float(built_in[f'{kind}_ms']):.2f} of the built-in node's")
        reads = f"{float(row['computed_reads']):.0f}, {float(row['skipped_reads']):.0f}"
        lines.append(
            f"| {row['size']}, {row['dtype']} | {row['node']} | {' | '.join(cells)} | {reads} | {row['held_latents']} |"
        )
    return "\n".join(lines)
