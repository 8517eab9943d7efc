"""EasyCache (Adaptive) in the browser, used as a person would."""

import ast
import json
import math
import re

import comfy_host
import frontend
import pytest
from graphs import sampling, two_stages
from playwright.sync_api import TimeoutError
from server_sentences import sentences

WIDGETS = [
    "threshold", "warmup_steps", "predictor", "target_speedup", "max_consecutive_skips", "start_percent",
    "end_percent", "cache_device", "verbose",
]  # fmt: skip
FINISHED = "^[0-9.]+x, [0-9]+ of [0-9]+ steps computed$"
both_frontends = pytest.mark.parametrize("server", ["required", "newest"], indirect=True)


def bars(tab, kind, chart=0):
    """How many bars of a kind a chart has."""
    drawn = tab.charts.nth(chart).locator(f"svg .easycache-{kind}").get_attribute("d") or ""
    return drawn.count("z")


def counted(summary):
    """(computed, evaluations) of a chart's text."""
    return tuple(map(int, re.search(r"(\d+) of (\d+)", summary).groups()))


def saved_nodes(workflow):
    return [node for node in workflow["nodes"] if node["type"] == frontend.NODE]


def saved_node(workflow):
    (node,) = saved_nodes(workflow)
    return node


CUT_OFF = """chart => [chart, ...chart.querySelectorAll('div')]
    .filter(e => e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight)
    .map(e => `${e.className}: ${e.textContent}`)"""


def cut_off(tab):
    """Parts of the chart whose text does not fit into them."""
    return tab.charts.first.evaluate(CUT_OFF)


def watch(tab):
    """Have the page note in `watched` whatever the chart shows from now on."""
    tab.charts.first.evaluate(
        """(chart, cut) => {
            window.watched = [];
            const note = () => watched.push({
                text: chart.querySelector('.easycache-summary').textContent,
                bars: [...chart.querySelectorAll('svg .easycache-computed, svg .easycache-skipped')]
                    .reduce((sum, path) => sum + (path.getAttribute('d') ?? '').split('z').length - 1, 0),
                cut: eval(cut)(chart),
            });
            new MutationObserver(note).observe(chart, { subtree: true, childList: true, attributes: true });
        }""",
        CUT_OFF,
    )


def watch_frames(tab):
    """Have the page note in `heard` the steps of each message; and in `frames_seen`, for each frame that it draws, the
    steps heard of until the frame before, and the steps shown.
    """
    tab.charts.first.evaluate(
        """chart => {
            const [heard, frames] = [(window.heard = []), (window.frames_seen = [])];
            app.api.addEventListener('easycache.run', ({ detail }) => heard.push(detail.report.evaluations));
            let before = 0;
            const look = () => {
                const shown = chart.querySelector('.easycache-summary').textContent.match(/of (\\d+) steps/);
                frames.push([before, Number(shown?.[1] ?? 0)]);
                before = heard.at(-1) ?? 0;
                setTimeout(() => requestAnimationFrame(look));
            };
            requestAnimationFrame(look);
        }"""
    )


def choose(tab, node, preset):
    """Take an entry of the drop-down on the canvas."""
    left, right, y = tab.widget(node, "preset")
    tab.page.mouse.click((left + right) / 2, y)
    tab.page.locator(".litecontextmenu").get_by_text(preset, exact=True).click()


def open_search(tab):
    """Double-click the empty canvas. A busy machine may make it two clicks; then again, as a person would."""
    for patience in (10_000, 10_000, 60_000):
        tab.page.mouse.dblclick(500, 300)
        try:
            return tab.page.get_by_role("combobox").last.wait_for(timeout=patience)
        except TimeoutError as error:
            missed = error
    raise missed


@both_frontends
def test_found_in_the_node_search(tab):
    """Typing "EasyCache" must list the pack's nodes by their full names, this one before its helpers with their shorter
    names; and a pick must bring node and chart.
    """
    tab.open()
    tab.build()
    open_search(tab)
    tab.page.keyboard.type("EasyCache")
    found = tab.page.get_by_role("option")
    found.filter(has_text="EasyCache Demo Decode").first.wait_for()
    for name in ("EasyCache Demo Model", "EasyCache Demo Decode"):
        assert found.filter(has_text=re.compile(f"^{name}")).count() == 1
    listed = re.findall(r"^EasyCache[ \xa0](\(Adaptive|Report|Compare|Demo)", "\n".join(found.all_inner_texts()), re.M)
    assert listed[0] == "(Adaptive", listed
    # Newer frontends show descriptions, and those of other nodes speak of it.
    found.filter(has_text=re.compile(r"^EasyCache \(Adaptive\)")).first.click()
    tab.page.mouse.move(510, 310)
    tab.frames()
    tab.page.mouse.click(510, 310)  # newer frontends let one choose the place
    tab.page.wait_for_function("() => app.canvas.graph.nodes.length === 1")
    (node,) = tab.nodes()
    assert "to the sampler" in tab.wait_for_summary("^Connect")  # who leaves it unconnected would see nothing happen
    assert tab.values(node)["preset"] == "default"


def answer_as_a_newer_host(tab):
    """Let the browser have what ComfyUI 0.33 adds to the node's definition and 0.3.75 does not know of."""
    source = (comfy_host.PACK / "nodes" / "adaptive.py").read_text("utf-8")
    (aliases,) = re.findall(r"SEARCH_ALIASES = (\[.*?\])", source, re.S)
    advanced = re.findall(r'"(\w+)",\s+\*\*known_to\(\S+ advanced=True\)', source)
    assert len(advanced) == len(WIDGETS) - 3

    def answer(route):
        original = route.fetch()
        info = original.json()
        info[frontend.NODE]["search_aliases"] = ast.literal_eval(aliases)
        for name in advanced:
            info[frontend.NODE]["input"]["optional"][name][1]["advanced"] = True
        route.fulfill(response=original, json=info)

    tab.page.route("**/object_info*", answer)


