"""Weights that somebody changes between evaluations: a LoRA whose strength a callback alters, say."""

import torch

TENSORS, ELEMENTS = 64, 16  # of the network's weights, and of each of them; a LoRA changes all elements

_PLAIN = torch.nn.Parameter, torch.Tensor  # others may keep something else than values


class Weights:
    """Looks at some of a network's weights; of what is no module at none.

    changes: how many samples were not the one before.
    """

    def __init__(self, network):
        found = []
        if isinstance(network, torch.nn.Module):
            for owner in network.modules():
                found += [(owner, name) for name, one in owner.named_parameters(recurse=False) if one.ndim > 1]
        self._weights = found[:: max(1, -(-len(found) // TENSORS))]  # by name, as others may put in another tensor
        self._before: torch.Tensor | None = None
        self._changes: torch.Tensor | int = 0

    def sample(self) -> torch.Tensor | None:
        """Bits of some weights; None where they cannot be looked at. Does not wait for the device."""
        try:
            return self._look()
        except RuntimeError:  # memory that is there only while the network runs, say: changes are not noticed then
            return None

    @torch.no_grad()
    def _look(self) -> torch.Tensor | None:
        by_device = {}
        for owner, name in self._weights:
            one = owner._parameters.get(name)
            one = getattr(owner, name, None) if one is None else one  # that way alone takes longer
            one = one if type(one) in _PLAIN else getattr(one, "data", None)
            if type(one) in _PLAIN and not one.is_meta and one.is_contiguous():
                bits = one.as_strided((min(ELEMENTS, one.numel()),), (1,)).view(torch.uint8)
                by_device.setdefault(one.device, []).append(bits)
        if not by_device:
            return None
        now = torch.cat(max(by_device.values(), key=len))
        self._changes = self._changes + differ(self._before, now)
        self._before = now
        return now

    @property
    def changes(self) -> int:
        """Waits for the device."""
        return int(self._changes)

    def close(self) -> None:
        self._weights, self._before, self._changes = [], None, 0


def differ(before: torch.Tensor | None, now: torch.Tensor | None) -> torch.Tensor | bool:
    """Whether two samples do; those that cannot be compared do not. Does not wait for the device."""
    if before is None or now is None or before.shape != now.shape or before.device != now.device:
        return False
    return (before != now).any()
