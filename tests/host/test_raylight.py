"""EasyCache (Raylight) with real Ray actors, two on this machine's CPU (support/ray_worker.py)."""

import asyncio
import os
import socket
from pathlib import Path

import comfy_host
import pytest

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(400)

TOGETHER = dict(dp_degree=1)
REPLICAS = dict(dp_degree=2)
APART = dict(threshold=0.2, warmup_steps=3)  # alone the two decide differently


@pytest.fixture(scope="module")
def node(comfy):
    """The module; ComfyUI registers its node only beside Raylight."""
    return comfy.module("nodes.raylight")


@pytest.fixture(scope="module")
def two_workers(comfy, tmp_path_factory):
    """Raylight's `ray_actors`."""
    import ray_worker

    support = comfy_host.PACK / "tests" / "support"
    path = os.pathsep.join([str(comfy_host.find()), str(support), str(comfy_host.PACK / "tools")])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COMFYUI_PATH": str(comfy_host.find())}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kind, folder = ray.remote(num_cpus=1)(ray_worker.Worker), tmp_path_factory.mktemp("workers")
    yield {"workers": [kind.remote(rank, 2, port, str(folder)) for rank in range(2)]}
    ray.shutdown()


@pytest.fixture
def workers(two_workers):
    """workers(layout): both, with a model that the node has not been at."""

    def workers(layout):
        for worker in two_workers["workers"]:
            ray.get([worker.set_parallel_dict.remote(layout), worker.load.remote()])
        return two_workers

    return workers


def sampled(actors):
    return ray.get([worker.sample.remote() for worker in actors["workers"]])


def test_the_workers_sample_with_one_cache_and_decide_together(node, workers):
    """Catches a cache that does not reach the workers, ranks that part (a GPU would wait for ever), and a node that
    leaves a second cache when it is run again.
    """
    actors = workers(TOGETHER)
    everywhere = sampled(actors)
    assert [len(levels) for levels in everywhere] == [16, 16]
    for widgets in (dict(target_speedup=2.0), APART):
        assert node.EasyCacheRaylight.execute(actors, **widgets).result == (actors,)
        first, second = sampled(actors)
        assert first == second and len(first) < 16
    assert ray.get([worker.num_caches.remote() for worker in actors["workers"]]) == [1, 1]
    node.EasyCacheRaylight.execute(actors, threshold=0.0)
    assert sampled(actors) == everywhere, "threshold 0 turns it off again"


def test_replicas_decide_alone(node, workers):
    """Data parallelism: each samples something else. Catches replicas that wait for each other at every step."""
    actors = workers(REPLICAS)
    node.EasyCacheRaylight.execute(actors, **APART)
    first, second = sampled(actors)
    assert len(first) < 16 and first != second


def test_pipefusion_is_left_alone(node, workers, caplog):
    """There a call leaves activations for the next. Catches pictures that are spoilt without a word."""
    actors = workers(TOGETHER | dict(pipefusion_enabled=True))
    node.EasyCacheRaylight.execute(actors, target_speedup=2.0)
    assert ray.get(actors["workers"][0].num_caches.remote()) == 0
    assert "PipeFusion" in caplog.text


def test_it_is_registered_only_beside_raylight(comfy, node, tmp_path, monkeypatch):
    """A node whose sockets nothing fits would only be in the way. Raylight may be loaded later than this pack."""
    import folder_paths

    extension = comfy.module("nodes").EasyCacheExtension()

    def registered():
        return {one.GET_SCHEMA().node_id for one in asyncio.run(extension.get_node_list())}

    assert "EasyCacheRaylight" not in registered()
    package = Path(tmp_path) / "custom_nodes" / "raylight" / "src" / "raylight"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(tmp_path / kind)])
    assert "EasyCacheRaylight" in registered()


def test_its_widgets_are_those_of_the_other_node(comfy, node):
    """Presets, docs and saved values hold for both."""
    ours = node.EasyCacheRaylight.GET_NODE_INFO_V1()["input"]
    assert list(ours["required"]) == ["ray_actors"] and ours["required"]["ray_actors"][0] == "RAY_ACTORS"
    assert ours["optional"] == comfy.classes["EasyCacheAdaptive"].GET_NODE_INFO_V1()["input"]["optional"]
