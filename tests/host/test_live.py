"""What a real server tells browsers of a run, through its own websocket."""

import asyncio
import contextlib
import json
from unittest import mock

import aiohttp
import comfy_host
from comfy_server import ComfyServer

STEPS = 14
NODE = "12:5"  # as the frontend names a node in a subgraph
RECORD = {"step", "sigma", "computed", "input_change", "rate", "error", "output_norm"}
REPORT = {
    "steps", "evaluations", "computed", "skipped", "speedup", "threshold", "warmup_steps", "predictor",
    "target_speedup", "start_percent", "end_percent", "reason", "notes", "closeness", "closeness_margin",
}  # fmt: skip


def prompt(seed, steps=STEPS, node=NODE):
    words = {"subject": "rocket", "background": "night", "camera": "zoom-out", "batch_size": 1}
    cache = {
        "model": ["1", 0], "threshold": 0.2, "warmup_steps": 3, "predictor": "forecast", "target_speedup": 0.0,
        "max_consecutive_skips": 0, "start_percent": 0.0, "end_percent": 1.0, "cache_device": "gpu", "verbose": False,
    }  # fmt: skip
    sampler = {
        "model": [node, 0], "positive": ["1", 1], "negative": ["1", 2], "latent_image": ["1", 3], "seed": seed,
        "steps": steps, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    }  # fmt: skip
    return {
        "1": {"class_type": "EasyCacheDemoModel", "inputs": words},
        node: {"class_type": "EasyCacheAdaptive", "inputs": cache},
        "3": {"class_type": "KSampler", "inputs": sampler},
        "4": {"class_type": "EasyCacheDemoDecode", "inputs": {"samples": ["3", 0]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }


class Listener:
    """A client of the server that keeps what it is told of runs."""

    def __init__(self, http, client):
        self.client, self.heard, self._http = client, [], http

    async def __aenter__(self):
        self._socket = await self._http.ws_connect(f"/ws?clientId={self.client}", max_msg_size=0)
        self._task = asyncio.create_task(self._listen())
        return self

    async def _listen(self):
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                if event["type"] == "easycache.run":
                    self.heard.append(event["data"])

    async def __aexit__(self, *exception):
        await self._socket.close()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def take(self):
        heard, self.heard = self.heard, []
        return heard


async def queue(http, graph, client=None):
    """Queue it, wait for its end and return its id."""
    body = {"prompt": graph, **({"client_id": client} if client else {})}
    async with http.post("/prompt", json=body) as answer:
        ticket = (await answer.json())["prompt_id"]
    while True:
        async with http.get(f"/history/{ticket}") as answer:
            if ticket in await answer.json():
                await asyncio.sleep(0.2)  # what was sent before is on its way
                return ticket
        await asyncio.sleep(0.2)


def test_runs_are_told_to_whom_they_concern(tmp_path):
    """Catches charts that show somebody else's run, floods of messages, and tensors or endless numbers in them."""

    async def session():
        async with (
            ComfyServer(comfy_host.make_base(tmp_path / "base"), tmp_path / "server.log") as server,
            aiohttp.ClientSession(base_url=server.url) as http,
            Listener(http, "ours") as ours,
            Listener(http, "other") as other,
        ):
            ticket = await queue(http, prompt(1), "ours")
            heard = ours.take()
            assert other.heard == [], "a run must be told to nobody but the client that queued it"
            assert len(heard) <= STEPS + 1, "one message per step, and one at the end"
            assert [message["state"] for message in heard] == ["running"] * (len(heard) - 1) + ["done"]
            assert {(message["node"], message["prompt"]) for message in heard} == {(NODE, ticket)}
            assert len({message["run"] for message in heard}) == 1

            records = []
            for message in heard:
                assert set(message["report"]) == REPORT
                records[message["first"] :] = message["records"]
                assert len(records) == message["report"]["evaluations"]
                if message["state"] == "running":
                    assert len(message["records"]) <= 2, "a step's message holds what is new"
            assert records == heard[-1]["records"] and len(records) == STEPS
            for record in records:
                assert set(record) == RECORD
                assert all(value is None or isinstance(value, (int, float)) for value in record.values())
            computed = sum(record["computed"] for record in records)
            assert heard[-1]["report"]["computed"] == computed < STEPS

            await queue(http, prompt(2))
            await queue(http, prompt(3), "gone")
            assert ours.heard == other.heard == [], "a job of no connected client is told to nobody"

            await queue(http, prompt(1, node="20:7"), "ours")
            told = {message["node"] for message in ours.take()}
            assert told == {"20:7"}, "another node of the same settings must not be answered from ComfyUI's cache"

            stop = asyncio.create_task(queue(http, prompt(4, steps=400), "ours"))
            while len(ours.heard) < 3:
                await asyncio.sleep(0.05)
            await server.interrupt()
            await stop
            heard = ours.take()
            assert heard[-1]["state"] == "stopped" and heard[-1]["report"]["steps"] == 400
            assert len(heard[-1]["records"]) == heard[-1]["report"]["evaluations"] < 400

            again = await queue(http, prompt(5), "ours")
            heard = ours.take()
            assert {message["prompt"] for message in heard} == {again}

            await queue(http, prompt(5), "other")
            (known,) = other.take()
            same = ("node", "state", "report", "records")
            assert {name: known[name] for name in same} == {name: heard[-1][name] for name in same}, (
                "ComfyUI answers an equal prompt from its cache; who has not seen the run must be shown it"
            )
            assert known["known"] and not any("known" in message for message in heard)

            more = {**prompt(5), "7": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}}}
            await queue(http, more, "other")
            assert other.take() == [known | {"prompt": mock.ANY}], "its sampler is answered from ComfyUI's cache, too"
            assert ours.heard == []
            other_seed = prompt(5)
            other_seed["3"]["inputs"]["seed"] = 6
            await queue(http, other_seed, "other")
            assert other.take()[0]["state"] == "running", "a prompt that is not equal has no run to show"

    asyncio.run(asyncio.wait_for(session(), 300))
