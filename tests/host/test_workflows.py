"""The workflows under Browse Templates: each is what a real server can run, and what a person can read.

Model files are not at hand. So that their names can be chosen, files of those names that hold nothing lie in the
server's folders; so that the graphs can be run, loaders are replaced by those of tests/support/tiny_loaders.py. All
else, from the prompt's text to the saved file, goes through ComfyUI's own nodes.
"""

import asyncio
import io
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

import av
import comfy_host
import make_workflows
import pytest
from bundled import FOLDER, WORKFLOWS, add_stand_ins, model_files
from comfy_server import ComfyServer, ServerError
from PIL import Image
from workflow import NOTES, inputs_of, to_prompt, widgets

SUPPORT = Path(__file__).resolve().parents[1] / "support"
TITLE = 30  # height of what stands above a node's position

# The tiny model for what a loader would load, by how the file's name begins.
FAMILIES = {
    "wan2.1_t2v": "WAN21_T2V",
    "wan2.1_i2v": "WAN21_I2V",
    "wan2.2_t2v": "WAN21_T2V",
    "wan2.2_ti2v": "WAN22_T2V",
    "hunyuan_video_t2v": "HunyuanVideo",
    "hunyuanvideo1.5": "HunyuanVideo15",
    "ltx-2-": "LTXAV",
    "flux1-dev": "Flux",
    "flux2_dev": "Flux2",
    "qwen_image_fp8": "QwenImage",
    "z_image": "ZImage",
    "sd_xl_base": "SDXL",
}


WITH_MODELS = [name for name, workflow in WORKFLOWS.items() if model_files(workflow)]
every_workflow = pytest.mark.parametrize("name", WORKFLOWS)


class Served:
    """A running server, for tests that are not coroutines."""

    def __init__(self, folder: Path):
        base = comfy_host.make_base(folder / "base")
        add_stand_ins(base)
        (base / "custom_nodes" / "tiny.py").write_text(
            f"import sys\nsys.path.append({str(SUPPORT)!r})\nfrom tiny_loaders import NODE_CLASS_MAPPINGS\n"
        )
        self._loop = asyncio.new_event_loop()
        self._server = ComfyServer(base, folder / "server.log")
        self._do(self._server.__aenter__())
        self.object_info = self.get("/object_info")

    def _do(self, coroutine):
        return self._loop.run_until_complete(coroutine)

    def get(self, path):
        return self._do(self._server.get(path))

    def run(self, prompt):
        """(the files it saved, the pack's lines in the log). Raises ServerError."""
        before = len(self._server.easycache_lines())
        result = self._do(self._server.run(prompt))
        saved = [file for output in result.outputs.values() for file in output.get("images", ())]
        return [self._do(self._server.view(file)) for file in saved], self._server.easycache_lines()[before:]

    def close(self):
        self._do(self._server.__aexit__())
        self._loop.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.close()


@pytest.fixture
def known(served, name):
    """The server's node definitions, with all nodes of the workflow."""
    missing = {node["type"] for node in nodes_of(WORKFLOWS[name])} - set(served.object_info)
    if missing:
        assert missing <= set(json.loads(make_workflows.NEWER.read_text("utf-8"))), missing
        pytest.skip(f"this ComfyUI has no {', '.join(sorted(missing))}")
    return served.object_info


def nodes_of(workflow):
    """Without notes."""
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def outputs_differ(object_info):
    """Whether this ComfyUI has other outputs for a node than the committed workflows."""
    nodes = [node for workflow in WORKFLOWS.values() for node in nodes_of(workflow) if node["type"] in object_info]
    return any(len(node["outputs"]) != len(object_info[node["type"]]["output"]) for node in nodes)


def test_the_committed_files_are_what_the_command_writes(served):
    """Catches a workflow that was changed by hand, whose change the next run of the command would undo."""
    if comfy_host.version() != make_workflows.WRITTEN_ON and outputs_differ(served.object_info):
        pytest.skip(f"the files are written on ComfyUI {make_workflows.WRITTEN_ON}, whose nodes have other outputs")
    for name, text in make_workflows.files(served.object_info).items():
        assert (FOLDER / f"{name}.json").read_text("utf-8") == text, f"run tools/make_workflows.py for {name}"
    written = (make_workflows.BLUEPRINTS / f"{make_workflows.BLUEPRINT}.json").read_text("utf-8")
    assert written == make_workflows.cached_sampling(served.object_info), "run tools/make_workflows.py"


