"""Numbers and lists that packs leave in a model's options: which of them change what is asked.

Some do: a mode, the layers to leave out, a strength. Others only move on, as the number of a step does. Nothing tells
which is which but how they change.
"""

from collections.abc import Collection

# When what moved on has arrived: after so many evaluations with one value, and more than so many times as many as it
# had one on its way.
LEAST_STAY, LONGER = 4, 2


def has_arrived(stay, longest_before, per_step: int = 1):
    """Of numbers of evaluations, or of tensors of them. per_step: so many evaluations may have one value each time."""
    return (stay >= max(LEAST_STAY, LONGER * per_step + 1)) & (stay > LONGER * longest_before)


class TellingValues:
    """Which names tell calls of one evaluation apart: those under which calls that ask the same had different values.

    Not those whose values never come back, such as the number of a call. names_before: of answers that were asked for
    before it was known what tells them apart, by what they are called since.
    """

    def __init__(self):
        self.names: set = set()
        self.names_before: dict[str, str] = {}
        self._moving: set = set()
        self._now: dict[object, set] = {}  # values in this evaluation, by name
        self._before: dict[object, set] = {}

    def next_evaluation(self) -> None:
        gone = {name for name in self.names if not self._now.get(name, set()) & self._before.get(name, set())}
        if self._before:
            self._moving |= gone
            self.names -= gone
        self._now, self._before = {}, self._now

    def learn(self, values: dict, others: list[dict]) -> bool:
        """See what tells a call with these values from the others, which ask the same in this evaluation. Returns
        whether it is more than was known.
        """
        known = len(self.names)
        for other in others:
            differ = {name for name in values.keys() | other.keys() if values.get(name) != other.get(name)}
            self.names |= differ - self._moving
        for name, value in values.items():
            self._now.setdefault(name, set()).add(value)
        return len(self.names) > known

    def of(self, values: dict) -> tuple:
        """What tells a call with these values from others that ask the same."""
        return tuple((name, values.get(name)) for name in sorted(self.names, key=repr))


class SettledValues:
    """Whether a question is asked with other values than where it was computed last, but for those that move on
    with the steps: at least three, of which none comes back, in few evaluations each; or two that alternate from one
    evaluation to the next, as the number of a look within a step does. What those change, if anything, is in all that
    is seen of how answers change. One that stays for longer than it did on its way has arrived: a strength, say, that
    was raised over some steps. It counts again.
    """

    _DWELL = 2.5  # steps per value
    _ALTERNATIONS = 4

    def __init__(self):
        self._seen: dict[object, list] = {}  # values by name, the present one at the end unless one came back
        self._staying: set = set()  # names of values that came back
        self._stays: dict[object, _Stay] = {}  # by name
        self._moving: set = set()  # names
        self._since: dict[object, int] = {}  # the step from which on a name is looked at, of those that had arrived
        self._alternations: dict[object, int] = {}  # by name, of values that do nothing else
        self._now: dict = {}
        self._computed: dict | None = None

    def observe(self, values: dict, step: int) -> None:
        """The next evaluation has these. step: of the sampler, from 0, at which the last one was."""
        before, self._now = self._now, values
        for name, value in values.items():
            if name in self._staying:
                continue
            stay = self._stays.setdefault(name, _Stay())
            stay.go_on(value == before.get(name))
            if name in self._alternations:
                self._go_on_alternating(name, value, before.get(name))
            elif name not in self._moving:
                self._look(name, value, self._seen.setdefault(name, []), step)
            elif stay.has_arrived:
                self._moving.discard(name)
                self._seen[name], self._since[name], self._stays[name] = [value], step + 1, _Stay()

    def _look(self, name, value, seen: list, step: int) -> None:
        if value in seen[:-1]:
            if len(seen) == 2:
                self._alternations[name] = 1
            else:
                self._staying.add(name)
        elif value not in seen:
            seen.append(value)
            begun = step + 2 - self._since.get(name, 0)
            if len(seen) > 2 and begun <= self._DWELL * len(seen):
                self._moving.add(name)

    def _go_on_alternating(self, name, value, before) -> None:
        if value in self._seen[name] and value != before:
            self._alternations[name] += 1
            if self._alternations[name] >= self._ALTERNATIONS:
                self._moving.add(name)
        else:
            del self._alternations[name]
            self._moving.discard(name)
            self._staying.add(name)

    def on_computed(self) -> None:
        self._computed = self._now

    @property
    def moving(self) -> Collection:
        """Names of values that move on."""
        return self._moving

    @property
    def changed(self) -> bool:
        """False if nothing was computed yet."""
        if self._computed is None:
            return False
        names = (self._now.keys() | self._computed.keys()) - self._moving
        changed = (name for name in names if self._now.get(name) != self._computed.get(name))
        return not all(map(self._is_given_by_itself, changed))

    def _is_given_by_itself(self, name) -> bool:
        """Whether it is a number that a patch or another object did not have then and has now: some keep one from their
        first call on. name: as from patch_switches.patch_values, or call_options.values_of.
        """
        if name in self._computed or not (len(name) == 3 and name[0] in ("patch", "option")):
            return False
        return self._now.get(name[:2]) == self._computed.get(name[:2])


class _Stay:
    """For how many evaluations a value has been the same, and for how many the values before it were."""

    def __init__(self):
        self._evaluations, self._longest_before = 0, 0

    def go_on(self, stays: bool) -> None:
        if not stays:
            self._longest_before, self._evaluations = max(self._longest_before, self._evaluations), 0
        self._evaluations += 1

    @property
    def has_arrived(self) -> bool:
        """Whether it stays for longer than it did on its way."""
        return has_arrived(self._evaluations, self._longest_before)
