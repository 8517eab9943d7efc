"""Write locales/en/nodeDefs.json: the nodes' names and tooltips from their code, for translators to start from.

`python tools/node_texts.py`; a test fails while the file differs from the code.
"""

import asyncio
import json
import tempfile
from pathlib import Path

import comfy_host

ENGLISH = comfy_host.PACK / "locales" / "en" / "nodeDefs.json"


def texts_of(info: dict) -> dict:
    """The texts by node id, as ComfyUI's frontend looks them up. info: by node id, as in /object_info."""
    return {name: _texts(node) for name, node in info.items()}


def _texts(node: dict) -> dict:
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {name: {"name": name, "tooltip": spec[1]["tooltip"]} for name, spec in inputs.items()},
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


def as_file(texts: dict) -> str:
    return json.dumps(texts, indent=2, ensure_ascii=False) + "\n"


async def _pack_info() -> dict:
    extension = await comfy_host.load_pack().comfy_entrypoint()
    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in await extension.get_node_list()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as base:
        comfy_host.import_comfy(Path(base))
        ENGLISH.parent.mkdir(parents=True, exist_ok=True)
        ENGLISH.write_text(as_file(texts_of(asyncio.run(_pack_info()))), encoding="utf-8")
    print(f"wrote {ENGLISH}")