def test_the_blueprint_is_listed(served):
    """ComfyUI offers what lies in `subgraphs` as nodes to drag in; a blueprint must be one subgraph, nothing else."""
    listed = served.get("/api/global_subgraphs")
    (identity,) = (id_ for id_, entry in listed.items() if entry["name"] == make_workflows.BLUEPRINT)
    assert listed[identity]["info"]["node_pack"].endswith(comfy_host.PACK_NAME)
    contents = json.loads(served.get(f"/api/global_subgraphs/{identity}")["data"])
    (node,), (subgraph,) = contents["nodes"], contents["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"]
    inner = {one["id"]: one for one in subgraph["nodes"]}
    for link in subgraph["links"]:
        if link["target_id"] in inner:
            assert inner[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
        if link["origin_id"] in inner:
            assert link["id"] in inner[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
    for one in inner.values():
        for socket in one["inputs"]:
            assert socket["link"] is not None, f"{one['type']}.{socket['name']} cannot be connected from outside"


@every_workflow
def test_it_is_listed_with_a_thumbnail(served, name):
    assert name in served.get("/api/workflow_templates")[comfy_host.PACK_NAME]
    with Image.open(FOLDER / f"{name}.jpg") as thumbnail:
        assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 200
    assert (FOLDER / f"{name}.jpg").stat().st_size < 60_000, "all thumbnails are loaded at once"


@every_workflow
def test_widgets_hold_what_the_nodes_declare(known, name):
    """A value out of range or in another's place makes a red input, or a setting that nobody meant."""
    for node in nodes_of(WORKFLOWS[name]):
        declared = known[node["type"]]["input"]
        names = [widget for widget, _, _, is_widget in inputs_of(declared) if is_widget]
        held = list(widgets(node, declared))
        newer = names[len(held) :]  # of a ComfyUI after the bundled one, which gives them their defaults
        assert [*(widget for widget, *_ in held), *newer] == names, f"{node['type']} has other widgets"
        assert not newer or comfy_host.find().name != comfy_host.BUNDLE.replace("==", "-"), newer
        controls = sum(bool(options.get("control_after_generate")) for _, _, options, _ in held)
        assert len(node.get("widgets_values", ())) == len(held) + controls, node["type"]
        for widget, kind, options, value in held:
            problem = trouble(kind, options, value)
            assert not problem, f"{node['type']}.{widget} = {value!r}: {problem}"


def trouble(kind, options, value):
    """What is wrong with a widget's value, if anything."""
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options["options"]
        return None if value in choices else f"not one of {choices}"
    if kind == "COMFY_DYNAMICCOMBO_V3":
        return None if value in [option["key"] for option in options["options"]] else f"not one of {options}"
    kind = options.get("widgetType", kind)
    types = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "BOOLEAN"):
        return f"no {kind}"
    if kind in ("INT", "FLOAT") and not options.get("min", value) <= value <= options.get("max", value):
        return f"outside {options['min']} to {options['max']}"
    if kind == "INT" and (value - options.get("min", 0)) % options.get("step", 1):
        return f"no multiple of {options['step']}"
    return None


@every_workflow
def test_links_agree_at_both_ends(known, name):
    """The browser drops a link whose ends disagree, without a word."""
    workflow = WORKFLOWS[name]
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link[1:] for link in workflow["links"]}
    assert len(nodes) == len(workflow["nodes"]) and max(nodes) <= workflow["last_node_id"]
    assert len(links) == len(workflow["links"]) and max(links) <= workflow["last_link_id"]
    for number, (source, output, target, slot, kind) in links.items():
        sender, receiver = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert number in sender["links"] and receiver["link"] == number
        assert kind == sender["type"] and receiver["type"] in (kind, "*")
    for node in nodes_of(workflow):
        info = known[node["type"]]
        assert [output["type"] for output in node["outputs"]] == info["output"][: len(node["outputs"])]
        assert all(number in links for output in node["outputs"] for number in output["links"] or ())
        sockets = {socket["name"]: socket for socket in node["inputs"]}
        for input_, kind, _, is_widget in inputs_of(info["input"]):
            if input_ in sockets:
                assert sockets[input_]["type"] in ("COMBO" if isinstance(kind, list) else kind).split(",")
                assert ("widget" in sockets[input_]) == is_widget
            if input_ in info["input"].get("required", {}) and not is_widget:
                assert sockets[input_]["link"] is not None, f"{node['type']}.{input_} would be red"


