"""What the network is asked within one evaluation of a sampler.

An evaluation is one noisy latent at one noise level. Guiders ask the network about one or several conditionings there,
in one call or in several. A question is known by what is asked, not by the order of calls: guiders leave questions out
at some noise levels, and add-ons insert theirs.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from .question_history import QuestionHistory


class Question(NamedTuple):
    """What a conditioning asks: ids of its parts, options that are words or switches, names of patched layers, and the
    id of the network that is asked.
    """

    parts: tuple
    switches: tuple
    layers: tuple
    network: int


def question(cond: Sequence[dict], position: int, model_options: dict, model) -> Question:
    """What a conditioning asks.

    cond: its parts; ComfyUI gives each an id when it prepares it. position: in its call, for those that have none.
    """
    options = model_options.get("transformer_options", {})
    parts = tuple(part.get("uuid", position) for part in cond)
    replaced = options.get("patches_replace", {})
    layers = tuple(sorted(((kind, str(layer)) for kind, names in replaced.items() for layer in names), key=repr))
    # Other packs' names need not be words, and would not compare.
    switches = ((name, value) for name, value in options.items() if isinstance(value, str | bool))
    switches = tuple(sorted(switches, key=repr))
    return Question(parts, switches, layers, id(model))


def questions(conds: Sequence, model_options: dict, model) -> dict[int, Question]:
    """What a call of calc_cond_batch asks, by position among its conditionings; some of them may be None."""
    return {i: question(cond, i, model_options, model) for i, cond in enumerate(conds) if cond is not None}


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
        self._asked: Counter[Question] = Counter()

    def branch(self, asked: Question) -> str:
        """The name of a question's answer: a question that is asked again within the evaluation is another one."""
        self._asked[asked] += 1
        return f"{asked} {self._asked[asked]}"

    def ended_by(self, x: torch.Tensor, timestep: torch.Tensor, asked: Callable[[], Collection[Question]]) -> bool:
        """Whether a call of calc_cond_batch belongs to another evaluation: at another timestep, or where the question
        that opened this one is asked about another x. Only if this one is direct; else its guider ends it.
        """
        return self.direct and (self.timestep is not timestep or (x is not self.x and self.opened_by in asked()))
