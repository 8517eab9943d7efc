"""Run a real ComfyUI server on this machine, and use it over HTTP and its websocket."""

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import comfy_host

START_TIMEOUT = 180.0


class ServerError(RuntimeError):
    """The server did not start, refused a prompt, or failed while executing one."""


@dataclass
class Result:
    """The result of one executed prompt.

    outputs: by node id, as in /history. seconds: by node id, how long each node executed.
    """

    outputs: dict
    seconds: dict[str, float] = field(default_factory=dict)


class ComfyServer:
    """A server process: `async with ComfyServer(base, log) as server`. It is stopped on errors too.

    Raises ServerError if it does not start.
    """

    def __init__(self, base: Path, log: Path, *arguments: str):
        """base: as from comfy_host.make_base. log: file for the server's output. arguments: of its command line."""
        self.base, self.log_file, self.arguments = base, log, arguments
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._client_id = uuid.uuid4().hex

    async def __aenter__(self):
        host = comfy_host.find()
        command = [sys.executable, str(host / "main.py"), *comfy_host.usual_device(), "--use-pytorch-cross-attention",
                   "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base),
                   "--disable-auto-launch", *self.arguments]  # fmt: skip
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=host, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )
        self._http = aiohttp.ClientSession(base_url=self.url, timeout=aiohttp.ClientTimeout(total=60))
        try:
            await self._until_ready()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exception):
        self._process.terminate()  # first, as whoever waits below may be cancelled
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        await self._http.close()

    async def _until_ready(self):
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"ComfyUI stopped while starting:\n{self.log()[-3000:]}")
            with contextlib.suppress(aiohttp.ClientError):
                async with self._http.get("/system_stats") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.3)
        raise ServerError(f"ComfyUI did not answer within {START_TIMEOUT:.0f} s:\n{self.log()[-3000:]}")

    def log(self) -> str:
        """Everything the server has printed."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def easycache_lines(self) -> list[str]:
        """The pack's own log lines, in order; progress bars may share a line with them."""
        return [match.group().strip() for match in re.finditer(r"EasyCache: [^\n\r]*", self.log())]

    async def get(self, path: str, **parameters):
        """The JSON that a GET request returns. Raises aiohttp.ClientResponseError for an HTTP error."""
        async with self._http.get(path, params=parameters) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def view(self, image: dict) -> bytes:
        """The contents of a file that a node saved. image: its entry in the node's output."""
        async with self._http.get("/view", params=image) as answer:
            answer.raise_for_status()
            return await answer.read()

    async def interrupt(self):
        async with self._http.post("/interrupt", json={}) as answer:
            answer.raise_for_status()

    async def run(self, prompt: dict, on_progress=None) -> Result:
        """Queue a prompt and wait until it has been executed.

        on_progress: called with (node id, steps done, total steps).
        Raises ServerError with the node's message if the prompt is refused, fails or is interrupted.
        """
        address = f"/ws?clientId={self._client_id}"
        async with self._http.ws_connect(address, max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=5)) as ws:
            async with self._http.post("/prompt", json={"prompt": prompt, "client_id": self._client_id}) as answer:
                reply = await answer.json()
                if answer.status != 200:
                    raise ServerError(_refusal(reply))
            prompt_id, clock, seconds = reply["prompt_id"], _NodeClock(), None
            async for message in ws:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event.get("data", {})
                if kind == "progress" and on_progress is not None:
                    on_progress(data["node"], data["value"], data["max"])
                elif kind in ("execution_error", "execution_interrupted"):
                    raise ServerError(data.get("exception_message") or "interrupted")
                elif kind == "executing" and data.get("prompt_id") == prompt_id:
                    clock.enter(data["node"])
                    if data["node"] is None:
                        seconds = clock.seconds
                        break
            if seconds is None:
                raise ServerError(f"the server closed the connection:\n{self.log()[-3000:]}")
        history = await self.get(f"/history/{prompt_id}")
        return Result(history[prompt_id]["outputs"], seconds)


@contextlib.asynccontextmanager
async def scratch_server(*arguments: str):
    """A ComfyServer with a temporary base directory. arguments: of its command line."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        base = comfy_host.make_base(Path(scratch) / "base")
        async with ComfyServer(base, Path(scratch) / "server.log", *arguments) as server:
            yield server


class _NodeClock:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._node, self._since = None, 0.0

    def enter(self, node: str | None):
        now = time.monotonic()
        if self._node is not None:
            self.seconds[self._node] = self.seconds.get(self._node, 0.0) + now - self._since
        self._node, self._since = node, now


def _refusal(reply: dict) -> str:
    details = [
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in reply.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    return "; ".join([reply.get("error", {}).get("message", "refused"), *details])
