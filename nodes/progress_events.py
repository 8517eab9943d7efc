"""Progress of a run, sent to the browser that queued it, through ComfyUI's own websocket."""

import logging
import sys
import uuid
from collections.abc import Callable

from comfy_execution.utils import get_executing_context

EVENT = "easycache.run"
log = logging.getLogger("easycache")


def prompt_server():
    """ComfyUI's server, None in a process without one (a script, a test), which has not imported its module."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def message(node: str, run: str, prompt: str | None, state: str, report: dict, trace: list, first: int = 0) -> dict:
    """What a browser is sent of a run. prompt: id of the queued prompt, as another workflow may have a node of the same
    id. first: of the trace's records that it lacks.
    """
    about = {"node": node, "run": run, "prompt": prompt, "state": state, "report": report}
    return {**about, "first": first, "records": trace[first:]}


class ProgressEvents:
    """The messages of one sampling run: at most one per step, and one at the end. None if no browser is connected.

    A message holds the trace's records that are new since the last message, or whose numbers were completed since.
    """

    def __init__(self, node: str | None):
        """node: id of the node that shows the run; with None nothing is sent."""
        self._node, self._run = node, uuid.uuid4().hex[:12]
        self._num_sent, self._num_resolved = 0, 0  # records sent, and how many of them had all their numbers

    @property
    def _listener(self):
        """(server, client id) of the browser that queued the prompt, None if it is not connected."""
        server = prompt_server()
        client = getattr(server, "client_id", None)
        if self._node is None or client is None or client not in server.sockets:
            return None
        return server, client

    def send(self, state: str, snapshot: Callable[[], tuple[dict, list, int]]) -> None:
        """Send a message. Never raises.

        state: "running"; or "done" or "stopped", with the whole trace. snapshot: as Account.snapshot, called only if a
        browser is connected.
        """
        try:
            if listener := self._listener:
                server, client = listener
                server.send_sync(EVENT, self._message(state, *snapshot()), client)
        except Exception:  # a run must not fail because its chart does
            log.warning("EasyCache: the run's progress could not be sent to the browser", exc_info=True)
            self._node = None

    def _message(self, state: str, report: dict, trace: list, num_resolved: int) -> dict:
        first = self._num_resolved if num_resolved > self._num_resolved else self._num_sent
        if state != "running":
            first = 0
        self._num_sent, self._num_resolved = len(trace), num_resolved
        context = get_executing_context()  # of the sampler's node
        prompt_id = context.prompt_id if context else None
        return message(self._node, self._run, prompt_id, state, report, trace, first)
