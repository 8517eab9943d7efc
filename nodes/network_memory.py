"""Networks that remember: a call changes what the next one answers, so a skipped call would break it.

Video networks that draw block after block keep the keys and values of earlier blocks. They keep them in
transformer_options, which their sampler hands to each call, or in an attribute that is named after them.
"""

import re
from collections.abc import Iterator

import torch

from ..easycache_core.samples import can_be_sampled, checksums, sample_of
from .call_options import unknown_options

_NAMED = re.compile("kv_cache|kvcache|past_key|memory|hidden_state|recurrent", re.IGNORECASE)
_DEPTH = 5
_LOOKS = 3  # at what tensors hold that have no version, each of which waits for the device


class NetworkMemory:
    """Looks for a memory at each computed call.

    found: where it is, None as long as none was seen.
    """

    def __init__(self):
        self.found: str | None = None
        self._looks = 0

    def call(self, compute, model_options: dict, network, first: bool):
        """compute(). first: whether this is the first evaluation, in which caches of what never changes are filled."""
        if self.found is not None:
            return compute()
        places = {f"transformer_options[{key!r}]": value for key, value in unknown_options(model_options)}
        if not first:
            places |= {f"its {name}": value for name, value in _named_attributes(network)}
        look = not first and self._looks < _LOOKS
        self._looks += look
        before = {place: _remembered(value, _DEPTH, look) for place, value in places.items()}
        result = compute()
        if not first:  # where the attribute may have another value by now
            places |= {f"its {name}": value for name, value in _named_attributes(network)}
        changed = (place for place, value in places.items() if before.get(place) != _remembered(value, _DEPTH, look))
        self.found = next(changed, None)
        return result


def _named_attributes(network) -> Iterator[tuple[str, object]]:
    attributes = getattr(network, "__dict__", {})
    return ((name, value) for name, value in attributes.items() if _NAMED.search(name))


def _remembered(value, depth: int, look: bool) -> list:
    """The tensors that it holds, and the numbers beside them: equal as long as nobody has put in others. look: whether
    at what tensors hold that have no version (torch.inference_mode), which waits for the device.

    Numbers alone are no memory: packs note there which frames or which prompt a call is about.
    """
    if isinstance(value, torch.Tensor):
        if not value.is_inference():
            return [(id(value), value._version)]
        look = look and can_be_sampled(value)
        return [(id(value), *(checksums(sample_of([value])).tolist() if look else ()))]
    parts = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
    held = [one for part in parts if depth for one in _remembered(part, depth - 1, look)]
    if any(isinstance(part, torch.Tensor) for part in parts):
        held += [part for part in parts if isinstance(part, int | float)]
    return held
