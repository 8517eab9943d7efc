"""ComfyUI-ODE: solvers of torchdiffeq, which draw one picture of a batch after the other. Needs torchdiffeq."""

import torch
from works_with import Case

from . import common

FOLDER = "ComfyUI-ODE"


def cases(host):
    scene = common.video(host)
    for solver in ("rk4", "bosh3", "euler"):
        yield Case(f"video, {solver}", *common.custom(host, scene, sampler=select(host, solver)))
    scene = common.answering(common.tiny("SD15"))
    scene = scene._replace(latent={"samples": torch.zeros(2, 4, 16, 16)})
    yield Case("SD15, rk4, two pictures", *common.custom(host, scene, sampler=select(host, "rk4")))


def select(host, solver):
    return host.node(
        "ODESamplerSelect", solver=solver, log_relative_tolerance=-2.5, log_absolute_tolerance=-3.5, max_steps=100
    )[0]  # fmt: skip
