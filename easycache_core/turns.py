"""Latents and questions that take turns: a sampler may ask about several latents, or several questions, one by one.

Which of them a call goes on with is told by what is asked (question.py), by where the latent was last, and by where the
answers lead it from there. Each has a history, and decisions, of its own.
"""

import math
from collections import Counter

import torch

from .absences import Absences
from .asked_at import AskedAt
from .controller import CacheController
from .interface import Layout
from .path import Path
from .samples import distance

# Distances between latents are parts of their size; that of two pure noises is about 1.4.
FAR = 1.0  # a latent that moved further since it was seen last may be another one
LONG_STEP = 0.25
NEAR = 0.02  # asked again at one timestep a latent has moved less, or no more than twice as far as in its last step
NOISED = 0.7  # or, where noise is added there, less than this: half the distance of two noises
NEARER = 0.5  # of the distance from another latent
TRAIL = 4  # evaluations that are remembered, so many latents can be told apart that take turns from step to step
MAX_HISTORIES = 64  # each holds tensors
# Why nothing of its past may be used.
ASTRAY, ANOTHER_QUESTION = "a latent that may be another", "another question"


class History:
    """What is known of one latent, and of the line of questions that opens its evaluations.

    form: of its latent, as from Arguments.form_of. x, timestep: of its newest evaluation, which other calls with both
    belong to. asked: how often each line was asked there. decided: whether it is known if the network runs there.
    aside: whether it is of a question that other evaluations leave out at times. step, gap: the sampler's step it was
    at, and how many steps after the one before. goes_to_and_fro: whether timesteps went both ways, or its first move is
    none that its answers lead to, so that other latents may be among its evaluations. strays: how often in a row the
    latent was not where the scheduler leads it. unsettled: whether, at the evaluation before, those steps were more
    than the time before: other questions have led the latent elsewhere meanwhile.
    """

    def __init__(self, controller: CacheController, line: int, asked_at: AskedAt):
        self.controller, self.line, self.asked_at = controller, line, asked_at
        self.form: tuple = ()
        self.layout: Layout | None = None  # from the first output on
        self.x: list[torch.Tensor] | None = None  # copies
        self.timestep: float | None = None
        self.sigma: float | None = None
        self.asked: Counter[int] = Counter()
        self.decided = self.aside = self.goes_to_and_fro = self.unsettled = self._came_back = False
        self.templates: dict = {}  # by branch: what a call returned beside its predictions
        self.step, self.gap, self.evaluations, self.records, self.strays = -1, 1, 0, 0, 0
        self.computing = True
        self.weights: torch.Tensor | None = None  # a sample of the network's, where it ran last
        self.missed: set[int] = set()  # lines that its evaluation asked for, and that were not in the cache
        self.missed_before: set[int] = set()  # and those of the evaluation before
        self.lacking: set[int] = set()  # those of the two before
        self.first: list = []  # (branch, output) of its first evaluation, until it is seen which part of x is latent
        self._asked_before: Counter[int] = Counter()
        self._absences = Absences()  # of lines, each with how often it was asked then
        self._trail: list[torch.Tensor] = []  # of its last evaluations
        self._start: list[float] = []  # its first timestep, and the second one
        self._path = Path()  # from its newest evaluation
        self._moved = 0.0  # by how far, when the timestep last changed; 0 if it was too far for a step
        self._far = 0  # how often in a row that was too far
        self._open = False
        self._failed = False  # whether its newest evaluation did, and was not tried again

    def matches(self, timestep: float, x: list[torch.Tensor]) -> bool:
        """Whether a call with these belongs to its newest evaluation."""
        if not self._open or timestep != self.timestep or not self.has_shapes_of(x):
            return False
        ours, theirs = (tensors if self.layout is None else self.layout.groups(tensors) for tensors in (self.x, x))
        return all(map(torch.equal, ours, theirs))

    def leaves_out(self, line: int) -> bool:
        """Whether a line that is to be asked now is one that is left out time and again."""
        return self._absences.returns((line, 1))

    @property
    def may_return(self) -> bool:
        """Whether a line may be asked once more than at the evaluation before, and could be predicted from nothing."""
        return self._absences.may_return

    def ask(self, line: int) -> str:
        """A line is asked at its newest evaluation. Returns the name of the answer."""
        self._failed = False
        self.asked[line] += 1
        once = self.asked[line] == 1  # what else tells it from the first time is not known
        if once or self.evaluations > 1:  # before that it may be another request, from the same noise
            self._absences.note((line, self.asked[line]), line if once else None)
        return f"{line} {self.asked[line]}"

    def has_shapes_of(self, x: list[torch.Tensor]) -> bool:
        return self.x is not None and [(one.shape, one.dtype, one.device) for one in x] == [
            (one.shape, one.dtype, one.device) for one in self.x
        ]

    def open(self, x: list[torch.Tensor], sample: torch.Tensor, timestep: float, step: int) -> None:
        """Begin another evaluation. sample: of x, as from sample_of."""
        if len(self._start) == 1 and timestep not in self._start:
            self.goes_to_and_fro = not self.leads_to(x)
        elif self.has_moved:
            first, second = self._start
            self.goes_to_and_fro = self.goes_to_and_fro or (timestep - self.timestep) * (second - first) < 0
        self._path.clear()
        if not self.has_shapes_of(x):
            self.layout, self._trail, self.first = None, [], []
        if self._trail and timestep != self.timestep:
            moved = distance(sample, self._trail[-1])
            self._far = self._far + 1 if moved > FAR else 0
            self._moved = moved if moved < LONG_STEP else 0.0
        self._trail = [*self._trail[1 - TRAIL :], sample]
        self._absences.next_evaluation()
        self.lacking = self.missed & self.missed_before
        self.missed_before, self.missed = self.missed, set()
        if self._failed:  # it is not whole
            self.controller.reset_cache()
        else:
            self._asked_before = self.asked
        self.asked = Counter()
        self.decided = self._failed = False
        gap = step - self.step if self.evaluations else 1
        self._came_back, self.unsettled = gap > self.gap, self._came_back
        self.gap, self.step = gap, step
        if len(self._start) < 2 and timestep not in self._start:
            self._start.append(timestep)
        self.x, self.timestep, self._open = [one.detach().clone() for one in x], timestep, True
        self.evaluations += 1

    def answer(self, groups: list[torch.Tensor]) -> None:
        """These were answered at its newest evaluation, as its layout groups them."""
        if not self._path:
            self._path.begin(self.layout.groups(self.x))
        self._path.answer(groups)

    def leads_to(self, x: list[torch.Tensor]) -> bool:
        """Whether a sampler that adds no noise may go to x from its newest evaluation; Path.leads_to."""
        return self._has_path_for(x) and self._path.leads_to(self.layout.groups(x))

    def is_rearranged(self, x: list[torch.Tensor]) -> bool:
        """Whether x lies another way than at its newest evaluation; Path.is_rearranged."""
        return self._has_path_for(x) and self._path.is_rearranged(self.layout.groups(x))

    def _has_path_for(self, x: list[torch.Tensor]) -> bool:
        return bool(self._path) and self.has_shapes_of(x)

    def fail(self) -> None:
        """Something failed in its evaluation. Who tries again asks for the same answers, and goes on with it."""
        self._failed, self.asked = True, Counter()

    @property
    def came_to_nothing(self) -> bool:
        """Whether it failed in its first evaluation, and was not tried again."""
        return self._failed and self.evaluations == 1

    @property
    def has_moved(self) -> bool:
        """Whether it was asked about at two timesteps."""
        return len(self._start) == 2

    def is_back(self, timestep: float) -> bool:
        """Whether the timestep lies where it began, or before that: on that side of its second one. It has moved."""
        first, second = self._start
        return all((timestep - one) * (second - first) < 0 for one in (second, self.timestep))

    def release(self) -> None:
        """Let go of every tensor."""
        self.controller.release()
        self.layout, self.x, self.templates, self.first, self._trail, self._open = None, None, {}, [], [], False
        self.weights = None
        self._path.clear()

    def distance(self, sample: torch.Tensor) -> float:
        """From where the latent was last."""
        return distance(sample, self._trail[-1]) if self._trail else math.inf

    def takes_turns(self, sample: torch.Tensor) -> bool:
        """Whether the latent is back where it was before the last evaluation, which was another latent's then."""
        moved = self.distance(sample)
        return any(distance(sample, there) < NEARER * moved for there in self._trail[:-1])

    def may_be_another(self, sample: torch.Tensor, others: list["History"]) -> bool:
        """Whether the latent has moved too far to be known again. others: of other latents. Without them, a latent that
        never comes back is one whose noise the sampler renews.
        """
        moved = self.distance(sample)
        if not others:
            return moved > FAR and self._far < TRAIL
        return moved > 3 * self._moved and any(moved > NEARER * other.distance(sample) for other in others)

    def goes_on_with(self, sample: torch.Tensor, others: list["History"]) -> bool:
        """Whether it is the latent of its newest evaluation that is asked about again at the same timestep, as samplers
        do that are of second order, or add noise there; else it is another one, such as the next tile. Tiles are there
        from the first timestep on. others: histories of other latents.
        """
        moved = self.distance(sample)
        whole = all(self.asked[line] >= times for line, times in self._asked_before.items() if line == self.line)
        if not whole or moved <= max(NEAR, 2 * self._moved):
            return whole
        nearer = moved < NOISED and all(moved < NEARER * other.distance(sample) for other in others)
        return self.has_moved and nearer and not self.takes_turns(sample)


