"""Run the bundled workflow in a real ComfyUI server, uncached and with EasyCache.

Prints evaluations, seconds and similarity, and writes an animation of both videos and a contact sheet. The exit code is
0 only if both made a moving picture.

Seconds are those of all rounds: each samples a seed of its own both ways, and every other round the other way first. A
round before them, which is not counted, loads the model.
"""

import argparse
import asyncio
import io
import json
import math
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK / "tools"))
import comfy_host  # noqa: E402
from comfy_server import ComfyServer, ServerError  # noqa: E402
from pictures import Pair, contact_sheet, side_by_side  # noqa: E402
from workflow import nodes_of, to_prompt  # noqa: E402

WORKFLOW = PACK / "workflows" / "EasyCache - instant demo.json"
WARM_UP = 3  # steps that load the model and are not timed
STARTING, SECONDS_PER_EVALUATION = 30, 0.15  # what to expect of one processor core


@dataclass
class Sampled:
    """frames: (frames, height, width, 3) uint8. computed: whether, by evaluation."""

    frames: np.ndarray
    computed: list[bool]
    seconds: float


@dataclass
class Outcome:
    """The results of all rounds."""

    uncached: list[Sampled]
    cached: list[Sampled]

    @property
    def speedup(self) -> float:
        return sum(run.seconds for run in self.uncached) / sum(run.seconds for run in self.cached)

    @property
    def evaluations_ratio(self) -> float:
        return sum(len(run.computed) for run in self.uncached) / sum(sum(run.computed) for run in self.cached)

    def pair(self, number: int) -> Pair:
        """Of one round."""
        a, b = self.uncached[number], self.cached[number]
        with np.errstate(divide="ignore"):
            psnr = float(peak_signal_noise_ratio(a.frames, b.frames))  # infinite if they are identical
        return Pair(a.frames, b.frames, b.computed, psnr)

    @property
    def psnr(self) -> float:
        """Mean of the rounds, in dB."""
        return float(np.mean([self.pair(number).psnr for number in range(len(self.cached))]))

    @property
    def ssim(self) -> float:
        """Mean structural similarity of all frames."""
        runs = zip(self.uncached, self.cached, strict=True)
        pairs = [pair for a, b in runs for pair in zip(a.frames, b.frames, strict=True)]
        return float(np.mean([structural_similarity(a, b, channel_axis=-1) for a, b in pairs]))


def samplers_of(prompt: dict) -> tuple[str, str]:
    """Ids of the uncached and the cached KSampler."""
    caches = nodes_of(prompt, "EasyCacheAdaptive")
    samplers = {prompt[node]["inputs"]["model"][0] in caches: node for node in nodes_of(prompt, "KSampler")}
    return samplers[False], samplers[True]


def of_sampler(prompt: dict, sampler: str) -> dict:
    """The prompt with the video of that sampler alone as what is saved; ComfyUI runs no other then."""
    prompt = json.loads(json.dumps(prompt))
    (decoded,) = (node for node in nodes_of(prompt, "EasyCacheDemoDecode")
                  if prompt[node]["inputs"]["samples"][0] == sampler)  # fmt: skip
    (saver,) = nodes_of(prompt, "SaveAnimatedWEBP")
    prompt[saver]["inputs"]["images"] = [decoded, 0]
    return prompt


def set_widgets(prompt: dict, kind: str, **values) -> None:
    """In all nodes of that kind; None leaves a value."""
    for node in nodes_of(prompt, kind):
        prompt[node]["inputs"].update({name: value for name, value in values.items() if value is not None})


def progress_bar(title: str):
    """A callback that draws one line."""
    width = 30

    def show(node, done, total):
        print(f"\r  {title:<22} [{'#' * (width * done // total):<{width}}] {done}/{total}", end="", flush=True)
        if done == total:
            print(flush=True)

    return show


def computed_flags(lines: list[str]) -> list[bool]:
    """Whether each evaluation was computed, from the node's verbose log lines."""
    matches = (re.match(r"EasyCache: step \d+ of .*: (computed|skipped),", line) for line in lines)
    return [match[1] == "computed" for match in matches if match]


def frames_of(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as animation:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)])


