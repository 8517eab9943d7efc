"""A Ray actor with a ComfyUI and a tiny model on the CPU, which offers what the node uses of Raylight's workers.

Raylight's own (RayWorker, in its distributed_worker/ray_worker.py) needs a GPU. The methods are named and answer as
there: model_function_runner, get_parallel_dict, get_exec_group_info; and set_parallel_dict.
"""

from pathlib import Path

import comfy_host

STEPS = 16


class Worker:
    def __init__(self, rank: int, world: int, port: int, folder: str):
        comfy_host.import_comfy(Path(folder) / f"worker {rank}")
        import tiny_models
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        self.rank, self._world, self._layout = rank, world, {}
        dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"tcp://127.0.0.1:{port}")
        self._scene = tiny_models.build("SD15")
        self.model = self._scene.model

    def model_function_runner(self, fn, *args, **kwargs):
        self.model = fn(self.model, *args, **kwargs)

    def get_parallel_dict(self) -> dict:
        return self._layout

    def set_parallel_dict(self, layout: dict) -> None:
        self._layout = layout

    def get_exec_group_info(self) -> dict:
        replicas = self._layout["dp_degree"]
        return dict(global_rank=self.rank, dp_rank=self.rank * replicas // self._world, dp_degree=replicas)

    def load(self) -> None:
        """The model as it is without the node."""
        self.model = self._scene.model

    def num_caches(self) -> int:
        from comfy.patcher_extension import WrappersMP

        return len(self.model.get_all_wrappers(WrappersMP.OUTER_SAMPLE))

    def sample(self) -> list[float]:
        """The noise levels at which the network ran. Seed and guidance are each rank's own, so that it would decide
        differently alone."""
        import nodes

        scene = self._scene
        _, levels = scene.counting(
            lambda: nodes.KSampler().sample(self.model, self.rank, STEPS, 1.0 + 4 * self.rank, "euler", "simple",
                                            scene.positive, scene.negative, scene.latent)
        )  # fmt: skip
        return levels
