"""What all tests share: products of parameters, how tests are spread over processes, and a book of what they verify.

Products: a test with `@pytest.mark.in_turn(parameter)` takes one value of that parameter for each combination of the
others, another one each time. So nothing is left out but combinations. With `--full` it takes all.

Processes: with pytest-xdist (`-n 2`) a file stays in one of them, as its fixtures may be a server. Of the files in
APART only tests with the same first parameter belong together; they come last, so that no process is left alone with a
long file. All that needs a browser stays together, as that may have to be installed first.

Book: a test says by `@pytest.mark.verifies(table, column)` what it proves. The parameter that TABLES names is the row,
and a column may contain others in braces; what it records as a property stands below the table. `--verified FOLDER`
writes the tables there once all tests are through.
"""

import os
from collections import defaultdict
from pathlib import Path

import comfy_host
import pytest
from turns import has_its_turn

TABLES = {
    "models": ("family", "name"), "samplers": ("sampler",), "schedulers": ("scheduler",), "nodes": ("node",),
}  # fmt: skip  # the parameter that names the row
APART = ("test_every_model.py", "test_every_sampler.py")
MARKERS = [
    "verifies(table, column): what a passed test proves, for the docs",
    "in_turn(parameter): one of its values for each combination of the others; all with --full",
    "timeout(seconds): pytest-timeout ends the test then",  # here for the engine's tests, which do without the plugin
]


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run whole products of parameters")
    parser.addoption("--gpu", action="store_true", help="let ComfyUI sample on the GPU")
    parser.addoption("--verified", metavar="FOLDER", type=Path, help="write tables of what was verified")


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if config.option.gpu:
        os.environ["EASYCACHE_GPU"] = "1"  # for comfy_host.py, here and in what tests start
    if hasattr(config, "workerinput"):  # one process of several: with what it starts it has its share of the processors
        share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
    elif config.option.verified is not None:
        if not config.option.full:
            raise pytest.UsageError("--verified needs --full: tables have a cell for each combination")
        config.pluginmanager.register(Book(config.option.verified))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    chosen, others = [], []
    for item in items:
        (chosen if config.option.full or _has_its_turn(item) else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = sorted(chosen, key=lambda item: item.path.name in APART)


def _has_its_turn(item):
    mark = item.get_closest_marker("in_turn")
    if mark is None:
        return True
    choices = dict(given.args for given in item.iter_markers("parametrize"))
    return has_its_turn(*mark.args, item.callspec.params, choices)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return _belongs_to(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def _belongs_to(nodeid):
    """The same for all tests that are to run in one process."""
    file, _, test = nodeid.partition("::")
    folder, name = file.split("/")[-2:]
    if name in APART:
        return f"{file} {test.partition('[')[2].partition('-')[0].rstrip(']')}"
    return folder if folder == "browser" else file


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("verifies")
    if mark is not None and (report.when == "call" or not report.passed):
        table, column = mark.args
        parameters = item.callspec.params
        row = next(parameters[name] for name in TABLES[table] if name in parameters)
        outcome = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else report.outcome
        place = item.session.items.index(item)
        notes = [f"{name}: {reason}" for name, reason in item.user_properties if report.passed]
        for entry in (outcome, *notes):
            report.user_properties.append((Book.ENTRY, (place, table, row, column.format(**parameters), entry)))
    return report


class Book:
    """Gathers what tests verify, in whichever process and order they run, and writes it into a folder."""

    ENTRY = "verified"

    def __init__(self, folder):
        self._folder, self._entries = folder, []

    def pytest_runtest_logreport(self, report):
        self._entries += [entry for name, entry in report.user_properties if name == self.ENTRY]

    def pytest_sessionfinish(self):
        tables = {table: defaultdict(lambda: defaultdict(list)) for table in TABLES}
        for _, table, row, column, outcome in sorted(self._entries):
            tables[table][row][column].append(outcome)
        if all(tables.values()):
            version = comfy_host.version()
            self._folder.mkdir(parents=True, exist_ok=True)
            page = "\n".join(_page(version, tables))
            (self._folder / f"comfyui-{version}.md").write_text(page, encoding="utf-8")


def _page(version, tables):
    yield f"# Verified on ComfyUI {version}\n"
    yield (
        "Written by the tests (`python3 -m nox -s verify`); a cell says yes where all of its tests passed. Models are "
        "built in their own architecture, tiny and with random weights. Samplers run on a flow and on an eps model; "
        "nodes are all of comfy_extras that make a sampler, a guider, a schedule or a patched model.\n"
    )
    notes = {}
    for table, rows in tables.items():
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
