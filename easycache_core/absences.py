"""Questions that are left out at some evaluations and asked again later: a negative at every other step, say."""

from collections import Counter

MANY_RETURNS = 2  # a range of noise levels makes one
BRIEF = 3  # evaluations for which a guider keeps an answer that it does not ask for; guidance may end for longer
MAX_QUESTIONS = 64  # that are remembered; some guiders ask another one at each step


class Absences:
    """Which questions are left out time and again. came_back: whether one was, after BRIEF evaluations at most."""

    def __init__(self):
        self.came_back = False
        self._evaluation = 0
        self._last: dict = {}  # by question: (evaluation at which it was asked last, about); the newest at the end
        self._returns, self._longest = Counter(), Counter()  # after how many evaluations at most it came back
        self._shortest: dict = {}  # and at least
        self._first: dict = {}  # evaluation at which it was asked first

    def next_evaluation(self) -> None:
        self._evaluation += 1

    def note(self, question, about=None) -> None:
        """It is asked at this evaluation. about: handed out by `left_out`; None: nobody else can ask it."""
        missed = self._since(question) - 1
        self._first.setdefault(question, self._evaluation)
        if missed > 0:
            self._returns[question] += 1
            self.came_back = self.came_back or (about is not None and missed <= BRIEF)
            self._longest[question] = max(self._longest[question], missed)
            self._shortest[question] = min(self._shortest.get(question, missed), missed)
        self._last.pop(question, None)
        self._last[question] = self._evaluation, about
        if len(self._last) > MAX_QUESTIONS:
            self._last.pop(next(iter(self._last)))

    def asked(self, question) -> bool:
        """Whether it was asked at this evaluation."""
        return question in self._last and not self._since(question)

    def returns(self, question) -> bool:
        """Whether it is about to come back, and did so time and again; to be asked before `note`."""
        return self._recurs(question) and self._since(question) > 1

    def left_out(self, early: bool = False) -> list[tuple]:
        """(question, about) of those that came back time and again and are not asked at this evaluation. Without those
        that are left out for good, and those that nobody else can ask. early: also those that came back once, or were
        asked at a single evaluation so far: what is asked at several in a row, in a range of noise levels, may be over.
        """
        missing = [one for one in self._last if 0 < self._since(one) <= self._awaited(one, early)]
        return [(one, about) for one in missing if (about := self._last[one][1]) is not None]

    def _awaited(self, question, early: bool) -> int:
        """For how many evaluations it is expected back."""
        if self._recurs(question):
            return 2 * self._longest[question]
        may_recur = self._returns[question] or self._first[question] == self._last[question][0]
        return max(BRIEF, 2 * self._longest[question]) if early and may_recur else 0

    @property
    def may_return(self) -> bool:
        """Whether one that nobody else can ask was left out before this evaluation, and may be asked at it."""
        return any(
            about is None and self._shortest.get(one, 1) < self._since(one) <= 2 * max(1, self._longest[one])
            for one, (_, about) in self._last.items()
        )

    @property
    def questions(self) -> list:
        """Those that were asked."""
        return list(self._last)

    @property
    def recurring(self) -> bool:
        """Whether there are questions that came back time and again."""
        return any(map(self._recurs, self._returns))

    def _recurs(self, question) -> bool:
        return self._returns[question] >= MANY_RETURNS

    def _since(self, question) -> int:
        """Evaluations since it was asked; 0 if it never was."""
        last, _ = self._last.get(question, (self._evaluation, None))
        return self._evaluation - last