@pytest.mark.parametrize("server", ["newest"], indirect=True)
@pytest.mark.parametrize("typed", ["teacache", "speed up"])
def test_found_by_a_rivals_name(tab, typed):
    """Who looks for another cache, or for what a cache does, finds this one."""
    answer_as_a_newer_host(tab)
    tab.open()
    tab.build()
    open_search(tab)
    tab.page.keyboard.type(typed)
    tab.page.get_by_role("option").filter(has_text=re.compile(r"^EasyCache \(Adaptive\)")).first.wait_for()


@both_frontends
def test_from_the_template_to_a_run_that_stays(tab, server, seed):
    """The whole way: template, slider, run, chart, summary; and after a reload it is still there."""
    tab.open()
    page = tab.page
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_role("dialog").get_by_placeholder("Search").fill("instant demo")
    page.get_by_role("dialog").get_by_text("instant demo").first.click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.wait_for_function("() => app.canvas.graph.nodes.length > 5")
    (node,) = tab.nodes()
    for sampler in tab.nodes("KSampler"):
        tab.set(sampler, steps=20)
    tab.set(tab.nodes("PrimitiveInt")[0], value=seed)

    tab.look_at(node)
    left, right, y = tab.widget(node, "threshold")
    page.mouse.move(left + 20, y)
    page.mouse.down()
    page.mouse.move(left + 0.1 * (right - left), y, steps=4)
    page.mouse.up()
    values = tab.values(node)
    assert 0.05 < values["threshold"] < 0.15 and values["preset"] == "custom"

    watch(tab)
    tab.press_run()
    summary = tab.wait_for_summary(FINISHED)
    running = [state for state in tab.page.evaluate("() => watched") if state["text"].endswith("…")]
    assert all(state["bars"] == counted(state["text"])[1] and not state["cut"] for state in running)
    assert counted(summary)[1] == 20 == bars(tab, "computed") + bars(tab, "skipped")
    logged = re.search(r"computed (\d+) of (\d+) evaluations", server.easycache_lines()[-1])
    assert counted(summary) == tuple(map(int, logged.groups()))

    page.reload()
    tab.wait_until_loaded()
    page.wait_for_function("() => app.canvas.graph.nodes.length > 5")
    tab.look_at(tab.nodes()[0])
    assert tab.wait_for_summary(FINISHED) == summary
    assert bars(tab, "computed") == counted(summary)[0]


@both_frontends
def test_the_chart_keeps_up_with_a_short_run(tab, seed):
    """Each step of 20 is told to the browser, and whenever it draws the page it draws all that it was told."""
    tab.open()
    node = tab.build(*sampling(20, seed))[2]
    tab.look_at(node)
    watch_frames(tab)
    tab.press_run()
    tab.wait_for_summary(FINISHED)
    heard, frames = tab.page.evaluate("() => [heard, frames_seen]")
    assert heard == [*range(1, 21), 20]
    assert [frame for frame in frames if frame[1] < frame[0]] == []
    assert bars(tab, "computed") + bars(tab, "skipped") == 20


def test_a_chart_fills_while_another_prompt_is_queued(tab, seed):
    """The answer to the second prompt is late; the chart of the first one must not wait for it."""
    tab.open()
    node = tab.build(*sampling(14, seed))[2]
    tab.look_at(node)
    posts = []

    def hold_the_second(route):
        posts.append(route)
        if len(posts) == 1:
            route.continue_()

    tab.page.route("**/api/prompt", hold_the_second)
    tab.press_run()
    tab.page.wait_for_timeout(200)
    tab.press_run()
    tab.wait_for_summary(FINISHED)
    assert len(posts) == 2
    posts[1].continue_()


def test_a_copy_shows_the_run_until_it_has_its_own(tab, seed):
    """Copy and paste, save and load: the picture stays with each node, and nothing of it is in the workflow."""
    tab.open()
    node = tab.build(*sampling(14, seed, threshold=0.2, warmup_steps=2))[2]
    tab.look_at(node)
    tab.press_run()
    summary = tab.wait_for_summary(FINISHED)

    page = tab.page
    page.mouse.click(400, 145)  # its title
    page.keyboard.press("Control+c")
    page.mouse.move(900, 300)
    page.keyboard.press("Control+v")
    page.wait_for_function("() => app.canvas.graph.nodes.filter(n => n.type === 'EasyCacheAdaptive').length === 2")
    (copy,) = set(tab.nodes()) - {node}
    tab.look_at(copy)
    tab.wait_for_summary(FINISHED, chart=1)
    assert {tab.summary(0), tab.summary(1)} == {summary}

    # The copy takes the original's place and runs: the original's picture must not change.
    page.evaluate(
        "([from, to]) => { const g = app.canvas.graph; g.getNodeById(from).connect(0, g.getNodeById(to), 0); }",
        [copy, tab.nodes("KSampler")[0]],
    )
    page.evaluate(
        "([from, to]) => { const g = app.canvas.graph; g.getNodeById(from).connect(0, g.getNodeById(to), 0); }",
        [tab.nodes("ModelSamplingSD3")[0], copy],
    )
    tab.set(copy, threshold=0)
    tab.press_run()
    tab.wait_for_summary("14 of 14", chart=1)
    assert tab.summary(0) == summary

    saved = tab.saved()
    text = json.dumps(saved)
    assert "records" not in text and "easycache_chart" not in text and summary not in text
    for one in saved_nodes(saved):
        assert len(one["widgets_values"]) == len(WIDGETS)
        assert set(one["properties"]) - {"cnr_id", "aux_id", "ver"} == {"Node name for S&R", "easycache"}
        assert re.fullmatch("[0-9a-f]{12}", one["properties"]["easycache"])
    tab.load(saved)
    tab.look_at(node)
    tab.wait_for_summary("14 of 14", chart=1)
    assert tab.summary(0) == summary


