"""The workflows that come with the pack, and what a ComfyUI needs before their files can be chosen."""

import json
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
WORKFLOWS = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(FOLDER.glob("*.json"))}


def model_files(workflow: dict) -> list[dict]:
    """`name`, `url` and `directory` of each model file."""
    return [model for node in workflow["nodes"] for model in node["properties"].get("models", ())]


def add_stand_ins(base: Path) -> None:
    """Put files of all their names, which hold nothing, and a picture into a base folder."""
    for workflow in WORKFLOWS.values():
        for model in model_files(workflow):
            file = base / "models" / model["directory"] / model["name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (base / "input").mkdir(exist_ok=True)
    Image.new("RGB", (96, 80), "teal").save(base / "input" / "example.png")
