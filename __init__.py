"""ComfyUI-EasyCache: training-free caching that makes diffusion models sample faster."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI calls this once at start-up to learn the pack's nodes (comfy_api.latest)."""
    from .nodes import EasyCacheExtension
    from .nodes.known_runs import send_known_runs_to_browsers

    send_known_runs_to_browsers()
    return EasyCacheExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
