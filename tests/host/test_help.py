"""Texts around the nodes: help pages, and names and tooltips in other languages."""

import json
import re

import comfy_host
import node_texts
import pytest

NODES = ["EasyCacheAdaptive", "EasyCacheReport", "EasyCacheCompare", "EasyCacheDemoModel", "EasyCacheDemoDecode"]
LOCALES = comfy_host.PACK / "locales"
DOCS = comfy_host.PACK / "web" / "docs"
CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def info(comfy):
    return {node: comfy.classes[node].GET_NODE_INFO_V1() for node in NODES}


def flat(tree, path=()):
    """(path, text) of all texts."""
    for key, value in tree.items():
        yield from flat(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


def texts_of(language):
    return dict(flat(json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))))


def test_the_english_texts_are_those_of_the_code(info):
    """Where they differ the browser shows the file's, and an edit of the code is never seen."""
    written = (LOCALES / "en" / "nodeDefs.json").read_text("utf-8")
    assert written == node_texts.as_file(node_texts.texts_of(info)), "run tools/node_texts.py"


def test_every_text_is_there_in_chinese():
    """Catches a widget that was added or renamed without its translation, and one that was pasted in English."""
    english, chinese = texts_of("en"), texts_of("zh")
    assert list(chinese) == list(english)
    for path, text in chinese.items():
        if path[-1] in ("tooltip", "description"):
            assert CHINESE.search(text), path
        if path[-1] == "display_name":
            assert text.startswith("EasyCache"), "the node search finds it by that"
    assert len(set(chinese.values())) > 0.8 * len(set(english.values()))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_text_is_a_formula_of_vue_i18n(language):
    """The browser takes these characters for placeholders and plurals, and shows nothing or half of the text."""
    for path, text in texts_of(language).items():
        assert not set(text) & set("{}@|$"), path


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("page", ["{}.md", "{}/zh.md"])
def test_every_node_has_a_help_page(info, node, page):
    """Pages say what each input does under the name that the node shows."""
    text = (DOCS / page.format(node)).read_text("utf-8")
    chinese = page.endswith("zh.md")
    titles = texts_of("zh" if chinese else "en")
    assert text.startswith(f"# {titles[node, 'display_name']}\n")
    assert bool(CHINESE.search(text)) is chinese
    assert "<" not in text and "](http" not in text, "neither HTML nor anything from elsewhere"
    inputs = info[node]["input"]
    for name in {*inputs["required"], *inputs.get("optional", ())} - {"model", "latent"}:
        assert name in text or titles[node, "inputs", name, "name"] in text, name


def test_no_help_page_is_left_over():
    nodes = {*NODES, "EasyCacheRaylight"}  # the last one is registered only beside Raylight
    assert {file.stem for file in DOCS.glob("*.md")} == nodes
    assert {file.relative_to(DOCS).as_posix() for file in DOCS.glob("*/*")} == {f"{node}/zh.md" for node in nodes}
