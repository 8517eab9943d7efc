"""The command line of a small study: rows into a file, and the table of them at the end."""

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from host import Host


def run(
    description: str, results: Path, columns: Sequence[str],
    measure: Callable[[Host], Iterable[tuple]], table: Callable[[Path], str],
):  # fmt: skip
    """results: where rows go, unless --results says otherwise. measure(host): gives them as they come. table(path): of
    the file.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=results)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        host = Host(Path(base))
        with args.results.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(columns)
            rows.writerows(measure(host))
    print(table(args.results))
