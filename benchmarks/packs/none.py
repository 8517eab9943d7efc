"""ComfyUI's own samplers: what to compare with."""

from works_with import Case

from . import common

FOLDER = None


def cases(host):
    for sampler in ("euler", "euler_ancestral", "heun", "dpmpp_2m", "res_multistep"):
        yield Case(f"video, KSampler {sampler}", *common.ksampler(host, common.video(host), sampler))
    for family in ("SD15", "Flux"):
        yield Case(f"{family}, KSampler euler", *common.ksampler(host, common.tiny(family), "euler"))
