"""The cache on networks that nobody here trained: galaxygrad's score networks of galaxies, which are written in JAX.

    python -m venv galaxies && galaxies/bin/pip install torch numpy galaxygrad==0.2.1
    galaxies/bin/python benchmarks/galaxies.py

It needs PyPI's galaxygrad 0.2.1 with its JAX and equinox, beside torch; nothing of ComfyUI. The package states no
licence, so nothing of it is part of this project. Two of its networks, HSC_ScoreNet64 and LSST_ScoreNet60, are wrapped
as a torch.nn.Module and sampled with and without `easycache_core.attach`: the probability flow of their own process
(variance kept, beta 1, from t = 10 to 0), by Euler's method on the denoised picture. Each run is held against the
uncached one of as many steps, and against 1,000 uncached steps; fewer steps against the same. Rows go to
results/galaxies.csv.
"""

import argparse
import importlib.util
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import records
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from easycache_core import CacheConfig, attach  # noqa: E402
from easycache_core.response import euler_response  # noqa: E402

LAST_TIME = 10.0  # of their noising process
FIRST_TIME = 1e-3  # below it nothing is left to remove
MANY = 1000  # steps
# pixels of a side, and the file of the weights
NETWORKS = {"HSC_ScoreNet64": (64, "eqx_hsc_ScoreNet64.eqx"), "LSST_ScoreNet60": (60, "eqx_lsst_ScoreNet60.eqx")}
SPEEDUPS = (1.5, 2.2, 3.4)
CONFIGS = {
    **{f"target_speedup {s:g}": CacheConfig(target_speedup=s) for s in SPEEDUPS},
    "threshold 0.15": CacheConfig(),
    **{f"reuse, target_speedup {s:g}": CacheConfig(target_speedup=s, predictor="reuse") for s in SPEEDUPS},
    "reuse, threshold 0.05": CacheConfig(threshold=0.05, warmup_steps=5, predictor="reuse"),
}


class Network(torch.nn.Module):
    """A score network of the package: x (batch, 1, side, side) and t, a number, to the noise in x.

    The package returns the score, -noise / deviation. attach knows predictions of noise.
    """

    def __init__(self, side: int, file: str):
        super().__init__()
        import equinox
        import jax

        # The package itself cannot be imported where capital letters in names of files count: it asks for a
        # eqx_roman_ScoreNet120.eqx, and brings a eqx_roman_Scorenet120.eqx. So its network's class is loaded alone.
        folder = Path(importlib.util.find_spec("galaxygrad").submodule_search_locations[0])
        spec = importlib.util.spec_from_file_location("galaxygrad_models", folder / "models_eqx.py")
        package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
        empty = package.ScoreNet((1, side, side), 4, 64, 512, 512, 4, LAST_TIME, key=jax.random.PRNGKey(0))
        trained = equinox.tree_deserialise_leaves(folder / file, empty)
        self._score = jax.jit(jax.vmap(trained, in_axes=(0, None)))
        self._from_torch = jax.dlpack.from_dlpack

    def forward(self, x: torch.Tensor, t: float) -> torch.Tensor:
        score = torch.from_dlpack(self._score(self._from_torch(x.contiguous()), t))
        return score * -math.sqrt(-math.expm1(-t))


def sigma_of(t: float) -> float:
    """Noise over signal."""
    return math.sqrt(math.expm1(t))


def sample(network, side: int, steps: int, seed: int, count: int) -> torch.Tensor:
    """(count, 1, side, side) pictures, in the networks' own scale."""
    x = torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(seed))
    times = schedule(steps)
    for t, following in zip(times, [*times[1:], 0.0], strict=True):
        noise, sigma, less = network(x, t), sigma_of(t), sigma_of(following)
        denoised = x * math.sqrt(1 + sigma * sigma) - sigma * noise
        x = (denoised + less * noise) / math.sqrt(1 + less * less)
    return x


def schedule(steps: int) -> list[float]:
    """Times from 10 to 0.001, evenly in the seventh root of the noise level, as in Karras et al."""
    first, last = sigma_of(LAST_TIME) ** (1 / 7), sigma_of(FIRST_TIME) ** (1 / 7)
    levels = [(first + i / max(steps - 1, 1) * (last - first)) ** 7 for i in range(steps)]
    return [math.log1p(sigma * sigma) for sigma in levels]


def closeness(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """Signal to noise in dB, the mean over the pictures."""
    error = (candidate - reference).double().square().mean((1, 2, 3))
    signal = reference.double().var((1, 2, 3), correction=0)
    return float((10 * (signal / error.clamp(min=1e-12 * signal)).log10()).mean())


@dataclass(frozen=True)
class Row:
    """to_uncached: dB, of the run of as many uncached steps. to_many: of 1,000."""

    network: str
    steps: int
    way: str
    seed: int
    computed: int
    to_uncached: float | None
    to_many: float


def measure(name: str, lengths: list[int], seed: int, count: int) -> list[Row]:
    side, file = NETWORKS[name]
    network, rows = Network(side, file), []

    def run(steps):
        return sample(network, side, steps, seed, count)

    many = run(MANY)
    for steps in lengths:
        uncached = run(steps)
        response = euler_response([*map(sigma_of, schedule(steps)), 0.0])
        options = dict(sigma_of=sigma_of, prediction="epsilon", response=response)

        def row(way, computed, pictures, steps=steps, uncached=uncached):
            to_uncached = None if pictures is uncached else round(closeness(uncached, pictures), 2)
            rows.append(Row(name, steps, way, seed, computed, to_uncached, round(closeness(many, pictures), 2)))
            print(*asdict(rows[-1]).values(), flush=True)

        row("uncached", steps, uncached)
        for way, config in CONFIGS.items():
            with attach(network, config, total_steps=steps, **options) as cache:
                pictures = run(steps)
            row(way, cache.computed, pictures)
        for speedup in SPEEDUPS:
            fewer = math.ceil(steps / speedup - 1e-9)
            row("fewer steps", fewer, run(fewer))
    return rows


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--steps", nargs="+", type=int, default=[20, 50, 200])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=8, help="per seed")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "galaxies.csv")
    args = parser.parse_args()
    if importlib.util.find_spec("galaxygrad") is None:
        raise SystemExit("this needs `pip install galaxygrad==0.2.1` in the same environment")
    cases = [(name, args.steps, seed) for name in args.networks for seed in range(args.seeds)]
    rows = [row for case in cases for row in measure(*case, args.pictures)]
    records.write(args.results, Row, rows)


if __name__ == "__main__":
    main()
