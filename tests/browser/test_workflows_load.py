"""Each workflow under Browse Templates in the real frontend, with all of its model files there."""

import itertools

import pytest
from bundled import WORKFLOWS, add_stand_ins
from tabs import checked_tab
from workflow import NOTES, to_prompt


@pytest.fixture(scope="module", params=["required", "newest"])
def opened(request, chromium, servers):
    """(a tab that knows the files' names, the server's node definitions); workflow after workflow is loaded there."""
    server = servers(request.param)
    add_stand_ins(server.base)
    with checked_tab(chromium, server.url) as tab:
        tab.open(Workflow_ShowMissingModelsWarning=True, Workflow_ShowMissingNodesWarning=True)
        yield tab, tab.page.request.get(f"{server.url}/object_info").json()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_loads_whole(opened, name):
    """No node is missing, no file is asked for, and what would be queued is what the workflow's file says."""
    tab, object_info = opened
    missing = {node["type"] for node in WORKFLOWS[name]["nodes"]} - {*object_info, *NOTES}
    if missing:  # tests/host/test_workflows.py says which may be
        pytest.skip(f"this ComfyUI has no {', '.join(sorted(missing))}")
    tab.page.keyboard.press("Escape")  # closes the dialog that another workflow may have opened
    tab.load(WORKFLOWS[name])
    tab.frames()
    expected = to_prompt(WORKFLOWS[name], object_info)
    queued = tab.prompt()
    assert set(queued) == set(expected)
    for node, content in expected.items():  # the browser may have inputs of its own besides
        assert content["inputs"].items() <= queued[node]["inputs"].items(), content["class_type"]
    assert tab.page.get_by_role("dialog").count() == 0, tab.page.get_by_role("dialog").first.inner_text()
    nodes = tab.page.evaluate(
        """() => app.canvas.graph.nodes.map(node => ({
            label: `${node.type} ${node.id}`, box: [...node.boundingRect], red: Boolean(node.has_errors),
            registered: node.type in LiteGraph.registered_node_types,
            unknown: (node.widgets ?? []).filter(({ type, options, value }) =>
                type === 'combo' && Array.isArray(options?.values) && !options.values.includes(value)
            ).map(({ name }) => name),
        }))"""
    )
    assert len(nodes) == len(WORKFLOWS[name]["nodes"])
    for node in nodes:
        assert node["registered"] and not node["red"] and not node["unknown"], node
    for a, b in itertools.combinations(nodes, 2):
        assert apart(a["box"], b["box"]), f"{a['label']} lies on {b['label']}"


def apart(a, b):
    """Whether two (x, y, width, height) have nothing in common."""
    return a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
