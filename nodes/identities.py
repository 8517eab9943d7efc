"""What tells objects apart: by what they hold, or by which object they are."""

import types
import weakref
from collections.abc import Callable

import numpy as np
import torch

from ..easycache_core.samples import can_be_sampled, checksums, sample_of
from .call_options import variables_of

SMALL = 256  # elements of a tensor that is told by what it holds
DEPTH = 8  # of what a conditioning holds; it may hold itself


def contents(thing, number: Callable, without: str = "", depth: int = DEPTH):
    """What it holds, as something that can be compared: plain values as they are, and number(tensor or object) for the
    rest, also for what is held too deep. without: a key of dicts that does not count.

    ComfyUI's holders of conditionings count as what they hold: some packs copy them for each call.
    """
    if thing is None or isinstance(thing, str | int | float):
        return thing
    if not depth:
        return number(thing)
    if isinstance(thing, dict):
        held = ((key, value) for key, value in thing.items() if key != without)
        return tuple((key, contents(value, number, without, depth - 1)) for key, value in held)
    if isinstance(thing, list | tuple):
        return tuple(contents(value, number, without, depth - 1) for value in thing)
    if hasattr(thing, "process_cond"):
        return type(thing).__name__, contents(vars(thing), number, without, depth - 1)
    return number(thing)


def fingerprint(thing):
    """The values that it holds, as far as they tell it from others; the ids of objects, and of tensors that cannot be
    looked into.
    """
    return contents(thing, _values_or_id, without="uuid")


def _values_or_id(thing):
    if isinstance(thing, torch.Tensor) and can_be_sampled(thing):
        return thing.shape, thing.dtype, *checksums(thing).tolist(), *sample_of([thing])[::64].tolist()
    return id(thing)


class Identities:
    """Numbers that tell objects apart, also those that are made anew where another one was.

    Functions that are made anew with the same code and variables are the same one: some packs make their patches for
    each call. Small tensors count as what they hold, where that can be read without waiting for a device.

    unversioned: tensors that were met and have no version, by number; nothing here tells whether they are overwritten.
    """

    def __init__(self):
        self.unversioned: dict[int, torch.Tensor] = {}
        self._known: dict[int, tuple] = {}  # (weak reference, number) by id
        self._made: dict[tuple, int] = {}  # numbers of functions, by code and variables
        self._count = 0

    def of(self, thing):
        """A number for an object, of a tensor with its version; plain values, and what is made of them, stay."""
        return contents(thing, self._number_and_version)

    def _number_and_version(self, thing):
        content = _small_content(thing)
        if content is not None:
            return content
        number = self._number(thing)
        if not isinstance(thing, torch.Tensor):
            return number
        if thing.is_inference():
            self.unversioned[number] = thing
            return number, None
        return number, thing._version

    def _number(self, thing) -> int:
        reference, number = self._known.get(id(thing), (lambda: None, 0))
        if reference() is not thing:
            number = self._count = self._count + 1
            self._known[id(thing)] = _reference(thing), number  # now, as a function may hold itself
            if isinstance(thing, types.FunctionType):
                held = map(self._plain_or_number, variables_of(thing).values())
                number = self._made.setdefault((thing.__code__, *held), number)
                self._known[id(thing)] = _reference(thing), number
        return number

    def _plain_or_number(self, thing):
        return thing if thing is None or isinstance(thing, str | int | float) else self._number_and_version(thing)


def _small_content(thing) -> tuple | None:
    """What a tensor on the CPU, or an array, holds, as something that can be compared; None for larger ones, and for
    anything else.
    """
    if isinstance(thing, np.ndarray | np.generic) and thing.size <= SMALL and not thing.dtype.hasobject:
        return thing.shape, thing.dtype.str, thing.tobytes()
    if type(thing) not in (torch.Tensor, torch.nn.Parameter) or thing.device.type != "cpu":
        return None
    if thing.layout != torch.strided or thing.numel() > SMALL:
        return None
    try:
        return thing.shape, thing.dtype, thing.detach().flatten().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError):  # one that is being differentiated, say
        return None


def _reference(thing) -> Callable:
    try:
        return weakref.ref(thing)
    except TypeError:
        return lambda: thing
