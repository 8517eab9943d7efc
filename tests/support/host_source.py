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
