"""Tensors that somebody overwrites between evaluations, or makes anew for each."""

import weakref
from collections.abc import Hashable

import torch

from ..easycache_core.samples import can_be_sampled, checksums
from .value_changes import has_arrived


class Overwrites:
    """Whether tensors hold something else than at the last computed evaluation, of those that have no version to tell
    it: tensors of torch.inference_mode, in which ComfyUI's server samples. But for those that move on with the steps,
    which have changed three times, and were the same for few evaluations in between.

    anew: tensors that are made anew for each call, which is no change by itself. They are known to move on until they
    hold the same for some evaluations; and all of their elements count, by sums.

    Some elements are looked at, on their device: nothing waits for it. Of other devices only the CPU's count.
    """

    _ELEMENTS, _MOVES = 256, 3

    def __init__(self, anew: bool = False):
        self._anew = anew
        self._tensors: dict[Hashable, weakref.ref] = {}  # by number or name
        self._indices: dict[tuple, torch.Tensor] = {}
        self._now: dict[torch.device, _Rows] = {}
        self._computed: dict[torch.device, _Rows] = {}

    def note(self, tensors: dict[Hashable, torch.Tensor]) -> None:
        """These are given to the network, by number or name."""
        self._tensors |= {number: weakref.ref(one) for number, one in tensors.items() if _is_plain(one)}

    def changed(self, device: torch.device, per_step: int) -> torch.Tensor | bool:
        """Look at them. device: the latent's. per_step: how many evaluations. False if nothing was computed yet."""
        tensors = {number: one for number, reference in self._tensors.items() if (one := reference()) is not None}
        self._tensors = {number: self._tensors[number] for number in tensors}
        found, by_device = False, {}
        for number, one in tensors.items():
            if one.device == device or one.device.type == "cpu":
                by_device.setdefault(one.device, {})[number] = self._some_elements(one)
        for place, rows in by_device.items():
            self._now[place] = now = _Rows(rows, self._now.get(place), self._MOVES, self._anew, per_step)
            differs = (now.differ(self._computed.get(place)) & ~now.moving).any()
            found = found | (differs if place == device else bool(differs))
        return found

    def _some_elements(self, tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.detach().reshape(-1)
        place = len(flat), flat.device
        if place not in self._indices:
            every = torch.arange(self._ELEMENTS, device=flat.device) * len(flat)
            self._indices[place] = every // self._ELEMENTS
        some = flat[self._indices[place]].to(torch.float32)
        return (torch.cat((some, checksums(flat))) if self._anew else some).nan_to_num()

    def on_computed(self) -> None:
        self._computed = dict(self._now)


def _is_plain(tensor: torch.Tensor) -> bool:
    return can_be_sampled(tensor) and not tensor.is_complex() and tensor.numel() > 0


class _Rows:
    """Some elements of each tensor on one device, (tensors, elements). moving: which of them move on, (tensors,).

    moves: the changes after which one does. anew: whether one that was not there before does. per_step: evaluations; in
    each step it may hold something else.
    """

    def __init__(
        self, rows: dict[Hashable, torch.Tensor], before: "_Rows | None", moves: int, anew: bool, per_step: int
    ):
        self._numbers, self._values = list(rows), torch.stack(list(rows.values()))
        differs, none = self.differ(before), self._values.new_zeros(len(rows))
        stayed, longest = (self._taken_from(before, name, none) for name in ("_stays", "_longest"))
        self._stays = stayed * ~differs + 1  # evaluations in which it is what it is now
        longest = torch.where(differs, torch.maximum(longest, stayed), longest)  # of those before
        arrived = has_arrived(self._stays, longest, per_step)
        self._longest = longest * ~arrived
        self._changes = (self._taken_from(before, "_changes", none + moves * anew) + differs) * ~arrived
        self.moving = self._changes >= moves

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
