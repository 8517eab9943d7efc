"""ComfyUI-bleh: patches that are active in a part of the schedule or in every other step, samplers in a chain."""

from works_with import Case

from . import common

FOLDER = "ComfyUI-bleh"


def cases(host):
    scene = common.answering(common.tiny("SD15"))
    _, sample = common.ksampler(host, scene)

    def patched(node, name="", **widgets):
        return Case(name or node, host.node(node, model=scene.model, **widgets)[0], sample)

    yield patched("BlehDeepShrink", "BlehDeepShrink to 35 %", commasep_block_numbers="2")
    yield patched("BlehHyperTile", "BlehHyperTile", tile_size=128, swap_size=2)
    yield patched("BlehBlockCFG", "BlehBlockCFG, 20 to 80 %", commasep_block_numbers="i1,m0,o1")
    rules = "- if:\n    type: output\n    block: [1]\n    to_percent: 0.5\n  ops:\n    - [multiply, 1.2]"
    yield patched("BlehBlockOps", "BlehBlockOps to 50 %", rules=rules)
    yield patched("BlehContrastiveOrthoCFG", "BlehContrastiveOrthoCFG", positive_scale=0.2)
    yield patched("BlehModelPatchFastTerminate")
    freeu = host.node("FreeU_V2", scene.model, 1.3, 1.4, 0.9, 0.2)[0]
    for interval, start in ((1, 0.4), (2, 0.0)):
        model = host.node(
            "BlehModelPatchConditional", model_default=scene.model, model_matched=freeu, interval=interval,
            start_percent=start,
        )[0]  # fmt: skip
        name = "every other step" if interval == 2 else "from 40 % on"
        yield Case(f"BlehModelPatchConditional, FreeU {name}", model, sample)
    other = common.answering(common.tiny("SD15"), 0.4)
    model = host.node("BlehRefinerAfter", time_mode="percent", start_time=0.6, model=scene.model,
                      refiner_model=other.model)[0]  # fmt: skip
    yield Case("BlehRefinerAfter, 60 %", model, sample)

    video = common.video(host)
    euler, second = (host.node("KSamplerSelect", name)[0] for name in ("euler", "dpmpp_2m"))
    for mode in ("zero", "scale_down"):
        first = host.node("BlehCFGInitSampler", sampler=euler, steps=2.0, mode=mode)[0]
        yield Case(f"video, BlehCFGInitSampler, {mode}, two steps", *common.custom(host, video, None, first))
    chain = host.node("BlehInsaneChainSampler", sampler=second, steps=8)[1]
    chained = host.node("BlehInsaneChainSampler", sampler=euler, steps=12, sampler_chain_opt=chain)[0]
    yield Case("video, BlehInsaneChainSampler: euler, dpmpp_2m", *common.custom(host, video, None, chained))
    seeded = host.node("BlehForceSeedSampler", sampler=euler, seed_offset=1)[0]
    yield Case("video, BlehForceSeedSampler", *common.custom(host, video, None, seeded))