def test_two_nodes_and_another_client(tab, chromium, server, seed):
    """Two stages as in Wan 2.2: each chart shows its own run. A browser that did not queue it is told nothing."""
    tab.open()
    build = two_stages(20, seed, {"target_speedup": 2.0}, {"threshold": 0.0})
    first, second = (tab.build(*build)[i] for i in (2, 4))
    with frontend.tab(chromium, server.url) as other:
        other.open()
        other.build(*build)
        other.look_at(first)
        tab.look_at(first)
        tab.press_run()
        tab.wait_for_summary("10 of 10", chart=1)
        assert counted(tab.summary(0)) == (5, 10)
        assert "budget 5" in tab.charts.nth(0).inner_text() and "threshold" not in tab.charts.nth(0).inner_text()
        assert other.summary(0).startswith("Run to see") and other.summary(1).startswith("Run to see")
    tab.look_at(second)
    assert counted(tab.summary(1)) == (10, 10)
    assert "Nothing was skipped: threshold is 0" in tab.charts.nth(1).inner_text()
    said = tab.charts.nth(1).locator(".easycache-note").get_attribute("title")
    assert said.startswith("Nothing was skipped: threshold is 0"), "a reason may be longer than the node is high"


def test_a_run_that_comfyui_takes_from_its_cache_is_shown(tab, chromium, server, seed):
    """Nothing is sampled when an equal workflow is run again, and a browser that has not seen the run has no chart."""
    tab.open()
    node = tab.build(*sampling(14, seed))[2]
    same = tab.saved()  # a run changes the seed for the next one
    tab.press_run()
    summary = tab.wait_for_summary(FINISHED)
    with frontend.tab(chromium, server.url) as other:
        other.open()
        other.load(same)
        other.look_at(node)
        other.wait_for_summary("^Run to see")
        other.press_run()
        assert other.wait_for_summary(FINISHED) == summary
        assert bars(other, "computed") == counted(summary)[0]


def test_a_run_goes_to_the_workflow_it_was_queued_from(tab, seed):
    """Another workflow is open by the time it runs, whose node has the same id: it must not show that run."""
    tab.open()
    graph = sampling(24, seed, threshold=0.2)
    node = tab.build(*graph)[2]
    own = tab.saved()
    tab.press_run()
    tab.build(*graph)
    tab.look_at(node)
    tab.page.wait_for_function("() => localStorage.getItem('easycache.runs')?.includes('done')")
    assert tab.summary().startswith("Run to see")
    tab.load(own)
    tab.look_at(node)
    tab.wait_for_summary("of 24 steps")


def test_in_a_subgraph_and_collapsed(tab, seed):
    """Inside a subgraph the run has an id of two parts; a collapsed node leaves nothing floating on the canvas."""
    tab.open()
    node = tab.build(*sampling(12, seed, threshold=0.3, warmup_steps=2))[2]
    tab.page.evaluate(
        """(id) => {
            const { graph } = app.canvas;
            const { node } = graph.convertToSubgraph(new Set([graph.getNodeById(id)]));
            app.canvas.openSubgraph(node.subgraph, node);
        }""",
        node,
    )
    (inner,) = tab.nodes()
    tab.look_at(inner)
    assert any(":" in id for id in tab.prompt())
    tab.press_run()
    tab.wait_for_summary(FINISHED)
    assert tab.charts.count() == 1
    box = tab.charts.first.bounding_box()
    tab.page.mouse.move(box["x"] + 50, box["y"] + 50)
    tab.page.mouse.wheel(0, -100)
    tab.page.wait_for_function("() => app.canvas.ds.scale > 1")  # the chart must not swallow the wheel

    toggle = "id => { app.canvas.graph.getNodeById(id).collapse(); app.canvas.setDirty(true, true); }"
    tab.page.evaluate(toggle, inner)
    tab.charts.first.wait_for(state="hidden")
    tab.page.evaluate(toggle, inner)
    tab.wait_for_summary(FINISHED)
    tab.page.evaluate("() => app.canvas.setGraph(app.rootGraph ?? app.graph)")
    tab.charts.first.wait_for(state="hidden")


@both_frontends
def test_nodes_2(tab, seed):
    """Nodes 2.0: the chart fills there too, presets reach the widgets on show, and collapsing puts it away."""
    tab.open(VueNodes_Enabled=True)
    node = tab.build(*sampling(14, seed))[2]
    tab.look_at(node)
    shown = tab.page.locator(f"[data-node-id='{node}']")
    shown.locator(".easycache").wait_for()
    if (more := shown.get_by_text("Show advanced inputs")).count():
        more.click()
    tab.set(node, preset="Wan 2.1 (paper)")
    shown.get_by_text("reuse", exact=True).first.wait_for()
    tab.set(node, predictor="forecast", threshold=0.3, warmup_steps=2)
    shown.get_by_text("custom", exact=True).first.wait_for()
    tab.press_run()
    tab.wait_for_summary(FINISHED)
    assert bars(tab, "computed") + bars(tab, "skipped") == 14
    assert len(saved_node(tab.saved())["widgets_values"]) == len(WIDGETS)

    toggle = "id => app.canvas.graph.getNodeById(id).collapse()"
    tab.page.evaluate(toggle, node)
    tab.charts.first.wait_for(state="hidden")
    tab.page.evaluate(toggle, node)
    tab.wait_for_summary(FINISHED)
    assert bars(tab, "computed") + bars(tab, "skipped") == 14


