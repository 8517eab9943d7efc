"""ComfyUI's side of the pack: node definitions and the patch that puts the engine into a MODEL."""

from comfy_api.latest import ComfyExtension, io

from .adaptive import EasyCacheAdaptive
from .demo import EasyCacheDemoDecode, EasyCacheDemoModel


class EasyCacheExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [EasyCacheAdaptive, EasyCacheDemoModel, EasyCacheDemoDecode]
