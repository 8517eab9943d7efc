"""One of two ranks, each a real ComfyUI with the pack, that sample together; writes down what it saw as JSON.

python comfy_rank_worker.py RANK PORT FOLDER, with a TCPStore at that port. Noise and guidance are each rank's own, so
that it would decide differently alone.
"""

import asyncio
import json
import sys
from datetime import timedelta
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

import comfy_host  # noqa: E402

RANKS, STEPS = 2, 16


class Worker:
    """A ComfyUI with the bundled model, on a tenth of its latent, behind an EasyCache (Adaptive) node."""

    def __init__(self, rank, base):
        self.rank = rank
        pack = comfy_host.import_comfy(base)
        import torch

        import nodes

        torch.set_num_threads(1)
        asyncio.run(nodes.load_custom_node(str(pack)))
        self._classes = nodes.NODE_CLASS_MAPPINGS
        scene = self._classes["EasyCacheDemoModel"].execute("rocket", "night", "zoom-out", 1)
        self.model, self.positive, self.negative, latent = scene.result
        self.latent = {"samples": latent["samples"][:, :, :2, :8, :8]}

    def run(self, *, network=lambda calls: None, options=None, **widgets):
        """The flags of one run, or what it failed with. network: called at each call of the network, with their
        number. options: further transformer options.
        """
        node = self._classes["EasyCacheAdaptive"]
        model = node.execute(**{**_defaults(node), "model": self.model, **widgets}).result[0]
        model.model_options["transformer_options"] = {**model.model_options["transformer_options"], **(options or {})}
        calls = []

        def hook(module, args):
            calls.append(None)
            network(len(calls))

        handle = self.model.model.diffusion_model.register_forward_pre_hook(hook)
        try:
            self._classes["KSampler"]().sample(
                model,
                self.rank,
                STEPS,
                2.0 + 5 * self.rank,
                "euler",
                "simple",
                self.positive,
                self.negative,
                self.latent,
            )
        except BaseException as error:
            return {"failed": f"{type(error).__name__}: {error}"}
        finally:
            handle.remove()
        history = model.get_wrappers("outer_sample", "easycache_adaptive")[-1].history
        return {"flags": [record["computed"] for record in history.last["trace"]]}


def _defaults(cls):
    return {name: widget[0]["default"] for name, (_, *widget) in cls.INPUT_TYPES()["required"].items()
            if widget and "default" in widget[0]}  # fmt: skip


def main(rank, port, folder):
    worker = Worker(rank, folder / f"comfyui {rank}")
    import comfy.model_management as management
    import torch
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))

    def stop(calls):
        if rank == 1 and calls == 6:
            raise management.InterruptProcessingException

    def no_room(calls):
        if rank == 1 and calls == 6:
            raise torch.cuda.OutOfMemoryError("no room")

    seen = {}
    for predictor in ("reuse", "forecast"):
        widgets = dict(predictor=predictor, threshold=0.06, warmup_steps=3)
        seen[f"{predictor} alone"] = worker.run(options={"easycache_ranks": None}, **widgets)
        seen[f"{predictor} together"] = worker.run(**widgets)
    seen["stopped"] = worker.run(network=stop, threshold=0.0)
    seen["out of memory"] = worker.run(network=no_room, threshold=0.0)
    seen["afterwards"] = worker.run(target_speedup=2.0)
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