@pytest.mark.parametrize("server", ["newest"], indirect=True)
@pytest.mark.parametrize("nodes_2", [False, True])
def test_the_right_panel_leaves_the_chart_on_the_node(tab, nodes_2):
    """It shows the inputs of what is selected. Catches an empty row for the chart, and a chart that takes the panel's
    width, and keeps it.
    """
    tab.open(VueNodes_Enabled=nodes_2, RightSidePanel_IsOpen=True)
    node = tab.build(*sampling(14, 1)[:3])[2]
    tab.look_at(node)
    width = tab.charts.first.bounding_box()["width"]
    select = "id => app.canvas.selectNode(app.canvas.graph.getNodeById(id))"
    tab.page.evaluate(select, node)
    panel = tab.page.get_by_test_id("properties-panel")
    panel.get_by_text("threshold", exact=True).first.wait_for()
    tab.frames()
    assert panel.get_by_text("preset", exact=True).count() and not panel.get_by_text("easycache_chart").count()
    assert tab.charts.first.bounding_box()["width"] == width
    tab.page.evaluate("() => app.canvas.deselectAll()")
    tab.frames()
    assert tab.charts.first.bounding_box()["width"] == width


@both_frontends
def test_the_blueprint_takes_the_place_of_a_sampler(tab, seed):
    """Cached sampling is one node to drag in: what is set on it reaches the nodes inside, whose chart shows the run."""
    tab.open()
    model, shift, _, sampler, decode, *_ = tab.build(*sampling(14, seed))
    tab.look_at(model, top=650)  # room above for the search and what it brings
    open_search(tab)
    tab.page.keyboard.type("EasyCache sampling")
    tab.page.get_by_role("option").filter(has_text="EasyCache sampling").first.click()
    tab.page.wait_for_function("() => app.canvas.graph.nodes.some(n => n.subgraph)")
    tab.page.mouse.move(510, 310)
    tab.frames()
    tab.page.mouse.click(510, 310)  # some frontends let it follow the mouse until then
    tab.frames()
    blueprint, inside = tab.page.evaluate(
        """([model, shift, sampler, decode]) => {
            const { graph } = app.canvas, node = graph.nodes.find(n => n.subgraph);
            const connect = (from, output, input) =>
                graph.getNodeById(from).connect(output, node, node.findInputSlot(input));
            connect(shift, 0, 'model'), connect(model, 1, 'positive'), connect(model, 2, 'negative');
            connect(model, 3, 'latent_image');
            node.connect(0, graph.getNodeById(decode), 0);
            graph.remove(graph.getNodeById(sampler));
            return [node.id, node.subgraph.nodes.find(n => n.type === 'EasyCacheAdaptive').id];
        }""",
        [model, shift, sampler, decode],
    )
    names = {name.split(" ")[-1]: name for name in tab.values(blueprint)}  # some frontends put a number before them
    tab.set(blueprint, **{names["seed"]: seed, names["steps"]: 12, names["target_speedup"]: 3.0})
    prompt = tab.prompt()
    assert prompt[f"{blueprint}:{inside}"]["inputs"]["target_speedup"] == 3.0
    tab.press_run()
    tab.page.wait_for_function("() => localStorage.getItem('easycache.runs')?.includes('done')")
    tab.page.evaluate(
        "id => { const node = app.canvas.graph.getNodeById(id); app.canvas.openSubgraph(node.subgraph, node); }",
        blueprint,
    )
    tab.look_at(inside)
    tab.wait_for_summary("4 of 12")
    assert tab.values(inside)["preset"] == "default", "all that is not set on the outside"
    tab.set(inside, warmup_steps=3)
    assert tab.values(inside)["preset"] == "custom"


FOLLOWED = "Another EasyCache (Adaptive) follows; that one counts."
WHICH_ARE_FOLLOWED = """async () => {
    const { allNodes, followed } = await import("/extensions/ComfyUI-EasyCache/graph.js");
    const root = app.rootGraph ?? app.graph;
    const ours = [...allNodes(root)].filter(({ type }) => type === "EasyCacheAdaptive");
    return ours.map((node) => followed(root, node, []));
}"""


@both_frontends
def test_two_in_a_row(tab, seed):
    """Only the last one counts. Catches a first one that goes on asking to be run, and one that says so where a sampler
    of its own, or none, follows.
    """
    shift = {"type": "ModelSamplingSD3", "at": [350, 650], "widgets": {"shift": 5.0}, "inputs": {"model": [2, 0]}}
    second = {"type": "EasyCacheAdaptive", "at": [700, 650], "inputs": {"model": [6, 0]}}
    tab.open()
    made = tab.build(*sampling(14, seed), shift, second)
    first, sampler, last = made[2], made[3], made[7]
    tab.look_at(first, top=100)
    connect = "([from, to]) => { const g = app.canvas.graph; g.getNodeById(from).connect(0, g.getNodeById(to), 0); }"
    tab.frames()
    assert FOLLOWED not in tab.charts.first.inner_text(), "its own sampler counts"
    tab.page.evaluate(connect, [last, sampler])
    tab.wait_for_summary("that one counts")
    tab.press_run()
    tab.wait_for_summary(FINISHED, chart=1)
    assert tab.summary(0) == FOLLOWED and FOLLOWED not in tab.charts.first.locator(".easycache-note").inner_text()

    saved = tab.saved()
    tab.load(saved)
    tab.look_at(first, top=100)
    tab.wait_for_summary("that one counts")
    assert tab.summary(1) != FOLLOWED
    for mode in (2, 4):  # muted, bypassed
        tab.page.evaluate(f"id => {{ app.canvas.graph.getNodeById(id).mode = {mode}; }}", last)
        tab.set(first, warmup_steps=mode)
        tab.wait_for_summary("^Run to see")
    tab.page.evaluate("id => { app.canvas.graph.getNodeById(id).mode = 0; }", last)

    into = "id => { const g = app.canvas.graph; g.convertToSubgraph(new Set([g.getNodeById(id)])); }"
    for inside in (last, first):  # a link leads into a subgraph, and then out of another one, too
        tab.page.evaluate(into, inside)
        assert sorted(tab.page.evaluate(WHICH_ARE_FOLLOWED)) == [False, True]


