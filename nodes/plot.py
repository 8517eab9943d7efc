"""Plot of a run: its evaluations, computed or skipped, and the numbers that the decisions rest on.

Drawn with Pillow alone. Coordinates are in points. The picture has SCALE pixels per point, and is legible at one.
"""

import math

from PIL import Image, ImageDraw

from ..easycache_core.budget import budget_of
from .pictures import font
from .summary import closeness_text

SCALE = 2
WIDTH, HEIGHT = 512, 384
INK, FAINT, GRID, PAPER = (30, 32, 40), (108, 112, 120), (226, 226, 222), (250, 250, 248)
COMPUTED, SKIPPED = (24, 128, 96), (188, 210, 200)
BAND = (232, 241, 236)  # behind the numbers of a computed evaluation
ERROR, RATE, LIMIT = (196, 92, 20), (52, 96, 180), (196, 30, 46)
LEFT, RIGHT = 52, WIDTH - 16  # of the axes
TEXT = 11


def draw_report(report: dict) -> Image.Image:
    """The plot of a report (as from Account.report), 1024 x 768 pixels. A message in it stands below the numbers."""
    trace = report["trace"]
    if not trace:
        return draw_message("Nothing was sampled: the run had no steps.")
    page = _Page(len(trace))
    counts = f"{report['computed']} of {report['evaluations']} evaluations computed"
    speedup = "" if report["speedup"] is None else f"{report['speedup']:.2f}x, "
    page.text((14, 10), f"{speedup}{counts}", 18)
    page.text((14, 35), _rule(report), TEXT, FAINT)
    if report.get("closeness") is not None:
        page.text((14, 49), closeness_text(report["closeness"]), TEXT, FAINT)
    if "message" in report:
        page.text((14, 63), report["message"], TEXT, FAINT)
    if report["target_speedup"]:
        _draw_budget(page, 84, 192, trace, report)
    else:
        _draw_error(page, 84, 192, trace, report)
    _draw_rate(page, 224, 294, trace)
    _draw_steps(page, 321, 346, trace)
    page.number_evaluations(346)
    return page.picture


def draw_message(message: str) -> Image.Image:
    """A picture of the same size with a message in it."""
    page = _Page(1)
    page.paragraph((40, 120), message, 16, WIDTH - 80)
    return page.picture


def _rule(report: dict) -> str:
    steps = f"{report['steps']} step{'s' * (report['steps'] != 1)}"
    if report["target_speedup"]:
        return f"{report['predictor']}, target speed-up {report['target_speedup']:g}, {steps}"
    return f"{report['predictor']}, threshold {report['threshold']:g}, warm-up {report['warmup_steps']}, {steps}"


def _draw_error(page: "_Page", top: float, bottom: float, trace: list[dict], report: dict) -> None:
    """The estimated error of each skipped evaluation, below the threshold."""
    errors = [record["error"] for record in trace]
    axis = _Axis(top, bottom, max([report["threshold"], *_known(errors)]))
    page.panel(axis, trace, "estimated error", [("error", ERROR), ("threshold", LIMIT)])
    page.bars(axis, [None if record["computed"] else error for record, error in zip(trace, errors, strict=True)], ERROR)
    page.limit(axis, report["threshold"])


def _draw_budget(page: "_Page", top: float, bottom: float, trace: list[dict], report: dict) -> None:
    """The number of evaluations computed so far, at each evaluation, below the number that the target allows."""
    budget = budget_of(report["evaluations"], report["target_speedup"])
    so_far, spent = 0, []
    for record in trace:
        so_far += record["computed"]
        spent.append(so_far)
    axis = _Axis(top, bottom, max(budget, so_far))
    page.panel(axis, trace, "computed so far", [("computed so far", ERROR), (f"budget: {budget}", LIMIT)])
    page.line(axis, spent, ERROR)
    page.limit(axis, budget)


def _draw_rate(page: "_Page", top: float, bottom: float, trace: list[dict]) -> None:
    rates = [record["rate"] for record in trace]
    axis = _Axis(top, bottom, max(_known(rates), default=0))
    page.panel(axis, trace, "transformation rate", [("rate", RATE)])
    page.line(axis, rates, RATE)


def _draw_steps(page: "_Page", top: float, bottom: float, trace: list[dict]) -> None:
    """One bar per evaluation: full where it was computed, low and pale where it was skipped."""
    page.legend(top - 17, "evaluations", [("computed", COMPUTED), ("skipped", SKIPPED)])
    for i, record in enumerate(trace):
        height = bottom - top if record["computed"] else (bottom - top) / 3
        page.column(i, bottom - height, bottom, COMPUTED if record["computed"] else SKIPPED)


def _known(values: list) -> list:
    return [value for value in values if value is not None]


def _round_step(extent: float, max_steps: int) -> float:
    """The smallest of ..., 0.2, 0.5, 1, 2, 5, 10, ... of which at most max_steps fit into extent."""
    power = 10.0 ** math.floor(math.log10(extent / max_steps))
    return next(step * power for step in (1, 2, 5, 10) if step * power * max_steps >= extent * (1 - 1e-9))