@every_workflow
def test_its_layout_is_tidy(name):
    """Nodes that lie on one another, or half out of their group, cannot be read."""
    workflow = WORKFLOWS[name]
    boxes = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[f"{node['type']} {node['id']}"] = (x, y - TITLE, x + width, y + height)
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not overlap(box, other), f"{a} lies on {b}"
    groups = {group["title"]: corners(*group["bounding"]) for group in workflow["groups"]}
    for (a, box), (b, other) in itertools.combinations(groups.items(), 2):
        assert not overlap(box, other), f"the groups {a} and {b} overlap"
    for label, box in boxes.items():
        around = [group for group, outline in groups.items() if overlap(box, outline)]
        assert all(encloses(groups[group], box) for group in around), f"{label} sticks out of {around}"
        assert around or not groups or label.startswith(NOTES), f"{label} is in no group"


def corners(x, y, width, height):
    return x, y, x + width, y + height


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def encloses(outer, inner):
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


@pytest.mark.parametrize("name", WITH_MODELS)
def test_the_note_links_every_file(name):
    workflow = WORKFLOWS[name]
    (text,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    links = re.findall(r"- models/(\w+): \[([^]]+)\]\((https://\S+)\)", text)
    noted = {(model["directory"], model["name"], model["url"]) for model in model_files(workflow)}
    assert set(links) == noted and len(links) == len(noted)
    assert all(url.endswith(f"/{file}") for _, file, url in links)


@pytest.mark.parametrize("name", WITH_MODELS)
def test_the_server_accepts_it(served, known, name):
    """With all files there, the prompt is not refused; what fails is the loading, as the files hold nothing."""
    with pytest.raises(ServerError) as failure:
        served.run(to_prompt(WORKFLOWS[name], served.object_info))
    assert "deserializing header" in str(failure.value), failure.value


@pytest.mark.parametrize("name", WITH_MODELS)
def test_it_runs_and_skips(served, known, name):
    """Everything but the loaders as in the workflow, with its own steps, on tiny latents."""
    prompt = to_prompt(WORKFLOWS[name], served.object_info)
    use_tiny_models(WORKFLOWS[name], prompt)
    (size,) = set(shrink(prompt))
    caches = [node["inputs"] for node in prompt.values() if node["class_type"] == "EasyCacheAdaptive"]
    for settings in caches:
        # Networks with random weights are rougher than trained ones.
        settings["threshold"] = min(settings["threshold"] * 10, 1.0)
    saved, lines = served.run(prompt)
    runs = [re.match(r"EasyCache: computed (\d+) of (\d+) evaluations, skipped (\d+)", line) for line in lines]
    assert len(runs) == len(caches), lines
    steps = [node["inputs"]["steps"] for node in prompt.values() if "steps" in node["inputs"]]
    assert sum(int(run[2]) for run in runs) == steps[0], "each step is one evaluation"
    for run, settings in zip(runs, caches, strict=True):
        computed, evaluations, skipped = map(int, run.groups())
        assert skipped > 0, run.string
        if settings["target_speedup"]:
            assert computed <= math.ceil(evaluations / settings["target_speedup"])
    (content,) = saved
    assert measured(content) == size


def use_tiny_models(workflow, prompt):
    """Put the loaders of tests/support/tiny_loaders.py into a prompt."""
    names = [model["name"] for model in model_files(workflow)]
    (family,) = {family for start, family in FAMILIES.items() for name in names if name.startswith(start)}
    seeds = Counter()
    for node in workflow["nodes"]:
        if "models" in node["properties"]:
            seeds[node["type"]] += 1
            loader = prompt[str(node["id"])]
            loader["class_type"] = f"Tiny{node['type']}"
            loader["inputs"] = {"family": family, "seed": seeds[node["type"]]}


def shrink(prompt):
    """Make latents of the least size, and yield what comes of each: (frames, width, height)."""
    for node in prompt.values():
        inputs = node["inputs"]
        if "frames_number" in inputs:
            inputs["frames_number"] = 9
        if "width" in inputs and "height" in inputs:
            is_video = "length" in inputs
            inputs.update(dict(width=64, height=64, length=9) if is_video else dict(width=128, height=128))
            yield inputs.get("length", 1), inputs["width"], inputs["height"]


def measured(content):
    """(frames, width, height) of a saved picture or video."""
    if content.startswith(b"\x89PNG"):
        return 1, *Image.open(io.BytesIO(content)).size
    with av.open(io.BytesIO(content)) as video:
        frames = list(video.decode(video=0))
        return len(frames), frames[0].width, frames[0].height
