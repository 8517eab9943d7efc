"""The pack's ComfyUI nodes, and the patch that puts the engine into a MODEL."""

from comfy_api.latest import ComfyExtension, io

from .adaptive import EasyCacheAdaptive
from .compare import EasyCacheCompare
from .demo import EasyCacheDemoDecode, EasyCacheDemoModel
from .raylight import EasyCacheRaylight, raylight_is_installed
from .report import EasyCacheReport


class EasyCacheExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [EasyCacheAdaptive, EasyCacheReport, EasyCacheCompare, EasyCacheDemoModel, EasyCacheDemoDecode]
        return [*nodes, EasyCacheRaylight] if raylight_is_installed() else nodes