async def sample(server: ComfyServer, prompt: dict, sampler: str, title: str, cached: bool) -> Sampled:
    before = len(server.easycache_lines())
    prompt = of_sampler(prompt, sampler)
    result = await server.run(prompt, progress_bar(title))
    (saver,) = nodes_of(prompt, "SaveAnimatedWEBP")
    frames = frames_of(await server.view(result.outputs[saver]["images"][0]))
    steps = prompt[sampler]["inputs"]["steps"]
    computed = computed_flags(server.easycache_lines()[before:]) if cached else [True] * steps
    if len(frames) < 2 or frames.std() < 5 or np.abs(np.diff(frames.astype(float), axis=0)).max() < 30:
        raise ServerError(f"{title} made no moving picture")
    if len(computed) != steps:
        raise ServerError(f"{steps} steps were sampled but {len(computed)} were logged")
    return Sampled(frames, computed, result.seconds[sampler])


async def run_demo(arguments: argparse.Namespace) -> Outcome:
    """Start a server, run the workflow in it, and collect the results.

    Raises ServerError if the server does not start or the workflow fails.
    """
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    scratch = arguments.out / "comfyui"
    shutil.rmtree(scratch, ignore_errors=True)
    async with ComfyServer(comfy_host.make_base(scratch), arguments.out / "server.log") as server:
        prompt = to_prompt(workflow, await server.get("/object_info"))
        set_widgets(prompt, "EasyCacheAdaptive", threshold=arguments.threshold, warmup_steps=arguments.warmup,
                    predictor=arguments.predictor, target_speedup=arguments.speedup, verbose=True)  # fmt: skip
        both = list(zip(samplers_of(prompt), ("uncached", "with EasyCache"), (False, True), strict=True))
        set_widgets(prompt, "KSampler", steps=WARM_UP)
        for sampler, _, _ in both:
            await server.run(of_sampler(prompt, sampler))
        set_widgets(prompt, "KSampler", steps=arguments.steps)
        (seed,) = nodes_of(prompt, "PrimitiveInt")
        first = prompt[seed]["inputs"]["value"] if arguments.seed is None else arguments.seed
        outcome = Outcome([], [])
        for number in range(arguments.rounds):
            prompt[seed]["inputs"]["value"] = first + number
            for sampler, title, cached in both if number % 2 == 0 else both[::-1]:
                run = await sample(server, prompt, sampler, f"{number + 1}: {title}", cached)
                (outcome.cached if cached else outcome.uncached).append(run)
        return outcome


def announcement(arguments: argparse.Namespace) -> str:
    evaluations = arguments.rounds * arguments.steps * 1.5  # half of them with EasyCache, or fewer
    minutes = (STARTING + evaluations * SECONDS_PER_EVALUATION) / 60
    return (
        f"Samples {arguments.rounds} videos of {arguments.steps} steps, each without and with EasyCache, in a ComfyUI "
        f"that it starts: about {math.ceil(minutes)} min on one processor core."
    )


def table(outcome: Outcome) -> str:
    def row(name, runs, *rest):
        evaluations, seconds = sum(sum(run.computed) for run in runs), sum(run.seconds for run in runs)
        return (name, f"{evaluations}", f"{seconds:.1f}", *rest)

    rows = [
        ("", "evaluations", "seconds", "PSNR", "SSIM"),
        row("uncached", outcome.uncached, "", ""),
        row("EasyCache", outcome.cached, f"{outcome.psnr:.1f} dB", f"{outcome.ssim:.4f}"),
        ("ratio", f"{outcome.evaluations_ratio:.2f}x", f"{outcome.speedup:.2f}x", "", ""),
    ]
    return "\n".join("  " + "".join(f"{cell:>13}" for cell in row) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="noise seed of the first round (default: the workflow's)")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often both are sampled (default: %(default)s)")
    parser.add_argument("--threshold", type=float, help="threshold widget (default: the workflow's)")
    parser.add_argument("--warmup", type=int, help="warmup_steps widget (default: the workflow's)")
    parser.add_argument("--predictor", choices=("forecast", "reuse"), help="predictor widget (default: the workflow's)")
    parser.add_argument("--speedup", type=float, help="target_speedup widget (default: the workflow's)")
    parser.add_argument("--out", type=Path, default=PACK / "output" / "demo", help="where pictures go")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(announcement(arguments), flush=True)
    try:
        outcome = asyncio.run(run_demo(arguments))
    except ServerError as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    print(table(outcome))
    animation, sheet = arguments.out / "side_by_side.webp", arguments.out / "contact_sheet.png"
    side_by_side(outcome.pair(0), animation)
    contact_sheet(outcome.pair(0), sheet)
    print("The ratio of seconds is at best that of evaluations, but for noise. Now look at the first video, both ways:")
    print(f"  {animation}  (moving)\n  {sheet}  (where they differ)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
