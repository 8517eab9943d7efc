"""Numbers and lists that packs leave in a model's options: which of them change what is asked.

Some do: a mode, the layers to leave out, a strength. Others only move on, as the number of a step does. Nothing tells
which is which but how they change.
"""

import weakref

import torch


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
    with the steps: at least three, of which none comes back, in few evaluations each.
    """

    _DWELL = 2.5  # evaluations per value

    def __init__(self):
        self._evaluations = 0
        self._seen: dict[object, list] = {}  # values by name, the present one at the end unless one came back
        self._staying: set = set()  # names of values that came back
        self._moving: set = set()
        self._now: dict = {}
        self._computed: dict | None = None

    def observe(self, values: dict) -> None:
        """The next evaluation has these."""
        self._evaluations += 1
        self._now = values
        for name, value in values.items():
            if name not in self._staying and name not in self._moving:
                self._look(name, value, self._seen.setdefault(name, []))

    def _look(self, name, value, seen: list) -> None:
        if value in seen[:-1]:
            self._staying.add(name)
        elif value not in seen:
            seen.append(value)
            if len(seen) > 2 and self._evaluations <= self._DWELL * len(seen):
                self._moving.add(name)

    def on_computed(self) -> None:
        self._computed = self._now

    @property
    def changed(self) -> bool:
        """False if nothing was computed yet."""
        if self._computed is None:
            return False
        names = (self._now.keys() | self._computed.keys()) - self._moving
        return any(self._now.get(name) != self._computed.get(name) for name in names)


class Overwrites:
    """Whether tensors hold something else than at the last computed evaluation, of those that have no version to tell
    it: tensors of torch.inference_mode, in which ComfyUI's server samples. But for those that move on with the steps,
    which are others at three evaluations in a row.

    Some elements are looked at, on their device: nothing waits for it. Of other devices only the CPU's count.
    """

    _ELEMENTS, _MOVES = 256, 3

    def __init__(self):
        self._tensors: dict[int, weakref.ref] = {}  # by number
        self._indices: dict[tuple, torch.Tensor] = {}
        self._now: dict[torch.device, _Rows] = {}
        self._computed: dict[torch.device, _Rows] = {}

    def note(self, tensors: dict[int, torch.Tensor]) -> None:
        """These are given to the network, by number."""
        self._tensors |= {number: weakref.ref(one) for number, one in tensors.items() if one.numel()}

    def changed(self, device: torch.device) -> torch.Tensor | bool:
        """Look at them. device: the latent's. False if nothing was computed yet."""
        tensors = {number: one for number, reference in self._tensors.items() if (one := reference()) is not None}
        self._tensors = {number: self._tensors[number] for number in tensors}
        found, by_device = False, {}
        for number, one in tensors.items():
            if one.device == device or one.device.type == "cpu":
                by_device.setdefault(one.device, {})[number] = self._some_elements(one)
        for place, rows in by_device.items():
            self._now[place] = now = _Rows(rows, self._now.get(place), self._MOVES)
            differs = (now.differ(self._computed.get(place)) & ~now.moving).any()
            found = found | (differs if place == device else bool(differs))
        return found

    def _some_elements(self, tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.detach().reshape(-1)
        place = len(flat), flat.device
        if place not in self._indices:
            every = torch.arange(self._ELEMENTS, device=flat.device) * len(flat)
            self._indices[place] = every // self._ELEMENTS
        return flat[self._indices[place]].to(torch.float32).nan_to_num()

    def on_computed(self) -> None:
        self._computed = dict(self._now)


class _Rows:
    """Some elements of each tensor on one device, (tensors, elements). moving: which of them move on, (tensors,)."""

    def __init__(self, rows: dict[int, torch.Tensor], before: "_Rows | None", moves: int):
        self._numbers, self._values = list(rows), torch.stack(list(rows.values()))
        self._in_a_row = self._taken_from(before, "_in_a_row", self._values.new_zeros(len(rows)))
        self._in_a_row = (self._in_a_row + 1) * self.differ(before)
        self.moving = self._taken_from(before, "moving", self._values.new_zeros(len(rows), dtype=torch.bool))
        self.moving = self.moving | (self._in_a_row >= moves)

    def differ(self, before: "_Rows | None") -> torch.Tensor:
        """Which of them do; not those that were not there before."""
        return (self._values != self._taken_from(before, "_values", self._values)).any(1)

    def _taken_from(self, before: "_Rows | None", name: str, otherwise: torch.Tensor) -> torch.Tensor:
        """What it held before, in our order. otherwise: of tensors that were not there."""
        if before is None:
            return otherwise
        held = getattr(before, name)
        if before._numbers == self._numbers:
            return held
        places = {number: i for i, number in enumerate(before._numbers)}
        return torch.stack([held[places[n]] if n in places else otherwise[i] for i, n in enumerate(self._numbers)])
