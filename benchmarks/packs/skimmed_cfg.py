"""Skimmed_CFG: functions before CFG that change the answers in place."""

from works_with import Case

from . import common

FOLDER = "Skimmed_CFG"


def cases(host):
    scene = common.video(host)
    _, sample = common.ksampler(host, scene, cfg=8.0)
    nodes = {
        "": dict(Skimming_CFG=4.0),
        " - Timed flip": dict(flip_at=0.3, reverse=False),
        " - replace": {},
        " - linear interpolation": dict(Skimming_CFG=4.0),
        " - linear interpolation dual scales": {},
        " - Difference CFG": dict(method="linear_distance"),
        " - Clean Skim": {},
    }
    for name, widgets in nodes.items():
        model = host.node(f"Skimmed CFG{name}", model=scene.model, **widgets)[0]
        yield Case(f"CFG 8, Skimmed CFG{name}", model, sample)
