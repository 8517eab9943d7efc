"""Quality against network evaluations: the figures of the README.

    python3 -m nox -s benchmark                    everything; goes on where it was interrupted
    python3 -m nox -s benchmark -- --quick         one seed, the base configuration: does it work?

Each subject (subjects.py) is sampled uncached and with every method (methods.py), in each configuration
(configurations.py) with the development seeds 0 to 7, and in the base and the held-out configuration with seeds 1000
to 1007, which nothing was tuned on. Rows go to benchmarks/results/fidelity.csv as they come; delete it to start anew.
"""

import argparse
import tempfile
import time
from pathlib import Path

from host import Host

HERE = Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", help="names of subjects; all")
    parser.add_argument("--configurations", nargs="+", help="names of configurations; all")
    parser.add_argument("--methods", nargs="+", help="names of methods; all")
    parser.add_argument("--seeds", type=int, help="how many seeds from --first on; the published ones")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--quick", action="store_true", help="seed 0 in the base configuration")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fidelity.csv")
    return parser.parse_args()


def main():
    args = arguments()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host = Host(Path(base))
        fidelity(host, args)


def fidelity(host: Host, args):
    from configurations import DEVELOPMENT_SEEDS, HELD_OUT_SEEDS
    from fidelity import Fidelity
    from subjects import SUBJECTS

    for name in args.subjects or SUBJECTS:
        subject = SUBJECTS[name](host)
        fidelity = Fidelity(subject, args.out)
        for configuration in subject.configurations:
            if args.configurations and configuration.name not in args.configurations:
                continue
            if args.quick and configuration.name != "base":
                continue
            seeds = DEVELOPMENT_SEEDS
            if configuration.name == "base":
                seeds = DEVELOPMENT_SEEDS + HELD_OUT_SEEDS
            elif configuration.name == "held out":
                seeds = HELD_OUT_SEEDS
            if args.quick:
                seeds = (0,)
            elif args.seeds:
                seeds = range(args.first, args.first + args.seeds)
            for seed in seeds:
                wanted = fidelity.missing(configuration, seed, args.methods)
                if not wanted:
                    continue
                started = time.monotonic()
                for run in fidelity.run(configuration, seed, wanted):
                    if args.quick:
                        print(
                            f"{run.method}, {run.setting}: {run.evaluations} evaluations, {run.psnr:.2f} dB, "
                            f"ssim {run.ssim:.4f}, lpips {run.lpips or float('nan'):.4f} {run.seconds:.2f}s",
                            flush=True,
                        )
                print(
                    f"{name}, {configuration.name}, seed {seed}: {len(wanted)} runs in {time.monotonic() - started:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
