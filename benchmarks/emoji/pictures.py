"""Noto's emoji and their names, out of the npm package emoji-datasource-google, into one file of 6 MB.

    python benchmarks/emoji/pictures.py                      asks npm for the package (74 MB)
    python benchmarks/emoji/pictures.py --package FILE.tgz   what `npm pack` wrote elsewhere

Nothing of the package is part of this project. The pictures are Google's, under the Apache License 2.0.
"""

import argparse
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "emoji-datasource-google@16.0.0"
FILE = Path(__file__).resolve().parents[2] / "output" / "training" / "emoji_pictures.npz"


def packed(folder: Path) -> Path:
    """The package, fetched by npm into the folder."""
    try:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise SystemExit(f"npm is not here; run `npm pack {PACKAGE}` elsewhere, and pass --package FILE") from None
    (file,) = folder.glob("*.tgz")
    return file


def on_white(picture: Image.Image) -> np.ndarray:
    picture = picture.convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(paper, picture).convert("RGB"))


def extract(package: Path, file: Path) -> int:
    """Write names, categories and pictures of a package to the file; how many."""
    with tarfile.open(package) as archive:
        listed = json.load(archive.extractfile("package/emoji.json"))
        emoji = {one["image"]: one for one in listed if one["has_img_google"]}
        members = {Path(one.name).name: one for one in archive if "/img/google/64/" in one.name}
        pictures = {name: on_white(Image.open(archive.extractfile(members[name]))) for name in emoji if name in members}
    file.parent.mkdir(parents=True, exist_ok=True)
    shown = [emoji[name] for name in pictures]
    np.savez_compressed(
        file, names=[one["name"].lower() for one in shown], categories=[one["category"] for one in shown],
        pictures=np.stack(list(pictures.values())),
    )  # fmt: skip
    return len(shown)


def ensure(file: Path, package: Path | None = None) -> None:
    """Make the file unless it is there."""
    if file.is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        count = extract(package or packed(Path(folder)), file)
    print(f"{file.name}: {count} pictures, {file.stat().st_size / 1e6:.0f} MB")


def read(file: Path, categories: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Names, and what they show: (n, 64, 64, 3) pictures in 0..255. categories: of emoji; empty for all."""
    with np.load(file) as saved:
        kept = np.isin(saved["categories"], categories or np.unique(saved["categories"]))
        return saved["names"][kept].tolist(), saved["pictures"][kept]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="default: npm fetches it")
    parser.add_argument("--file", type=Path, default=FILE)
    args = parser.parse_args()
    ensure(args.file, args.package)


if __name__ == "__main__":
    main()
