"""Edits along two prompts that take turns at each noise level, with new noise at each: python benchmarks/edits.py

The way of FlowEdit: a video of the bundled model is carried from its prompt to another one, along the difference of
what both make of one noise. 26 of 30 Euler steps, guidance 2 and 4.5. PSNR of the edited video against the uncached
edit. How far that one is from the video before, and from an edit with other noise, is measured beside it. Rows go to
benchmarks/results/edits.csv, means are printed: ten minutes.
"""

import csv
import functools
import sys
import tempfile
from pathlib import Path
from statistics import fmean

from host import ROOT, Host
from measures import psnr

sys.path.append(str(ROOT / "tests" / "support"))
from edits_in_turn import edit_in_turns  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "edits.csv"
SEEDS, OTHER_NOISE = range(12), 50  # added to the seed
STEPS, LEFT_OUT = 30, 4
SPEEDUPS, PREDICTORS = (2.0, 2.5, 3.0), ("forecast", "reuse")
CFG = {"source": 2.0, "target": 4.5}


def guider(model, conditionings: dict):
    """Of "source", "target" and "negative"; it answers to the prompt that the options name."""
    from comfy.samplers import CFGGuider, sampling_function

    class Editor(CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            prompt = model_options["transformer_options"]["prompt in turn"]
            conds = self.conds["negative"], self.conds[prompt]
            return sampling_function(self.inner_model, x, timestep, *conds, CFG[prompt], model_options, seed=seed)

    made = Editor(model)
    made.inner_set_conds(conditionings)
    return made


def measure(host: Host):
    import subjects
    import torch
    from comfy.samplers import KSAMPLER, calculate_sigmas

    subject = subjects.SUBJECTS["video"](host)
    plain = subject.prepared(subject.configurations[0], "fp32")
    sigmas = calculate_sigmas(plain.get_model_object("model_sampling"), "simple", STEPS)[LEFT_OUT:]

    def edited(model, video, conditionings, seed):
        sampler = KSAMPLER(functools.partial(edit_in_turns, seed=seed))
        with torch.inference_mode():
            latent = guider(model, conditionings).sample(torch.zeros_like(video), video, sampler, sigmas, seed=seed)
        return subject.decode({"samples": latent})

    for seed in SEEDS:
        scene, target = subject.scene(seed), subject.scene(seed + 100).positive
        video = subject.latent(plain, scene, subject.configurations[0], seed)
        given = video, {"source": scene.positive, "target": target, "negative": scene.negative}
        exact = edited(plain, *given, seed)
        yield "not edited", "", seed, round(psnr(exact, subject.decode({"samples": video})), 2)
        yield "other noise", "", seed, round(psnr(exact, edited(plain, *given, seed + OTHER_NOISE)), 2)
        for predictor in PREDICTORS:
            for speedup in SPEEDUPS:
                model = host.node("EasyCacheAdaptive", plain, predictor=predictor, target_speedup=speedup)[0]
                yield predictor, speedup, seed, round(psnr(exact, edited(model, *given, seed)), 2)
        print(f"seed {seed}", flush=True)


def main():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        rows = list(measure(Host(Path(base))))
    with RESULTS.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("edit", "target_speedup", "seed", "psnr"), *rows])
    for kind in dict.fromkeys(row[:2] for row in rows):
        closeness = [row[-1] for row in rows if row[:2] == kind]
        print(*kind, f"{fmean(closeness):.1f} ({min(closeness):.1f}) dB")


if __name__ == "__main__":
    main()
