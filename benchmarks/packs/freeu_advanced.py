"""FreeU_Advanced: a function after CFG that acts in its first calls only; it never counts anew."""

from works_with import Case

from . import common

FOLDER = "FreeU_Advanced"


def cases(host):
    scene = common.video(host)
    for name, widgets in {
        "all steps": {}, "eight steps": dict(steps=8), "eight steps, Fourier": dict(steps=8, apply_fourier=True),
    }.items():  # fmt: skip
        def patch(model, widgets=widgets):
            kind = host.node_class("WAS_PostCFGShift")
            required = kind.INPUT_TYPES()["required"]
            given = {
                name: options[1]["default"] if isinstance(options[1].get("default"), int | float) else options[0][0]
                for name, options in required.items() if name != "model"
            } | {"mode": "inject", "b": 1.02}  # fmt: skip
            return kind().patch(model=model, **given | widgets)[0]

        yield Case(f"WAS_PostCFGShift, {name}", *common.ksampler(host, scene, patch=patch))
