"""ComfyUI-PainterNodes: a sampler for two models, one after the other."""

import sys
from unittest.mock import MagicMock

from works_with import Case

from . import common

FOLDER = "ComfyUI-PainterNodes"


def prepare():
    sys.modules.setdefault("soundfile", MagicMock())  # which nodes for sound need


def cases(host):
    scene = common.video(host)
    for sampler, nodes in (("euler", 1), ("euler", 2), ("dpmpp_2m", 2)):
        yield Case(f"PainterSampler, {sampler}, {nodes} of ours", scene.model, painter(host, scene, sampler, nodes))


def painter(host, scene, sampler, nodes):
    def sample(model):
        low = common.second_model(host, model, scene.model.clone(), nodes)
        return host.node(
            "PainterSampler", high_model=model, low_model=low, add_noise="enable", noise_seed=common.SEED,
            steps=common.STEPS, high_cfg=4.0, low_cfg=3.0, sampler_name=sampler, scheduler="simple",
            positive=scene.positive, negative=scene.negative, latent_image=dict(scene.latent), start_at_step=0,
            switch_at_step=8, end_at_step=10000, return_leftover_noise="disable",
        )[0]["samples"]  # fmt: skip

    return sample
