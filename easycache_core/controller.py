"""One sampling run: ties rate, decision, prediction and storage together."""

import logging
import math
import sys
import weakref
from collections.abc import Sequence

import torch

from .budget import Budget
from .config import CacheConfig
from .decision import ask
from .forecast import Forecast
from .predictor import Place
from .ranks import EVERYONE, Ranks, Word, convene
from .rate import distance, elements
from .reuse import Reuse
from .storage import keep
from .trace import Record, Trace

log = logging.getLogger("easycache")


class CacheController:
    """Decides at each evaluation whether the network must run, and predicts its output where it need not.

    For each evaluation call `begin`. If it returns True, run the network and `store` the output of every
    branch (cond, uncond, ...), the tracked one first; if False, take every branch from `predict`.

    Beside what its predictor holds (Reuse, Forecast) it keeps the previous input, and never the caller's own tensors.
    `release` lets go of them. Where there is no room for them the cache is given up, not the run: everything is
    computed until enough is known again.

    Outputs under "forecast" are the sampler's derivative v, so that x - sigma v is the denoised latent: the velocity of
    flow models, the noise of eps models. With `denoised` they are that latent itself, in `store` and from `predict`.

    streams: sizes of the latents that are packed one after the other along the last axis of what `begin` is given
    (video and its sound). Each has a rate and an error of its own, and the worst of them decides.

    foreseen: whether there will be one evaluation at least for each of total_steps, so that a budget may count on them.
    step_lengths: how long each of them is, in any unit, by which a budget is spread over them; None: all alike.

    ranks: the processes that sample together and must decide alike, by default all that torch.distributed knows of,
    which is this one where it is not initialised; None: decide alone. Controllers are made on all of them, with the
    same settings, and each calls `begin` for the same evaluations and `release` in the end, whatever happens, so that
    the others need not wait for it. Used as a context manager it does so by itself.

    Raises ValueError for a negative total_steps, for step_lengths that are not as many finite numbers of 0 or more, and
    for `denoised` with another predictor; RanksDiffer, RankLost.
    """

    def __init__(
        self,
        config: CacheConfig,
        total_steps: int,
        streams: Sequence[int] = (),
        denoised: bool = False,
        foreseen: bool = True,
        step_lengths: Sequence[float] | None = None,
        ranks: Ranks | None = EVERYONE,
    ):
        if total_steps < 0:
            raise ValueError(f"total_steps must not be negative, got {total_steps}")
        lengths = [1.0] * total_steps if step_lengths is None else [float(length) for length in step_lengths]
        if len(lengths) != total_steps or not all(0 <= length < math.inf for length in lengths):
            raise ValueError(f"step_lengths must be {total_steps} finite numbers of 0 or more, got {lengths}")
        if denoised and config.predictor != "forecast":
            raise ValueError(f'denoised needs the predictor "forecast", got {config.predictor!r}')
        self.config = config
        self.total_steps = total_steps
        self._streams, self._denoised = tuple(streams), denoised
        terms = f"{config}, {total_steps} steps, streams={len(self._streams)}, {denoised=}, {foreseen=}"
        lengths_given = "" if step_lengths is None else f", step_lengths={lengths}"
        self._meeting = convene(ranks, max(1, len(self._streams)), terms + lengths_given)
        if self._meeting is not None:
            weakref.finalize(self, self._meeting.leave, "its controller is gone")
        self._trace = Trace()
        self._warned = False
        self._budget = None
        if config.target_speedup:
            self._budget = Budget(config.target_speedup, lengths if foreseen else [])
        self.forget()
        self._lost = False

    def __enter__(self) -> "CacheController":
        return self

    def __exit__(self, *exception) -> None:
        self.release()

    @property
    def shared(self) -> bool:
        """Whether other ranks decide along: what one rank computes, all must."""
        return self._meeting is not None

    def forget(self) -> None:
        """Let go of every tensor; the run goes on as if nothing were known of the network yet."""
        where, alone = self.config.cache_device, not self.shared
        if self.config.predictor == "forecast":
            self._predictor = Forecast(where, self._streams, alone, self._denoised)
        else:
            self._predictor = Reuse(where, self._streams, alone)
        self._lost = True  # which other ranks have to know
        self._x: torch.Tensor | None = None  # x_(n-1), then x_n once `begin` is through
        self._device: torch.device | None = None  # where the caller's latent lives
        self._worst: torch.Tensor | None = None  # index of the stream with the largest E when it was last asked for
        self._healthy: torch.Tensor | None = None  # no NaN or inf in what was stored last
        self._error: torch.Tensor | None = None  # E of this evaluation, an entry a stream, where it was asked for
        self._awaiting_tracked = False
        self._consecutive_skips = 0

    def begin(
        self,
        x: torch.Tensor,
        *,
        sigma=None,
        step: int,
        force: bool | torch.Tensor = False,
        changed: bool | torch.Tensor = False,
    ) -> bool:
        """Open evaluation n of sampler step `step` (from 0). True: run the network; False: `predict`.

        x: latent handed to the network, any shape; copied. sigma: its noise level, a number or a one-element
        tensor; "forecast" needs it. force: compute whatever the error says, as during warm-up (outside the part of the
        schedule where reuse is wanted). changed: what the network is asked is no longer the same (another prompt),
        so compute, and go on from nothing that was before. One-element tensors are asked along with the error.
        A budget (target_speedup) goes before both of them.

        Waits for x's device at most once, and not at all when the answer does not depend on it: while warming
        up, at the last step, with threshold 0, when forced, and while too little is known. With other ranks it waits
        once always, for the device and then for them.

        Raises ValueError without a sigma under "forecast"; RankLost and RanksDiffer if the ranks cannot go on together.
        """
        if self._x is not None and (self._x.shape != x.shape or self._x.dtype != x.dtype):
            self.forget()
        input_change = self._next_input(x)
        self._predictor.arrive(sigma, x.device)
        place = None
        if self.shared:
            input_change, place, force, changed = self._agreed(x, sigma, step, input_change, force, changed)
        linked = self._goes_on(changed)
        self._predictor.link(bool(linked) if self.shared else linked)
        self._error = None
        force = _either(force, changed)
        if self._budget is None:
            reusable = self._worth_reusing(step, input_change, place, force)
        else:
            reusable = not self._affordable(step, force)
        self._consecutive_skips = self._consecutive_skips + 1 if reusable else 0
        self._awaiting_tracked = not reusable
        self._predictor.leave(skipping=reusable)
        known = reusable or not self.shared  # else the next evaluation hears what the ranks saw in this one
        self._trace.open(
            step=step,
            sigma=sigma.detach().flatten()[0].clone() if isinstance(sigma, torch.Tensor) else sigma,
            computed=not reusable,
            input_change=self._of_worst(input_change),
            rate=self._of_worst(self._predictor.rate) if known else None,
            error=self._of_worst(self._error) if reusable else 0.0,
            output_norm=self._of_worst(self._predictor.output_norm) if known else None,
        )
        return not reusable

    def _next_input(self, x: torch.Tensor) -> torch.Tensor | None:
        """Put x in the place of the previous input and return ||x_n - x_(n-1)||, None if there was none."""
        try:
            look = self._predictor.look
            change = None if self._x is None else distance(look(x), look(self._x), self._streams)
            self._x, self._device = keep(x, self.config.cache_device), x.device
            return change
        except torch.cuda.OutOfMemoryError:
            self._give_up()
            return None

    def _give_up(self) -> None:
        log.warning("EasyCache: no memory left for the cache; it starts anew")
        self.forget()

    def _agreed(self, x: torch.Tensor, sigma, step: int, input_change, force, changed) -> tuple:
        """(input change, place, force, changed) as all ranks together have them.

        What follows from the last computed evaluation is reckoned from all ranks' numbers, too, and a cache that one
        has lost is lost for all: so whatever the decision rests on is the same on each of them.
        """
        healthy = True if self._healthy is None else self._healthy
        predictor = self._predictor
        word = Word(
            step, self._lost, force, changed, healthy, elements(x, self._streams), input_change, predictor.place,
            predictor.seen,
        )  # fmt: skip
        agreed, numbers = self._meeting.agree(word, self._trace.pending, x.device)
        self._trace.deliver(numbers)
        self._healthy = torch.tensor(agreed.healthy)
        if agreed.lost:
            self.forget()
            self._lost = False
            self._next_input(x)
            self._predictor.arrive(sigma, x.device)
            return None, None, agreed.force, agreed.changed
        predictor.settle(agreed.seen, agreed.healthy)
        if agreed.seen is not None:
            self._trace.update(rate=self._of_worst(predictor.rate), output_norm=self._of_worst(predictor.output_norm))
        return agreed.input_change, agreed.place, agreed.force, agreed.changed

    def _goes_on(self, changed: bool | torch.Tensor) -> bool | torch.Tensor:
        """Whether outputs of this evaluation may be compared with those stored last."""
        if self._healthy is None:
            return True
        if isinstance(changed, torch.Tensor):
            return self._healthy & ~changed.to(self._healthy.device, non_blocking=True)
        return self._healthy & (not changed)

    def _affordable(self, step: int, urgent: bool | torch.Tensor) -> bool:
        """Whether the budget has the network run."""
        runs = self._budget.wants(step, self._skipped_enough or bool(urgent)) or self._predictor.empty
        if runs:
            self._budget.spend()
        return runs

    def _worth_reusing(self, step: int, input_change, place: Place | None, force: bool | torch.Tensor) -> bool:
        forced = not isinstance(force, torch.Tensor) and force
        return not forced and self._may_reuse(step) and self._within_threshold(input_change, place, force)

    def _may_reuse(self, step: int) -> bool:
        """Whether the error is to be asked at all; known without a look at the device."""
        return (
            self.config.threshold > 0
            and self.config.warmup_steps <= step < self.total_steps - 1
            and self._predictor.ready
            and not self._skipped_enough
        )

    @property
    def _skipped_enough(self) -> bool:
        return 0 < self.config.max_consecutive_skips <= self._consecutive_skips

    def _within_threshold(self, input_change: torch.Tensor, place: Place | None, force: bool | torch.Tensor) -> bool:
        """Estimate E at this evaluation and say whether it is still below the threshold."""
        self._error = self._predictor.error(input_change, place or self._predictor.place)
        self._worst = self._error.nan_to_num(nan=torch.inf).argmax(keepdim=True)
        healthy = self._healthy & torch.isfinite(input_change).all()
        below, sound, numbers = ask(self._error, self.config.threshold, healthy, force, self._trace.pending)
        self._trace.deliver(numbers)
        if not sound and not self._warned:
            self._warned = True
            log.warning("EasyCache: NaN or inf in the latent or the network's output; such steps are not reused")
        return below

    def _of_worst(self, per_stream: torch.Tensor | None) -> torch.Tensor | None:
        """The entry for the trace."""
        if per_stream is None or len(per_stream) == 1:
            return per_stream
        return per_stream[:1] if self._worst is None else per_stream.index_select(0, self._worst)

    def store(self, branch: str, output: torch.Tensor, x: torch.Tensor | None = None) -> None:
        """Keep a branch's network output at an evaluation for which `begin` returned True; copied.

        The first branch stored in an evaluation is the tracked one: its rate decides. x: the branch's own
        input where it is not what `begin` was given (a part of it, say).
        """
        if self._x is None:  # given up in this evaluation
            return
        try:
            self._store(branch, output, x)
        except torch.cuda.OutOfMemoryError:
            self._give_up()

    def _store(self, branch: str, output: torch.Tensor, x: torch.Tensor | None) -> None:
        tracked, self._awaiting_tracked = self._awaiting_tracked, False
        kept_x = self._x if x is None else keep(x, self.config.cache_device)
        healthy = self._predictor.store(branch, output, kept_x, tracked)
        self._healthy = healthy if tracked else self._healthy & healthy
        if tracked and not self.shared:
            self._trace.update(
                rate=self._of_worst(self._predictor.rate), output_norm=self._of_worst(self._predictor.output_norm)
            )

    def knows(self, branch: str) -> bool:
        """Whether `predict` has something to go on for this branch."""
        return self._predictor.knows(branch)

    def predict(self, branch: str, x: torch.Tensor | None = None) -> torch.Tensor:
        """A new tensor in place of the branch's network output; x as in `store`, on its own device.

        Raises KeyError for a branch that was not stored at the last computed evaluation.
        """
        return self._predictor.predict(branch, self._x.to(self._device) if x is None else x)

    @property
    def holds_tensors(self) -> bool:
        """Whether there is anything to free."""
        return self._x is not None

    @property
    def trace(self) -> list[Record]:
        """One record an evaluation; reading it waits for the device.

        With other ranks, what a computed evaluation tells of rate and output norm is known from the next one on.
        """
        return self._trace.resolve()

    def trace_so_far(self) -> tuple[list[Record], int]:
        """The same without waiting for a device, and how many of the first records have all their numbers.

        In the others is None what no decision has read yet.
        """
        on_host = self._device is None or self._device.type == "cpu"
        return self._trace.resolve() if on_host else self._trace.read(), self._trace.settled

    @property
    def computed(self) -> int:
        """Evaluations so far for which the network was asked for."""
        return self._trace.count(computed=True)

    @property
    def skipped(self) -> int:
        """Evaluations so far that were predicted."""
        return self._trace.count(computed=False)

    def release(self) -> None:
        """Let go of every tensor; the trace stays, as numbers. Other ranks that go on are told, and why."""
        if self._meeting is not None:
            error = sys.exc_info()[1]
            self._meeting.leave("it has finished" if error is None else f"{type(error).__name__}: {error}"[:300])
        self.forget()
        self._trace.resolve()


def _either(a: bool | torch.Tensor, b: bool | torch.Tensor) -> bool | torch.Tensor:
    """a or b; a tensor only where the host cannot tell."""
    if a is True or b is True:
        return True
    return b if a is False else a if b is False else a | b
