"""What the node is worth on a GPU: seconds, its own work, launches, waits and memory, with networks of real size.

    python benchmarks/gpu.py               on a card, under ten minutes: torch with CUDA, and a ComfyUI (docs/gpu.md)
    python benchmarks/gpu.py --rehearse    the same on the CPU with tiny networks, a minute: does all of it run?

Weights are random: what is measured is time and memory, not pictures. Fidelity is measured with the bundled video
model, which is trained, and with an image model of emoji (emoji/), which is trained first if there is time, or alone by
`--networks emoji`. Everything goes through ComfyUI's own sampler. Results go to benchmarks/results/gpu.csv and gpu.md,
which name the card, and gpu_emoji.csv; a rehearsal's go to output/rehearsal. What was measured there before on the same
card, with the same torch and ComfyUI, stays in the files, so that networks can be measured one by one.
"""

import argparse
import gc
import importlib.util
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import records
import torch
from gpu_networks import CASES, LARGE_LATENT, Case, Network, build, small
from host import ROOT, Host
from reads import Reads
from torch.utils._python_dispatch import TorchDispatchMode

BUILT_IN = "built-in EasyCache"
UNCACHED = "uncached"
SPEEDUPS = (2.2, 3.4, 4.6)
WAYS: dict[str, dict | None] = {  # widgets of the node; None: without it
    UNCACHED: None,
    **{f"target_speedup {speedup:g}": dict(target_speedup=speedup) for speedup in SPEEDUPS},
    "threshold 0.15": dict(threshold=0.15),
    "reuse, threshold 0.05": dict(predictor="reuse", threshold=0.05, warmup_steps=5),
    "target_speedup 2.2, cache on cpu": dict(target_speedup=2.2, cache_device="cpu"),
    BUILT_IN: {},
}
SCENES = (0, 1)  # of the bundled model: the place of the words in its lists
ALL_COMPUTED, HALF = dict(threshold=1e-6), dict(target_speedup=2.0)  # for the node's own work
MIB = 2**20
BUNDLED = "bundled"
EMOJI, SHOWN_EMOJI = "emoji", "the image model of emoji, 98 M"
TRAINING = 170  # seconds
LONG = 6.0  # seconds of a run that is not repeated


@dataclass(frozen=True)
class Row:
    """One way of sampling one network. Empty where it was not measured.

    of_ratio: speed-up over the ratio of evaluations, 1 where skipping costs nothing. *_ms: of one evaluation; own: what
    it takes beyond the network and what the sampler does without the node. *_latents: in latents of fp32.
    """

    card: str
    torch: str
    comfyui: str
    network: str
    way: str
    evaluations: int | None = None
    computed: int | None = None
    seconds: float | None = None
    speedup: float | None = None
    of_ratio: float | None = None
    evaluation_ms: float | None = None
    own_computed_ms: float | None = None
    own_skipped_ms: float | None = None
    peak_mib: float | None = None
    peak_latents: float | None = None
    launches_computed: float | None = None
    launches_skipped: float | None = None
    waits_computed: float | None = None
    waits_skipped: float | None = None
    recompilations: int | None = None
    graph_breaks: int | None = None
    psnr: float | None = None


