"""Thumbnails of the two workflows that need no downloaded model:

    python tools/result_thumbnails.py

The instant demo's is made from docs/side_by_side.webp, which demo/run.py writes; the other one from the workflow's
output in a real server. The other workflows have cards (make_workflows.py).
"""

import asyncio
import io
import json

import comfy_host
from comfy_server import scratch_server
from PIL import Image
from workflow import nodes_of, to_prompt
from workflow_card import PAPER

FOLDER = comfy_host.PACK / "workflows"
DEMO, REPORT = "EasyCache - instant demo", "EasyCache - report and compare"
DEMO_SIZE = (584, 333)
REPORT_SIZE, CHART, TILE, GAP = (584, 352), (460, 345), 108, 6


def middle(animation) -> Image.Image:
    """The middle frame of an animation's file."""
    picture = Image.open(animation)
    picture.seek(getattr(picture, "n_frames", 1) // 2)
    return picture.convert("RGB")


async def made_by(name: str, kinds: tuple[str, ...]) -> list[Image.Image]:
    """The middle frames of what the nodes of those kinds save when the workflow runs, in their order."""
    async with scratch_server() as server:
        workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        prompt = to_prompt(workflow, await server.get("/object_info"))
        result, pictures = await server.run(prompt), []
        for kind in kinds:
            (node,) = nodes_of(prompt, kind)
            pictures.append(middle(io.BytesIO(await server.view(result.outputs[node]["images"][0]))))
        return pictures


def beside(chart: Image.Image, compared: Image.Image) -> Image.Image:
    """The report's chart, and beside it uncached, cached and difference, one below the other."""
    page = Image.new("RGB", REPORT_SIZE, PAPER)
    page.paste(chart.resize(CHART, Image.Resampling.LANCZOS), (2, 4))
    side = compared.height
    for row, left in enumerate((0, (compared.width - side) // 2, compared.width - side)):
        tile = compared.crop((left, 0, left + side, side)).resize((TILE, TILE), Image.Resampling.LANCZOS)
        page.paste(tile, (CHART[0] + GAP, 8 + row * (TILE + GAP)))
    return page


def main():
    demo = middle(comfy_host.PACK / "docs" / "side_by_side.webp").resize(DEMO_SIZE, Image.Resampling.LANCZOS)
    report = beside(*asyncio.run(made_by(REPORT, ("PreviewImage", "SaveAnimatedWEBP"))))
    for name, thumbnail in ((DEMO, demo), (REPORT, report)):
        thumbnail.save(FOLDER / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
