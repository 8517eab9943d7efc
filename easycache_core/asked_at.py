"""Questions that take turns are asked at some of a sampler's steps only: which ones, and what follows for each."""

from collections.abc import Sequence

from .response import Response


class AskedAt:
    """The steps of one question. It goes on at the distance of the last two.

    response: of all steps, with one evaluation each; None: not known. steps: at which it was asked so far. expected:
    how many evaluations there will be, 0 where it has all of them, as far as is known.
    """

    def __init__(self, response: Response | None, steps: Sequence[int] = ()):
        self._response, self._steps = response, list(steps)
        self.expected = 0

    def response_at(self, step: int) -> Response | None:
        """The question is asked at this step, from 0. Returns what the response is of its steps alone, if these are
        others than was supposed so far.
        """
        asked, found = self._steps, None
        last = asked[-1] if asked else -1
        if self._response is None or not last < step < len(self._response.sigmas):
            self._response = None
            return None
        stride = asked[-1] - asked[-2] if len(asked) > 1 else 1
        if step != last + stride:
            steps = [*asked, *range(step, len(self._response.sigmas), step - last if asked else 1)]
            self.expected = len(steps)
            found = self._response.of(steps)
        asked.append(step)
        return found