def test_presets_fill_the_widgets_and_nothing_else(tab):
    """What is queued are the widgets' values; the drop-down follows them, wherever they come from."""
    tab.open()
    node = tab.build(*sampling(14, 1))[2]
    tab.look_at(node)
    choose(tab, node, "HunyuanVideo (paper)")
    values = tab.values(node)
    assert (values["threshold"], values["warmup_steps"], values["predictor"]) == (0.025, 5, "reuse")
    tab.charts.first.get_by_text("arXiv 2507.02860").wait_for()
    queued = tab.prompt()[str(node)]["inputs"]
    assert sorted(queued) == sorted([*WIDGETS, "model"])
    assert all(queued[name] == values[name] for name in WIDGETS)

    saved = tab.saved()
    tab.set(node, threshold=0.03)
    assert tab.values(node)["preset"] == "custom"
    tab.load(saved)
    assert tab.values(node)["preset"] == "HunyuanVideo (paper)"
    saved_node(saved)["widgets_values"][0] = 0.07
    saved_node(saved).pop("widgets_values_named", None)  # newer frontends may go by it
    tab.load(saved)
    assert tab.values(node)["preset"] == "custom"
    assert tab.values(node)["threshold"] == 0.07

    for preset, expected in (("faithful", 2.2), ("fast", 3.4), ("default", 0)):
        choose(tab, node, preset)
        values = tab.values(node)
        assert (values["preset"], values["target_speedup"], values["predictor"]) == (preset, expected, "forecast")
    assert tab.page.evaluate("() => app.extensionManager.workflow.activeWorkflow !== null")


def test_every_preset_is_backed_and_none_is_another(tab):
    """A preset without a source, or with the values of another one, is a promise that nobody made."""
    tab.open()
    node = tab.build(*sampling(14, 1))[2]
    tab.look_at(node)
    presets = tab.page.evaluate(
        "id => app.canvas.graph.getNodeById(id).widgets.find(w => w.name === 'preset').options.values", node
    )
    assert tab.values(node)["preset"] == presets[0] == "default" and presets[-1] == "custom"
    filled = {}
    for preset in presets[:-1]:
        tab.set(node, preset=preset)
        tab.frames()
        assert re.search("arXiv|docs/figures.md", tab.charts.first.locator(".easycache-note").inner_text()), preset
        assert cut_off(tab) == [], preset
        values = tab.values(node)
        assert values["preset"] == preset
        filled[preset] = tuple(values[name] for name in WIDGETS)
    assert len(set(filled.values())) == len(filled), "one fills in what another does"

    workflow = json.loads((comfy_host.PACK / "workflows" / "EasyCache - Wan 2.2 T2V.json").read_text("utf-8"))
    saved = {tuple(one["widgets_values"]) for one in saved_nodes(workflow)}
    assert saved == {filled["Wan 2.2 high noise"], filled["Wan 2.2 low noise"]}


@both_frontends
def test_what_has_no_effect_is_grey_and_says_why(tab):
    """Turning a slider that changes nothing is time lost. What comes over a link is not known, so it greys nothing."""
    tab.open()
    link = {"type": "PrimitiveFloat", "at": [0, 600], "widgets": {"value": 2.0}}
    node = tab.build(*sampling(14, 1)[:3], link)[2]

    def grey():
        return set(
            tab.page.evaluate(
                "id => app.canvas.graph.getNodeById(id).widgets.filter(w => w.disabled).map(w => w.name)", node
            )
        )

    tab.look_at(node)
    assert not grey()
    tab.set(node, target_speedup=3.0)
    assert grey() == {"threshold", "warmup_steps"}
    tab.charts.first.get_by_text("target_speedup decides").wait_for()
    left, right, y = tab.widget(node, "threshold")
    tab.page.mouse.move((left + right) / 2, y)
    tab.page.locator(".node-tooltip").get_by_text("target_speedup decides").wait_for()
    tab.page.mouse.click(left + 0.9 * (right - left), y)
    assert tab.values(node)["threshold"] == 0.15, "a grey slider must not move"
    saved = tab.saved()
    tab.set(node, target_speedup=0)
    assert not grey()
    tab.load(saved)
    assert grey() == {"threshold", "warmup_steps"}

    tab.set(node, target_speedup=0, threshold=0)
    assert grey() == {"warmup_steps", "predictor", "max_consecutive_skips", "start_percent", "end_percent"}
    tab.set(node, threshold=0.15)
    tab.page.evaluate(
        """id => {
            const { graph } = app.canvas, node = graph.getNodeById(id);
            node.widgets.find(w => w.name === 'target_speedup').value = 2;
            const from = graph.nodes.find(n => n.type === 'PrimitiveFloat');
            from.connect(0, node, node.findInputSlot('target_speedup'));
        }""",
        node,
    )
    assert not grey() and tab.values(node)["preset"] == "custom"


