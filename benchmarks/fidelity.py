"""How close to the uncached run, for how many network evaluations: the bundled video model in a real ComfyUI.

For each seed another scene is sampled uncached (50 Euler steps, shift 5, CFG 4) and then with every method;
pictures are compared after decoding. Evaluations are counted by a hook on the network. The table's rows:

    EasyCache (Adaptive)   this pack, at several thresholds and warm-ups
    built-in EasyCache     ComfyUI's own node, at its default threshold 0.2 and at 0.1
    fewer Euler steps      what one could do instead

The first two also in bf16 (ModelComputeDtype), against an uncached run in bf16: the built-in node writes over
the sampler's latent where a model computes in fp32, so fp32 alone would not be fair to it.

Writes benchmarks/results/fidelity.csv (a row a run) and prints the means.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))
import comfy_host  # noqa: E402

STEPS, CFG, SHIFT = 50, 4.0, 5.0
BUILT_IN = [0.1, 0.2]
SETTINGS = [(0.05, 5), (0.05, 10), (0.1, 5), (0.1, 10), (0.1, 2), (0.2, 5), (0.2, 2)]


@dataclass(frozen=True)
class Run:
    """One sampling run beside its uncached reference."""

    method: str
    seed: int
    evaluations: int
    reference_evaluations: int
    seconds: float
    reference_seconds: float
    psnr: float
    ssim: float


class Bench:
    """The demo model in ComfyUI, with its network's calls counted."""

    def __init__(self, base: Path):
        import asyncio

        folder = comfy_host.import_comfy(base)
        import torch

        import nodes

        async def load():
            await nodes.init_builtin_extra_nodes()
            if not await nodes.load_custom_node(str(folder), ignore=set(nodes.NODE_CLASS_MAPPINGS)):
                raise RuntimeError("ComfyUI could not load the pack")

        asyncio.run(load())
        self.torch, self.classes = torch, nodes.NODE_CLASS_MAPPINGS
        self.calls = 0

    def node(self, kind, *args):
        cls = self.classes[kind]
        return cls.execute(*args).result if hasattr(cls, "define_schema") else getattr(cls(), cls.FUNCTION)(*args)

    def scene(self, seed: int, dtype: str = "default"):
        """(model, positive, negative, latent) of the seed's scene."""
        demo = comfy_host.load_pack()
        from importlib import import_module

        scenes = import_module(f"{demo.__name__}.demo.scenes")
        scene = scenes.random_scene(self.torch.Generator().manual_seed(seed))
        model, positive, negative, latent = self.node("EasyCacheDemoModel", *scene.words, 1)
        model = self.node("ModelSamplingSD3", model, SHIFT)[0]
        # Counted inside the network: the built-in node skips within the network's own forward.
        model.model.diffusion_model.blocks[0].register_forward_pre_hook(self._count)
        if dtype != "default":
            model = self.node("ModelComputeDtype", model, dtype)[0]
        return model, positive, negative, latent

    def _count(self, *_):
        self.calls += 1

    def sample(self, scene, seed, model=None, steps=STEPS):
        """(frames uint8, network evaluations, seconds of sampling)."""
        default, positive, negative, latent = scene
        self.calls = 0
        started = time.perf_counter()
        sampled = self.node(
            "KSampler",
            default if model is None else model,
            seed,
            steps,
            CFG,
            "euler",
            "simple",
            positive,
            negative,
            latent,
        )[0]
        seconds = time.perf_counter() - started
        frames = self.node("EasyCacheDemoDecode", sampled)[0]
        return (frames.numpy() * 255).round().astype(np.uint8), self.calls, seconds


def compare(method, seed, reference, candidate) -> Run:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    (a, reference_calls, reference_seconds), (b, calls, seconds) = reference, candidate
    ssim = float(np.mean([structural_similarity(x, y, channel_axis=-1) for x, y in zip(a, b, strict=True)]))
    psnr = float(peak_signal_noise_ratio(a, b))
    return Run(method, seed, calls, reference_calls, round(seconds, 3), round(reference_seconds, 3), psnr, ssim)


def runs_of_seed(bench: Bench, seed: int, quick: bool):
    scene = bench.scene(seed)
    reference = bench.sample(scene, seed)

    def adaptive(threshold, warmup):
        cached = bench.node("EasyCacheAdaptive", scene[0], threshold, warmup)[0]
        name = f"EasyCache (Adaptive), threshold {threshold:g}, warm-up {warmup}"
        return name, bench.sample(scene, seed, cached)

    def built_in(threshold):
        cached = bench.node("EasyCache", scene[0], threshold, 0.15, 0.95, False)[0]
        return f"built-in EasyCache, threshold {threshold:g}", bench.sample(scene, seed, cached)

    for settings in SETTINGS[:2] if quick else SETTINGS:
        name, run = adaptive(*settings)
        yield compare(name, seed, reference, run)
    if quick:
        return
    for threshold in BUILT_IN:
        name, run = built_in(threshold)
        yield compare(name, seed, reference, run)
    for steps in (25, 22, 15):
        yield compare(f"{steps} Euler steps", seed, reference, bench.sample(scene, seed, steps=steps))

    scene = bench.scene(seed, "bf16")
    reference = bench.sample(scene, seed)
    for name, run in (adaptive(*SETTINGS[0]), *map(built_in, BUILT_IN)):
        yield compare(f"{name}, bf16", seed, reference, run)


def table(runs: list[Run]) -> str:
    lines = [
        "| method | evaluations | fewer evaluations | faster sampling | PSNR (least) | SSIM |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(run.method for run in runs):
        mine = [run for run in runs if run.method == method]
        calls = np.mean([run.evaluations for run in mine])
        fewer = sum(run.reference_evaluations for run in mine) / sum(run.evaluations for run in mine)
        faster = sum(run.reference_seconds for run in mine) / sum(run.seconds for run in mine)
        psnr = [run.psnr for run in mine]
        lines.append(
            f"| {method} | {calls:.1f} | {fewer:.2f}x | {faster:.2f}x | {np.mean(psnr):.1f} dB ({min(psnr):.1f}) | "
            f"{np.mean([run.ssim for run in mine]):.4f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="how many seeds")
    parser.add_argument("--first", type=int, default=1000, help="the first seed")
    parser.add_argument("--quick", action="store_true", help="two settings only")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fidelity.csv")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        bench = Bench(Path(base))
        bench.sample(bench.scene(0), 0, steps=3)  # first calls allocate and load
        runs = []
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            runs += runs_of_seed(bench, seed, arguments.quick)
            print(f"seed {seed} done", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(runs[0])))
        writer.writeheader()
        writer.writerows(asdict(run) for run in runs)
    print(table(runs))


if __name__ == "__main__":
    main()
