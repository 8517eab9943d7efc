"""A GPU for tests on a machine that has none: tensors that say they are on one, and are computed on the CPU.

What a GPU would refuse is refused: operations between its tensors and the CPU's, and float64, which not every kind of
GPU has. What costs time there is noted:
operations that the host gives it to do, each a kernel or two, and reads of values, for which the host waits.
"""

import contextlib
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
CROSSING = {aten._to_copy, aten.to, aten.copy_}  # from one device to another
READING = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero, aten.masked_select}
MIXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}  # takes CPU indices
# Single values of the CPU are handed to a GPU's kernels, but not to these.
NOT_EVEN_SCALARS = {aten.cat, aten.stack}


class OnGpu(torch.Tensor):
    """held: the values, a tensor of the CPU."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU
        )
        made.held = held
        return made

    def __repr__(self):
        return f"OnGpu({self.held!r})"

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of cuda:0 to numpy; copy it to the CPU first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function}: a pretended GPU's tensor outside of `PretendedGpu`")


class PretendedGpu(TorchDispatchMode):
    """While it is entered, tensors can be sent to torch.device("cuda", 0).

    launches: which operations were given to the GPU. reads: those that made the host wait for it. Both by the place in
    the code, "folder/file.py:line".
    """

    def __init__(self):
        super().__init__()
        self.launches, self.reads = [], []

    def __enter__(self):
        torch_tensor = torch.tensor

        def tensor(data, *, device=None, **options):
            """torch.tensor, which asks no mode where it makes something on a GPU."""
            numbers = tree_map(lambda one: one.item() if isinstance(one, OnGpu) else one, data)
            made = torch_tensor(numbers, **options)
            return made if device is None else made.to(device)

        self._replaced = contextlib.ExitStack()
        replacements = dict(_lazy_init=lambda: None, current_device=lambda: 0, set_device=lambda device: None)
        self._replaced.enter_context(patch.multiple(torch.cuda, **replacements))
        self._replaced.enter_context(patch.multiple(torch, Generator=_Generator, tensor=tensor))
        torch._C._ensureCUDADeviceGuardSet()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *exception):
        torch._C._set_only_lift_cpu_tensors(False)
        self._replaced.close()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        flat, shape = tree_flatten((args, kwargs or {}))
        tensors = [one for one in flat if isinstance(one, torch.Tensor)]
        on_gpu = any(isinstance(one, OnGpu) for one in tensors)
        asked = next((one.type for one in flat if isinstance(one, torch.device)), None)
        if not on_gpu and asked != "cuda":
            return function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        self._refuse_others(packet, tensors)
        args, kwargs = tree_unflatten([torch.device("cpu") if _is_gpu(one) else _held(one) for one in flat], shape)
        result = function(*args, **kwargs)
        given = {id(_held(one)): one for one in tensors}
        crosses = asked is not None and bool(tensors) and (asked == "cuda") != isinstance(tensors[0], OnGpu)
        if crosses and id(result) in given:
            result = result.clone()
        to_cpu = asked == "cpu" or (packet is aten.copy_ and not isinstance(tensors[0], OnGpu))
        storages = {_storage(_held(one)) for one in tensors}
        new = [one for one in tree_flatten(result)[0] if isinstance(one, torch.Tensor)]
        if not to_cpu and any(one.dtype == torch.float64 for one in new):
            raise RuntimeError(f"{packet}: float64 on a GPU")
        if packet in READING or (to_cpu and crosses):
            self._note(self.reads)
        elif function._schema.is_mutable or not storages.issuperset(map(_storage, new)):
            self._note(self.launches)
        if to_cpu:
            return tensors[0] if packet is aten.copy_ else result
        return tree_map(lambda one: given.get(id(one), _placed(one)), result)

    def _note(self, places: list[str]) -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename:
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        places.append(f"{path.parent.name}/{path.name}:{frame.f_lineno}")

    @staticmethod
    def _refuse_others(packet, tensors: list[torch.Tensor]) -> None:
        if packet in CROSSING or packet in MIXING:
            return
        for one in tensors:
            if not isinstance(one, OnGpu) and (one.ndim or packet in NOT_EVEN_SCALARS):
                raise RuntimeError(f"{packet}: expected all tensors to be on the same device, one is on the CPU")


class _Generator(torch.Generator):
    """On the CPU, whatever is asked for: the same numbers as without a GPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def _is_gpu(thing) -> bool:
    return isinstance(thing, torch.device) and thing.type == "cuda"


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _held(thing):
    return thing.held if isinstance(thing, OnGpu) else thing


def _placed(thing):
    # Conjugates that are only marked as such would be forgotten here.
    return OnGpu(thing.resolve_conj()) if type(thing) is torch.Tensor else thing


def by_the_cpu(function, *args, **kwargs):
    """function(*args, **kwargs), a network's answer to tensors of the GPU; what it does is not noted."""
    args, kwargs = tree_map(_held, (args, kwargs))
    with _disable_current_modes():
        answer = function(*args, **kwargs)
    return tree_map(_placed, answer)


def on_gpu(model):
    """The ModelPatcher, sampling on the pretended GPU."""
    from comfy.patcher_extension import WrappersMP

    model = model.clone()
    model.load_device = GPU

    def load(executor, patcher, noise_shape, conds, *args, **kwargs):
        return patcher.model, conds, []

    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "pretended GPU", load)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "pretended GPU", by_the_cpu)
    return model
