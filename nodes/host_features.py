"""What this ComfyUI knows of, where the pack also runs on older ones."""

import inspect
from collections.abc import Callable


def known_to(call: Callable, **keywords) -> dict:
    """Those of the keyword arguments that `call` takes."""
    taken = inspect.signature(call).parameters
    return {name: value for name, value in keywords.items() if name in taken}
