"""What the network is asked within one evaluation of a sampler.

An evaluation is one noisy latent at one noise level. Guiders ask the network about one or several conditionings there,
in one call or in several. A question is known by what is asked, not by the order of calls: guiders leave questions out
at some noise levels, and add-ons insert theirs.
"""

import types
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..easycache_core.samples import can_be_sampled, checksums, sample_of
from .call_options import patches_of, switches_of, variables_of
from .question_history import QuestionHistory
from .value_changes import TellingValues

SMALL = 256  # elements of a tensor that is told by what it holds
DEPTH = 8  # of what a conditioning holds; it may hold itself


class Question(NamedTuple):
    """What a conditioning asks: ids of its parts, options that are words or switches, what is patched, and the id of
    the network that is asked.
    """

    parts: tuple
    switches: tuple
    patches: tuple
    network: int


class PartIds:
    """Ids of the parts of conditionings.

    ComfyUI gives each part one when it prepares it. Some guiders prepare theirs for each call: those are known by what
    they hold. Parts that have none are known by position.
    """

    def __init__(self, conds: dict):
        """conds: the guider's conditionings by name."""
        self._conds = conds
        self._ids = {part["uuid"]: part["uuid"] for cond in conds.values() for part in cond or () if "uuid" in part}
        self._by_content: dict = {}

    def of(self, cond: Sequence[dict], position: int) -> tuple:
        return tuple(self._of(part) if "uuid" in part else position for part in cond)

    def _of(self, part: dict):
        """Waits for the device if the part was made after the run began."""
        if part["uuid"] not in self._ids:
            if not self._by_content:
                own = [one for cond in self._conds.values() for one in cond or () if "uuid" in one]
                self._by_content = {fingerprint(one): one["uuid"] for one in own}
            self._ids[part["uuid"]] = self._by_content.setdefault(fingerprint(part), part["uuid"])
        return self._ids[part["uuid"]]


def _contents(thing, number: Callable, without: str = "", depth: int = DEPTH):
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
        return tuple((key, _contents(value, number, without, depth - 1)) for key, value in held)
    if isinstance(thing, list | tuple):
        return tuple(_contents(value, number, without, depth - 1) for value in thing)
    if hasattr(thing, "process_cond"):
        return type(thing).__name__, _contents(vars(thing), number, without, depth - 1)
    return number(thing)


def fingerprint(thing):
    """The values that it holds, as far as they tell it from others; the ids of objects, and of tensors that cannot be
    looked into.
    """
    return _contents(thing, _values_or_id, without="uuid")


def _values_or_id(thing):
    if isinstance(thing, torch.Tensor) and can_be_sampled(thing):
        return thing.shape, thing.dtype, *checksums(thing).tolist(), *sample_of([thing])[::64].tolist()
    return id(thing)


def questions(conds: Sequence, model_options: dict, model, part_ids: PartIds) -> dict[int, Question]:
    """What a call of calc_cond_batch asks, by position among its conditionings; some of them may be None."""
    options = switches_of(model_options), patches_of(model_options), id(model)
    return {i: Question(part_ids.of(cond, i), *options) for i, cond in enumerate(conds) if cond is not None}


def tensors_of(conds: Sequence) -> Iterator[torch.Tensor]:
    """Of these conditionings, what the network is given; some of them may be None."""
    held = (one.cond for cond in conds for part in cond or () for one in part.get("model_conds", {}).values())
    return (one for one in held if isinstance(one, torch.Tensor))


