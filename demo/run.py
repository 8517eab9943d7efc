"""Run the bundled workflow in a real ComfyUI server, uncached and with EasyCache.

Prints evaluations, seconds and similarity, and writes an animation of both videos and a contact sheet. The exit code is
0 only if both runs made a moving picture.
"""

import argparse
import asyncio
import io
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK / "tools"))
import comfy_host  # noqa: E402
from comfy_server import ComfyServer, ServerError  # noqa: E402
from workflow import nodes_of, to_prompt  # noqa: E402

WORKFLOW = PACK / "workflows" / "EasyCache - instant demo.json"
SCALE = 2  # pictures are shown twice as large as the model makes them
INK, PAPER, SKIPPED, COMPUTED = (30, 32, 40), (250, 250, 248), (206, 220, 214), (24, 128, 96)


@dataclass
class Outcome:
    """The results of one demo run.

    uncached, cached: (frames, height, width, 3) uint8. computed: whether, by evaluation of the cached run.
    """

    uncached: np.ndarray
    cached: np.ndarray
    steps: int
    computed: list[bool]
    seconds_uncached: float
    seconds_cached: float

    @property
    def psnr(self) -> float:
        """In dB over all frames; infinite if they are identical."""
        with np.errstate(divide="ignore"):
            return float(peak_signal_noise_ratio(self.uncached, self.cached))

    @property
    def ssim(self) -> float:
        """Mean structural similarity over the frames."""
        pairs = zip(self.uncached, self.cached, strict=True)
        return float(np.mean([structural_similarity(a, b, channel_axis=-1) for a, b in pairs]))


def split_samplers(prompt: dict) -> tuple[str, str]:
    """Ids of the uncached and the cached KSampler."""
    caches = nodes_of(prompt, "EasyCacheAdaptive")
    samplers = {prompt[node]["inputs"]["model"][0] in caches: node for node in nodes_of(prompt, "KSampler")}
    return samplers[False], samplers[True]


def with_settings(prompt: dict, arguments: argparse.Namespace) -> dict:
    """The prompt with the command line's settings in its widgets."""
    prompt = json.loads(json.dumps(prompt))
    wanted = {
        "KSampler": {"steps": arguments.steps},
        "PrimitiveInt": {"value": arguments.seed},
        "EasyCacheAdaptive": {"threshold": arguments.threshold, "warmup_steps": arguments.warmup,
                              "predictor": arguments.predictor, "target_speedup": arguments.speedup, "verbose": True},
    }  # fmt: skip
    for kind, inputs in wanted.items():
        for node in nodes_of(prompt, kind):
            prompt[node]["inputs"].update({name: value for name, value in inputs.items() if value is not None})
    return prompt


def progress_bar(prompt: dict):
    """A callback that draws one line per sampler."""
    width = 30

    def show(node, done, total):
        title = prompt[node]["_meta"]["title"]
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


async def run_demo(arguments: argparse.Namespace) -> Outcome:
    """Start a server, run the workflow in it, and collect the results.

    Raises ServerError if the server does not start or the workflow fails.
    """
    scratch = arguments.out / "comfyui"
    shutil.rmtree(scratch, ignore_errors=True)
    print("Starting ComfyUI ...", flush=True)
    async with ComfyServer(comfy_host.make_base(scratch), arguments.out / "server.log") as server:
        workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
        prompt = to_prompt(workflow, await server.get("/object_info"))
        print("Loading the demo model ...", flush=True)
        warming_up = argparse.Namespace(steps=2, seed=0, threshold=0.0, warmup=1, predictor=None, speedup=None)
        await server.run(with_settings(prompt, warming_up))
        before = len(server.easycache_lines())
        print("Sampling, uncached and with EasyCache ...", flush=True)
        prompt = with_settings(prompt, arguments)
        result = await server.run(prompt, progress_bar(prompt))

        lines = server.easycache_lines()[before:]
        print(f"  {lines[-1]}")
        uncached, cached = split_samplers(prompt)
        (saver,) = nodes_of(prompt, "SaveAnimatedWEBP")
        frames = frames_of(await server.view(result.outputs[saver]["images"][0]))
        (stitch,) = nodes_of(prompt, "ImageStitch")
        half = (frames.shape[2] - prompt[stitch]["inputs"]["spacing_width"]) // 2
        return Outcome(
            frames[:, :, :half],
            frames[:, :, -half:],
            prompt[uncached]["inputs"]["steps"],
            computed_flags(lines),
            result.seconds[uncached],
            result.seconds[cached],
        )


def check(outcome: Outcome) -> None:
    """Raise ServerError unless both videos move and every evaluation was logged."""
    for name, video in (("uncached", outcome.uncached), ("cached", outcome.cached)):
        if len(video) < 2 or video.std() < 5 or np.abs(np.diff(video.astype(float), axis=0)).max() < 30:
            raise ServerError(f"the {name} run made no moving picture")
    if len(outcome.computed) != outcome.steps:
        raise ServerError(f"{outcome.steps} steps were sampled but {len(outcome.computed)} were logged")


