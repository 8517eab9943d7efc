"""What the network is asked within one evaluation of a sampler.

An evaluation is one noisy latent at one noise level. Guiders ask the network about one or several conditionings there,
in one call or in several. A question is known by what is asked, not by the order of calls: guiders leave questions out
at some noise levels, and add-ons insert theirs.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from ..easycache_core.samples import sample_of
from .call_options import patches_of, switches_of
from .identities import fingerprint
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


def questions(conds: Sequence, model_options: dict, model, part_ids: PartIds) -> dict[int, Question]:
    """What a call of calc_cond_batch asks, by position among its conditionings; some of them may be None."""
    options = switches_of(model_options), patches_of(model_options), id(model)
    return {i: Question(part_ids.of(cond, i), *options) for i, cond in enumerate(conds) if cond is not None}


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