def where_active(cond: Sequence[dict], timestep: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """The answer to a conditioning; zero at noise levels where none of its parts is active, as ComfyUI has it there
    without the network. Some guiders look for that. Does not wait for the device. timestep: sigma, (batch,).
    """
    ranges = [(part.get("timestep_start"), part.get("timestep_end")) for part in cond]
    if (None, None) in ranges:
        return answer
    active, sigma = False, timestep[0]
    for start, end in ranges:
        active = active | ((start is None or sigma <= start) & (end is None or sigma >= end))
    return answer * active


def covers(cond: Sequence[dict], x: torch.Tensor) -> bool:
    """Whether each place of a latent x, (batch, channels, ...), has a part of the conditioning, by masks and areas.
    Elsewhere ComfyUI takes 0 for its answer. True for masks and areas of another form than ComfyUI's. Waits for the
    device where all parts have a mask.
    """
    if any(part.get("default") or (part.get("mask") is None and part.get("area") is None) for part in cond):
        return True
    covered = torch.zeros(x.shape[2:], dtype=torch.bool, device=x.device)
    try:
        for part in cond:
            covered |= _covered_by(part, torch.zeros_like(covered))
    except (RuntimeError, TypeError, ValueError):
        return True
    return bool(covered.all())


def _covered_by(part: dict, here: torch.Tensor) -> torch.Tensor:
    """here: nothing, by place."""
    sizes, starts = np.split(np.array(part.get("area") or [*here.shape, *[0] * here.ndim]), 2)
    where = [slice(start, start + size) for size, start in zip(sizes, starts, strict=True)]
    where = [slice(None)] * (here.ndim - len(where)) + where  # areas as of pictures, in videos
    here[tuple(where[: here.ndim])] = True
    if part.get("mask") is not None:
        here &= (part["mask"].to(here.device) > 0).any(0)  # (frames or 1, height, width), say
    return here


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
        return _contents(thing, self._number_and_version)

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


def content_of(cond: Sequence[dict], identities: Identities) -> dict:
    """What the parts of a conditioning hold, by name."""
    content = {}
    for i, part in enumerate(cond):
        for key, value in part.items():
            if key == "model_conds":
                content |= {("cond", i, name): identities.of(one) for name, one in value.items()}
            elif key != "uuid":
                content["cond", i, key] = identities.of(value)
    return content


def tensors_named(cond: Sequence[dict], model_options: dict, name: tuple) -> list[torch.Tensor]:
    """Those that a part of a conditioning holds, named as by content_of, or an entry of the options, named as by
    values_of: in lists, dicts and ComfyUI's holders of conditionings.
    """
    found: list = []
    kind, *place = name
    if kind == "cond":
        i, key = place
        _contents(cond[i].get("model_conds", {}).get(key, cond[i].get(key)), found.append)
    elif kind == "option":
        _contents(model_options["transformer_options"].get(place[0]), found.append)
    return [one for one in found if isinstance(one, torch.Tensor)]


class Evaluation:
    """One evaluation while it lasts.

    x: the sampler's latent, (batch, channels, ...). timestep: sigma, (batch,). direct: whether it was opened by a call
    of calc_cond_batch; then it lasts until the next one begins. depth: of guiders that call guiders. foreign: whether
    the sampler may be another pack's, which may try again, and overwrite both. opened_by: the question that is asked
    first. history: of the questions that are asked here. Both are None until the first one is asked. along: answers to
    questions that were not asked yet, by question. sigma_on_host: its highest, where it was read. another: whether the
    latent may be another one than that of the history. windows: in which the latent is asked about, None if as a whole.
    predicting: whether the questions are predicted; decided: at which evaluation of its history that was, from 1; 0
    while it is not known.
    """

    def __init__(
        self, x: torch.Tensor, timestep: torch.Tensor, direct: bool = False, depth: int = 0, foreign: bool = False
    ):  # fmt: skip
        self.x, self.timestep, self.direct, self.depth = x, timestep, direct, depth
        self._shape = x.shape
        # Guiders that call guiders overwrite both, too.
        self._began = (timestep.clone(), sample_of([x])) if direct or depth or foreign else None
        self.opened_by: Question | None = None
        self.history: QuestionHistory | None = None
        self.along: dict[Question, torch.Tensor] = {}
        self.sigma_on_host: float | None = None
        self.another = self.predicting = False
        self.windows: frozenset | None = None
        self.decided = 0
        self._calls: dict[Question, list[tuple[dict, str]]] = {}  # their values, and the names of the answers

    def times_asked(self, question: Question) -> int:
        """So far."""
        return len(self._calls.get(question, ()))

    def computed_along(self, asked: dict[int, Question], x: torch.Tensor) -> dict[int, torch.Tensor]:
        """Answers that are there already, by position. They are handed out once: another time is another question."""
        ready = {i: question for i, question in asked.items() if question in self.along and x is self.x}
        return {i: self.along.pop(question) for i, question in ready.items() if question in self.along}

    def branch(self, asked: Question, values: dict, telling: TellingValues) -> str:
        """The name of a question's answer: a question that is asked again within the evaluation is another one.

        values: of the conditioning and of the model's options, by name.
        """
        calls = self._calls.setdefault(asked, [])
        if telling.learn(values, [others for others, _ in calls]):
            for question, earlier in self._calls.items():  # go by more from now on
                for k, (before, name) in enumerate(earlier):
                    telling.names_before[self._name(question, before, earlier[:k], telling)] = name
        name = self._name(asked, values, calls, telling)
        name = telling.names_before.get(name, name)
        calls.append((values, name))
        return name

    @staticmethod
    def _name(asked: Question, values: dict, before: list[tuple[dict, str]], telling: TellingValues) -> str:
        told = telling.of(values)
        return f"{(asked, told)} {1 + sum(telling.of(others) == told for others, _ in before)}"

    def start_over(self) -> None:
        """Something failed in it, and who tries again asks for the same answers."""
        self._calls, self.along = {}, {}

    def close(self) -> None:
        """It is over."""
        self.start_over()
        self.x = None

    def fail(self) -> None:
        self._began = self._began or (self.timestep.clone(), sample_of([self.x]))

    def goes_on_with(self, failed: "Evaluation", tracked: Question) -> bool:
        """Whether it is one that failed and is tried again; then it takes over what was decided and done there.
        tracked: the question that is asked first here. Waits for the device.
        """
        ours, theirs = ((one.direct, one.depth, one._shape) for one in (self, failed))
        newest = failed.decided == failed.history.controller.evaluations
        if not newest or ours != theirs or tracked != failed.opened_by or not failed._goes_on(self.x, self.timestep):
            return False
        for name in ("opened_by", "history", "sigma_on_host", "another", "predicting", "decided"):
            setattr(self, name, getattr(failed, name))
        return True

    def ended_by(self, x: torch.Tensor, timestep: torch.Tensor, asked: Callable[[], Collection[Question]]) -> bool:
        """Whether a call of calc_cond_batch belongs to another evaluation: at another timestep, or where the question
        that opened this one is asked about another x. Only if this one is direct; else its guider ends it.
        """
        if not self.direct or self.timestep is not timestep:
            return self.direct
        return self.opened_by in asked() and (x is not self.x or not self._goes_on(x, timestep))

    def _goes_on(self, x: torch.Tensor, timestep: torch.Tensor) -> bool:
        """Whether the tensors that it was opened with hold what they held then. Waits for the device."""
        return all(map(torch.equal, self._began, (timestep, sample_of([x]))))
