"""Which of a sampler's steps a timestep belongs to."""

from collections.abc import Hashable


class StepNumbers:
    """Steps are numbered from 0, in the order in which their timesteps are seen.

    Latents of another form (shapes, whatever the size of a batch), such as a video and its sound, may have timesteps of
    their own. A latent that was asked about at the step before, and comes with a new timestep where others are a step
    ahead, has them; and so has one that began at a step which others had behind them.
    """

    def __init__(self):
        self._numbers: dict[float, int] = {}  # by timestep
        self._last: dict[Hashable, int] = {}  # by form
        self._late: set[Hashable] = set()  # forms that began after others
        self._newest = -1

    def has(self, timestep: float) -> bool:
        """Whether it was seen, of any form."""
        return timestep in self._numbers

    def number(self, timestep: float, form: Hashable, least: int) -> int:
        """Of the step at which a latent of that form is asked about; least or more."""
        if timestep not in self._numbers:
            self._numbers[timestep] = self._next(form)
        number = max(least, self._numbers[timestep])
        if form not in self._last and number < self._newest:
            self._late.add(form)
        self._last[form], self._newest = number, max(number, self._newest)
        return number

    def _next(self, form: Hashable) -> int:
        if form not in self._last and self._newest == 0:  # they begin at noise levels of their own
            return 0
        if form in self._late:
            return self._last[form] + 1
        behind = self._last.get(form) == self._newest - 1
        return self._newest + (not behind)
