"""The workflow with Report and Compare in a real server, whose executor decides what runs and what comes from its
cache; and what the browser fetches for the nodes."""

import asyncio
import io
import json
import urllib.parse

import comfy_host
import numpy as np
import pytest
from comfy_server import ComfyServer, ServerError
from PIL import Image
from workflow import nodes_of, to_prompt

WORKFLOW = comfy_host.PACK / "workflows" / "EasyCache - report and compare.json"
TITLE = 30  # pixels above a node's place


def node_of(prompt, kind, title=None):
    (found,) = (node for node in nodes_of(prompt, kind) if title in (None, prompt[node]["_meta"]["title"]))
    return found


def text_of(result, node):
    return json.loads(result.outputs[node]["text"][0])


async def frames_of(server, files):
    """The frames of a saved picture, (frames, height, width, 3)."""
    with Image.open(io.BytesIO(await server.view(files["images"][0]))) as picture:
        frames = []
        for i in range(getattr(picture, "n_frames", 1)):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("RGB")))
        return np.stack(frames)


def test_report_and_compare_over_http(tmp_path):
    """One server for all of it, as its start takes a while."""

    async def session():
        async with ComfyServer(comfy_host.make_base(tmp_path / "base"), tmp_path / "server.log") as server:
            await check_what_the_browser_fetches(server)
            prompt = to_prompt(json.loads(WORKFLOW.read_text("utf-8")), await server.get("/object_info"))
            for node in prompt.values():
                if node["class_type"] == "KSampler":
                    node["inputs"]["steps"] = 12
                if node["class_type"] == "EasyCacheAdaptive":
                    node["inputs"].update(threshold=0.3, warmup_steps=3)
            await check_the_outputs(server, prompt)
            await check_the_cache(server, prompt)
            prompt[node_of(prompt, "EasyCacheCompare")]["inputs"]["candidate"] = ["50", 0]
            picture = {"width": 64, "height": 32, "batch_size": 3, "color": 0}
            prompt["50"] = {"class_type": "EmptyImage", "inputs": picture}
            with pytest.raises(ServerError, match="17 frames of 128 x 128 pixels, candidate 3 frames of 64 x 32"):
                await server.run(prompt)

    asyncio.run(session())


async def check_what_the_browser_fetches(server):
    templates = await server.get("/api/workflow_templates")
    assert WORKFLOW.stem in templates[comfy_host.PACK_NAME], "not under Browse Templates"
    address = f"/api/workflow_templates/{comfy_host.PACK_NAME}/{urllib.parse.quote(WORKFLOW.stem)}.jpg"
    async with server._http.get(address) as answer:
        assert Image.open(io.BytesIO(await answer.read())).width > 300, "the thumbnail"
    texts = await server.get("/i18n")
    for language in ("en", "zh"):
        file = comfy_host.PACK / "locales" / language / "nodeDefs.json"
        for node, own in json.loads(file.read_text("utf-8")).items():
            assert texts[language]["nodeDefs"][node] == own
            for page in (f"{node}.md", f"{node}/zh.md"):
                async with server._http.get(f"/extensions/{comfy_host.PACK_NAME}/docs/{page}") as answer:
                    assert answer.status == 200 and await answer.text() == (
                        comfy_host.PACK / "web" / "docs" / page
                    ).read_text("utf-8")


async def check_the_outputs(server, prompt):
    """What a person sees after the first run."""
    result = await server.run(prompt)
    run = text_of(result, node_of(prompt, "PreviewAny", "The run's numbers"))
    assert run["steps"] == run["evaluations"] == 12 and 4 <= run["computed"] < 12
    line = server.easycache_lines()[-1]
    assert f"computed {run['computed']} of 12 evaluations" in line
    likeness = text_of(result, node_of(prompt, "PreviewAny", "How near the pictures are"))
    assert likeness["frames"] == len(likeness["per_frame"]) == 17
    assert 15 < likeness["psnr_least"] <= likeness["psnr"] < 80
    assert 0.3 < likeness["ssim_least"] <= likeness["ssim"] < 1

    video = await frames_of(server, result.outputs[node_of(prompt, "SaveAnimatedWEBP")])
    assert video.shape == (17, 128, 3 * 128 + 2 * 8, 3), "uncached, cached and their difference"
    uncached, cached = (video[:, :, left : left + 128].astype(float) for left in (0, 136))
    assert abs(-10 * np.log10(np.square((uncached - cached) / 255).mean()) - likeness["psnr"]) < 6, "webp is lossy"
    plot = await frames_of(server, result.outputs[node_of(prompt, "PreviewImage")])
    assert plot.shape == (1, 768, 1024, 3) and plot.std() > 10


async def check_the_cache(server, prompt):
    """ComfyUI executes only what has changed. A Report must show the run that its latent came from, even if others of
    the same model ended later, and never a run of an earlier seed."""
    shown = node_of(prompt, "PreviewAny", "The run's numbers")
    first = (await server.run(prompt)).outputs[shown]["text"]
    count = len(server.easycache_lines())
    assert (await server.run(prompt)).outputs[shown]["text"] == first
    assert len(server.easycache_lines()) == count, "otherwise nothing came from the cache"

    prompt[node_of(prompt, "PrimitiveInt")]["inputs"]["value"] += 1
    second = (await server.run(prompt)).outputs[shown]["text"]
    assert second != first, "the run of the new seed"
    assert len(server.easycache_lines()) == count + 1

    cache, cached = node_of(prompt, "EasyCacheAdaptive"), node_of(prompt, "KSampler", "With EasyCache")
    other = node_of(prompt, "KSampler", "Uncached")
    prompt[other]["inputs"].update(model=[cache, 0], steps=9)
    late = {"60": (cached, 12), "61": (other, 9)}
    for name, (sampler, _) in late.items():
        prompt[name] = {"class_type": "EasyCacheReport", "inputs": {"model": [cache, 0], "latent": [sampler, 0]}}
        prompt[f"{name}0"] = {"class_type": "PreviewAny", "inputs": {"source": [name, 2]}}
    result = await server.run(prompt)
    assert len(server.easycache_lines()) == count + 2, "only the other sampler has run"
    for name, (_, steps) in late.items():
        assert text_of(result, f"{name}0")["steps"] == steps
    assert result.outputs["600"]["text"] == second


def test_the_workflow_is_tidy():
    """No node over another, all links at both their ends, and the two samplers alike but for the cache."""
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    boxes = []
    for node in workflow["nodes"]:
        (left, top), (width, height) = node["pos"], node["size"]
        box = left, top - TITLE, left + width, top + height
        for other in boxes:
            assert box[0] >= other[2] or other[0] >= box[2] or box[1] >= other[3] or other[1] >= box[3], node["type"]
        boxes.append(box)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, output, target, socket, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][output]["links"] and kind == nodes[source]["outputs"][output]["type"]
        assert nodes[target]["inputs"][socket]["link"] == link
    samplers = [node["widgets_values"] for node in workflow["nodes"] if node["type"] == "KSampler"]
    assert len(samplers) == 2 and samplers[0] == samplers[1]
