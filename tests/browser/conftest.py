"""A real server and its real frontend in a real Chromium.

Browser and servers end with their module: Playwright's loop must be gone when others start loops of their own.
"""

import asyncio
import functools
import os
import threading

import browser as browsers
import comfy_host
import frontend
import pytest
from comfy_server import ComfyServer
from tabs import checked_tab


@pytest.fixture(scope="module")
def chromium():
    try:
        path = browsers.find()
    except browsers.NoBrowser as problem:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(problem))
    with browsers.chromium(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """servers(which): a running server with the frontend that it requires, or the newest one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started = []

    def wait_for(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    @functools.cache
    def start(which: str) -> ComfyServer:
        folder = tmp_path_factory.mktemp(which)
        arguments = ["--front-end-root", str(frontend.newest())] if which == "newest" else []
        server = ComfyServer(comfy_host.make_base(folder / "base"), folder / "server.log", *arguments)
        wait_for(server.__aenter__())
        started.append(server)
        return server

    yield start
    for server in started:
        wait_for(server.__aexit__())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def server(request, servers):
    """With the frontend that the host requires, or `indirect`, the one named."""
    return servers(getattr(request, "param", "required"))


@pytest.fixture
def tab(chromium, server):
    with checked_tab(chromium, server.url) as tab:
        yield tab


@pytest.fixture
def seed():
    """A new one each time: ComfyUI would answer what it has sampled already from its cache."""
    return int.from_bytes(os.urandom(4))