class Device:
    """The card, or in a rehearsal the CPU: its clock, its memory, and what is counted on it."""

    def __init__(self, rehearse: bool):
        self.cuda = not rehearse
        if self.cuda and not torch.cuda.is_available():
            raise SystemExit("no GPU that torch can use; `--rehearse` runs all of it on the CPU, with tiny networks")
        self.torch_device = torch.device("cuda", torch.cuda.current_device()) if self.cuda else torch.device("cpu")
        self.name = torch.cuda.get_device_name() if self.cuda else "a CPU (a rehearsal)"
        self.weights = torch.bfloat16 if self.cuda else torch.float32

    def mark(self):
        """Now, in the device's order of work."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start, end) -> float:
        """Between two marks, once the device is through."""
        return start.elapsed_time(end) if self.cuda else 1000 * (end - start)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """What nobody holds any more."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def peak(self, run: Callable) -> float:
        """MiB that run() takes at most, on top of what is held before."""
        if not self.cuda:
            run()
            return 0.0
        self.free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / MIB

    def launches(self, run: Callable) -> int:
        """Kernels, copies and fills that run() gives the card to do; on the CPU, operations."""
        if not self.cuda:
            with Operations() as operations:
                run()
            return operations.count
        with torch.profiler.profile() as profile:
            run()
            self.wait()
        kinds = ("LaunchKernel", "MemcpyAsync", "MemsetAsync")
        return sum(event.count for event in profile.key_averages() if any(kind in event.key for kind in kinds))

    def waits(self, run: Callable) -> int:
        """How often run() makes the host wait for the card; on the CPU, how often it reads a value."""
        if not self.cuda:
            with Reads() as reads:
                run()
            return reads.count
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)


