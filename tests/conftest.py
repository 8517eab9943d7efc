"""Keeps the book of what the tests verify on each model and with each sampler, as tables for the docs.

A test says so by `@pytest.mark.verifies(table, column)`: the parameter that TABLES names is the row, and a column
may contain others in braces. `--verified FOLDER` writes the tables there once all tests are through.
"""

from collections import defaultdict
from pathlib import Path

import pytest

TABLES = {"models": ("family", "name"), "samplers": ("sampler",)}  # the parameter that names the row
BOOK = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--verified", metavar="FOLDER", type=Path, help="write tables of what was verified")


def pytest_configure(config):
    config.addinivalue_line("markers", "verifies(table, column): what a passed test proves, for the docs")
    config.stash[BOOK] = {table: defaultdict(lambda: defaultdict(list)) for table in TABLES}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("verifies")
    if mark is not None and (report.when == "call" or not report.passed):
        table, column = mark.args
        parameters = item.callspec.params
        row = next(parameters[name] for name in TABLES[table] if name in parameters)
        outcome = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else report.outcome
        item.config.stash[BOOK][table][row][column.format(**parameters)].append(outcome)
    return report


def pytest_sessionfinish(session):
    folder, book = session.config.option.verified, session.config.stash[BOOK]
    if folder is not None and all(book.values()):
        from comfyui_version import __version__  # the tests have put the host on the path

        folder.mkdir(parents=True, exist_ok=True)
        page = "\n".join(_page(__version__, book))
        (folder / f"comfyui-{__version__}.md").write_text(page, encoding="utf-8")


def _page(version, book):
    yield f"# Verified on ComfyUI {version}\n"
    yield (
        "Written by the tests (`python3 -m nox -s tests`); a cell says yes where all of its tests passed. Models are "
        "built in their own architecture, tiny and with random weights. Samplers run on a flow and on an eps model.\n"
    )
    notes = {}
    for table, rows in book.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        yield f"## {len(rows)} {table}\n"
        yield f"| | {' | '.join(columns)} |"
        yield f"|---|{'---|' * len(columns)}"
        for row, cells in rows.items():
            yield f"| {row} | {' | '.join(_cell(cells.get(column, []), notes) for column in columns)} |"
        yield ""
    yield from (f"{number}. {reason}" for reason, number in notes.items())
    yield ""


def _cell(outcomes, notes):
    reasons = [outcome for outcome in outcomes if outcome not in ("passed", "failed")]
    numbers = sorted({notes.setdefault(reason, len(notes) + 1) for reason in reasons})
    verdict = "FAILED" if "failed" in outcomes else "yes" if "passed" in outcomes else "" if outcomes else "not tested"
    return " ".join([verdict, *(f"({number})" for number in numbers)]).strip()