def test_what_run_refuses_is_said_beforehand(tab, seed):
    """Catches settings at which Run fails, and nothing on the node that says why."""
    tab.open()
    node = tab.build(*sampling(14, seed))[2]
    tab.look_at(node)
    note = tab.charts.first.locator(".easycache-note")
    tab.set(node, start_percent=0.8, end_percent=0.6)
    note.get_by_text("start_percent is above end_percent").wait_for()
    assert cut_off(tab) == []
    tab.set(node, end_percent=0.9)
    tab.frames()
    assert "above" not in note.inner_text()
    tab.set(node, start_percent=0.0, end_percent=1.0)
    tab.press_run()
    tab.wait_for_summary(FINISHED)

    saved = tab.saved()
    target = WIDGETS.index("target_speedup")
    saved_node(saved)["widgets_values"][target] = 0.5  # as another program, or an older version, may leave it
    saved_node(saved).pop("widgets_values_named", None)
    tab.load(saved)
    tab.look_at(node)
    assert tab.values(node)["target_speedup"] == 0.5
    note.get_by_text("target_speedup must be 0 (off), or 1 to 10").wait_for()
    tab.set(node, target_speedup=2)
    tab.frames()
    assert note.inner_text().startswith("What if, target_speedup 2")


@both_frontends
def test_target_speedup_steps_over_what_it_cannot_be(tab):
    """Catches a first click on the arrow that leads to 0.1, which is refused when the workflow runs."""
    tab.open()
    node = tab.build(*sampling(14, 1)[:3])[2]
    tab.look_at(node)
    left, right, y = tab.widget(node, "target_speedup")

    def click(x):
        tab.page.mouse.click(x, y)
        tab.frames()
        return tab.values(node)["target_speedup"]

    for allowed in (1, 1.1, 1.2):
        assert click(right - 10) == pytest.approx(allowed)
    for allowed in (1.1, 1, 0, 0):
        assert click(left + 10) == pytest.approx(allowed)


@pytest.mark.parametrize("server", ["newest"], indirect=True)
def test_target_speedup_steps_over_what_it_cannot_be_in_nodes_2(tab):
    """The same where the widget is an element of the page, which must show what the value is."""
    tab.open(VueNodes_Enabled=True)
    node = tab.build(*sampling(14, 1)[:3])[2]
    tab.look_at(node)
    row = tab.page.locator(f"[data-node-id='{node}'] [data-widget-name='target_speedup']").get_by_role("spinbutton")

    def press(key):
        row.press(key)
        tab.frames()
        return tab.values(node)["target_speedup"], float(row.input_value())

    for key, allowed in (("ArrowUp", 1), ("ArrowUp", 1.1), ("ArrowDown", 1), ("ArrowDown", 0)):
        assert press(key) == pytest.approx((allowed, allowed))


def grey(slider):
    """Whether a slider of Nodes 2.0 takes no input."""
    return slider.evaluate("e => e.closest('[data-disabled]') !== null")


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("server", ["newest"], indirect=True)
def test_few_knobs_first_in_nodes_2(tab, newer):
    """The preset is the first row. Where the host knows of advanced inputs, the rest waits behind a button. What has no
    effect is grey there, too.
    """
    if newer:
        answer_as_a_newer_host(tab)
    tab.open(VueNodes_Enabled=True)
    node = tab.build(*sampling(14, 1))[2]
    tab.look_at(node)
    shown = tab.page.locator(f"[data-node-id='{node}']")
    shown.get_by_text("preset", exact=True).first.wait_for()
    place = {
        name: shown.get_by_text(name, exact=True).first.bounding_box()["y"]
        for name in ("preset", "threshold", "warmup_steps", "target_speedup")
    }
    assert list(place) == sorted(place, key=place.get)
    threshold = shown.get_by_role("slider").first
    assert not grey(threshold)
    tab.set(node, target_speedup=3.0)
    tab.frames()
    assert grey(threshold)
    more = shown.get_by_text("Show advanced inputs")
    if newer:
        assert shown.get_by_text("predictor", exact=True).count() == 0 and more.count() == 1
        (_, top, _, height), button = tab.box(node), more.bounding_box()
        assert top + height >= button["y"] + button["height"], "a picture of the node shows all of it"
    if more.count():
        more.click()
    for name in set(WIDGETS) - set(place):
        shown.get_by_text(name, exact=True).first.wait_for()


def test_what_if(tab, seed):
    """After a run the node says how close it is; moving a slider, how many steps the run would have computed and how
    close it would have been. The target's count is exact, and is kept.
    """
    tab.open()
    node = tab.build(*sampling(24, seed, threshold=0.1, warmup_steps=3))[2]
    tab.look_at(node)
    tab.press_run()
    computed, _ = counted(tab.wait_for_summary(FINISHED))
    note = tab.charts.first.locator(".easycache-note")
    close = re.compile(r"(-?\d+) to (-?\d+) dB of the uncached latent \(estimate\)")
    assert close.fullmatch(note.inner_text().rstrip("."))
    here = int(close.search(note.inner_text())[1])

    def count(**values):
        tab.set(node, **values)
        tab.frames()
        text = note.inner_text()
        assert text.startswith("What if"), text
        return counted(text)[0], text

    fewer, text = count(threshold=0.4)
    assert fewer <= computed and "about" in text and int(close.search(text)[1]) <= here
    assert "estimated" in note.get_attribute("title").lower()
    more, text = count(threshold=0.07)
    assert computed <= more and (more == 24 or int(close.search(text)[1]) >= here)
    all_of_them, text = count(threshold=0.0)
    assert all_of_them == 24 and "dB" not in text
    exact, text = count(target_speedup=3.0)
    assert exact == 8 < computed and "about" not in text and int(close.search(text)[1]) < here
    tab.set(node, target_speedup=0.0, threshold=0.1, end_percent=0.8)
    tab.frames()
    assert "no estimate" in note.inner_text(), "a run does not tell what it would have skipped elsewhere"
    tab.set(node, target_speedup=3.0, end_percent=1.0)
    tab.press_run()
    tab.wait_for_summary("8 of 24")
    exact, text = count(end_percent=0.8)
    assert exact == 8 and "dB" not in text


