"""What ComfyUI's node list says about the pack."""

import ast
import importlib
import json

import comfy_host
import pytest

WIDGETS = {
    "threshold": ("FLOAT", dict(default=0.15, min=0.0, max=1.0, step=0.005, display="slider")),
    "warmup_steps": ("INT", dict(default=2, min=1, max=50, display="slider")),
    "predictor": ("COMBO", dict(default="forecast", options=["reuse", "forecast"])),
    "target_speedup": ("FLOAT", dict(default=0.0, min=0.0, max=10.0, step=0.1)),
    "max_consecutive_skips": ("INT", dict(default=0, min=0, max=50)),
    "start_percent": ("FLOAT", dict(default=0.0, min=0.0, max=1.0, step=0.01)),
    "end_percent": ("FLOAT", dict(default=1.0, min=0.0, max=1.0, step=0.01)),
    "cache_device": ("COMBO", dict(default="gpu", options=["gpu", "cpu"])),
    "verbose": ("BOOLEAN", dict(default=False)),
}


def test_the_pack_loads_beside_the_built_in_node(comfy):
    """Catches an id that the built-in owns: ComfyUI drops such a node without a word."""
    assert comfy.pack_loaded
    assert comfy.classes["EasyCache"] is not comfy.classes["EasyCacheAdaptive"]
    assert comfy.display_names["EasyCache"] == "EasyCache", "the built-in's name must stay its own"
    names = {node: comfy.display_names[node] for node in comfy.classes if node.startswith("EasyCache")}
    assert names == {
        "EasyCache": "EasyCache",
        "EasyCacheAdaptive": "EasyCache (Adaptive)",
        "EasyCacheReport": "EasyCache Report",
        "EasyCacheCompare": "EasyCache Compare",
        "EasyCacheDemoModel": "EasyCache Demo Model",
        "EasyCacheDemoDecode": "EasyCache Demo Decode",
    }


def test_widgets_in_their_order(comfy):
    """Workflows store widget values by position: an order that changes breaks everyone's."""
    info = comfy.classes["EasyCacheAdaptive"].GET_NODE_INFO_V1()
    assert list(info["input"]["required"]) == ["model"], "saved prompts may lack what came later"
    inputs = info["input"]["optional"]
    assert list(inputs) == list(WIDGETS)
    for name, (kind, expected) in WIDGETS.items():
        assert inputs[name][0] == kind
        assert {key: inputs[name][1][key] for key in expected} == expected
    assert info["category"] == "EasyCache" and info["output"] == ["MODEL"]


def test_what_only_newer_hosts_know(comfy):
    """Few inputs on top and names to be found by, where the host has that; where it has not, the pack loads still."""
    features = importlib.import_module(f"{comfy_host.load_pack().__name__}.nodes.host_features")
    assert features.known_to(lambda a, b=0: a, b=1, advanced=True) == {"b": 1}
    info = comfy.classes["EasyCacheAdaptive"].GET_NODE_INFO_V1()
    advanced = [name for name, spec in info["input"]["optional"].items() if spec[1].get("advanced")]
    on_top = {"threshold", "warmup_steps", "target_speedup"}
    assert advanced in ([], [name for name in WIDGETS if name not in on_top])
    if "search_aliases" in info:
        assert {"TeaCache", "MagCache", "faster"} <= set(info["search_aliases"])


SOCKETS = {
    "EasyCacheReport": (["model", "latent"], ["LATENT", "IMAGE", "STRING"], ["latent", "plot", "report"]),
    "EasyCacheCompare": (
        ["reference", "candidate"],
        ["FLOAT", "FLOAT", "IMAGE", "STRING"],
        ["psnr", "ssim", "difference", "report"],
    ),
}


@pytest.mark.parametrize("node", SOCKETS)
def test_sockets_in_their_order(comfy, node):
    """Workflows store links by position."""
    info = comfy.classes[node].GET_NODE_INFO_V1()
    assert (list(info["input"]["required"]), info["output"], info["output_name"]) == SOCKETS[node]
    assert info["category"] == "EasyCache"


@pytest.mark.parametrize(
    "node", ["EasyCacheAdaptive", "EasyCacheReport", "EasyCacheCompare", "EasyCacheDemoModel", "EasyCacheDemoDecode"]
)
def test_every_socket_has_a_tooltip(comfy, node):
    info = comfy.classes[node].GET_NODE_INFO_V1()
    for section in ("required", "optional"):
        for name, spec in info["input"].get(section, {}).items():
            assert len(spec[1].get("tooltip", "")) > 10, name
    assert all(info["output_tooltips"])


def test_the_example_workflow_fits_the_nodes(comfy):
    """A workflow saved before a widget was added would put values into the wrong widgets."""
    workflow = json.loads((comfy_host.PACK / "workflows" / "EasyCache - instant demo.json").read_text("utf-8"))
    links = {link[0]: link for link in workflow["links"]}
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    for node in workflow["nodes"]:
        if node["type"] == "EasyCacheAdaptive":
            assert len(node["widgets_values"]) == len(WIDGETS)
            for value, (_, spec) in zip(node["widgets_values"], WIDGETS.values(), strict=True):
                assert spec.get("min", value) <= value <= spec.get("max", value)
        for slot, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                assert links[socket["link"]][3:5] == [node["id"], slot]
    samplers = [node for node in workflow["nodes"] if node["type"] == "KSampler"]
    sources = sorted(kinds[links[node["inputs"][0]["link"]][1]] for node in samplers)
    assert sources == ["EasyCacheAdaptive", "ModelSamplingSD3"], "one sampler uncached, one cached"
    assert len({json.dumps(node["widgets_values"]) for node in samplers}) == 1, "alike but for the cache"


def test_the_pack_knows_no_model(comfy):
    """What works by knowing a model breaks with the next one. Catches imports of networks and of their classes."""
    imported = set()
    for file in [*(comfy.pack_folder / "nodes").glob("*.py"), *(comfy.pack_folder / "easycache_core").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert any(name.startswith("comfy.") for name in imported), "otherwise nothing was looked at"
    of_models = ("comfy.ldm", "comfy.model_base", "comfy.supported_models", "comfy.text_encoders", "comfy.cldm")
    assert not [name for name in imported if name.startswith(of_models)]