def table(outcome: Outcome) -> str:
    computed = sum(outcome.computed)
    rows = [
        ("", "evaluations", "seconds", "speed-up", "PSNR", "SSIM"),
        ("uncached", f"{outcome.steps}", f"{outcome.seconds_uncached:.1f}", "", "", ""),
        (
            "EasyCache",
            f"{computed}",
            f"{outcome.seconds_cached:.1f}",
            f"{outcome.seconds_uncached / outcome.seconds_cached:.2f}x",
            f"{outcome.psnr:.1f} dB",
            f"{outcome.ssim:.4f}",
        ),
    ]
    return "\n".join("  " + "".join(f"{cell:>13}" for cell in row) for row in rows)


def font(size: int):
    return ImageFont.load_default(size)


def enlarge(frame: np.ndarray) -> Image.Image:
    picture = Image.fromarray(frame)
    return picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.LANCZOS)


def captions(outcome: Outcome) -> tuple[str, str]:
    return (
        f"uncached: {outcome.steps} evaluations",
        f"EasyCache: {sum(outcome.computed)} evaluations, {outcome.psnr:.1f} dB",
    )


def draw_steps(draw: ImageDraw.ImageDraw, outcome: Outcome, box: tuple[int, int, int, int]) -> None:
    """One bar per step: full where it was computed, low and pale where it was skipped."""
    left, top, right, bottom = box
    pitch = (right - left) / len(outcome.computed)
    for i, computed in enumerate(outcome.computed):
        x0, x1 = left + i * pitch, left + (i + 1) * pitch - 2
        draw.rectangle((x0, top if computed else bottom - (bottom - top) // 3, x1, bottom),
                       fill=COMPUTED if computed else SKIPPED)  # fmt: skip


def side_by_side(outcome: Outcome, file: Path) -> None:
    """Write an animation of both videos with the strip of steps below."""
    pages = []
    for a, b in zip(outcome.uncached, outcome.cached, strict=True):
        left, right = enlarge(a), enlarge(b)
        gap, head, foot = 12, 26, 34
        page = Image.new("RGB", (2 * left.width + 3 * gap, head + left.height + foot), PAPER)
        draw = ImageDraw.Draw(page)
        for x, picture, text in zip((gap, left.width + 2 * gap), (left, right), captions(outcome), strict=True):
            draw.text((x, 6), text, INK, font(13))
            page.paste(picture, (x, head))
        draw_steps(draw, outcome, (gap, head + left.height + 10, page.width - gap, page.height - 6))
        pages.append(page)
    pages[0].save(file, save_all=True, append_images=pages[1:], duration=125, loop=0, quality=90)


def contact_sheet(outcome: Outcome, file: Path) -> None:
    """Write a picture of every fourth frame of both videos, their difference, and the steps that were skipped."""
    chosen = range(0, len(outcome.uncached), 4)
    error = np.abs(outcome.uncached.astype(float) - outcome.cached)
    amplify = 8
    difference = np.clip(error * amplify, 0, 255).astype(np.uint8)
    rows = [*zip(captions(outcome), (outcome.uncached, outcome.cached), strict=True),
            (f"difference, {amplify} times enlarged", difference)]  # fmt: skip
    side, gap, head, strip = outcome.uncached.shape[1] * SCALE, 10, 28, 90
    sheet = Image.new("RGB", (len(chosen) * (side + gap) + gap, len(rows) * (side + head) + strip), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (text, video) in enumerate(rows):
        top = row * (side + head)
        draw.text((gap, top + 6), text, INK, font(15))
        for column, frame in enumerate(chosen):
            sheet.paste(enlarge(video[frame]), (gap + column * (side + gap), top + head))
    top = len(rows) * (side + head)
    skipped = len(outcome.computed) - sum(outcome.computed)
    draw.text((gap, top + 8), f"steps 1 to {outcome.steps}: high bars were computed, the {skipped} low ones skipped",
              INK, font(15))  # fmt: skip
    draw_steps(draw, outcome, (gap, top + 38, sheet.width - gap, top + strip - 10))
    sheet.save(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="noise seed (default: the workflow's)")
    parser.add_argument("--steps", type=int, help="sampler steps (default: the workflow's)")
    parser.add_argument("--threshold", type=float, help="threshold widget (default: the workflow's)")
    parser.add_argument("--warmup", type=int, help="warmup_steps widget (default: the workflow's)")
    parser.add_argument("--predictor", choices=("forecast", "reuse"), help="predictor widget (default: the workflow's)")
    parser.add_argument("--speedup", type=float, help="target_speedup widget (default: the workflow's)")
    parser.add_argument("--out", type=Path, default=PACK / "output" / "demo", help="where pictures go")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        outcome = asyncio.run(run_demo(arguments))
        check(outcome)
    except ServerError as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    print(table(outcome))
    for draw, name in ((side_by_side, "side_by_side.webp"), (contact_sheet, "contact_sheet.png")):
        draw(outcome, arguments.out / name)
        print(f"  wrote {arguments.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
