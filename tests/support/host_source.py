"""Lists in the host's source: tests are collected before ComfyUI can be imported, which takes a base folder."""

import ast
from collections.abc import Iterator
from pathlib import Path


def assigned(file: Path, name: str) -> Iterator[ast.expr]:
    """What is assigned or added to a module's variable, in order."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        target = getattr(statement, "target", None) or getattr(statement, "targets", [None])[0]
        if isinstance(target, ast.Name) and target.id == name:
            yield statement.value


def sampler_names(host: Path) -> list[str]:
    """KSampler.SAMPLERS."""
    file, lists = host / "comfy" / "samplers.py", ("KSAMPLER_NAMES", "SAMPLER_NAMES")
    values = [value for name in lists for value in assigned(file, name)]
    return [node.value for names in values for node in ast.walk(names) if isinstance(node, ast.Constant)]


def node_ids(host: Path) -> set[str]:
    """Of the nodes in its comfy_extras, whether they are written with a schema or with a table of classes."""
    found = set()
    for file in (host / "comfy_extras").glob("nodes_*.py"):
        tables = assigned(file, "NODE_CLASS_MAPPINGS")
        found |= {key.value for table in tables for key in table.keys if isinstance(key, ast.Constant)}
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.keyword) and node.arg == "node_id"
            renamed = isinstance(node, ast.Assign) and getattr(node.targets[0], "attr", None) == "node_id"
            if (named or renamed) and isinstance(node.value, ast.Constant):
                found.add(node.value.value)
    return found