class Operations(TorchDispatchMode):
    """Counts what is computed; views are not."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


class Evaluation(NamedTuple):
    milliseconds: float
    in_network: float  # 0 if it was skipped


class Timed(NamedTuple):
    latent: torch.Tensor
    seconds: float
    calls: int  # of the network
    evaluations: list[Evaluation]  # without the first and the last


class Sampling:
    """Samples one network and notes when it runs. idle: it answers at once instead, so that only other work is left.

    It looks at apply_model, outside of what may be compiled; the built-in node skips below that, so for its runs the
    calls are counted there.
    """

    def __init__(self, host: Host, device: Device, case: Case, network: Network):
        import comfy.sample
        from comfy.patcher_extension import WrappersMP

        self.host, self.device, self.case, self._network = host, device, case, network
        self._idle = False
        self._calls: list[tuple] = []  # (evaluation, start, end)
        self._inner_calls: set[int] = set()  # evaluations
        self._steps: list = []  # marks
        self.model = network.model.clone()
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "clock", self._call)
        self._noise = comfy.sample.prepare_noise(torch.zeros(case.latent), 0)

    def _call(self, executor, x, *args, **kwargs):
        start = self.device.mark()
        answer = x * 0.1 if self._idle else executor(x, *args, **kwargs)
        self._calls.append((len(self._steps), start, self.device.mark()))
        return answer

    def model_for(self, way: str, model=None):
        from comfy.patcher_extension import WrappersMP

        model, widgets = self.model if model is None else model, WAYS[way]
        if widgets is None:
            return model
        if way != BUILT_IN:
            return self.host.node("EasyCacheAdaptive", model=model, **widgets)[0]
        model = self.host.node("EasyCache", model=model, **widgets)[0]
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "clock", self._inner_call)
        return model

    def _inner_call(self, executor, *args, **kwargs):
        self._inner_calls.add(len(self._steps))
        return executor(*args, **kwargs)

    def run(self, model, idle: bool = False) -> Timed:
        import comfy.sample

        self._idle, self._calls, self._inner_calls, self._steps = idle, [], set(), []
        case, (_, positive, negative) = self.case, self._network
        self.device.wait()
        started = time.perf_counter()
        with torch.inference_mode():
            latent = comfy.sample.sample(
                model, self._noise, case.steps, case.cfg, "euler", "simple", positive, negative,
                torch.zeros(case.latent), callback=lambda *_: self._steps.append(self.device.mark()), disable_pbar=True,
                seed=0,
            )  # fmt: skip
        self.device.wait()
        seconds = time.perf_counter() - started
        in_network = [0.0] * (len(self._steps) + 1)
        for evaluation, start, end in self._calls:
            in_network[evaluation] += self.device.milliseconds(start, end)
        spans = zip(self._steps[:-1], self._steps[1:], strict=True)
        evaluations = [Evaluation(self.device.milliseconds(*span), in_network[i + 1]) for i, span in enumerate(spans)]
        calls = self._inner_calls or {evaluation for evaluation, *_ in self._calls}
        return Timed(latent, seconds, len(calls), evaluations[:-1])


def own(timed: Timed, computed: bool) -> float | None:
    """ms of an evaluation beyond the network, the median; None if there was none."""
    spans = [one.milliseconds - one.in_network for one in timed.evaluations if bool(one.in_network) is computed]
    return statistics.median(spans) if spans else None


def less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


class Benchmark:
    def __init__(self, host: Host, device: Device, limit: float, repeats: int):
        import comfyui_version

        self.host, self.device, self._repeats = host, device, repeats
        self.about = dict(card=device.name, torch=torch.__version__, comfyui=comfyui_version.__version__)
        self._end, self.rows, self.left_out, self.runs = time.monotonic() + limit, [], [], []
        self.failed = False

    def row(self, network: str, way: str, **measured) -> None:
        self.rows.append(Row(**self.about, network=network, way=way, **measured))
        shown = ", ".join(f"{key} {_short(value)}" for key, value in measured.items() if value is not None)
        print(f"{network}: {way}: {shown}", flush=True)

    def attempt(self, what: str, measure: Callable, *args) -> None:
        """measure(*args). If it fails, the rest is still measured."""
        try:
            measure(*args)
        except Exception:
            traceback.print_exc()
            self.failed = True
            self.left_out.append(f"{what} (it failed)")
        self.device.free()

    def time_for(self, what: str, seconds: float) -> bool:
        """Whether that long is left; what there is no time for is named in the results."""
        enough = not self.device.cuda or time.monotonic() + seconds < self._end
        if not enough:
            self.left_out.append(what)
        return enough

    def case(self, case: Case, compiled: bool) -> None:
        if self.time_for(case.shown, 60):
            self._ways(self._sampling(case), compiled)

    def _sampling(self, case: Case) -> Sampling:
        return Sampling(self.host, self.device, case, build(case, self.device.torch_device, self.device.weights))

    def _ways(self, sampling: Sampling, compiled: bool) -> None:
        case = sampling.case
        sampling.run(sampling.model)  # warms up
        plain = None
        for way in WAYS:
            takes = plain.seconds * (self._repeats_of(plain) + 1) if plain else 0
            if not self.time_for(f"{case.shown}: {way}", takes):
                continue
            model = sampling.model_for(way)
            memory = self.device.peak(lambda model=model: sampling.run(model))
            timed = self._fastest(sampling, model, plain)
            if plain is None:
                plain, plain_memory = timed, memory
            speedup = plain.seconds / timed.seconds
            latent = 4 * timed.latent.numel() / MIB
            cached, ours = way != UNCACHED, way not in (UNCACHED, BUILT_IN)
            self.row(
                case.shown, way, evaluations=case.steps, computed=timed.calls, seconds=timed.seconds, speedup=speedup,
                of_ratio=speedup * timed.calls / case.steps,
                evaluation_ms=statistics.median(one.milliseconds for one in timed.evaluations) if not cached else None,
                own_computed_ms=less(own(timed, True), own(plain, True)) if ours else None,
                own_skipped_ms=less(own(timed, False), own(plain, True)) if ours else None,
                peak_mib=memory - plain_memory if cached else memory,
                peak_latents=(memory - plain_memory) / latent if cached else None,
            )  # fmt: skip
        self.own_work(sampling)
        if compiled and plain is not None:
            self.compiled(sampling, plain)

    def _repeats_of(self, plain: Timed | None) -> int:
        return 1 if plain is not None and plain.seconds > LONG else self._repeats

    def _fastest(self, sampling: Sampling, model, plain: Timed | None) -> Timed:
        """plain: an uncached run, if there was one; long ones are not repeated."""
        return min((sampling.run(model) for _ in range(self._repeats_of(plain))), key=lambda one: one.seconds)

    def own_work(self, sampling: Sampling) -> None:
        """What is done beside a network that answers at once: without the node, and with it."""
        plain = self._counted(sampling, sampling.model)
        steps = sampling.case.steps
        self.row(
            f"{sampling.case.shown}, network idle", UNCACHED, evaluations=steps, computed=steps,
            evaluation_ms=own(plain.timed, True), launches_computed=plain.launches / steps,
            waits_computed=plain.waits / steps,
        )  # fmt: skip
        for predictor in ("forecast", "reuse"):
            computed, half = (
                self._counted(sampling, self.host.node("EasyCacheAdaptive", model=sampling.model, predictor=predictor,
                                                       **widgets)[0])
                for widgets in (ALL_COMPUTED, HALF)
            )  # fmt: skip
            skipped = steps - half.timed.calls
            self.row(
                f"{sampling.case.shown}, network idle", predictor, evaluations=steps, computed=half.timed.calls,
                own_computed_ms=less(own(computed.timed, True), own(plain.timed, True)),
                own_skipped_ms=less(own(half.timed, False), own(plain.timed, True)),
                launches_computed=computed.launches / steps,
                launches_skipped=(half.launches - half.timed.calls * computed.launches / steps) / skipped,
                waits_computed=computed.waits / steps,
                waits_skipped=(half.waits - half.timed.calls * computed.waits / steps) / skipped,
            )  # fmt: skip

    def _counted(self, sampling: Sampling, model) -> "Counted":
        def run():
            return sampling.run(model, idle=True)

        run()
        return Counted(min((run() for _ in range(3)), key=lambda one: one.seconds), self.device.launches(run),
                       self.device.waits(run))  # fmt: skip

    def compiled(self, sampling: Sampling, plain: Timed) -> None:
        """The network compiled, without the node and with it: both gains should multiply."""
        from torch._dynamo.utils import counters

        if not self.time_for(f"{sampling.case.shown}, compiled", 90 + 4 * plain.seconds):
            return
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        model = sampling.model.clone()
        set_torch_compile_wrapper(model, backend="inductor" if self.device.cuda else "eager")
        sampling.run(model)  # compiles
        compiled = self._fastest(sampling, model, plain)
        way = f"target_speedup {SPEEDUPS[0]:g}"
        cached = sampling.model_for(way, model)
        sampling.run(cached)  # what is wrapped is part of what was compiled: the first run with the node compiles anew
        graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        timed = self._fastest(sampling, cached, plain)
        graphs = counters["stats"]["unique_graphs"] - graphs
        breaks = sum(counters["graph_break"].values()) - breaks
        network, steps = f"{sampling.case.shown}, compiled", sampling.case.steps
        speedup = compiled.seconds / timed.seconds
        self.row(network, UNCACHED, evaluations=steps, computed=steps, seconds=compiled.seconds,
                 speedup=plain.seconds / compiled.seconds)  # fmt: skip
        self.row(network, way, evaluations=steps, computed=timed.calls, seconds=timed.seconds, speedup=speedup,
                 of_ratio=speedup * timed.calls / steps, recompilations=graphs, graph_breaks=breaks)  # fmt: skip
        torch.compiler.reset()

    def large_latent(self, case: Case) -> None:
        if self.time_for(case.shown, 30):
            self.own_work(self._sampling(case))

    def fidelity(self, lengths: tuple[int, ...]) -> None:
        """The bundled trained model in bf16: PSNR of its pictures against the uncached run, mean over SCENES."""
        for steps in lengths:
            plain = {}
            for way in WAYS:
                if not self.time_for(f"the bundled video model, {steps} steps: {way}", 15):
                    continue
                closeness, calls = [], 0
                for scene in SCENES:
                    pictures, computed = self._pictures(way, steps, scene)
                    plain.setdefault(scene, pictures)
                    error = (pictures - plain[scene]).square().mean()
                    closeness.append(float(-10 * error.clamp(min=1e-12).log10()))
                    calls += computed
                self.row(f"the bundled video model, trained, bf16, {steps} steps", way, evaluations=steps,
                         computed=round(calls / len(SCENES)),
                         psnr=None if way == UNCACHED else statistics.mean(closeness))  # fmt: skip

    def _pictures(self, way: str, steps: int, scene: int) -> tuple[torch.Tensor, int]:
        """(pictures, how many evaluations were computed)."""
        inputs = self.host.node_class("EasyCacheDemoModel").INPUT_TYPES()["required"].values()
        words = [options["options"][scene] for _, options in inputs if "options" in options]
        model, positive, negative, latent = self.host.node("EasyCacheDemoModel", *words, 1)
        model = model.clone()
        model.set_model_compute_dtype(torch.bfloat16)
        shape = tuple(latent["samples"].shape)
        case = Case("demo", "", "", {}, shape, (), {}, steps, cfg=4.0)
        sampling = Sampling(self.host, self.device, case, Network(model, positive, negative))
        timed = sampling.run(sampling.model_for(way))
        return self.host.node("EasyCacheDemoDecode", {"samples": timed.latent})[0].float().cpu(), timed.calls

    def emoji(self, folder: Path, pictures: Path | None) -> None:
        """Train the image model unless that was done, and compare all methods on it, seed by seed (fidelity.py)."""
        if importlib.util.find_spec("skimage") is None:
            self.left_out.append(f"{SHOWN_EMOJI} (needs scikit-image)")
            return
        import methods
        from fidelity import Fidelity
        from subjects import Emoji

        tiny = dict(variant="tiny", folder=folder)
        kind = Emoji if self.device.cuda else type("TinyEmoji", (Emoji,), tiny)
        training = TRAINING + 60 if kind.missing() else 0
        if not self.time_for(SHOWN_EMOJI, training + 60):
            return
        if training:
            command = [sys.executable, "benchmarks/emoji/train.py", "--size", kind.variant, "--out", kind.folder]
            command += ["--seconds", TRAINING] if self.device.cuda else ["--steps", 30, "--work", folder]
            command += ["--pictures", pictures] if pictures else []
            if subprocess.run([str(part) for part in command], cwd=ROOT).returncode:
                self.left_out.append(f"{SHOWN_EMOJI} (it could not be trained)")
                return
        seeds, names = (range(4), None) if self.device.cuda else (range(1), [methods.OURS, methods.FEWER])
        path = folder / "gpu_emoji.csv"
        path.unlink(missing_ok=True)
        subject = kind(self.host)
        fidelity = Fidelity(subject, path)
        for seed, configuration in itertools.product(seeds, subject.configurations):
            runs = []
            for run in fidelity.run(configuration, seed, fidelity.missing(configuration, seed, names)):
                runs.append(run)
                if not self.time_for(f"{SHOWN_EMOJI}: all methods with seed {seed}, {configuration.name}", 10):
                    return
            self.runs += runs  # whole seeds: means are over the same ones for all methods
            print(f"{SHOWN_EMOJI}, {configuration.name}, seed {seed}: {len(runs)} runs", flush=True)


class Counted(NamedTuple):
    timed: Timed
    launches: int
    waits: int


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


HEADINGS = {
    "computed": "computed", "seconds": "seconds", "speedup": "speed-up", "of_ratio": "of the ratio of evaluations",
    "evaluation_ms": "ms per evaluation", "own_computed_ms": "own ms, computed", "own_skipped_ms": "own ms, skipped",
    "peak_mib": "peak memory, MiB (with the node: beyond uncached)", "peak_latents": "in latents",
    "launches_computed": "launches, computed", "launches_skipped": "launches, skipped",
    "waits_computed": "waits, computed", "waits_skipped": "waits, skipped", "recompilations": "recompilations",
    "graph_breaks": "graph breaks", "psnr": "PSNR, dB",
}  # fmt: skip


def page(about: dict, rows: list[Row], runs: list[records.Run], left_out: list[str]) -> str:
    """A table for each network, with the columns that were measured there."""
    how = f"Written by `python benchmarks/gpu.py`, with torch {about['torch']} and ComfyUI {about['comfyui']}."
    lines = [f"# Measured on {about['card']}", "", f"{how} Weights are random but where a model is called trained."]
    for network in dict.fromkeys(row.network for row in rows):
        here = [row for row in rows if row.network == network]
        columns = [name for name in HEADINGS if any(getattr(row, name) is not None for row in here)]
        lines += ["", f"## {network}, {here[0].evaluations} evaluations", ""]
        lines += [f"| | {' | '.join(HEADINGS[name] for name in columns)} |", f"|---|{'---|' * len(columns)}"]
        for row in here:
            values = [getattr(row, name) for name in columns]
            lines.append(f"| {row.way} | {' | '.join('' if v is None else _short(v) for v in values)} |")
    if runs:
        import tables

        lines += ["", f"## {SHOWN_EMOJI}, trained", "", tables.everything(runs)]
    if left_out:
        lines += ["", f"Left out for want of time, or as is said: {'; '.join(left_out)}."]
    return "\n".join(lines) + "\n"


def write(folder: Path, benchmark: Benchmark) -> None:
    """The results, with those of before about other networks."""
    about, path = benchmark.about, folder / "gpu.csv"
    measured = {row.network for row in benchmark.rows}
    before = records.read(path, Row)
    same = all(about.items() <= vars(row).items() for row in before)
    rows = [*(row for row in before if same and row.network not in measured), *benchmark.rows]
    records.write(path, Row, rows)
    runs = benchmark.runs or (records.read(folder / "gpu_emoji.csv") if same else [])
    (folder / "gpu.md").write_text(page(about, rows, runs, benchmark.left_out), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny networks")
    parser.add_argument("--limit", type=float, default=540, help="seconds; what there is no time for is left out")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each way, of which the fastest counts")
    names = [*(case.name for case in (*CASES, LARGE_LATENT)), BUNDLED, EMOJI]
    parser.add_argument("--networks", nargs="+", choices=names, help="only these")
    parser.add_argument(
        "--pictures", type=Path, help="of emoji, as emoji/pictures.py writes them; else npm fetches them"
    )
    parser.add_argument("--compiled", choices=[case.name for case in CASES], default="wan", help="compile this one")
    parser.add_argument("--results", type=Path, help="folder; else benchmarks/results, or output/rehearsal")
    args = parser.parse_args()
    device = Device(args.rehearse)
    usual = ROOT / "output" / "rehearsal" if args.rehearse else Path(__file__).resolve().parent / "results"
    folder = args.results or usual
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as base:
        benchmark = Benchmark(Host(Path(base), cpu=args.rehearse), device, args.limit, args.repeats)
        fit = small if args.rehearse else lambda case: case
        chosen = args.networks or names
        try:
            if LARGE_LATENT.name in chosen:
                benchmark.attempt(LARGE_LATENT.shown, benchmark.large_latent, fit(LARGE_LATENT))
            if BUNDLED in chosen:  # what is short comes before what may run out of time
                lengths = (20,) if args.rehearse else (20, 28, 50)
                benchmark.attempt("the bundled video model", benchmark.fidelity, lengths)
            for case in CASES:
                if case.name in chosen:
                    benchmark.attempt(case.shown, benchmark.case, fit(case), case.name == args.compiled)
            if EMOJI in chosen:
                benchmark.attempt(SHOWN_EMOJI, benchmark.emoji, folder, args.pictures)
        finally:
            if benchmark.rows or benchmark.runs:
                write(folder, benchmark)
    print(f"written to {folder}", flush=True)
    if benchmark.failed:
        sys.exit("something failed; what was measured is written")


if __name__ == "__main__":
    main()
