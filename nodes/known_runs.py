"""The run to show of a prompt whose sampler has been run before.

ComfyUI answers it from its own cache: nothing is sampled, and a chart that has not seen the run would have none to
show. It is told when the prompt is queued; a chart whose run still goes on shows it afterwards.
"""

from .progress_events import EVENT, message, prompt_server
from .run_history import FinishedRun, finished_runs

NODE = "EasyCacheAdaptive"


def send_known_runs_to_browsers() -> None:
    """Call it once, when the pack is loaded."""
    if server := prompt_server():
        server.add_on_prompt_handler(_send_known_runs)


def _send_known_runs(data: dict) -> dict:
    """ComfyUI calls this with what a client queues, and goes on with what it returns, which is the same."""
    server, client, prompt = prompt_server(), data.get("client_id"), data.get("prompt")
    if client not in server.sockets or not _is_prompt(prompt):
        return data
    for node, content in prompt.items():
        if content.get("class_type") == NODE and (run := _run_of(server, prompt, node)):
            report = {name: value for name, value in run.report.items() if name != "trace"}
            shown = message(node, run.prompt_id, data.get("prompt_id"), "done", report, run.report["trace"])
            server.send_sync(EVENT, {**shown, "known": True}, client)
    return data


def _run_of(server, prompt: dict, node: str) -> FinishedRun | None:
    """The node's last run in a prompt in which its sampler was given the same, whatever came of it."""
    for run in reversed(finished_runs(node)):
        earlier = _prompt_of(server.prompt_queue, run)
        if earlier and _leads_to(run.sampler, earlier) == _leads_to(run.sampler, prompt):
            return run
    return None


def _prompt_of(queue, run: FinishedRun) -> dict | None:
    """The prompt that a run was in, also while ComfyUI is still at what comes after the run."""
    if over := queue.get_history(prompt_id=run.prompt_id).get(run.prompt_id):
        return over["prompt"][2]
    running, _ = queue.get_current_queue()  # a copy of all that is queued
    return next((prompt for _, prompt_id, prompt, *_ in running if prompt_id == run.prompt_id), None)


def _is_prompt(prompt) -> bool:
    return isinstance(prompt, dict) and all(isinstance(content, dict) for content in prompt.values())


def _leads_to(end: str | None, prompt: dict) -> dict:
    """What makes two prompts equal up to a node, by node; of all of them if that is none of the prompt's, as those that
    others make while they run. ComfyUI and the browser add to the rest.
    """
    found, ahead = {}, [end] if end in prompt else list(prompt)
    while ahead:
        node = ahead.pop()
        if node not in found and node in prompt:
            inputs = prompt[node].get("inputs")
            found[node] = prompt[node].get("class_type"), inputs
            given = inputs.values() if isinstance(inputs, dict) else ()
            ahead += [link[0] for link in given if isinstance(link, list) and link and isinstance(link[0], str)]
    return found
