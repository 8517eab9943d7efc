"""What a network is asked beside a latent and a timestep: prompts, pictures, what a ControlNet adds.

Two calls ask the same question if they are given the same arguments, of the same kinds, with the same values. Some
values differ at every evaluation of one question, as they follow the latent (a ControlNet's) or the time: they move.
Objects and functions count as what they hold: some pipelines make them anew for each call, or change what is in them.
Tensors that cannot be looked into (sparse, nested) are told by identity and version.
"""

import functools
import math
import sys
import types
import weakref
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

import torch
from torch.utils import _pytree as pytree  # where diffusers registers its output classes

from .interface import fields_of
from .samples import can_be_sampled, checksums, flat_of

SAMPLES = 256  # elements of a tensor that are compared, beside sums of all
SETTLING = 2  # how many changes in a row are changes of question; a value that goes on changing is moving
MAX_JUMP = 0.5  # the largest change of a moving value, as a part of the largest value it had
MAX_LINES = 64  # questions that are remembered
DEPTH, MAX_HELD = 4, 256  # of objects that hold objects; larger ones are told apart by identity alone


class Value(NamedTuple):
    """A tensor or a number among the arguments. The tensor itself is the caller's, and is not kept."""

    source: Callable | None  # a weak reference to it, where that, and its version, tell whether it was overwritten
    version: int
    content: torch.Tensor  # its checksums and some of its elements, on the host; NaN where it cannot be looked into


class Question:
    """The arguments of one call.

    form: all that has no value which may move. moves: how often each value has changed in a row; -inf once it was seen
    to take turns, as values that move do not come back. sizes: the largest so far.
    """

    def __init__(self, arguments: dict, known: Sequence["Question"]):
        """known: questions whose tensors need not be read again where they are given once more."""
        flat = {name: _flattened_or_same(one, one, DEPTH) for name, one in sorted(arguments.items())}
        leaves = [leaf for _, some in flat.values() for leaf in some]
        self._objects = [leaf for leaf in leaves if _kind(leaf)[0] is id]  # an id is taken while its object lives
        self.form = {name: (structure, [*map(_kind, some)]) for name, (structure, some) in flat.items()}
        self._named = [name for name, (_, some) in flat.items() for leaf in some if _has_value(leaf)]
        self._known = [one for one in known if one.form == self.form]
        values = [leaf for leaf in leaves if _has_value(leaf)]
        self.values = [self._value(leaf, i) for i, leaf in enumerate(values)]
        self._known = []
        self.moves = [0.0] * len(values)
        self.sizes = [_size(value.content) for value in self.values]

    def _value(self, leaf, i: int) -> Value:
        tensor = leaf if isinstance(leaf, torch.Tensor) else torch.tensor(leaf, dtype=torch.float64)
        versioned, sampled = not tensor.is_inference(), can_be_sampled(tensor)
        if sampled and not versioned:
            return Value(None, 0, _content(tensor))
        version = tensor._version if versioned else 0
        before = (one.values[i] for one in self._known)
        same = (one for one in before if one.source and one.source() is tensor and one.version == version)
        return next(same, None) or Value(weakref.ref(tensor), version, _content(tensor) if sampled else _UNREAD)

    def changes(self, before: "Question") -> dict[int, float]:
        """Which values are not what they were, and by how much. Both are of one form."""
        pairs = enumerate(zip(self.values, before.values, strict=True))
        differing = ((i, a.content, b.content) for i, (a, b) in pairs if a is not b)
        return {i: _size(a - b) for i, a, b in differing if not torch.equal(a, b)}

    def differing(self, before: "Question") -> list[str]:
        """The arguments that are not what they were."""
        if self.form == before.form:
            return list(dict.fromkeys(self._named[i] for i in self.changes(before)))
        names = sorted({*self.form, *before.form})
        return [name for name in names if self.form.get(name) != before.form.get(name)]

    def follows(self, before: "Question", changes: dict[int, float]) -> bool:
        """Take over what is known of the question before; whether this is the same one, and its values moved on."""
        for i, moves in enumerate(before.moves):
            self.moves[i] = moves + 1 if i in changes else min(moves, 0)
            self.sizes[i] = max(self.sizes[i], before.sizes[i])
        return all(self.moves[i] > SETTLING and jump <= MAX_JUMP * self.sizes[i] for i, jump in changes.items())


