"""Tensors that somebody overwrites between evaluations."""

import weakref

import torch


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
