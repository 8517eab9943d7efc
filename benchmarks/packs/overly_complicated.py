"""comfyui_overly_complicated_sampling: its own samplers, substeps, merging and restarts."""

from works_with import Case

from . import common

FOLDER, NEEDS = "comfyui_overly_complicated_sampling", ("ComfyUI-sonar", "ComfyUI-bleh")


def cases(host):
    scene = common.video(host)

    def built(method, substeps=1, merge="default (simple)", parameters="", sampler_parameters=""):
        steps = host.node("OCS Substeps", substeps=substeps, step_method=method, parameters=parameters)[0]
        group = host.node("OCS Group", merge_method=merge, time_mode="step", substeps=steps)[0]
        return host.node("OCS Sampler", groups=group, parameters=sampler_parameters)[0]

    def case(name, *args, **kwargs):
        return Case(name, *common.custom(host, scene, None, built(*args, **kwargs)))

    none = "eta: 0.0"
    methods = host.node_class("OCS Substeps").INPUT_TYPES()["required"]["step_method"][0]
    known = {one.split()[0]: one for one in methods}
    for method in ("euler", "bogacki", "reversible_heun", "dpmpp_2m", "heunpp", "rkf45", "res", "trapezoidal"):
        if method in known:
            yield case(f"{method}, eta 0", known[method], parameters=none)
    yield case("euler, eta 0, three substeps", "default (euler)", 3, parameters=none)
    for merge in ("overshoot", "lookahead", "supreme_avg"):
        yield case(f"euler, eta 0, two substeps, {merge}", "default (euler)", 2, merge, none)
    yield case("euler, eta 1", "default (euler)", parameters="eta: 1.0")