class Questions:
    """The questions of one run. A line is one question, at all the evaluations at which it was asked; a number."""

    def __init__(self):
        self._newest: dict[int, Question] = {}  # of each line; the line asked last at the end
        self._lines = 0
        self._here: list[int] = []  # lines, in the order in which this evaluation asked them
        self._before: list[int] = []  # and the one before it

    def line_of(self, arguments: dict, answered: Container[int]) -> tuple[int, bool]:
        """(line, whether it is a new one). answered: lines asked already in this evaluation: their moving values do not
        move within it.
        """
        recent = list(self._newest.items())[::-1]
        asked = Question(arguments, [one for _, one in recent])
        alike = [(line, one, asked.changes(one)) for line, one in recent if one.form == asked.form]
        same = next((line for line, _, changes in alike if not changes), None)
        if not answered:
            self._here, self._before = [], self._here
        if same is not None:
            self._take_turns(same)
            return self._keep(same, self._newest.pop(same)), False
        alike = [one for one in alike if one[0] not in answered]
        if alike:
            line, before, changes = min(alike, key=lambda one: (len(one[2]), sum(one[2].values())))
            if asked.follows(before, changes):
                self._newest.pop(line)
                return self._keep(line, asked), False
        self._lines += 1
        return self._keep(self._lines, asked), True

    def differing(self) -> list[str]:
        """The arguments in which what was asked last differs from what was asked in its place at the evaluation
        before.
        """
        asked, before = self._newest[self._here[-1]], self._before[: len(self._here)]
        last = self._newest.get(before[-1]) if before else None
        return [] if last is None else asked.differing(last)

    def _take_turns(self, line: int) -> None:
        """What differs between a question that comes back and the one asked in its place before is not moving."""
        before = self._before[len(self._here) :][:1]
        asked, last = self._newest[line], self._newest.get(before[0] if before else line)
        turning = asked.changes(last) if last is not None and asked.form == last.form else {}
        for one in (asked, last) if turning else ():
            one.moves = [-math.inf if i in turning else moves for i, moves in enumerate(one.moves)]

    def _keep(self, line: int, question: Question) -> int:
        self._here.append(line)
        self._newest[line] = question
        if len(self._newest) > MAX_LINES:
            self._newest.pop(next(iter(self._newest)))
        return line


def _flattened(arguments, depth: int) -> tuple[tuple, list]:
    """(form, leaves): what they hold, also within objects, and how it is held."""
    leaves, structure = pytree.tree_flatten(arguments)
    form, flat = [structure], []
    for leaf in leaves:
        kind, held = _held(leaf) if depth else (None, None)
        inner, parts = _flattened_or_same(held, leaf, depth - 1) if kind is not None else ((), [leaf])
        if len(parts) > MAX_HELD:
            kind, inner, parts = None, (), [leaf]
        form.append((kind, inner))
        flat += parts
    return tuple(form), flat


def _flattened_or_same(held, thing, depth: int) -> tuple[tuple, list]:
    """What the thing holds, as above; the thing, told by its identity, where that holds itself."""
    try:
        return _flattened(held, depth)
    except RecursionError:
        return (), [_Same(thing)]


def _held(leaf) -> tuple:
    """(kind, what it holds) of an object; (None, None) of what is a value itself or is told by its identity."""
    if isinstance(leaf, functools.partial):
        return functools.partial, (leaf.func, leaf.args, leaf.keywords)
    if isinstance(leaf, types.MethodType):  # the object is the same, the method is made anew each time
        return leaf.__func__, _Same(leaf.__self__)
    if isinstance(leaf, types.FunctionType):
        cells = [cell.cell_contents for cell in leaf.__closure__ or () if cell != _EMPTY]
        return leaf.__code__, (cells, leaf.__defaults__, leaf.__kwdefaults__)
    if hasattr(leaf, "__array__") and not isinstance(leaf, torch.Tensor):
        try:
            return type(leaf), torch.as_tensor(leaf)
        except (TypeError, ValueError):  # words, objects
            return type(leaf), leaf.tolist()
    held = fields_of(leaf)
    return (None, None) if held is None else (type(leaf), held)


_EMPTY = types.CellType()


class _Same:
    """An object that is told by its identity."""

    __slots__ = ("thing",)

    def __init__(self, thing):
        self.thing = thing


def _has_value(leaf) -> bool:
    if isinstance(leaf, int):
        return not isinstance(leaf, bool) and abs(leaf) <= sys.float_info.max
    return isinstance(leaf, (torch.Tensor, float))


def _kind(leaf) -> tuple:
    """What of a leaf must be the same."""
    if isinstance(leaf, torch.Tensor):
        return torch.Tensor, leaf.shape if can_be_sampled(leaf) else None, leaf.dtype
    if _has_value(leaf):
        return (float,)
    if leaf is None or isinstance(leaf, (int, str, torch.dtype, torch.device)):
        return type(leaf), leaf
    leaf = leaf.thing if isinstance(leaf, _Same) else leaf
    return id, type(leaf), id(leaf)


_UNREAD = torch.full((3,), math.nan)  # unlike any other, also itself


def _content(tensor: torch.Tensor) -> torch.Tensor:
    flat = flat_of(tensor).to(torch.float32)
    return torch.cat([checksums(flat), flat[:: max(1, len(flat) // SAMPLES) | 1]]).cpu()


def _size(content: torch.Tensor) -> float:
    return float(content[2:].abs().sum())
