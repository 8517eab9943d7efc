"""The pack's ComfyUI nodes, and the patch that puts the engine into a MODEL."""

from comfy_api.latest import ComfyExtension, io

from .adaptive import EasyCacheAdaptive
from .compare import EasyCacheCompare
from .demo import EasyCacheDemoDecode, EasyCacheDemoModel
from .report import EasyCacheReport


class EasyCacheExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [EasyCacheAdaptive, EasyCacheReport, EasyCacheCompare, EasyCacheDemoModel, EasyCacheDemoDecode]
