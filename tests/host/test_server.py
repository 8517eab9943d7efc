"""A real server with the pack in its custom_nodes, spoken to over HTTP as the browser does."""

import asyncio
import json
import math
import re
import subprocess
import sys

import comfy_host
import numpy as np
import pytest
from comfy_server import ComfyServer, ServerError
from PIL import Image
from workflow import to_prompt

WORKFLOW = comfy_host.PACK / "workflows" / "EasyCache - instant demo.json"


def set_inputs(prompt, kind, **inputs):
    for node in prompt.values():
        if node["class_type"] == kind:
            node["inputs"].update(inputs)


def test_the_example_workflow_over_http(tmp_path):
    """End to end: start, node list, run, refusals, interrupt, run again. One server, as its start takes a while."""

    async def session():
        async with ComfyServer(comfy_host.make_base(tmp_path / "base"), tmp_path / "server.log") as server:
            info = await server.get("/object_info")
            assert {"EasyCache", "EasyCacheAdaptive", "EasyCacheDemoModel", "EasyCacheDemoDecode"} <= set(info)
            assert info["EasyCacheAdaptive"]["display_name"] == "EasyCache (Adaptive)"
            templates = await server.get("/api/workflow_templates")
            assert WORKFLOW.stem in templates[comfy_host.PACK_NAME], "not under Browse Templates"

            prompt = to_prompt(json.loads(WORKFLOW.read_text("utf-8")), info)
            set_inputs(prompt, "KSampler", steps=14)
            set_inputs(prompt, "EasyCacheAdaptive", threshold=0.5, warmup_steps=3)
            seen = []
            result = await server.run(prompt, lambda node, done, total: seen.append((done, total)))
            (picture,) = (files["images"][0] for files in result.outputs.values() if "images" in files)
            (tmp_path / "video.webp").write_bytes(await server.view(picture))
            with Image.open(tmp_path / "video.webp") as video:
                assert (video.n_frames, video.size) == (17, (2 * 128 + 8, 128))
            assert seen.count((14, 14)) >= 2, "both samplers report their progress"
            (line,) = server.easycache_lines()
            assert re.search(r"computed \d+ of 14 evaluations, skipped [1-9]", line), line

            for widget, value in (("threshold", 1.5), ("warmup_steps", 0), ("threshold", math.nan)):
                bad = json.loads(json.dumps(prompt))
                set_inputs(bad, "EasyCacheAdaptive", **{widget: value})
                with pytest.raises(ServerError, match=widget):
                    await server.run(bad)

            long = json.loads(json.dumps(prompt))
            set_inputs(long, "KSampler", steps=500)
            pressed = []

            def press_cancel(node, done, total):
                if done >= 20 and not pressed:  # not every step is told of
                    pressed.append(asyncio.ensure_future(server.interrupt()))

            with pytest.raises(ServerError, match="interrupted"):
                await server.run(long, press_cancel)
            await asyncio.gather(*pressed)
            set_inputs(prompt, "PrimitiveInt", value=8)
            again = await server.run(prompt)
            assert again.outputs, "the job after an interrupted one must run normally"
            return server._process

    process = asyncio.run(session())
    assert process.poll() is not None, "the server must be stopped"


def test_the_demo_command_makes_its_pictures(tmp_path):
    """The README's demo command, shortened; it must not claim success without pictures. Neither way may always come
    first: what the first run takes longer by would pass for speed.
    """
    command = [sys.executable, str(comfy_host.PACK / "demo" / "run.py"), "--out", str(tmp_path), "--steps", "12",
               "--rounds", "2", "--threshold", "0.3", "--warmup", "3"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Samples 2 videos of 12 steps, each without and with EasyCache")
    finished = re.findall(r"(\d: [\w ]+?) +\[#+\] 12/12", done.stdout)
    assert finished == ["1: uncached", "1: with EasyCache", "2: with EasyCache", "2: uncached"]
    computed = int(re.search(r"EasyCache +(\d+) +[\d.]+ +[\d.]+ dB", done.stdout).group(1))
    assert 8 <= computed < 24
    assert re.search(rf"ratio +{24 / computed:.2f}x +[\d.]+x", done.stdout), "evaluations beside seconds"
    assert str(tmp_path / "side_by_side.webp") in done.stdout.splitlines()[-2]
    with Image.open(tmp_path / "side_by_side.webp") as video:
        assert video.n_frames == 17
    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png").convert("RGB")).astype(float)
    assert sheet.std() > 20 and min(sheet.shape[:2]) > 500


def test_the_demo_command_fails_without_a_server(tmp_path, monkeypatch):
    """A ComfyUI that cannot start must give a message and an exit code, not a half-written picture."""
    broken = tmp_path / "comfyui"
    (broken / "comfy").mkdir(parents=True)
    (broken / "comfy" / "samplers.py").write_text("")
    (broken / "main.py").write_text("raise SystemExit('no such luck')")
    monkeypatch.setenv("COMFYUI_PATH", str(broken))
    command = [sys.executable, str(comfy_host.PACK / "demo" / "run.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "no such luck" in done.stderr
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_server_ends_though_its_end_is_cancelled(tmp_path):
    """Catches a process that stays behind where whoever waits for the connection to close is cancelled."""

    class Closing:
        async def close(self):
            raise asyncio.CancelledError

    server = ComfyServer(tmp_path, tmp_path / "server.log")
    server._http, server._process = Closing(), subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(server.__aexit__())
    assert server._process.poll() is not None
