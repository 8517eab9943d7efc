"""The README's pictures of the node in the browser: python tools/screenshots.py [FOLDER]

They show the newest frontend. COMFYUI_PATH should name a new ComfyUI, too: older ones do not fold advanced inputs away.
"""

import asyncio
import json
import sys
import threading
from pathlib import Path

import browser as browsers
import comfy_host
import frontend
from comfy_server import scratch_server

STEPS = 50
MARGIN = 25  # pixels around the node
DEMO = comfy_host.PACK / "workflows" / "EasyCache - instant demo.json"
PICTURES = {  # the frontend's settings by name
    "classic": {},
    "nodes2": {"VueNodes_Enabled": True},
    "light": {"ColorPalette": "light"},
}


def main(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    scratch = scratch_server("--front-end-root", str(frontend.newest()))
    server = asyncio.run_coroutine_threadsafe(scratch.__aenter__(), loop).result()
    try:
        with browsers.chromium() as browser:
            for name, settings in PICTURES.items():
                with frontend.tab(browser, server.url, height=860) as tab:
                    take(tab, settings, folder / name)
    finally:
        asyncio.run_coroutine_threadsafe(scratch.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def take(tab, settings: dict, path: Path):
    """Three pictures of the same run: half way, finished, and with the threshold changed after that."""
    tab.open(**settings)
    # Without this ComfyUI would answer the second run from its cache.
    assert tab.page.request.post(f"{tab.url}/free", data={"free_memory": True}).ok
    workflow = json.loads(DEMO.read_text(encoding="utf-8"))
    tab.load(workflow)
    (node,) = tab.nodes()
    for sampler in tab.nodes("KSampler"):
        tab.set(sampler, steps=STEPS)
    tab.set(tab.nodes("PrimitiveInt")[0], value=0)
    tab.look_at(node, zoom=1.2, left=100, top=150)
    tab.press_run()
    tab.wait_for_summary(" (2[4-9]|3[0-9]) steps computed…")
    picture(tab, node, path.with_name(f"{path.name}-running.png"))
    tab.wait_for_summary(f" {STEPS} steps computed$")
    picture(tab, node, path.with_name(f"{path.name}-finished.png"))
    tab.set(node, threshold=0.1)
    tab.frames()
    picture(tab, node, path.with_name(f"{path.name}-what-if.png"))


def picture(tab, node, path: Path):
    """A picture of the node with a margin."""
    left, top, width, height = tab.box(node)
    clip = {"x": left - MARGIN, "y": top - MARGIN, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN}
    tab.page.mouse.move(1300, 800)
    tab.page.screenshot(path=path, clip=clip)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else comfy_host.PACK / "docs" / "screenshots")
