"""Turn a saved workflow (what the browser loads) into a prompt (what the server's /prompt takes).

The browser does this for a user; tests and the demo need it without a browser. Covers what the bundled workflows use:
plain nodes, links, widgets, notes. No subgraphs.
"""

from collections.abc import Iterator

NOTES = ("Note", "MarkdownNote")
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
CONTROLS = ("fixed", "increment", "decrement", "randomize")


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """The prompt of a workflow. workflow: the saved graph. object_info: what the server returns for /object_info.

    Raises KeyError naming a node type that the server does not know.
    """
    origin = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        if node["type"] not in object_info:
            raise KeyError(f"the server has no node {node['type']!r}")
        inputs = {name: value for name, _, _, value in widgets(node, object_info[node["type"]]["input"])}
        for socket in node.get("inputs", ()):
            if socket.get("link") is not None:
                inputs[socket["name"]] = list(origin[socket["link"]])
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title", node["type"])},
        }
    return prompt


def nodes_of(prompt: dict, kind: str) -> list[str]:
    """Ids of a prompt's nodes of that kind."""
    return [node for node, content in prompt.items() if content["class_type"] == kind]


def inputs_of(declared: dict) -> Iterator[tuple[str, object, dict, bool]]:
    """(name, type, options, whether it is a widget) of each input of a node, in order.

    declared: `input` of a node's entry in object_info. The type of a combo may be the list of its options, and one that
    takes several types by a link has that of its widget besides.
    """
    for section in ("required", "optional"):
        for name, (kind, *options) in declared.get(section, {}).items():
            options = options[0] if options else {}
            is_widget = isinstance(kind, list) or options.get("widgetType", kind) in WIDGET_TYPES
            yield name, kind, options, is_widget and not options.get("forceInput")


def widgets(node: dict, declared: dict) -> Iterator[tuple[str, object, dict, object]]:
    """(name, type, options, value) of a node's widgets that have a saved value.

    Values are saved by position; a seed is followed by its control mode.
    """
    values = list(node.get("widgets_values", ()))
    for name, kind, options, is_widget in inputs_of(declared):
        if not is_widget:
            continue
        if not values:
            return
        yield name, kind, options, values.pop(0)
        if options.get("control_after_generate") and values and values[0] in CONTROLS:
            values.pop(0)
