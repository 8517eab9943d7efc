"""One sampling run with the cache, between the sampler and the network.

A Run's wrappers are called by ComfyUI: PREDICT_NOISE decides, once per evaluation; CALC_COND_BATCH computes and stores
the outputs, or predicts them. The state of a run is in its Run alone.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import comfy.samplers
import torch
from comfy.model_management import soft_empty_cache
from comfy.patcher_extension import WrappersMP

from ..easycache_core import Ranks, Response
from ..easycache_core.gradients import are_differentiated
from ..easycache_core.predictors import PREDICTORS
from ..easycache_core.ranks import ALL_RANKS
from ..easycache_core.storage import Retries, is_out_of_memory
from ..easycache_core.weights import Weights
from .account import Account
from .call_options import values_of
from .conditionings import content_of, covers, tensors_named, tensors_of, where_active
from .evaluation import Evaluation, PartIds, Question, questions
from .histories import Histories
from .identities import Identities
from .latents import level_of
from .network_memory import NetworkMemory
from .other_caches import Repetitions
from .own_wrappers import WRAPPER_KEY, with_own_wrapper
from .parametrisation import Parametrisation
from .patch_switches import keeps_latents, patch_values
from .question_history import EvaluationInput, QuestionHistory
from .schedule_switches import self_switching
from .settings import Settings
from .steps import Schedule
from .value_changes import TellingValues
from .windows import CachedWindows

log = logging.getLogger("easycache")

MAX_LAYERS_ALONG = 2  # sets of patched layers that take turns; of more, one stands in for another


class Call(NamedTuple):
    """One call to calc_cond_batch, by its arguments; without tensors where it is remembered."""

    model: object
    conds: Sequence
    x: torch.Tensor | None
    timestep: torch.Tensor | None
    model_options: dict


class Answers(NamedTuple):
    """What a call is given, by position among its conditionings.

    branches: the names of the answers. own_x: x as the engine takes it, None if it is that of the evaluation.
    predicted: the denoised latents; None where the network has to run. beside: whether all of them are with other
    layers patched than what opened the evaluation.
    """

    branches: dict[int, str]
    own_x: torch.Tensor | None
    predicted: dict[int, torch.Tensor] | None
    beside: bool = False


class Run:
    """The state of the cache during one sampling run.

    An evaluation is opened by PREDICT_NOISE, or, by guiders that go past that, by a call to calc_cond_batch with a
    timestep of its own. The first question that is asked in it decides; an evaluation in which nothing is asked is
    none. A branch of the engine is one question. The engine's inputs and outputs are the noisy and the denoised latent,
    or, for predictors that do not follow the denoised latent, those of the network.

    streams, ranks, response, supposed: as CacheController takes them. shape: of the latent; what has another one is a
    part of it, which may move, and is computed. None: any. steps_before: of the same schedule, in runs that this one
    continues. levels: noise levels at which patches change what they do. one_latent: whether the sampler is known to
    have no other.
    """

    def __init__(
        self,
        settings: Settings,
        schedule: Schedule,
        guider,
        streams: Sequence[int] = (),
        ranks: Ranks | None = ALL_RANKS,
        shape: torch.Size | None = None,
        steps_before: int = 0,
        levels: Sequence[float] = (),
        response: Response | None = None,
        one_latent: bool = False,
        supposed: Response | None = None,
    ):
        self._shape, self._guider, self._one_latent = shape, guider, one_latent
        follows_denoised = PREDICTORS[settings.config.predictor].follows_denoised
        conversion = Parametrisation(guider.model_patcher.get_model_object("model_sampling"))
        self._conversion = None if follows_denoised else conversion
        self.repetitions = Repetitions(conversion)
        self._evaluation: Evaluation | None = None
        # What was decided within the sampler's evaluation. Where that may try again, the newest of each history: of one
        # evaluation of a guider that nobody sees, those that it calls make several.
        self._latest: list[Evaluation] = []
        self._failed: list[Evaluation] = []  # of these, if something failed since
        self._keeps_latents = False  # whether what guides keeps some for later steps
        self._computing: set[int] = set()  # threads in which a call to calc_cond_batch is being computed
        self._lock = threading.RLock()  # guiders may ask from several threads
        self._retries = Retries()
        self._memory, self._telling, self._identities = NetworkMemory(), TellingValues(), Identities()
        conds = getattr(guider, "conds", {})
        self._part_ids = PartIds(conds)
        self._exact = settings.exact
        self._guidance = None  # as from _note_guidance
        self._budgeted = bool(settings.config.target_speedup)
        self._positive_covers: bool | None = None  # all of the latent
        self._asks_along = not self._exact  # questions that are not asked just now
        self._dtype: torch.dtype | None = None  # of the engine's latents: some samplers change theirs
        # Hooks exchange weights within an evaluation; their keyframes tell when they change (schedule_switches.py).
        hooked = any(part.get("hooks") for cond in conds.values() for part in cond or ())
        self._weights = Weights(
            None if hooked or self._exact else getattr(guider.model_patcher.model, "diffusion_model", None)
        )
        self.account = Account(settings, schedule, steps_before, self_switching(conds))
        # Whether an evaluation began since the last callback; None: PREDICT_NOISE was never called.
        self._asked_for_step: bool | None = None
        self._whole_at: torch.Tensor | None = None  # timestep of the last one that was about the whole latent
        self.denoised: torch.Tensor | None = None  # the sampler's, at the last callback
        self._range = None  # (least, largest) of its values then
        self._histories = Histories(
            settings, schedule, guider, self.account, response=response, supposed=supposed, one_latent=one_latent,
            steps_before=steps_before, levels=levels, streams=streams, denoised=follows_denoised, ranks=ranks,
            by_row=True,
        )  # fmt: skip

    def __deepcopy__(self, memo) -> "Run":
        """Itself: packs copy the options of a call, with the wrappers in them, to ask once more in another way."""
        return self

    def on_callback(self, denoised: torch.Tensor | None = None) -> None:
        """The sampler has called back, which it does once per step, with its denoised latent."""
        self.denoised = denoised
        latent = isinstance(denoised, torch.Tensor) and denoised.is_floating_point() and denoised.numel()
        self._range = denoised.detach().aminmax() if latent else None  # now, as callbacks may write to it
        if self._asked_for_step is False:  # some call back several times per step, some skip evaluations
            self.account.unasked += not self._one_latent
            return
        self.account.callbacks += 1
        if self._asked_for_step:
            self._asked_for_step = False
        if latent:
            self._note_direct_answer(denoised)
        self._histories.on_callback()

    def _note_direct_answer(self, denoised: torch.Tensor) -> None:
        """What a guider that goes past PREDICT_NOISE made of the answers comes with the callback alone."""
        evaluation = self._evaluation
        if evaluation is None or not evaluation.direct or evaluation.history is None or evaluation.predicting:
            return
        history = evaluation.history
        if self._one_latent and self._conversion is None and history.steps.since_callback == 1:
            history.controller.answered(denoised)

    def on_moved(self) -> None:
        """A callback has made another latent of the sampler's."""
        self._histories.on_moved()

    def predict_noise(self, executor, x, timestep, model_options, *args, **kwargs):
        """PREDICT_NOISE wrapper: opens an evaluation.

        x: the sampler's latent, (batch, channels, ...). timestep: sigma, (batch,). Returns the denoised latent.
        """
        # Some samplers give some of their evaluations options of their own, without anybody's wrappers.
        model_options = with_own_wrapper(WrappersMP.CALC_COND_BATCH, self.calc_cond_batch, model_options)
        handler = model_options.get("context_handler")
        if handler is not None:
            model_options = {
                **model_options,
                "context_handler": CachedWindows(handler, self.predict_or_compute, self._exact),
            }
        if self._evaluation is not None and self._evaluation.direct and not self._computing:
            self._end_direct()  # of guiders that go past this one at some steps only
        around = self._evaluation
        if not self._is_second_look(x, timestep):
            self._asked_for_step = True
        depth = 0 if around is None else around.depth + 1
        evaluation = self._evaluation = Evaluation(x, timestep, depth=depth, foreign=not self._one_latent)
        try:
            denoised = executor(x, timestep, model_options, *args, **kwargs)
            self._compute_other_ways_along(evaluation)
        except Exception:
            self._on_failure()
            raise
        finally:
            self._evaluation = around
        if self._shape is not None and not self._keeps_latents:
            self._keeps_latents = keeps_latents(model_options, self._shape)
        if evaluation.history is not None and isinstance(denoised, torch.Tensor):  # some guiders return several latents
            evaluation.history.trail.answer(denoised)
            if not evaluation.predicting and self._conversion is None:
                evaluation.history.controller.answered(denoised)
        self.account.log_evaluation(evaluation)
        evaluation.close()
        if around is None and self._one_latent:  # ComfyUI's own samplers try nothing again
            self._latest = []
        return denoised

    def _is_second_look(self, x: torch.Tensor, timestep: torch.Tensor) -> bool:
        """Whether a sampler looks at a part of the latent, or at another size, within a step whose evaluation it has.
        Some call back for that, too. Waits for the device there, and never else.
        """
        if self._shape in (None, x.shape):
            # Tensors of torch.func are none once it is through.
            self._whole_at = None if are_differentiated((x, timestep)) else timestep
            return False
        return self._whole_at is not None and bool(level_of(timestep) == level_of(self._whole_at))

    def calc_cond_batch(self, executor, model, conds, x, timestep, model_options):
        """CALC_COND_BATCH wrapper: as predict_or_compute. Nested calls are computed."""

        def compute(conds):
            return executor(model, conds, x, timestep, model_options)

        if threading.get_ident() in self._computing:
            return compute(conds)

        def asked():
            return questions(conds, model_options, model, self._part_ids).values()

        with self._lock:
            if self._evaluation is None or self._evaluation.ended_by(x, timestep, asked):
                if self._is_apart(x.shape, x, timestep):
                    return self._compute_nested(lambda: compute(conds), model, model_options)
                self._end_direct()
                if self._asked_for_step is not None:  # its guider goes past PREDICT_NOISE at some steps only
                    self._asked_for_step = True
                self._evaluation = Evaluation(x, timestep, direct=True)
            evaluation = self._evaluation
        answers = self.predict_or_compute(compute, model, conds, x, timestep, model_options)
        if evaluation.direct and evaluation.history is not None:
            for answer in answers:
                evaluation.history.trail.answer(answer)
        return answers

    def calc_cond_batch_within(self, executor, model, conds, x, timestep, model_options):
        """As `calc_cond_batch`, for options that others than this run may ask with, too: whatever is asked while no
        evaluation is open is computed.
        """
        if self._evaluation is None or self._evaluation.direct:
            return executor(model, conds, x, timestep, model_options)
        return self.calc_cond_batch(executor, model, conds, x, timestep, model_options)

    def _on_failure(self) -> None:
        """Whoever catches the error may try again."""
        with contextlib.suppress(RuntimeError):  # it takes some memory
            for evaluation in self._latest:
                evaluation.fail()
            self._failed, self._latest = [*self._failed, *self._latest], []

    def _is_tried_again(self, evaluation: Evaluation, tracked: Question) -> bool:
        """Whether it failed just now: then it is no further step, and is charged to a budget once."""
        failed = next((one for one in self._failed if evaluation.goes_on_with(one, tracked)), None)
        if failed is not None:
            self._failed.remove(failed)
            self._latest.append(evaluation)
        return failed is not None

    def _end_direct(self) -> None:
        """An evaluation that was opened by calc_cond_batch, if there is one, is over."""
        self.account.log_evaluation(self._evaluation)
        self._evaluation, self._latest = None, []

    def predict_or_compute(
        self, compute: Callable, model, conds, x, timestep, model_options, windows: frozenset | None = None
    ) -> list[torch.Tensor]:
        """Denoised latents, one per conditioning: predicted where possible, else from `compute(conds)`, in which those
        that need not be computed are None. windows: in which `compute` asks, as from windows_of.
        """
        evaluation, call = self._evaluation, Call(model, conds, x, timestep, model_options)
        evaluation.windows = windows
        asked = questions(conds, model_options, model, self._part_ids)
        if not asked:  # a pack that asks in a way of its own has left out all of them
            return compute(conds)

        def nested(given: Sequence) -> list[torch.Tensor]:
            return self._compute_nested(lambda: compute(given), model, model_options)

        if self._is_apart(evaluation.x.shape, x, timestep, *tensors_of(conds)):
            return nested(conds)
        self._note_guidance()
        # The branch stored first is the one whose error decides; some guiders list the negative first.
        asked = {i: asked[i] for i in sorted(asked, key=lambda i: self._rank(conds[i], x))}
        with self._lock:
            known = evaluation.computed_along(asked, x)
            asked = {i: question for i, question in asked.items() if i not in known}
            options = self._values_of(model_options)
            answers = self._ask(evaluation, asked, call, options) if asked else Answers({}, None, known)

        def shown(i: int) -> torch.Tensor:
            return where_active(conds[i], timestep, known[i])

        if answers.predicted is not None:
            known |= answers.predicted
            return [shown(i) if i in known else torch.zeros_like(x) for i in range(len(conds))]
        denoised = self._compute(evaluation, nested, [None if i in known else cond for i, cond in enumerate(conds)])
        with self._lock:
            known |= self._store(evaluation, answers, denoised, x, timestep)
            left_out = self._left_out(evaluation, asked)
        self._compute_along(evaluation, left_out, nested, options)
        return [shown(i) if i in known else output for i, output in enumerate(denoised)]

    def _is_apart(self, shape: torch.Size, x: torch.Tensor, *others: torch.Tensor) -> bool:
        """Whether a call is to be computed past the cache, and is counted as that: it is about a part of the latent, or
        at another size, or it is differentiated. shape: of the evaluation's latent. others: what else is asked with.
        """
        if x.shape != shape or self._shape not in (None, x.shape):
            self.account.on_part(whole=x.shape == shape)
            return True
        differentiated = are_differentiated((x, *others))
        self.account.gradients += differentiated
        return differentiated

    def _compute(self, evaluation: Evaluation, nested: Callable, conds: Sequence) -> list[torch.Tensor]:
        """nested(conds); where it fails, the evaluation is open for another try."""
        try:
            return nested(conds)
        except Exception:
            with self._lock:
                evaluation.start_over()
                if evaluation.direct:
                    self._on_failure()
            raise

    def _compute_along(
        self, evaluation: Evaluation, left_out: list[tuple[Question, list]], nested: Callable, options: dict
    ) -> None:
        """Ask the network what the guider leaves out just now, and keep the answers. left_out: as from `_left_out`."""
        for question, conds in left_out:
            if self._asks_along:
                self._ask_along(evaluation, question, conds, functools.partial(nested, conds), options)

    def _compute_other_ways_along(self, evaluation: Evaluation) -> None:
        """As `_compute_along`, for what is asked with other layers patched than what opened the evaluation. Once that
        is over, as only then it is known that the guider leaves it out. Also before it has come back: one more may be
        asked along than skipping has saved so far.
        """
        history = evaluation.history
        if history is None or not self._asks_along or evaluation.predicting or history.controller.shared:
            return
        opened_by, absences = evaluation.opened_by, history.absences
        back_before = dict(absences.left_out())
        for (question, time), call in absences.left_out(early=True):
            if self.account.along > self.account.predicted or not self._asks_along:
                return
            options = call.model_options
            # Where a switch is another one, it is the same pass that has changed.
            layers_alone = question.switches == opened_by.switches and question.network == opened_by.network
            if not layers_alone or question.patches == opened_by.patches or evaluation.times_asked(question):
                continue
            most = MAX_LAYERS_ALONG if (question, time) in back_before else 1
            if len(history.of_other_layers(question, opened_by)) <= most and "context_handler" not in options:
                again = call._replace(x=evaluation.x, timestep=evaluation.timestep)
                compute = functools.partial(comfy.samplers.calc_cond_batch, *again)
                compute = functools.partial(self._compute_nested, compute, call.model, options)
                self._ask_along(evaluation, question, call.conds, compute, self._values_of(options))

    def _ask_along(
        self, evaluation: Evaluation, question: Question, conds: list, compute: Callable, options: dict
    ) -> None:
        self.account.along += 1
        try:
            computed = compute()
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # of a pack's wrapper, say
            log.debug(f"EasyCache: what is left out cannot be asked along: {type(error).__name__}: {error}")
            self._asks_along = False
            return
        with self._lock:
            self._store_along(evaluation, question, conds, computed, options)

    def _note_guidance(self) -> None:
        """The largest one in force so far; some nodes exchange the guider's for a part of the schedule."""
        now, number = getattr(self._guider, "cfg", None), int | float
        if isinstance(now, number) and isinstance(self._guidance, number | None):
            self._guidance = max(now, now if self._guidance is None else self._guidance)
        elif now is not None and isinstance(self._guidance, number | None):
            self._guidance = now  # some guiders have one for each step

    def _rank(self, cond, x: torch.Tensor) -> int:
        """Among conditionings, the first of which decides: the positive one. But under a threshold not where it leaves
        out a part of the latent, of which its errors then tell nothing.
        """
        if cond is not getattr(self._guider, "conds", {}).get("positive"):
            return 1
        if self._positive_covers is None:
            self._positive_covers = self._exact or covers(cond, x)
            self.account.uncovered = not self._positive_covers
        return 0 if self._positive_covers or self._budgeted else 2

    def _ask(self, evaluation: Evaluation, asked: dict[int, Question], call: Call, options: dict) -> Answers:
        """Predict the answers to these questions, by position, if they can be. options: values in the model's options,
        by name.
        """
        values = {i: options | content_of(call.conds[i], self._identities) for i in asked}
        opens = self._open(evaluation, next(iter(asked.values())))
        history = evaluation.history
        branches, changed = self._observe(evaluation, asked, values, call)
        own_x = None if call.x is evaluation.x else self._network_input(call.x, call.timestep)
        if not self._exact and history.elsewhere(branches.values(), call.x, evaluation.x):
            self.account.on_elsewhere(
                "the guider asks about a latent of its own, which is turned or moved against the sampler's from step "
                "to step"
            )
            changed = evaluation.another = True
        known = all(map(history.controller.has, branches.values()))
        if opens:
            self._decide(evaluation, [call.conds[i] for i in asked], changed, missing=not known)
            known = all(map(history.controller.has, branches.values()))
        predicted = None
        if evaluation.predicting and not self._memory.found and (opens or not changed):
            given = branches if known or opens else self._stand_ins(evaluation, asked, branches)
            if given and all(map(history.controller.has, given.values())):
                predicted = self._predict(history, given, own_x, call)
            self.account.predicted += opens and predicted is not None
        beside = all(question.patches != evaluation.opened_by.patches for question in asked.values())
        return Answers(branches, own_x, predicted, beside)

    def _stand_ins(
        self, evaluation: Evaluation, asked: dict[int, Question], branches: dict[int, str]
    ) -> dict[int, str] | None:
        """The branches from which these are predicted, by position, where some of them are not known; None where they
        have to be computed.
        """
        history = evaluation.history
        missing = [i for i, branch in branches.items() if not history.controller.has(branch)]
        stand_ins = {i: history.stand_in(asked[i], evaluation.opened_by) for i in missing}
        if None in stand_ins.values():
            return None
        history.on_stand_in()
        return branches | stand_ins

    def _open(self, evaluation: Evaluation, first: Question) -> bool:
        """Find the history of an evaluation, if it has none yet; whether it is to be decided. first: the question that
        is asked first.
        """
        opens = evaluation.history is None and not self._is_tried_again(evaluation, first)
        if opens:
            self._telling.next_evaluation()
            self._histories.open(evaluation, first)
        return opens

    def _observe(
        self, evaluation: Evaluation, asked: dict[int, Question], values: dict[int, dict], call: Call
    ) -> tuple[dict[int, str], bool]:
        """(names of the answers, by position, whether any question has other values than where it was computed last).
        values: of each question, by name.
        """
        history, conds = evaluation.history, call.conds
        if not self._exact:
            history.overwrites.note(self._identities.unversioned)
        self._identities.unversioned = {}
        for i, question in asked.items():
            alone = [cond if n == i else None for n, cond in enumerate(conds)]
            time = 1 + evaluation.times_asked(question)
            remembered = Call(call.model, alone, None, None, call.model_options)
            history.absences.note((question, time), remembered if time == 1 else None)
        branches = {}
        for i, question in asked.items():
            branches[i] = evaluation.branch(question, values[i], self._telling)
            if evaluation.times_asked(question) == 1:
                history.note_answer(question, branches[i])
        changed = True in {history.observe(branches[i], values[i]) for i in asked}
        if not self._exact:
            for i, branch in branches.items():
                history.look_at_moving(branch, functools.partial(tensors_named, conds[i], call.model_options))
        return branches, changed

    def _store(self, evaluation: Evaluation, answers: Answers, denoised: list, x, timestep) -> dict[int, torch.Tensor]:
        """Take in what was computed, and return it, corrected, by position."""
        history = evaluation.history
        controller = history.controller
        if evaluation.predicting:
            history.count_as_computed(alone=answers.beside)
            return {i: denoised[i] for i in answers.branches}
        for i, branch in answers.branches.items():
            output = denoised[i]
            if self._conversion is not None:
                output = self._retry_on_oom(self._conversion.network_output, output, x, timestep)
            controller.store(branch, output.to(self._dtype), answers.own_x)
            history.on_computed(branch)
            if not self._exact:
                self.repetitions.note(branch, denoised[i], x, level_of(timestep))
        if self._conversion is not None:
            return {i: denoised[i] for i in answers.branches}
        return {i: controller.corrected(branch, denoised[i]) for i, branch in answers.branches.items()}

    def _left_out(self, evaluation: Evaluation, asked: dict[int, Question]) -> list[tuple[Question, list]]:
        """Questions that the network is asked along, where it runs, with the conditionings of their calls: those that
        are left out at times, as a negative that is asked at every other step only. Without their answers nothing could
        be predicted at the next step at which they are asked. asked: what was asked now, in the same way.
        """
        controller = evaluation.history.controller
        if not self._asks_along or evaluation.predicting or controller.shared:
            return []
        if self.account.along >= self.account.predicted:  # asking must not cost more than skipping saves
            return []
        ways = {question[1:] for question in asked.values()}
        missing = evaluation.history.absences.left_out()
        return [(one, call.conds) for (one, _), call in missing if one[1:] in ways and one not in evaluation.along]

    def _store_along(
        self, evaluation: Evaluation, question: Question, conds: list, denoised: list, options: dict
    ) -> None:
        i = next(n for n, cond in enumerate(conds) if cond is not None)
        values = options | content_of(conds[i], self._identities)
        branch = evaluation.branch(question, values, self._telling)
        evaluation.history.observe(branch, values)
        evaluation.history.note_answer(question, branch)
        answers = Answers({i: branch}, None, None)
        stored = self._store(evaluation, answers, denoised, evaluation.x, evaluation.timestep)
        evaluation.along[question] = stored[i]

    def _values_of(self, model_options: dict) -> dict:
        """What may change in the model's options from call to call, by name."""
        of = self._identities.of
        return values_of(model_options, of) | patch_values(model_options, WRAPPER_KEY, of)

    def _decide(self, evaluation: Evaluation, asked: list, changed: bool, missing: bool) -> None:
        """Whether an evaluation is predicted. asked: the conditionings of its first call. changed: whether they, or
        the options, are others than where they were computed last. missing: whether some were not computed then.
        """
        history = evaluation.history
        network_x = self._network_input(evaluation.x, evaluation.timestep)
        conds = getattr(self._guider, "conds", None) or dict(enumerate(asked))
        others = self.account.histories[: self.account.histories.index(history)]
        evaluation.predicting = not history.begin(
            EvaluationInput(
                network_x=network_x,
                timestep=evaluation.timestep,
                sigma_on_host=evaluation.sigma_on_host,
                conds=conds,
                changed=changed,
                missing=missing,
                another_latent=evaluation.another,
                weights=self._weights.sample(),
                windows=evaluation.windows,
                evaluations_before=sum(one.asked_at.expected for one in others),
            )
        )
        evaluation.decided = history.controller.evaluations
        self._latest = [*(one for one in self._latest if one.history is not history), evaluation]
        self._failed = []
        self.account.on_decided(history)

    def _network_input(self, x, timestep) -> torch.Tensor:
        """What the engine takes for x."""
        self._dtype = self._dtype or x.dtype
        x = x.to(self._dtype)
        return x if self._conversion is None else self._retry_on_oom(self._conversion.network_input, x, timestep)

    def _predict(
        self, history: QuestionHistory, branches: dict[int, str], own_x: torch.Tensor | None, call: Call
    ) -> dict[int, torch.Tensor] | None:
        """The denoised latents of branches, like x, by position; None where there is no memory for them. own_x: as in
        Answers.
        """

        def denoised(branch: str) -> torch.Tensor:
            predicted = history.controller.predict(branch, own_x).to(call.x.dtype)
            if self._conversion is None:
                return predicted
            return self._conversion.denoised(predicted, call.x, call.timestep)

        try:
            return {i: denoised(branch) for i, branch in branches.items()}
        except Exception as error:
            if history.controller.shared or not is_out_of_memory(error):
                raise
            history.controller.give_up_cache()
            return None

    def _compute_nested(self, compute, model, model_options) -> list[torch.Tensor]:
        """compute(), with nested calls to calc_cond_batch left alone."""
        thread = threading.get_ident()
        self._computing.add(thread)
        try:
            network, first = getattr(model, "diffusion_model", None), len(self.account.trace) < 2
            return self._retry_on_oom(self._memory.call, compute, model_options, network, first)
        finally:
            self._computing.discard(thread)
            if self._memory.found != self.account.memory:
                self.account.on_memory(self._memory.found)

    def _retry_on_oom(self, make, *args):
        return self._retries.call(lambda: make(*args), lambda: self.account.controllers, soft_empty_cache)

    def finish(self) -> str:
        """Once the sampler is through. Returns the line for the log; waits for the device."""
        self._end_direct()
        self.account.other_caches |= self.repetitions.found()
        self.account.weight_changes = self._weights.changes
        return self.account.summary(self._range, self._guidance, self._keeps_latents)

    def close(self) -> None:
        """Free every tensor, even if a reference to this run remains."""
        self._evaluation = self._guider = self.denoised = self._range = self._whole_at = None
        self._latest, self._failed = [], []
        self.repetitions.close()
        self._identities, self._part_ids = Identities(), PartIds({})
        self._weights.close()
        self._histories.close()
