"""One sampling run: ties rate, decision, prediction and storage together."""

import logging
from collections.abc import Sequence

import torch

from .budget import Budget
from .config import CacheConfig
from .decision import ask, relative_change
from .forecast import Course, Forecast
from .prediction import reuse
from .rate import distance, mean_abs, transformation_rate, wide
from .storage import Snapshot, keep
from .trace import Record, Trace

log = logging.getLogger("easycache")


class CacheController:
    """Decides at each evaluation whether the network must run, and predicts its output where it need not.

    For each evaluation call `begin`. If it returns True, run the network and `store` the output of every
    branch (cond, uncond, ...), the tracked one first; if False, take every branch from `predict`.

    Memory with "reuse": one output a branch, the input of the last computed evaluation and the previous input, all in
    the dtype they came in; never the caller's own tensors. With "forecast" three tensors a branch and three more.
    `release` lets go of them. Where there is no room for them the cache is given up, not the run: everything is
    computed until enough is known again.

    Outputs under "forecast" are the sampler's derivative v, so that x - sigma v is the denoised latent: the velocity of
    flow models, the noise of eps models.

    streams: sizes of the latents that are packed one after the other along the last axis of what `begin` is given
    (video and its sound). Each has a rate and an error of its own, and the worst of them decides.

    Raises ValueError for a negative total_steps.
    """

    def __init__(self, config: CacheConfig, total_steps: int, streams: Sequence[int] = ()):
        if total_steps < 0:
            raise ValueError(f"total_steps must not be negative, got {total_steps}")
        self.config = config
        self.total_steps = total_steps
        self._streams = tuple(streams)
        self._trace = Trace()
        self._warned = False
        self._forecasting = config.predictor == "forecast"
        self._budget = (
            Budget(config.target_speedup, config.warmup_steps, total_steps) if config.target_speedup else None
        )
        self.forget()

    def forget(self) -> None:
        """Let go of every tensor; the run goes on as if nothing were known of the network yet."""
        self._x: torch.Tensor | None = None  # x_(n-1), then x_n once `begin` is through
        self._device: torch.device | None = None  # where the caller's latent lives
        self._branches: dict[str, Snapshot] = {}
        self._tracked: str | None = None
        # An entry a stream:
        self._rate: torch.Tensor | None = None  # k
        self._output_norm: torch.Tensor | None = None  # ||v_i||
        self._error: torch.Tensor | None = None  # E; None stands for 0
        self._worst: torch.Tensor | None = None  # index of the stream with the largest E when it was last asked for
        self._healthy: torch.Tensor | None = None  # no NaN or inf in what was stored last
        self._awaiting_tracked = False
        self._consecutive_skips = 0
        # Of forecasts:
        self._course = Course()
        self._forecasts: dict[str, Forecast] = {}
        self._earlier_forecasts: dict[str, Forecast] = {}  # those of the last computed evaluation, during the next
        self._slope: torch.Tensor | None = None  # how fast forecasts of D go wrong, in each stream
        self._linked: torch.Tensor | None = None  # whether this evaluation's outputs go on from the last ones

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
        up, at the last step, with threshold 0, when forced, and while too little is known.

        Raises ValueError without a sigma under "forecast".
        """
        if self._x is not None and (self._x.shape != x.shape or self._x.dtype != x.dtype):
            self.forget()
        input_change = self._next_input(x)
        if self._forecasting:
            self._come_to(sigma, x.device, changed)
        if self._budget is None:
            reusable = self._worth_reusing(step, input_change, _either(force, changed))
        else:
            reusable = not self._affordable(step, changed)
        self._consecutive_skips = self._consecutive_skips + 1 if reusable else 0
        self._awaiting_tracked = not reusable
        if not reusable:
            self._error = None
        if self._forecasting:
            self._set_out(reusable)
        self._trace.open(
            step=step,
            sigma=sigma.detach().flatten()[0].clone() if isinstance(sigma, torch.Tensor) else sigma,
            computed=not reusable,
            input_change=self._of_worst(input_change),
            rate=self._of_worst(self._rate),
            error=0.0 if self._error is None else self._of_worst(self._error),
            output_norm=self._of_worst(self._output_norm),
        )
        return not reusable

    def _next_input(self, x: torch.Tensor) -> torch.Tensor | None:
        """Put x in the place of the previous input and return ||x_n - x_(n-1)||, None if there was none."""
        try:
            change = None if self._x is None else distance(x, self._x, self._streams)
            self._x, self._device = keep(x, self.config.cache_device), x.device
            return change
        except torch.cuda.OutOfMemoryError:
            self._give_up()
            return None

    def _give_up(self) -> None:
        log.warning("EasyCache: no memory left for the cache; it starts anew")
        self.forget()

    def _come_to(self, sigma, device: torch.device, changed: bool | torch.Tensor) -> None:
        if sigma is None:
            raise ValueError('sigma must be given: predictor "forecast" follows the noise level')
        level = torch.as_tensor(sigma, dtype=torch.float32).flatten()[0]
        self._course.at(level.to(device, non_blocking=True, copy=True))
        changed = torch.as_tensor(changed)
        healthy = torch.ones_like(changed) if self._healthy is None else self._healthy
        self._linked = healthy & ~changed.to(healthy.device, non_blocking=True)

    def _set_out(self, skipping: bool) -> None:
        if skipping:
            self._course.skipped()
            self._earlier_forecasts = {}  # of branches that the network no longer computes
        else:
            self._course.computed()
            self._earlier_forecasts, self._forecasts = self._forecasts, {}

    def _affordable(self, step: int, changed: bool | torch.Tensor) -> bool:
        """Whether the budget has the network run."""
        known = self._forecasts if self._forecasting else self._branches
        runs = self._budget.wants(step, urgent=bool(changed)) or not known
        if runs:
            self._budget.spend()
        return runs

    def _worth_reusing(self, step: int, input_change, force: bool | torch.Tensor) -> bool:
        forced = not isinstance(force, torch.Tensor) and force
        return not forced and self._may_reuse(step) and self._within_threshold(input_change, force)

    def _may_reuse(self, step: int) -> bool:
        """Whether the error is to be asked at all; known without a look at the device."""
        limit = self.config.max_consecutive_skips
        return (
            self.config.threshold > 0
            and self.config.warmup_steps <= step < self.total_steps - 1
            and (self._slope if self._forecasting else self._rate) is not None
            and not (limit and self._consecutive_skips >= limit)
        )

    def _within_threshold(self, input_change: torch.Tensor, force: bool | torch.Tensor) -> bool:
        """Estimate E at this evaluation and say whether it is still below the threshold."""
        if self._forecasting:
            self._error = self._course.relative_error(self._slope, self._output_norm)
        else:
            change = relative_change(self._rate, input_change, self._output_norm)
            self._error = change if self._error is None else self._error + change
        self._worst = self._error.nan_to_num(nan=torch.inf).argmax(keepdim=True)
        healthy = self._healthy & torch.isfinite(input_change).all()
        below, sound = ask(self._error, self.config.threshold, healthy, force)
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
        norm = mean_abs(output, self._streams)
        tracked, self._awaiting_tracked = self._awaiting_tracked, False
        own_x = self._x.to(output.device) if x is None else x
        if tracked:
            self._track(branch, output, own_x, norm)
        else:
            self._healthy = self._healthy & torch.isfinite(norm).all()
        if tracked or not self._forecasting:
            kept_x = self._x if x is None else keep(x, self.config.cache_device)
            self._branches[branch] = Snapshot(kept_x, keep(output, self.config.cache_device))
        if self._forecasting:
            self._store_forecast(branch, output, own_x, norm, tracked)

    def _track(self, branch: str, output: torch.Tensor, x: torch.Tensor, norm: torch.Tensor) -> None:
        last = self._branches.get(branch)
        if branch != self._tracked or last is None or last.output.shape != output.shape:
            self._rate = None
        else:
            self._rate = transformation_rate(output, last.output, x, last.x, self._rate, self._streams)
        # What the network no longer computes must not be predicted from a stale output.
        self._branches.clear()
        self._tracked, self._output_norm, self._healthy = branch, norm, torch.isfinite(norm).all()
        self._trace.update(rate=self._of_worst(self._rate), output_norm=self._of_worst(norm))

    def _store_forecast(self, branch: str, output, x, norm: torch.Tensor, tracked: bool) -> None:
        denoised = (wide(x) - wide(output) * self._course.sigma).to(torch.promote_types(x.dtype, output.dtype))
        before = self._earlier_forecasts.pop(branch, None)
        if before is None or before.last.shape != denoised.shape:
            self._forecasts[branch] = Forecast(denoised, self.config.cache_device)
            if tracked:
                self._slope = None
            return
        if tracked:
            expected = before.predict(self._course.lean_there, denoised.device)
            self._slope = self._course.slope(distance(denoised, expected, self._streams), self._slope)
        linked = self._linked & torch.isfinite(norm).all()
        self._forecasts[branch] = before.successor(denoised, self._course.debts, linked, self.config.cache_device)

    def knows(self, branch: str) -> bool:
        """Whether `predict` has something to go on for this branch."""
        return branch in (self._forecasts if self._forecasting else self._branches)

    def predict(self, branch: str, x: torch.Tensor | None = None) -> torch.Tensor:
        """A new tensor in place of the branch's network output; x as in `store`, on its own device.

        Raises KeyError for a branch that was not stored at the last computed evaluation.
        """
        x = self._x.to(self._device) if x is None else x
        if not self._forecasting:
            return reuse(x, self._branches[branch])
        branch = self._forecasts[branch]
        denoised = branch.repay(branch.predict(self._course.lean, x.device), self._course.repaid)
        return denoised.neg_().add_(wide(x)).div_(self._course.sigma).to(self._branches[self._tracked].output.dtype)

    @property
    def holds_tensors(self) -> bool:
        """Whether there is anything to free."""
        return self._x is not None

    @property
    def trace(self) -> list[Record]:
        """One record an evaluation; reading it waits for the device."""
        return self._trace.resolve()

    @property
    def computed(self) -> int:
        """Evaluations so far for which the network was asked for."""
        return self._trace.count(computed=True)

    @property
    def skipped(self) -> int:
        """Evaluations so far that were predicted."""
        return self._trace.count(computed=False)

    def release(self) -> None:
        """Let go of every tensor; the trace stays, as numbers."""
        self.forget()
        self._trace.resolve()


def _either(a: bool | torch.Tensor, b: bool | torch.Tensor) -> bool | torch.Tensor:
    """a or b; a tensor only where the host cannot tell."""
    if a is True or b is True:
        return True
    return b if a is False else a if b is False else a | b
