"""A network as `attach` meets it: which argument is what, and which of its tensors are predictions for which."""

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .storage import copy_for_cache

# What the timestep is called in the forwards of diffusers, of Wan's, HunyuanVideo's and Open-Sora's own code and in
# k-diffusion's, in the order in which they are looked for.
TIMESTEP_NAMES = ("timestep", "timesteps", "t", "time", "sigma", "sigmas")


class Argument(NamedTuple):
    """A parameter of a network's forward."""

    name: str
    position: int

    def of(self, args: tuple, kwargs: dict):
        """What it is in a call. Raises TypeError if it was left out."""
        if self.name in kwargs:
            return kwargs[self.name]
        if self.position < len(args):
            return args[self.position]
        raise TypeError(f"the network was called without {self.name!r}, which attach takes for its input or its time")


def find_arguments(module: torch.nn.Module, input: str | None, time: str | None) -> tuple[Argument, Argument]:
    """The noisy latent and the timestep among what forward takes: those named, else the first one, and the one that has
    a name of TIMESTEP_NAMES or comes second. Raises ValueError for a name that forward does not have.
    """
    names = _parameters(module)
    input = input or next(iter(names), None)
    time = time or next((name for name in (*TIMESTEP_NAMES, *names[1:2]) if name in names), None)
    for role, name in (("input", input), ("time", time)):
        if name not in names:
            raise ValueError(f"{role}={name!r} is no parameter of {type(module).__name__}.forward({', '.join(names)})")
    return Argument(input, names.index(input)), Argument(time, names.index(time))


def _parameters(module: torch.nn.Module) -> list[str]:
    """Names of forward's parameters; of the module within where a wrapper hands all of them on."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, one in inspect.signature(module.forward).parameters.items() if one.kind in kinds]
    inner = getattr(module, "module", getattr(module, "_orig_mod", None))  # data parallel; compiled
    return _parameters(inner) if not names and isinstance(inner, torch.nn.Module) else names


def tensors_of(x) -> list[torch.Tensor]:
    """The latents in a network's input, a tensor or a list of them. Raises TypeError for anything else."""
    tensors = [x] if isinstance(x, torch.Tensor) else list(x) if isinstance(x, (list, tuple)) else []
    if tensors and all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        return tensors
    raise TypeError(f"the network's input must be a tensor or a list of tensors, got {type(x).__name__}")


def timestep_of(t) -> float:
    """A timestep as a number; waits for its device. Of several the largest: frames that are given have none."""
    return float(t.detach().max()) if isinstance(t, torch.Tensor) else float(t)


class Layout:
    """How the tensors of one call become groups, each of them one tensor for the engine, and back.

    x: the network's input, outputs: its predictions, lists of equal length. Where a pair differs along one axis, what
    both have there belongs together and the rest of the output is repeated: a learned variance follows the prediction,
    and a picture to be animated follows the noisy latent. listed: whether x came as a list, which is a batch then.
    tracked: rows of the batch that are the first group; the others are the second. None: all are one group.

    Raises ValueError where x and outputs do not match, and where tracked selects no row.
    """

    def __init__(self, x: list[torch.Tensor], outputs: list[torch.Tensor], listed: bool, tracked: slice | None):
        if len(x) != len(outputs):
            raise ValueError(f"{len(x)} latents went in and {len(outputs)} tensors came out; one for each is needed")
        self._overlaps = [_overlap(*pair) for pair in zip(x, outputs, strict=True)]
        self._listed = listed
        common = self._common(x)
        rows = len(common) if listed else len(common[0])
        start, stop, stride = (tracked or slice(None)).indices(rows)
        if stop <= start or stride != 1:
            raise ValueError(f"tracked={tracked} selects nothing, or not one piece, of a batch of {rows}")
        self._sizes = [size for size in (start, stop - start, rows - stop) if size]
        first = range(start, stop) if listed else range(start > 0, (start > 0) + 1)
        units = self._units(common)
        others = [i for i in range(len(units)) if i not in first]
        self._groups = [group for group in (list(first), others) if group]
        self._shapes = [unit.shape for unit in units]

    def groups(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the engine sees of x, or of the predictions for it; the tracked group first. Views where possible."""
        units = self._units(self._common(tensors))
        groups = [[units[i] for i in group] for group in self._groups]
        return [one[0] if len(one) == 1 else torch.cat([tensor.flatten() for tensor in one]) for one in groups]

    def extra_channels(self, outputs: list[torch.Tensor], device: str) -> list[torch.Tensor | None]:
        """Copies of what the outputs have beyond x."""
        pairs = zip(outputs, self._overlaps, strict=True)
        surplus = [output.narrow(axis, size, output.shape[axis] - size) for output, (axis, size) in pairs]
        return [copy_for_cache(part, device) if part.numel() else None for part in surplus]

    def outputs(self, groups: list[torch.Tensor], extra: list[torch.Tensor | None]) -> list[torch.Tensor]:
        """Predictions by groups as the network would return them; new tensors."""
        units = {}
        for indices, packed in zip(self._groups, groups, strict=True):
            units.update(zip(indices, _unpack(packed, [self._shapes[i] for i in indices]), strict=True))
        ordered = [units[i] for i in range(len(units))]
        joined = ordered if self._listed or len(ordered) == 1 else [torch.cat(ordered)]
        parts = zip(joined, extra, self._overlaps, strict=True)
        return [one if more is None else torch.cat([one, more.to(one.device)], axis) for one, more, (axis, _) in parts]

    def _common(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [one.narrow(axis, 0, size) for one, (axis, size) in zip(tensors, self._overlaps, strict=True)]

    def _units(self, common: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        return common if self._listed else common[0].split(self._sizes)


def _overlap(x: torch.Tensor, output: torch.Tensor) -> tuple[int, int]:
    """(axis, size): x and output match in the first `size` entries along it."""
    if x.ndim == output.ndim:
        differing = [axis for axis in range(x.ndim) if x.shape[axis] != output.shape[axis]]
        if len(differing) < 2:
            axis = differing[0] if differing else 0
            return axis, min(x.shape[axis], output.shape[axis])
    shapes = f"{tuple(x.shape)} went in and {tuple(output.shape)} came out"
    raise ValueError(f"{shapes}; attach needs a prediction for each element of the latent, which input= names")


def _unpack(packed: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    parts = [packed] if len(shapes) == 1 else packed.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