@pytest.mark.parametrize(("widgets", "said"), [(dict(target_speedup=2.0), "may drift"), (dict(threshold=1), "less is")])
def test_why_there_is_no_estimate(tab, seed, widgets, said):
    """Samplers that add noise have none. Catches a chart that leaves its line empty there."""
    tab.open()
    node = tab.build(*sampling(14, seed, sampler="euler_ancestral", **widgets))[2]
    tab.look_at(node)
    tab.press_run()
    computed, _ = counted(tab.wait_for_summary(FINISHED))
    note = tab.charts.first.locator(".easycache-note").inner_text()
    assert computed < 14 and "adds noise" in note and said in note and cut_off(tab) == []


@both_frontends
@pytest.mark.parametrize("nodes_2", [False, True])
def test_in_chinese(tab, seed, nodes_2):
    """Chart, presets and reasons are in the frontend's language, inputs under the names that they have there."""
    names = json.loads((comfy_host.PACK / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))[frontend.NODE]
    named = {widget: names["inputs"][widget]["name"] for widget in WIDGETS}
    english = re.compile("(?<![a-z])(?!latent|sigma)[a-z]{4}")
    tab.open(Locale="zh", VueNodes_Enabled=nodes_2)
    node = tab.build(*sampling(14, seed, threshold=0.2))[2]
    tab.look_at(node)
    chart, note = tab.charts.first, tab.charts.first.locator(".easycache-note")
    assert not english.search(chart.inner_text().replace("docs/figures.md", ""))
    label = "id => app.canvas.graph.getNodeById(id).widgets.find(w => w.name === 'preset').label"
    assert tab.page.evaluate(label, node) == "预设"
    if nodes_2:
        tab.page.locator(f"[data-node-id='{node}']").get_by_text("预设", exact=True).first.wait_for()
    tab.press_run()
    tab.wait_for_summary("^[0-9.]+x，14 步中计算 [0-9]+ 步$")
    assert f"{named['threshold']} 0.2" in chart.inner_text() and "（估计）" in note.inner_text()
    tab.set(node, threshold=0.4)
    tab.frames()
    assert f"{named['threshold']} 0.4" in note.inner_text() and not english.search(note.inner_text())
    tab.set(node, target_speedup=3.0)
    tab.frames()
    assert f"{named['target_speedup']} 3：5 / 14" in note.inner_text()
    assert not english.search(chart.inner_text()) and cut_off(tab) == []
    tab.set(node, target_speedup=0.0, threshold=0.0)
    tab.press_run()
    tab.wait_for_summary("^1.0x，14 步中计算 14 步$")
    assert note.inner_text() == "没有跳过任何步：阈值为 0。"


@pytest.mark.parametrize(
    ("server", "nodes_2"), [("required", False), ("newest", False), ("newest", True)], indirect=["server"]
)
def test_presets_have_chinese_names_on_show_alone(tab, nodes_2):
    """Catches a Chinese name that is taken for a value, which no preset and no saved workflow has. Nodes 2.0 of older
    frontends knows of no other names than the values.
    """
    tab.open(Locale="zh", VueNodes_Enabled=nodes_2)
    node = tab.build(*sampling(14, 1))[2]
    tab.look_at(node)
    if nodes_2:
        tab.page.locator(f"[data-node-id='{node}']").get_by_text("默认", exact=True).first.click()
        tab.page.get_by_role("option", name="快速", exact=True).click()
    else:
        choose(tab, node, "快速")
    assert tab.values(node)["preset"] == "fast" and tab.values(node)["target_speedup"] == 3.4
    assert "快速" not in json.dumps([tab.saved(), tab.prompt()], ensure_ascii=False)
    names, values = tab.page.evaluate(
        """id => {
            const { values, getOptionLabel } = app.canvas.graph.getNodeById(id)
                .widgets.find(w => w.name === 'preset').options;
            return [values.map(getOptionLabel), values];
        }""",
        node,
    )
    assert len(set(names)) == len(names) and all(re.search("[\u4e00-\u9fff]", name) for name in names), names
    assert not set(names) & set(values)


def test_each_language_says_everything(tab):
    """Catches a text that is missing in one language, where the node would fail."""
    tab.open()
    english, chinese, taiwanese = tab.page.evaluate(
        """async () => {
            const { textsIn } = await import("/extensions/ComfyUI-EasyCache/texts.js");
            const names = (texts) => Object.entries(texts).flatMap(
                ([name, text]) => typeof text === "object" ? names(text).map((one) => `${name}.${one}`) : [name]);
            return [names(textsIn("en")), names(textsIn("zh")), textsIn("zh-TW") === textsIn("zh")];
        }"""
    )
    assert english == chinese and len(english) > 40 and taiwanese


IN_CHINESE = """async (sentences) => {
    const { inChinese } = await import("/extensions/ComfyUI-EasyCache/server_texts.js");
    return sentences.map(inChinese);
}"""
NAMES = {
    "latent", "NaN", "inf", "ComfyUI", "ControlNet", "calc_cond_batch", "context_schedule", "standard_static",
    "transformer_options", "Given", "nodes",
}  # fmt: skip


