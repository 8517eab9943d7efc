"""FreeU_Advanced: a function after CFG that acts in its first calls only; it never counts anew."""

from works_with import Case

from . import common

FOLDER = "FreeU_Advanced"


def cases(host):
    video, unet = common.video(host), common.answering(common.tiny("SD15"))
    for name, scene, widgets in (
        ("all steps", video, {}), ("eight steps", video, dict(steps=8)),
        ("SD15, eight steps, Fourier", unet, dict(steps=8, apply_fourier=True)),
    ):  # fmt: skip

        def patch(model, widgets=widgets):
            kind = host.node_class("WAS_PostCFGShift")
            required = kind.INPUT_TYPES()["required"]
            given = {
                name: options[1]["default"] if isinstance(options[1].get("default"), int | float) else options[0][0]
                for name, options in required.items() if name != "model"
            } | {"mode": "inject", "b": 1.02}  # fmt: skip
            return kind().patch(model=model, **given | widgets)[0]

        yield Case(f"WAS_PostCFGShift, {name}", *common.ksampler(host, scene, patch=patch))
