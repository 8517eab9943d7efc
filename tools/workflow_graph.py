"""Write workflows as the browser saves them, from nodes, links and columns instead of coordinates and slot numbers.

Nodes are laid out in columns of titled groups. They are a little larger than the classic canvas needs, as Nodes 2.0
needs more.
"""

import re
import uuid
from collections.abc import Iterator, Sequence

from workflow import inputs_of

TITLE, SLOT, WIDGET, PADDING = 30, 20, 24, 28  # heights on the canvas, in pixels
BADGE = 24  # with the pack's name, which Nodes 2.0 puts below the nodes of packs
WIDTH, TEXT_HEIGHT = 310, 130
MARGIN, GROUP_TITLE, GAP = 20, 50, 30
GROUP_COLOR, NOTE_COLORS = "#3f789e", {"color": "#432", "bgcolor": "#653"}
NOTE_WIDTH, NOTE_LINE, NOTE_LETTERS = 440, 19, 56  # pixels, pixels, letters per line


class Node:
    """A node of a Graph; node["NAME"] is one of its outputs, and the node itself stands for the first one."""

    def __init__(self, number: int, kind: str, definition: dict, size: tuple[int, int], **appearance):
        """definition: the node's entry in object_info. appearance: `title`, `color`, `properties` ..."""
        self.number, self.kind, self.size, self.appearance = number, kind, size, appearance
        self.position = (0, 0)
        self.sockets: list[dict] = []
        self.values: list = []
        names = definition.get("output_name") or definition["output"]
        self.outputs = [
            {"name": name, "type": kind, "links": []} for name, kind in zip(names, definition["output"], strict=True)
        ]

    def __getitem__(self, name: str) -> "Output":
        """The output of that name. Raises KeyError if there is none."""
        for slot, output in enumerate(self.outputs):
            if output["name"] == name:
                return Output(self, slot)
        raise KeyError(f"{self.kind} has no output {name!r}")

    def saved(self) -> dict:
        """The node as in the workflow's file."""
        node = {
            "id": self.number,
            "type": self.kind,
            "pos": list(self.position),
            "size": list(self.size),
            "flags": {},
            "order": self.number - 1,
            "mode": 0,
            "inputs": self.sockets,
            "outputs": self.outputs,
            "properties": {"Node name for S&R": self.kind} | self.appearance.get("properties", {}),
        }
        if self.values:
            node["widgets_values"] = self.values
        return node | {key: value for key, value in self.appearance.items() if key != "properties"}


class Output:
    def __init__(self, node: Node, slot: int):
        self.node, self.slot = node, slot