def choose(
    histories: list[History], line: int, new: bool, same_step: bool, timestep: float,
    x: list[torch.Tensor], sample: torch.Tensor, adds_noise: bool | None = None,
):  # fmt: skip
    """(which history an evaluation goes on with; None: another one, why nothing of it may be used; "": it may).

    histories: the one used last first. line, new: the question, and whether it was never asked. same_step: whether
    there was an evaluation at this timestep. sample: of x, as from sample_of. adds_noise: whether the sampler does on
    its way to this timestep; None: nobody knows, or where it goes next.
    """

    def nearest(among):
        return among[0] if len(among) == 1 else min(among, key=lambda one: one.distance(sample))

    # Cond and uncond may come in either order.
    ours = [one for one in histories if one.line == line or one.asked[line]]
    if not ours:
        # At the next step a question may take the place of another.
        return (nearest(histories), ANOTHER_QUESTION) if new and histories and not same_step else (None, "")
    waiting = [one for one in ours if one.timestep != timestep]
    if len(waiting) < len(ours):
        there = nearest([one for one in ours if one.timestep == timestep])
        again = there.goes_on_with(sample, [one for one in ours if one is not there])
        if again and all(there.distance(sample) < NEARER * one.distance(sample) for one in waiting):
            return there, ""
    if not waiting:
        return None, ""
    waiting = [one for one in waiting if one.line == line] or waiting
    history = nearest(waiting)
    others = [one for one in ours if one is not history]
    if history.leads_to(x) or (adds_noise and not others):
        return history, ""
    rearranged = history.is_rearranged(x)  # twice rearranged, it may be back where it was
    if not rearranged and history.takes_turns(sample):
        return None, ""
    strays = rearranged or adds_noise is False or history.may_be_another(sample, others)
    return history, ASTRAY if strays else ""
