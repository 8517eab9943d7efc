"""The benchmark's runs as rows of a CSV file, which is added to as they come, so that it can go on where it stopped."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One sampling run beside the uncached one of the same model, configuration, seed and dtype.

    steps to noise: the configuration, that is the uncached run's; a method may sample otherwise (its setting says so).
    """

    subject: str
    configuration: str
    steps: int
    sampler: str
    scheduler: str
    shift: float
    cfg: float
    noise: float
    dtype: str
    method: str
    setting: str
    seed: int
    evaluations: int
    reference_evaluations: int
    seconds: float
    reference_seconds: float
    psnr: float
    ssim: float
    lpips: float | None

    @property
    def key(self) -> tuple:
        return self.subject, self.configuration, self.method, self.setting, self.seed


def read(path: Path, kind: type = Run) -> list:
    """The file's rows, of the dataclass `kind`; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [kind(**{f.name: _value(f.type, row[f.name]) for f in fields(kind)}) for row in csv.DictReader(file)]


def _value(kind, text: str):
    if text == "":
        return None
    return {float | None: float, int | None: int}.get(kind, kind)(text)


def write(path: Path, kind: type, rows: list) -> None:
    """A new file of these rows, all of one dataclass, `kind`."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def append(path: Path, run: Run) -> None:
    new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Run)], lineterminator="\n")
        if new:
            writer.writeheader()
        values = asdict(run).items()
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values})
