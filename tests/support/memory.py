"""How much memory a piece of code takes at its worst."""

import weakref

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """While entered, notes every storage that an operation makes; they count until they are freed.

    live, peak: bytes now and at most.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [weakref.ref(storage) for storage in _storages((args, kwargs))]
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            if weakref.ref(storage) not in given and storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, size):
        self.live -= size


def _storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if hasattr(leaf, "untyped_storage")]
