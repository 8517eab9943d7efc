"""Under which circumstances the methods are compared: a base, one factor changed at a time, and one held out."""

from dataclasses import dataclass, replace

DEVELOPMENT_SEEDS = tuple(range(8))
HELD_OUT_SEEDS = tuple(range(5000, 5008))  # looked at once, with everything chosen
SHORT, MEDIUM = "20 steps", "28 steps"  # few people sample 50
VERY_SHORT = ("12 steps", "8 steps")
IN_FULL = ("base", MEDIUM, SHORT)  # with all methods
SPEEDUPS = (2.2, 3.4, 4.6)  # 23, 15 and 11 of 50 evaluations
CALIBRATION_SEEDS = tuple(range(2000, 2004))  # for the peers that are fitted to a model


@dataclass(frozen=True)
class Configuration:
    """noise: standard deviation of what each value of the network's output is multiplied by, around 1. speedups: what
    budgets aim at.
    """

    name: str
    steps: int
    sampler: str
    scheduler: str
    shift: float
    cfg: float
    noise: float = 0.0
    speedups: tuple[float, ...] = SPEEDUPS


def lengths(shift: float, cfg: float) -> list[Configuration]:
    """50, 28 and 20 steps of a model with that shift and CFG scale."""
    base = Configuration("base", 50, "euler", "simple", shift, cfg, speedups=(1.5, 2.2, 3.4))
    return [base, replace(base, name=MEDIUM, steps=28), replace(base, name=SHORT, steps=20)]


def configurations(
    shift: float, cfg: float, other: dict, strong: dict, beta: dict, quadratic: dict
) -> list[Configuration]:
    """For a model with that shift (0 if it has none) and CFG scale.

    other: changes that make another schedule of noise levels. strong: changes to more guidance. beta,
    quadratic: changes that go with those schedulers. Nothing was tuned on the last one, "held out".
    """
    base = Configuration("base", 50, "euler", "simple", shift, cfg)
    return [
        base,
        replace(base, name=SHORT, steps=20, speedups=(1.43, 2.0, 2.5)),  # 14, 10 and 8
        replace(base, name=VERY_SHORT[0], steps=12, speedups=(1.2, 1.5, 2.0)),  # 10, 8 and 6
        replace(base, name=VERY_SHORT[1], steps=8, speedups=(1.34, 1.6, 2.0)),  # 6, 5 and 4
        replace(base, name="30 steps", steps=30),
        replace(base, name="DPM++ 2M", sampler="dpmpp_2m"),
        replace(base, name="UniPC", sampler="uni_pc"),
        replace(base, name="Euler ancestral", sampler="euler_ancestral"),
        replace(base, name="other schedule", **other),
        replace(base, name="no CFG", cfg=1.0),
        replace(base, name="1 % noise", noise=0.01),
        replace(base, name="2 % noise", noise=0.02),
        replace(base, name="strong CFG, 40 steps DPM++ 2M", steps=40, sampler="dpmpp_2m", **strong),
        replace(base, name="beta, 36 steps res_multistep", steps=36, sampler="res_multistep", scheduler="beta", **beta),
        replace(
            base, name="quadratic, 32 steps deis", steps=32, sampler="deis", scheduler="linear_quadratic", **quadratic
        ),
        replace(base, name="held out", steps=28, sampler="ipndm", scheduler="kl_optimal"),
    ]
