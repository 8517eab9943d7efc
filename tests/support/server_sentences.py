"""All sentences that nodes/reasons.py and nodes/summary.py send to the browser, as reached from every side."""

import importlib
import inspect
import itertools
import sys
import types

import comfy_host

GIVEN = {"place": ("transformer_options['Given']", "its Given"), "module": ("Given.nodes",), "controlnet": ("Given",)}
SETTINGS = {
    "threshold": (0.0, 0.15, 1.0), "target_speedup": (0.0, 2.0, 10.0), "warmup_steps": (1, 2, 7),
    "start_percent": (0.0, 0.25), "end_percent": (1.0, 0.75),
}  # fmt: skip
FACTS = {"steps": (1, 2, 3, 4, 5, 20), "steps_before": (0, 3), "unfinished": (False, True), "estimated": (False, True)}


def sentences() -> list[str]:
    """Each reason and each note once. Fails where a line that makes them was not reached: then what leads there is
    missing in SETTINGS, FACTS or GIVEN.
    """
    reasons, summary, settings, config = modules()
    facts = dict.fromkeys(summary.Facts._fields, 0) | {"reason": None, "beyond_budget": None}
    parts = list(parts_in(reasons))
    why = [part for part in parts if part.startswith("as ")]  # more was computed than a budget allows
    said = {}

    def ask(settings, facts):
        for skipped, closeness in ((0, None), (8, None), (8, 40.0)):
            did = {"evaluations": 20, "skipped": skipped, "closeness": closeness}
            reason = summary.nothing_skipped(did, settings, facts)
            said.update(dict.fromkeys([reason, *summary.notes(did, settings, facts)]))

    settings_of = [
        settings.Settings(config.CacheConfig(threshold, target_speedup=target, warmup_steps=warmup), start, end)
        for threshold, target, warmup, start, end in itertools.product(*SETTINGS.values())
    ]
    with Lines(summary.nothing_skipped, summary.notes, summary._warnings, summary._reason, summary._few_steps,
               summary._between, summary._advice) as lines:  # fmt: skip
        for one in settings_of:
            for values in itertools.product(*FACTS.values()):
                ask(one, summary.Facts(**{**facts, **dict(zip(FACTS, values, strict=True))}))
            for reason in set(parts) - set(why):
                ask(one, summary.Facts(**{**facts, "steps": 20, "reason": reason}))
            for beyond in why:
                ask(one, summary.Facts(**{**facts, "steps": 20, "beyond_budget": beyond}))
            for name in facts.keys() - FACTS.keys() - {"reason", "beyond_budget"}:
                ask(one, summary.Facts(**{**facts, "steps": 20, name: 3}))
    assert not lines.missed, f"nothing leads to lines {lines.missed} of nodes/summary.py"
    return [sentence for sentence in said if sentence]


def modules() -> list:
    """reasons, summary, settings and the engine's config, without ComfyUI, which all others of `nodes` need."""
    name = comfy_host.load_pack("easycache_sentences").__name__
    nodes = sys.modules.setdefault(f"{name}.nodes", types.ModuleType(f"{name}.nodes"))
    nodes.__path__ = [str(comfy_host.PACK / "nodes")]
    wanted = ("nodes.reasons", "nodes.summary", "nodes.settings", "easycache_core.config")
    return [importlib.import_module(f"{name}.{module}") for module in wanted]


def parts_in(reasons):
    """What the constants and functions of nodes/reasons.py say, functions of GIVEN texts and of numbers."""
    for name, value in vars(reasons).items():
        if isinstance(value, str) and name.isupper():
            yield value
        elif inspect.isfunction(value):
            parameters = inspect.signature(value).parameters
            given = [GIVEN.get(name) or (3 + place,) for place, name in enumerate(parameters)]
            yield from itertools.starmap(value, itertools.product(*given))


class Lines:
    """Meanwhile, which lines of some functions are not run; `missed` afterwards."""

    def __init__(self, *functions):
        codes = [function.__code__ for function in functions]
        self._codes = set(codes)
        self._lines = {line for code in codes for *_, line in code.co_lines() if line and line > code.co_firstlineno}

    def __enter__(self):
        self._before, self._run = sys.gettrace(), set()
        sys.settrace(lambda frame, *_: self._trace if frame.f_code in self._codes else None)
        return self

    def _trace(self, frame, *_):
        self._run.add(frame.f_lineno)
        return self._trace

    def __exit__(self, *_):
        sys.settrace(self._before)
        self.missed = sorted(self._lines - self._run)