class _Axis:
    """From 0 at `bottom` to a little over `largest` at `top`, with ticks at round numbers."""

    MAX_TICKS = 4  # above 0

    def __init__(self, top: float, bottom: float, largest: float):
        self.top, self.bottom = top, bottom
        self.end = 1.08 * largest if largest > 0 else 1.0
        step = _round_step(self.end, self.MAX_TICKS)
        self.ticks = [step * i for i in range(int(self.end / step) + 1)]

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * min(value, self.end) / self.end


class _Page:
    """A page to draw on, in points, with one column per evaluation."""

    def __init__(self, evaluations: int):
        self.picture = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self.picture)
        self._evaluations = evaluations
        self._pitch = (RIGHT - LEFT) / evaluations

    def text(self, at: tuple, text: str, size: float = TEXT, colour=INK, anchor: str = "la") -> None:
        self._draw.text([SCALE * coordinate for coordinate in at], text, colour, font(round(SCALE * size)), anchor)

    def width(self, text: str, size: float = TEXT) -> float:
        return self._draw.textlength(text, font(round(SCALE * size))) / SCALE

    def paragraph(self, at: tuple, text: str, size: float, width: float) -> None:
        """Text broken into lines of at most that width."""
        left, top = at
        line = ""
        for word in [*text.split(), None]:
            longer = f"{line} {word}".strip()
            if word is None or self.width(longer, size) > width:
                self.text((left, top), line, size)
                line, top = word, top + 1.5 * size
            else:
                line = longer

    def box(self, left: float, top: float, right: float, bottom: float, colour) -> None:
        corners = [round(SCALE * coordinate) for coordinate in (left, top, right, bottom)]
        # Pillow draws the last column and row too.
        last = max(corners[0], corners[2] - 1), max(corners[1], corners[3] - 1)
        self._draw.rectangle((*corners[:2], *last), colour)

    def column(self, evaluation: int, top: float, bottom: float, colour, gaps: bool = True) -> None:
        """A bar for one evaluation."""
        left, gap = LEFT + evaluation * self._pitch, min(2, self._pitch / 10) if gaps else 0
        self.box(left + gap, top, left + self._pitch - gap, bottom, colour)

    def panel(self, axis: _Axis, trace: list[dict], title: str, legend: list[tuple]) -> None:
        """Axis, ticks, and a pale band behind each computed evaluation."""
        self.legend(axis.top - 18, title, legend)
        for i, record in enumerate(trace):
            if record["computed"]:
                self.column(i, axis.top, axis.bottom, BAND, gaps=False)
        for tick in axis.ticks:
            y = axis.y(tick)
            self.box(LEFT, y, RIGHT, y + 0.5, GRID)
            self.text((LEFT - 5, y), f"{tick:.6g}", TEXT, FAINT, "rm")
        self.box(LEFT - 0.5, axis.top, LEFT, axis.bottom, FAINT)
        self.box(LEFT, axis.bottom, RIGHT, axis.bottom + 0.5, FAINT)

    def legend(self, top: float, title: str, entries: list[tuple]) -> None:
        """A title on the left, and what the colours mean on the right. entries: (name, colour)."""
        self.text((14, top), title, TEXT)
        right = RIGHT
        for name, colour in reversed(entries):
            right -= self.width(name)
            self.text((right, top), name, TEXT)
            self.box(right - 13, top + 2, right - 4, top + 11, colour)
            right -= 25

    def bars(self, axis: _Axis, values: list, colour) -> None:
        for i, value in enumerate(values):
            if value is not None:
                self.column(i, min(axis.y(value), axis.bottom - 1), axis.bottom, colour)

    def line(self, axis: _Axis, values: list, colour) -> None:
        """A line through the middle of the columns; interrupted where a value is None."""
        points = [
            None if value is None else (SCALE * (LEFT + (i + 0.5) * self._pitch), SCALE * axis.y(value))
            for i, value in enumerate(values)
        ]
        radius = SCALE * min(2.2, max(0.75, self._pitch / 3))
        for before, after in zip([None, *points], points, strict=False):
            if before and after:
                self._draw.line((before, after), colour, round(1.5 * SCALE))
            if after:
                x, y = after
                self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)

    def limit(self, axis: _Axis, value: float) -> None:
        """A dashed horizontal line."""
        y = axis.y(value)
        for x in range(LEFT, RIGHT, 8):
            self.box(x, y - 0.75, min(x + 5, RIGHT), y + 0.75, LIMIT)

    def number_evaluations(self, top: float) -> None:
        """Numbers below the columns, from 1: the first, the last, and round numbers between where there is room."""
        last = self._evaluations
        step = max(1, round(_round_step(last, 10)))
        room = (self.width(str(last)) + 8) / self._pitch
        shown = {1: "1", last: str(last)}
        for number in range(step, last, step):
            if all(abs(number - other) >= room for other in shown):
                shown[number] = str(number)
        for number, text in shown.items():
            x = LEFT + (number - 0.5) * self._pitch
            self.box(x - 0.25, top, x + 0.25, top + 3, FAINT)
            self.text((x, top + 5), text, TEXT, FAINT, "ma")
        self.text(((LEFT + RIGHT) / 2, top + 20), "evaluation", TEXT, FAINT, "ma")