class Graph:
    """One workflow; its nodes are checked against the host's node definitions."""

    def __init__(self, name: str, object_info: dict):
        self._name, self._object_info = name, object_info
        self._nodes: list[Node] = []
        self._links: list[list] = []
        self._groups: list[dict] = []

    def node(self, kind: str, title: str = "", size: Sequence[int | None] = (None, None), look=None, **inputs) -> Node:
        """Add a node.

        size: width and height, None to take it from the content. look: `color`, `properties` ... inputs: a Node or
        Output to link, or a widget's value; widgets that are left out have their defaults.

        Raises KeyError naming an input that the host's node does not have, or a widget without value and default.
        """
        definition = self._object_info[kind]
        appearance = dict(look or {}) | ({"title": title} if title else {})
        node = Node(len(self._nodes) + 1, kind, definition, (0, 0), **appearance)
        linked_widgets, widgets, texts = [], 0, 0
        for name, type_, options, is_widget in inputs_of(definition["input"]):
            given = inputs.pop(name, None)
            source = Output(given, 0) if isinstance(given, Node) else given
            link = self._link(source, node) if isinstance(source, Output) else None
            socket = {"name": name, "type": "COMBO" if isinstance(type_, list) else type_, "link": link}
            if not is_widget:
                node.sockets.append(socket)
                continue
            if link is not None:
                linked_widgets.append(socket | {"widget": {"name": name}})
            node.values.append(_default(type_, options) if given is None or link is not None else given)
            multiline = bool(options.get("multiline"))
            texts, widgets = texts + multiline, widgets + (not multiline)
            if options.get("control_after_generate"):
                node.values.append("fixed")
                widgets += 1
            elif options.get("image_upload"):
                widgets += 1  # a button
        if inputs:
            raise KeyError(f"{kind} has no input {', '.join(inputs)}")
        rows = max(len(node.sockets), len(node.outputs))
        height = rows * SLOT + widgets * WIDGET + texts * TEXT_HEIGHT + PADDING
        height += BADGE * kind.startswith("EasyCache")
        node.size = (size[0] or WIDTH, size[1] or height)
        node.sockets += linked_widgets
        for link in self._links:
            if link[3] == node.number:
                link[4] = next(slot for slot, socket in enumerate(node.sockets) if socket["link"] == link[0])
        self._nodes.append(node)
        return node

    def definition(self, node: Node) -> dict:
        """The host's definition of a node."""
        return self._object_info[node.kind]

    def note(self, text: str) -> Node:
        """Add a MarkdownNote. Line breaks within a paragraph are removed, as the browser would show them."""
        paragraphs = list(unwrapped(text))
        lines = sum(1 + len(_shown(line)) // NOTE_LETTERS + 0.6 * (not line.startswith("-")) for line in paragraphs)
        definition = {"output": []}
        look = NOTE_COLORS | {"title": "Read me"}
        node = Node(len(self._nodes) + 1, "MarkdownNote", definition, (NOTE_WIDTH, int(lines * NOTE_LINE) + 40), **look)
        node.values = ["\n\n".join(paragraphs).replace("\n\n- ", "\n- ")]
        self._nodes.append(node)
        return node

    def columns(self, *columns: Sequence[tuple[str, Sequence[Node]]]) -> None:
        """Lay out all nodes in columns, from left to right. The nodes of a column become equally wide.

        A column is a sequence of (title, nodes) from top to bottom; with the title "" there is no group around them.
        """
        left = 0
        for column in columns:
            width = max(node.size[0] for _, nodes in column for node in nodes)
            top = 0
            for title, nodes in column:
                bottom = top + GROUP_TITLE
                for node in nodes:
                    node.size = (width, node.size[1])
                    node.position = (left + MARGIN, bottom + TITLE)
                    bottom += TITLE + node.size[1] + GAP
                if title:
                    self._group(title, [left, top, width + 2 * MARGIN, bottom - top])
                top = bottom + GAP
            left += width + 2 * MARGIN + GAP

    def _group(self, title: str, bounding: list[int]) -> None:
        group = {"id": len(self._groups) + 1, "title": title, "bounding": bounding, "color": GROUP_COLOR}
        self._groups.append(group | {"font_size": 24, "flags": {}})

    def saved(self) -> dict:
        """The contents of the workflow's file."""
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, self._name)),
            "revision": 0,
            "last_node_id": len(self._nodes),
            "last_link_id": len(self._links),
            "nodes": [node.saved() for node in self._nodes],
            "links": self._links,
            "groups": self._groups,
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [60, 110]}},
            "version": 0.4,
        }

    def _link(self, source: Output, target: Node) -> int:
        """Add a link and return its number. The target's slot is filled in once it is known."""
        number, output = len(self._links) + 1, source.node.outputs[source.slot]
        output["links"].append(number)
        self._links.append([number, source.node.number, source.slot, target.number, None, output["type"]])
        return number


def unwrapped(text: str) -> Iterator[str]:
    """The paragraphs, headings and list items of a Markdown text, each as one line."""
    parts: list[str] = []
    for line in [*map(str.strip, text.strip().splitlines()), ""]:
        if parts and (not line or line.startswith(("- ", "#"))):
            yield " ".join(parts)
            parts = []
        if line:
            parts.append(line)


def _shown(line: str) -> str:
    """A line of Markdown without the addresses of its links."""
    return re.sub(r"\]\([^)]*\)", "", line)


def _default(kind, options: dict):
    """The value of a new node's widget."""
    choices = kind if isinstance(kind, list) else options.get("options")
    return options["default"] if "default" in options or not choices else choices[0]
