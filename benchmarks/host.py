"""A real ComfyUI in this process, with this pack loaded by ComfyUI's own loader."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import comfy_host  # noqa: E402


class Host:
    """Runs ComfyUI's nodes. base: an empty folder for ComfyUI's own files. cpu: or else the GPU, all of it."""

    def __init__(self, base: Path, cpu: bool = True):
        folder = comfy_host.import_comfy(base, ["--cpu"] if cpu else ["--gpu-only"])
        import comfy.utils
        import torch

        import nodes

        comfy.utils.PROGRESS_BAR_ENABLED = False

        async def load():
            await nodes.init_builtin_extra_nodes()
            if not await nodes.load_custom_node(str(folder), ignore=set(nodes.NODE_CLASS_MAPPINGS)):
                raise RuntimeError("ComfyUI could not load the pack")

        asyncio.run(load())
        self._classes, self._inference_mode = nodes.NODE_CLASS_MAPPINGS, torch.inference_mode

    @staticmethod
    def load(folder: Path) -> None:
        """Load another pack, as ComfyUI does at its start."""
        import server

        import nodes

        async def load():
            if getattr(server.PromptServer, "instance", None) is None:  # packs add routes to it
                server.PromptServer(asyncio.get_running_loop())
            return await nodes.load_custom_node(str(folder), ignore=set(nodes.NODE_CLASS_MAPPINGS))

        if not asyncio.run(load()):
            raise RuntimeError(f"ComfyUI could not load {folder}")

    def node_class(self, kind: str) -> type:
        """The class of a node, as ComfyUI loaded it."""
        return self._classes[kind]

    def module(self, name: str) -> ModuleType:
        """As comfy_host.loaded_module has it."""
        return comfy_host.loaded_module(self._classes, name)

    def node(self, kind: str, *args, **widgets):
        """A node's outputs; widgets that are left out have their defaults."""
        cls = self._classes[kind]
        v3 = hasattr(cls, "define_schema")
        if widgets:
            for name, (_, *options) in cls.INPUT_TYPES().get("required", {}).items():
                if name not in widgets and options and "default" in options[0]:
                    widgets[name] = options[0]["default"]
        with self._inference_mode():  # as ComfyUI does
            outputs = cls.execute(*args, **widgets) if v3 else getattr(cls(), cls.FUNCTION)(*args, **widgets)
        return getattr(outputs, "result", outputs)
