"""Turn a Graph into a subgraph blueprint: one node that a person drags in, as ComfyUI lists them from `subgraphs/`."""

import uuid
from collections.abc import Sequence

from workflow import inputs_of
from workflow_graph import Graph, Node, Output

INPUTS, OUTPUTS = -10, -20  # how links name the subgraph's own two ends
EDGE = 160  # pixels between these and the nodes


def blueprint(
    graph: Graph, name: str, description: str, aliases: Sequence[str],
    inputs: Sequence[tuple[Node, str]], outputs: Sequence[tuple[str, Output]], size: tuple[int, int],
) -> dict:  # fmt: skip
    """The contents of a blueprint's file.

    inputs: nodes with the input, or the widget, that is the subgraph's of that name. outputs: name and source. size: of
    the one node.
    """
    inner = graph.saved()
    links = [
        dict(id=id_, origin_id=origin, origin_slot=output, target_id=target, target_slot=slot, type=kind)
        for id_, origin, output, target, slot, kind in inner["links"]
    ]
    ends, sockets = [], []
    for slot, (node, input_) in enumerate(inputs):
        socket = _socket(graph, node, input_)
        socket["link"] = len(links) + 1
        links.append(dict(id=len(links) + 1, origin_id=INPUTS, origin_slot=slot, target_id=node.number,
                          target_slot=node.sockets.index(socket), type=socket["type"]))  # fmt: skip
        ends.append(_end(name, input_, socket["type"], len(links), (-EDGE, 20 * slot)))
        sockets.append({**socket, "link": None})
    starts = []
    for slot, (output, source) in enumerate(outputs):
        kind = source.node.outputs[source.slot]["type"]
        links.append(dict(id=len(links) + 1, origin_id=source.node.number, origin_slot=source.slot, target_id=OUTPUTS,
                          target_slot=slot, type=kind))  # fmt: skip
        source.node.outputs[source.slot]["links"].append(len(links))
        right = max(node["pos"][0] + node["size"][0] for node in inner["nodes"])
        starts.append(_end(name, f"{output} output", kind, len(links), (right + EDGE, 20 * slot)) | {"name": output})
    inner = graph.saved()
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    subgraph = {
        "id": identity,
        "version": 1,
        "state": dict(lastGroupId=0, lastNodeId=len(inner["nodes"]), lastLinkId=len(links), lastRerouteId=0),
        "revision": 0,
        "config": {},
        "name": name,
        "description": description,
        "category": "EasyCache",
        "inputNode": {"id": INPUTS, "bounding": [-EDGE - 140, 0, 140, 20 * len(ends) + 40]},
        "outputNode": {"id": OUTPUTS, "bounding": [right + EDGE, 0, 120, 20 * len(starts) + 40]},
        "inputs": ends,
        "outputs": starts,
        "widgets": [],
        "nodes": inner["nodes"],
        "groups": [],
        "links": links,
        "extra": {},
    }
    shown = [[str(node.number), input_] for node, input_ in inputs if _is_widget(graph, node, input_)]
    node = {
        "id": 1,
        "type": identity,
        "pos": [0, 0],
        "size": list(size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": start["name"], "type": start["type"], "links": []} for start in starts],
        "properties": {"proxyWidgets": shown},
        "widgets_values": [],
        "title": name,
    }
    extra = {"BlueprintDescription": description, "BlueprintSearchAliases": list(aliases)}
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4,
        "definitions": {"subgraphs": [subgraph]}, "extra": extra,
    }  # fmt: skip


def _socket(graph: Graph, node: Node, name: str) -> dict:
    """The node's socket of that name; a widget has none before it is linked."""
    for socket in node.sockets:
        if socket["name"] == name:
            return socket
    kind = next(kind for input_, kind, *_ in inputs_of(graph.definition(node)["input"]) if input_ == name)
    socket = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "widget": {"name": name}}
    node.sockets.append(socket)
    return socket


def _is_widget(graph: Graph, node: Node, name: str) -> bool:
    return any(input_ == name and widget for input_, *_, widget in inputs_of(graph.definition(node)["input"]))


def _end(blueprint: str, name: str, kind: str, link: int, place: tuple[int, int]) -> dict:
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{blueprint}/{name}"))
    return {"id": identity, "name": name, "type": kind, "linkIds": [link], "pos": list(place)}
