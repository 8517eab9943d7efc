"""What the network is asked within one evaluation of a sampler.

An evaluation is one noisy latent at one noise level. Guiders ask the network about one or several conditionings there,
in one call or in several. A question is known by what is asked, not by the order of calls: guiders leave questions out
at some noise levels, and add-ons insert theirs.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from .call_options import patches_of, switches_of
from .question_history import QuestionHistory
from .value_changes import TellingValues


class Question(NamedTuple):
    """What a conditioning asks: ids of its parts, options that are words or switches, what is patched, and the id of
    the network that is asked.
    """

    parts: tuple
    switches: tuple
    patches: tuple
    network: int


def questions(conds: Sequence, model_options: dict, model) -> dict[int, Question]:
    """What a call of calc_cond_batch asks, by position among its conditionings; some of them may be None.

    ComfyUI gives each part of a conditioning an id when it prepares it. Those that have none are known by position.
    """
    options = switches_of(model_options), patches_of(model_options), id(model)
    parts = {i: tuple(part.get("uuid", i) for part in cond) for i, cond in enumerate(conds) if cond is not None}
    return {i: Question(ids, *options) for i, ids in parts.items()}


class Identities:
    """Numbers that tell objects apart, also those that are made anew where another one was."""

    def __init__(self):
        self._known: dict[int, tuple] = {}  # (weak reference, number) by id
        self._count = 0

    def of(self, thing):
        """A number for an object; for plain values, and what is made of them, themselves."""
        if thing is None or isinstance(thing, str | int | float):
            return thing
        if isinstance(thing, dict):
            return tuple((key, self.of(value)) for key, value in thing.items())
        if isinstance(thing, list | tuple):
            return tuple(map(self.of, thing))
        reference, number = self._known.get(id(thing), (lambda: None, 0))
        if reference() is not thing:
            self._count = number = self._count + 1
            self._known[id(thing)] = _reference(thing), number
        return number


def _reference(thing) -> Callable:
    try:
        return weakref.ref(thing)
    except TypeError:
        return lambda: thing


class Evaluation:
    """One evaluation while it lasts.

    x: the sampler's latent, (batch, channels, ...). timestep: sigma, (batch,). direct: whether it was opened by a call
    of calc_cond_batch; then it lasts until the next one begins. depth: of guiders that call guiders. opened_by: the
    question that decided. history: of the questions that are asked here. Both are None until the first one is asked.
    reusing: whether they are predicted.
    """

    def __init__(self, x: torch.Tensor, timestep: torch.Tensor, direct: bool = False, depth: int = 0):
        self.x, self.timestep, self.direct, self.depth = x, timestep, direct, depth
        self.opened_by: Question | None = None
        self.history: QuestionHistory | None = None
        self.reusing = False
        self._asked: Counter[tuple] = Counter()
        self._values: dict[Question, list[dict]] = {}  # of the options, of each call that asked

    def branch(self, asked: Question, content: tuple, values: dict, telling: TellingValues) -> str:
        """The name of a question's answer: a question that is asked again within the evaluation is another one.

        content: of the conditioning. values: of the model's options.
        """
        others = self._values.setdefault(asked, [])
        name = asked, content, telling.of(values, others)
        others.append(values)
        self._asked[name] += 1
        return f"{name} {self._asked[name]}"

    def ended_by(self, x: torch.Tensor, timestep: torch.Tensor, asked: Callable[[], Collection[Question]]) -> bool:
        """Whether a call of calc_cond_batch belongs to another evaluation: at another timestep, or where the question
        that opened this one is asked about another x. Only if this one is direct; else its guider ends it.
        """
        return self.direct and (self.timestep is not timestep or (x is not self.x and self.opened_by in asked()))
