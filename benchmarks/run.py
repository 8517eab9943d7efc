"""Quality against network evaluations: the figures of docs/figures.md.

    python3 -m nox -s benchmark                    everything; goes on where it was interrupted
    python3 -m nox -s benchmark -- --quick         seed 0 in the base configuration: does it work?

fidelity: each subject (subjects.py) is sampled uncached and with the methods (methods.py), with the development seeds 0
to 7 in each configuration (configurations.py), all methods in the base and with 20 or 28 steps and the main ones in the
others, and with seeds 5000 to 5007, on which nothing was tuned, in these two and the held-out configuration. Rows go to
benchmarks/results/fidelity.csv as they come; without the file it starts anew. frechet: distance of sets of generated
digits to the real ones. overhead: what the node itself costs. At the end tables.md, the plots beside them and the
READMEs' small table are made of what is there.
"""

import argparse
import tempfile
import time
from pathlib import Path

from host import Host

HERE = Path(__file__).resolve().parent
PARTS = ("fidelity", "frechet", "overhead", "tables")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--subjects", nargs="+", help="names of subjects; all that are trained")
    parser.add_argument("--configurations", nargs="+", help="names of configurations; all")
    parser.add_argument("--methods", nargs="+", help="names of methods; all")
    parser.add_argument("--seeds", type=int, help="how many seeds from --first on; the published ones")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--gpu", action="store_true", help="sample there; torch needs CUDA")
    parser.add_argument("--quick", action="store_true", help="seed 0 in the base configuration, small sets")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder to write to")
    return parser.parse_args()


def main():
    args = arguments()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host = Host(Path(base), cpu=not args.gpu)
        # These import ComfyUI, which the host makes importable.
        from subjects import SUBJECTS

        sampled = (args.subjects or list(SUBJECTS)) if set(args.parts) - {"tables"} else []
        for name in args.subjects or []:
            SUBJECTS[name].require_weights()
        for name in [name for name in sampled if SUBJECTS[name].missing()]:
            print(f"without {name}: {SUBJECTS[name].missing()}", flush=True)
            sampled.remove(name)
        for name in sampled:
            subject = SUBJECTS[name](host)
            if "fidelity" in args.parts:
                fidelity(subject, args)
            if "frechet" in args.parts and name == "digits":
                import frechet

                frechet.measure(subject, args.results / "frechet.csv", batches=2 if args.quick else 17)
            if "overhead" in args.parts and name == "video":
                import overhead

                overhead.measure(subject, args.results / "overhead.csv")
        if "tables" in args.parts:
            publish(args.results)


def fidelity(subject, args):
    from configurations import DEVELOPMENT_SEEDS, HELD_OUT_SEEDS, SHORT
    from fidelity import Fidelity

    both = DEVELOPMENT_SEEDS + HELD_OUT_SEEDS
    published = {"base": both, SHORT: both, "held out": HELD_OUT_SEEDS}
    fidelity = Fidelity(subject, args.results / "fidelity.csv")
    for configuration in subject.configurations:
        if configuration.name not in (args.configurations or (["base"] if args.quick else [configuration.name])):
            continue
        seeds = published.get(configuration.name, DEVELOPMENT_SEEDS)
        if args.seeds or args.quick:
            seeds = range(args.first, args.first + (args.seeds or 1))
        for seed in seeds:
            started, place = time.monotonic(), f"{subject.name}, {configuration.name}, seed {seed}"
            wanted = fidelity.missing(configuration, seed, args.methods)
            for run in fidelity.run(configuration, seed, wanted):
                print(
                    f"{place}: {run.method}, {run.setting}: {run.evaluations} evaluations, {run.psnr:.1f} dB",
                    flush=True,
                )
            if wanted:
                print(f"{place}: {len(wanted)} runs in {time.monotonic() - started:.0f} s", flush=True)


def publish(results: Path):
    """Tables and plots of all there is in the folder."""
    import frechet
    import overhead
    import plots
    import readme_table
    import records
    import tables
    from configurations import DEVELOPMENT_SEEDS, MEDIUM, SHORT

    runs = records.read(results / "fidelity.csv")
    text = tables.everything(runs)
    for name, table in (("frechet", frechet.table), ("overhead", overhead.table)):
        if (results / f"{name}.csv").is_file():
            text += f"\n### {name}\n\n{table(results / f'{name}.csv')}\n"
    (results / "tables.md").write_text(text)
    print(text)
    if results == HERE / "results":
        readme_table.write(runs)
    for subject in dict.fromkeys(run.subject for run in runs):
        for configuration, suffix in (("base", ""), (MEDIUM, "-28-steps"), (SHORT, "-20-steps")):
            here = [run for run in runs if (run.subject, run.configuration) == (subject, configuration)]
            here = [run for run in here if run.seed in DEVELOPMENT_SEEDS] or here
            if here:
                plots.quality(here, results / f"{subject}{suffix}.png")


if __name__ == "__main__":
    main()
