"""What a run is doing, told to the browser that queued it, through ComfyUI's own websocket."""

import logging
import sys
import uuid

from comfy_execution.utils import get_executing_context

EVENT = "easycache.run"
log = logging.getLogger("easycache")


class Live:
    """Messages of one sampling run: at most one a step, and one at the end. Without a browser there are none.

    A message holds those records of the trace that are new since the one before, or have got their numbers since. It
    names the job (prompt), as another workflow may have a node of the same id.
    """

    def __init__(self, node: str | None):
        """node: id of the node that shows the run; None: nobody looks."""
        self._node, self._run = node, uuid.uuid4().hex[:12]
        self._sent, self._settled = 0, 0  # records sent, and those of them with all their numbers

    @property
    def _listener(self):
        """(server, client id) of the browser whose job this is, None if there is none (any more)."""
        # A process without a server (a script, a test) has not imported its module.
        server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        client = getattr(server, "client_id", None)
        if self._node is None or client is None or client not in server.sockets:
            return None
        return server, client

    def tell(self, state: str, account) -> None:
        """state: "running", or "done" or "stopped", with which the whole trace is sent. Never raises.

        account(): (report, trace, how many records of it have all their numbers); asked only if somebody listens.
        """
        try:
            if listener := self._listener:
                server, client = listener
                server.send_sync(EVENT, self._message(state, *account()), client)
        except Exception:  # a picture is worth more than its chart
            log.warning("EasyCache: the chart could not be told of the run", exc_info=True)
            self._node = None

    def _message(self, state: str, report: dict, trace: list, settled: int) -> dict:
        first = self._settled if settled > self._settled else self._sent
        if state != "running":
            first = 0
        self._sent, self._settled = len(trace), settled
        context = get_executing_context()  # of the sampler's node
        prompt = context.prompt_id if context else None
        about = {"node": self._node, "run": self._run, "prompt": prompt, "state": state, "report": report}
        return {**about, "first": first, "records": trace[first:]}