def test_what_the_server_says_is_there_in_chinese(tab):
    """Catches a reason or a note that was added or changed in nodes/reasons.py or nodes/summary.py without its Chinese
    in web/server_texts.js, a part of one that stays English, and a number that is lost.
    """
    tab.open()
    english = sentences()
    chinese = tab.page.evaluate(IN_CHINESE, english)
    for sentence, said in zip(english, chinese, strict=True):
        assert set(re.findall("[A-Za-z_]+", said)) <= NAMES, f"{sentence} -> {said}"
        assert not re.search("[{};,]|[:.]( |$)|undefined|[，；：。]{2}", said), f"{sentence} -> {said}"
        assert sentence.endswith(".") == said.endswith("。"), f"{sentence} -> {said}"
        for found in ("[0-9.]*[0-9]", "Given"):
            assert sorted(re.findall(found, sentence)) == sorted(re.findall(found, said)), f"{sentence} -> {said}"
    assert len(set(chinese)) == len(set(english)) > 70, "no two of them say the same"
    unknown = ["Something else happened.", "something else"]
    assert tab.page.evaluate(IN_CHINESE, unknown) == unknown


def test_the_browser_counts_a_budget_as_the_engine_does(tab):
    """Catches a count in the what-if line, in the chart or beside a preset that is another one than the run's."""
    tab.open()
    cases = [(n, speedup / 10) for n in range(1, 62) for speedup in range(10, 101, 3)]
    counted = tab.page.evaluate(
        """async (cases) => {
            const { budgetOf } = await import("/extensions/ComfyUI-EasyCache/what_if.js");
            return cases.map(([evaluations, speedup]) => budgetOf(evaluations, speedup));
        }""",
        cases,
    )
    assert counted == [max(min(n, 2), math.ceil(n / speedup - 1e-9)) for n, speedup in cases]


RECEIVE = """async (messages) => {
    const { Runs } = await import("/extensions/ComfyUI-EasyCache/runs.js");
    const runs = new Runs({ getItem: () => null, setItem: () => {} });
    return messages.map((message) => runs.receive("key", { report: {}, ...message }));
}"""


def test_a_run_that_was_known_waits_for_the_one_that_goes_on(tab):
    """A prompt that has been run is queued again while another one samples. Catches a chart that changes to the known
    run in the midst of that one, and then lacks what came before.
    """
    tab.open()
    known = dict(run="A", state="done", first=0, records=[1, 2], known=True)
    now = dict(run="B", state="running", first=0)
    messages = [
        known, {**now, "records": [3]}, known, {**now, "first": 1, "records": [4]},
        {**now, "state": "done", "records": [3, 4]},
    ]  # fmt: skip
    shown = [(run["run"], run["records"]) for run in tab.page.evaluate(RECEIVE, messages)]
    assert shown == [("A", [1, 2]), ("B", [3]), ("B", [3]), ("B", [3, 4]), ("A", [1, 2])]


KEPT = """async (kept) => {
    const { Runs } = await import("/extensions/ComfyUI-EasyCache/runs.js");
    const storage = { getItem: () => storage.text, setItem: (_, text) => { storage.text = text; }, text: kept };
    const shown = new Runs(storage).last("k");
    new Runs(storage).receive("new", { run: "B", state: "done", report: {}, first: 0, records: [] });
    return [shown ?? null, new Runs(storage).last("k") ?? null, new Runs(storage).last("new").run];
}"""


def test_runs_that_the_browser_kept(tab):
    """Catches a node that cannot be placed any more as an entry in the browser's storage is damaged, runs of an older
    version that are lost, and numbers that are taken for others once more of them are kept.
    """
    tab.open()
    sound = {"run": "A", "state": "done", "report": {"evaluations": 1}, "records": [[0, 2.5], None]}
    record = dict(step=0, sigma=2.5)
    for damaged in ("", "null", "7", "{}", [None], [["k", None]], [["k", {"run": 1}]], [["k", {**sound, "report": 0}]],
                    [["k", {**sound, "records": [3]}]], {"fields": None, "runs": [["k", sound]]}):  # fmt: skip
        kept = damaged if isinstance(damaged, str) else json.dumps(damaged)
        assert tab.page.evaluate(KEPT, kept) == [None, None, "B"], damaged
    for kept in (
        [None, ["k", sound]],
        {"fields": ["sigma", "step"], "runs": [["k", {**sound, "records": [[2.5, 0]]}]]},
    ):
        shown, again, _ = tab.page.evaluate(KEPT, json.dumps(kept))
        assert record.items() <= shown["records"][0].items() and shown["report"] == {"evaluations": 1}
        assert record.items() <= again["records"][0].items()


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_readable_in_the_theme(tab, seed, palette):
    """Text stands out against its ground (contrast of 4.5, WCAG AA), and none of it is cut off."""
    tab.open(ColorPalette=palette)
    node = tab.build(*sampling(10, seed))[2]
    tab.look_at(node)
    tab.press_run()
    tab.wait_for_summary(FINISHED)
    ground, text = tab.charts.first.evaluate(
        "e => ['backgroundColor', 'color'].map(name => getComputedStyle(e)[name].match(/[0-9.]+/g).slice(0, 3))"
    )
    low, high = sorted((luminance(ground), luminance(text)))
    assert (high + 0.05) / (low + 0.05) > 4.5
    assert (luminance(ground) > 0.4) == (palette == "light")
    assert cut_off(tab) == []


def luminance(colour):
    channels = [float(part) / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_html_is_made_from_what_is_shown():
    """Text of a run or of a workflow that is set as HTML would run as a script in everybody's browser."""
    sources = [path.read_text("utf-8") for path in (comfy_host.PACK / "web").glob("*.js")]
    assert sources and not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", "".join(sources))
    assert "fetch(" not in "".join(sources) and "fetchApi" not in "".join(sources)
