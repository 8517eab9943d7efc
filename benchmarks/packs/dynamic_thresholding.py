"""sd-dynamic-thresholding: a function in place of CFG."""

from works_with import Case

from . import common

FOLDER = "sd-dynamic-thresholding"


def cases(host):
    for name, scene in {"video": common.video(host), "SD15": common.answering(common.tiny("SD15"))}.items():
        simple = host.node("DynamicThresholdingSimple", model=scene.model, mimic_scale=4.0, threshold_percentile=0.95)[
            0
        ]
        _, sample = common.ksampler(host, scene, cfg=8.0)
        yield Case(f"{name}, CFG 8 as at 4", simple, sample)
        full = host.node(
            "DynamicThresholdingFull", model=scene.model, mimic_scale=4.0, threshold_percentile=0.95,
            mimic_mode="Half Cosine Up", mimic_scale_min=2.0, cfg_mode="Linear Down", cfg_scale_min=3.0, sched_val=1.0,
            separate_feature_channels="enable", scaling_startpoint="MEAN", variability_measure="AD",
            interpolate_phi=0.9,
        )[0]  # fmt: skip
        yield Case(f"{name}, CFG 8, scales that change with the noise level", full, sample)
