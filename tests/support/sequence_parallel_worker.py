"""One of two ranks that sample one latent with diffusers' sequence parallelism (Ulysses), with the cache attached.

python sequence_parallel_worker.py RANK PORT FOLDER, with a TCPStore at that port. Writes down as JSON, by settings: how
often the network ran, the speed-up that is reported, and the latent.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from diffusers import ContextParallelConfig, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel  # noqa: E402

from easycache_core import CacheConfig, attach  # noqa: E402

RANKS, STEPS = 2, 16
SETTINGS = {
    "threshold": CacheConfig(threshold=0.2, warmup_steps=3),
    "budget": CacheConfig(target_speedup=2.0),
}


def main(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    noise, text = torch.randn(1, 4, 2, 16, 16), torch.randn(1, 8, 16)
    calls, scheduler = [], FlowMatchEulerDiscreteScheduler(shift=3.0)
    network.blocks[0].register_forward_pre_hook(lambda *_: calls.append(None))

    @torch.no_grad()
    def sample() -> dict:
        calls.clear()
        x = noise.clone()
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            velocity = network(x, t.expand(1), text, return_dict=False)[0]
            x = scheduler.step(velocity, t, x, return_dict=False)[0]
        return {"calls": len(calls), "latent": x.flatten().tolist()}

    seen = {"alone": sample()}
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it, and a CPU is no accelerator
    network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
    seen["parallel"] = sample()
    options = dict(sigma_of=lambda t: t / 1000, scheduler=scheduler)
    for name, config in SETTINGS.items():
        with attach(network, config, total_steps=STEPS, **options) as cache:
            seen[name] = sample() | {"speedup": cache.speedup}
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
