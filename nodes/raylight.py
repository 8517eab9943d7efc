"""EasyCache for Raylight, which spreads sampling over several GPUs: the cache is put into each worker's model.

Raylight (komikndr/raylight) runs a Ray actor for each GPU, with a ComfyUI model of its own; its samplers take the
actors and no MODEL. What a node wants to do to the model it sends to all of them, as a function of the model. There the
cache is EasyCache (Adaptive)'s, and ranks decide together, as they do wherever torch.distributed is initialised.
"""

import importlib.util
import logging
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..easycache_core import Ranks
from .adaptive import EasyCacheAdaptive
from .patch import remove_cache

log = logging.getLogger("easycache")
PACK = Path(__file__).resolve().parents[1]
RayActors = io.Custom("RAY_ACTORS")


def raylight_is_installed() -> bool:
    """Whether Ray is there and Raylight among the custom nodes, which may be loaded after this pack."""
    if importlib.util.find_spec("ray") is None:
        return False
    folders = map(Path, folder_paths.get_folder_paths("custom_nodes"))
    return any(any(folder.glob("*/src/raylight/__init__.py")) for folder in folders)


class EasyCacheRaylight(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EasyCacheRaylight",
            display_name="EasyCache (Raylight)",
            category="EasyCache",
            description="EasyCache (Adaptive) for Raylight: speeds up sampling on several GPUs by skipping network "
            "evaluations whose result can be predicted. Put it between Raylight's loader and its sampler.",
            inputs=[
                RayActors.Input(
                    "ray_actors",
                    tooltip="Raylight's workers with their model, as its sampler would get them. The model in them is "
                    "patched, and stays so until it is loaded anew: to turn the cache off again, set threshold and "
                    "target_speedup to 0.",
                ),
                *EasyCacheAdaptive.define_schema().inputs[1:],
            ],
            outputs=[RayActors.Output(tooltip="The same workers. Connect them to Raylight's sampler.")],
        )

    @classmethod
    def execute(cls, ray_actors, **widgets) -> io.NodeOutput:
        import ray

        workers = ray_actors["workers"]
        layout = ray.get(workers[0].get_parallel_dict.remote())
        if layout.get("pipefusion_enabled"):  # a call leaves activations for the next one
            log.warning("EasyCache: with PipeFusion no evaluation can be skipped; the workers are left as they are")
            return io.NodeOutput(ray_actors)
        patch = _to_send(str(PACK), widgets, replicas(workers, layout))
        ray.get([worker.model_function_runner.remote(patch) for worker in workers])
        return io.NodeOutput(ray_actors)


def replicas(workers: list, layout: dict) -> list[list[int]]:
    """The ranks of each replica that samples something of its own, [] where all sample together.

    layout: how Raylight spreads the work. It may give each replica a process group, which then is all there is.
    """
    if layout.get("use_group_process_group"):
        return []
    import ray

    members: dict[int, list[int]] = {}
    for about in ray.get([worker.get_exec_group_info.remote() for worker in workers]):
        members.setdefault(about["dp_rank"], []).append(about["global_rank"])
    return [sorted(ranks) for _, ranks in sorted(members.items())] if len(members) > 1 else []


def _to_send(pack: str, widgets: dict, replicas: list[list[int]]):
    """A function of the model that Ray can send. A worker has not loaded the pack; it may lie elsewhere there."""

    def patch(model):
        import importlib
        import importlib.util
        import os
        import sys
        from pathlib import Path

        name = "easycache_in_worker"
        if name not in sys.modules:
            folder = Path(pack)
            if not folder.is_dir():
                folder = Path(os.environ.get("COMFYUI_BASE_DIRECTORY", "."), "custom_nodes", folder.name)
            spec = importlib.util.spec_from_file_location(
                name, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return importlib.import_module(f"{name}.nodes.raylight").with_cache_here(model, widgets, replicas)

    return patch


def with_cache_here(model, widgets: dict, replicas: list[list[int]]):
    """In a worker: its model with the cache. replicas: as from there."""
    _log_from_here()
    model = model.clone()
    remove_cache(model)  # the node may have been here before
    cached = EasyCacheAdaptive.execute(model, **widgets).result[0]
    options = dict(cached.model_options["transformer_options"])
    options.pop("easycache_ranks", None)
    if replicas:
        options["easycache_ranks"] = _ranks_among(tuple(map(tuple, replicas)))
    cached.model_options["transformer_options"] = options
    return cached


_groups: dict = {}  # process groups by replicas; each takes all ranks to make


def _ranks_among(replicas: tuple[tuple[int, ...], ...]) -> Ranks | None:
    """Who decides together with this rank."""
    import torch.distributed as dist

    if replicas not in _groups:
        _groups[replicas] = {members: dist.new_group(list(members)) for members in replicas}
    (mine,) = (members for members in replicas if dist.get_rank() in members)
    return Ranks(group=_groups[replicas][mine]) if len(mine) > 1 else None


def _log_from_here() -> None:
    """Ray shows what its workers print; nobody has set up logging in them. One of them says what happened."""
    import torch.distributed as dist

    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())
    first = not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0
    log.setLevel(logging.INFO if first else logging.WARNING)
