"""A network as `attach` meets it: which argument is what, and which of its tensors are predictions for which."""

import contextlib
import copy
import dataclasses
import inspect
import types
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils import _pytree as pytree  # where diffusers registers its output classes

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


class Latents(NamedTuple):
    """The parameters of a network's forward that are noisy latents: mostly one, or a video and its sound."""

    arguments: tuple[Argument, ...]

    @property
    def several(self) -> bool:
        return len(self.arguments) > 1

    def of(self, args: tuple, kwargs: dict):
        """What they are in a call, a list if they are several."""
        given = [argument.of(args, kwargs) for argument in self.arguments]
        return given if self.several else given[0]


class Arguments(NamedTuple):
    """What a network takes: the noisy latents, the timestep, and what it is asked beside."""

    x: Latents
    time: Argument
    names: list[str]

    def others(self, args: tuple, kwargs: dict) -> dict:
        """All of a call but x and the timestep, by name; without what is None, or is the timestep once more."""
        names = [*self.names, *map(str, range(len(self.names), len(args)))]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        known, time = {one.name for one in (*self.x.arguments, self.time)}, self.time.of(args, kwargs)
        again = {k for k, v in given.items() if v is time and isinstance(v, torch.Tensor)}  # LTX-2 is told it twice
        return {k: v for k, v in given.items() if v is not None and k not in known | again}

    def form_of(self, x: list[torch.Tensor], args: tuple, kwargs: dict) -> tuple:
        """The shapes of a latent, in a batch of any size: guidance may be asked for in it at some steps only."""
        if not self.x.several and not isinstance(self.x.of(args, kwargs), torch.Tensor):
            return tuple(dict.fromkeys(one.shape for one in x))
        start = int(self.have_rows_of(x[0], args, kwargs))
        return tuple(one.shape[start:] for one in x)

    def have_rows_of(self, x: torch.Tensor, args: tuple, kwargs: dict) -> bool:
        """Whether the timestep or another argument has as many rows as x has: its first axis is a batch then."""
        tensors = tensors_among(self.time.of(args, kwargs), *self.others(args, kwargs).values())
        return any(one.ndim and x.ndim and one.size(0) == x.size(0) for one in tensors)


def tensors_among(*values) -> list[torch.Tensor]:
    """All that the arguments of a call hold, but for arguments that hold themselves."""
    found = []
    for value in values:
        with contextlib.suppress(RecursionError):
            found += [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return found


def find_arguments(module: torch.nn.Module, input: str | Sequence[str] | None, time: str | None) -> Arguments:
    """The noisy latents and the timestep among what forward takes: those named, else the first one, and the one that
    has a name of TIMESTEP_NAMES or comes second. Raises ValueError for a name that forward does not have.
    """
    names = _parameters(module)
    inputs = [input] if isinstance(input, str) else list(input or names[:1] or [None])
    time = time or next((name for name in (*TIMESTEP_NAMES, *names[1:2]) if name in names), None)
    for role, name in (*(("input", one) for one in inputs), ("time", time)):
        if name not in names:
            raise ValueError(f"{role}={name!r} is no parameter of {type(module).__name__}.forward({', '.join(names)})")
    if time in inputs:
        raise ValueError(f"time={time!r} is the latent: input and time must be two parameters")
    latents = Latents(tuple(Argument(name, names.index(name)) for name in inputs))
    return Arguments(latents, Argument(time, names.index(time)), names)


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


def timestep_of(t) -> tuple[float, float]:
    """A timestep as (what it is known by, the largest of it); waits for its device. Where it has several, as of frames
    that are given or are further on than others, it is known by their mean: the largest may stay for some steps.
    """
    if not isinstance(t, torch.Tensor):
        return float(t), float(t)
    t = t.detach().to(torch.float64 if t.dtype == torch.float64 else torch.float32)
    least, largest, mean = torch.stack([t.min(), t.max(), t.mean()]).tolist()
    return (largest if least == largest else mean), largest


def fields_of(thing) -> dict | None:
    """What an object holds, by name; None of a module, a class, a tensor, and of what holds nothing."""
    if isinstance(thing, (torch.nn.Module, torch.Tensor, type, types.ModuleType)):
        return None
    if dataclasses.is_dataclass(thing):
        return {one.name: getattr(thing, one.name) for one in dataclasses.fields(thing)}
    return dict(vars(thing)) if hasattr(thing, "__dict__") else None


TENSOR = object()


def flattened(output) -> tuple[list, tuple]:
    """(leaves, form) of what a network returned. Objects that torch does not know count as what they hold."""
    held = None
    if type(output) not in pytree.SUPPORTED_NODES and not pytree.is_namedtuple_instance(output):
        held = fields_of(output)
    leaves, structure = pytree.tree_flatten(output if held is None else held)
    return leaves, (structure, None if held is None else type(output))


def unflattened(leaves: list, form: tuple):
    """The inverse of `flattened`."""
    structure, kind = form
    held = pytree.tree_unflatten(leaves, structure)
    if kind is None:
        return held
    output = kind.__new__(kind)
    for name, value in held.items():
        object.__setattr__(output, name, value)  # of a frozen dataclass, too
    return output


class OutputTemplate(NamedTuple):
    """What a call returned beside its predictions."""

    form: tuple  # as from `flattened`
    leaves: list  # TENSOR in the places of predictions
    rest: list[torch.Tensor | None]
    dtype: torch.dtype


def predictions_of(output) -> list[torch.Tensor]:
    """The tensors in what a network returned. Raises ValueError if there are none."""
    tensors = [leaf for leaf in flattened(output)[0] if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise ValueError(f"the network returned {type(output).__name__}, in which attach finds no tensor")
    return tensors


def copy_of(output):
    """What a network returned, with copies of its tensors."""
    leaves, form = flattened(output)
    return unflattened([one.detach().clone() if isinstance(one, torch.Tensor) else one for one in leaves], form)


class Part(NamedTuple):
    """From start to stop along an axis."""

    axis: int
    start: int
    stop: int


def part_of(latent: tuple[slice, ...], shape: torch.Size) -> Part | None:
    """What an index such as np.s_[:, :4096] selects of a tensor; None: all of it.

    Raises ValueError for an index that is more than one piece along one axis.
    """
    indices = latent if isinstance(latent, tuple) else (latent,)
    try:
        pieces = [(*piece.indices(size), size) for piece, size in zip(indices, shape, strict=False)]
    except AttributeError:
        pieces = [(0, 0, 0, 0)]
    narrow = [Part(n, a, b) for n, (a, b, _, size) in enumerate(pieces) if (a, b) != (0, size)]
    odd = (
        len(indices) > len(shape) or len(narrow) > 1 or any(part.stop <= part.start or not part.axis for part in narrow)
    )
    if odd or any(stride != 1 for _, _, stride, _ in pieces):
        raise ValueError(
            f"latent={latent} must select one piece along one axis after the first, as np.s_[:, :4096] does"
        )
    return narrow[0] if narrow else None


def moving_part(before: torch.Tensor, now: torch.Tensor, known: Part | None) -> Part | None:
    """The piece along one axis, but the first, outside of which a latent stood still, and what is known to be in it;
    None: all of it. Waits for the device.
    """
    moved, pieces = before != now, []
    for axis in range(1, now.ndim) if known is None else (known.axis,):
        places = moved.movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist() or [known.start]
        ends = [places[0], places[-1] + 1, *(known[1:] if known else ())]
        pieces.append(Part(axis, min(ends), max(ends)))
    smallest = min(pieces, key=lambda part: (part.stop - part.start) / now.shape[part.axis], default=None)
    return smallest if smallest and smallest.stop - smallest.start < now.shape[smallest.axis] else None


class Layout:
    """How the tensors of one call become groups, each of them one tensor for the engine, and back.

    x: the network's input, outputs: its predictions, lists of equal length. Where a pair differs along one axis, what
    both have there belongs together and the rest of the output is repeated: a learned variance follows the prediction,
    and a picture to be animated follows the noisy latent. listed: whether x came as a list, which is a batch then.
    batched: whether its first axis is a batch; then it is the first axis of groups, too, where all rows have one shape.
    joined: whether these are latents of different kinds, as a video and its sound; where each is a batch, a row of
    groups holds theirs one after the other. tracked: rows of the batch that are the first group; the others are the
    second. None: all are one group. latent: an index of what is latent; the rest of x is a picture for reference, and
    the rest of the output is repeated.

    Raises ValueError where x and outputs do not match, and where tracked or latent select nothing, or not one piece.
    """

    def __init__(
        self, x: list[torch.Tensor], outputs: list[torch.Tensor], listed: bool, batched: bool = True,
        tracked: slice | None = None, latent: tuple[slice, ...] | None = None, joined: bool = False,
    ):  # fmt: skip
        if len(x) != len(outputs):
            counts = f"{len(x)} latents went in and {len(outputs)} tensors came out; one for each is needed"
            raise ValueError(f"{counts}: of a network that takes several, as a video and its sound, input= names all")
        self._overlaps = [_overlap(*pair) for pair in zip(x, outputs, strict=True)]
        self._listed, self._batched, self._tracked = listed, batched, tracked
        self._joined = joined and batched and len({len(one) for one in x}) == 1
        self.part = None
        self._select(x, None if latent is None else part_of(latent, self._common(x)[0].shape))

    def _select(self, x: list[torch.Tensor], part: Part | None) -> None:
        self.part = part
        common = self._common(x)
        rows = len(common) if self._listed else len(common[0])
        start, stop, stride = (self._tracked or slice(None)).indices(rows)
        if stop <= start or stride != 1:
            raise ValueError(f"tracked={self._tracked} selects nothing, or not one piece, of a batch of {rows}")
        self._sizes = [size for size in (start, stop - start, rows - stop) if size]
        first = range(start, stop) if self._listed else range(start > 0, (start > 0) + 1)
        units = self._units(common)
        others = [i for i in range(len(units)) if i not in first]
        self._groups = [group for group in (list(first), others) if group]
        self._shapes = [unit.shape for unit in units]

    def narrowed(self, before: list[torch.Tensor], x: list[torch.Tensor]) -> "Layout":
        """The layout whose part is what moved from one evaluation to the next, and this one's part if it has one; this
        one if that is the same. Waits for the device.
        """
        before, now = (self._overlapping(tensors)[0] for tensors in (before, x))
        part = self.part if self._listed or torch.equal(before, now) else moving_part(before, now, self.part)
        if part == self.part:
            return self
        other = copy.copy(self)
        other._select(x, part)
        return other

    def groups(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the engine sees of x, or of the predictions for it; the tracked group first. Views where possible."""
        units = self._units(self._common(tensors))
        return [self._packed([units[i] for i in group]) for group in self._groups]

    def _packed(self, units: list[torch.Tensor]) -> torch.Tensor:
        if len(units) == 1 and self._batched and not self._listed:
            return units[0]
        if self._joined:
            return torch.cat([unit.flatten(1) for unit in units], -1)
        rows = [unit.flatten() for unit in units]
        return torch.stack(rows) if self._listed and len({*map(len, rows)}) == 1 else torch.cat(rows)

    def extra_channels(self, outputs: list[torch.Tensor], device: str) -> list[torch.Tensor | None]:
        """Copies of the outputs that have something beside the latent."""
        pairs = zip(outputs, self._common(outputs), strict=True)
        return [copy_for_cache(one, device) if one.numel() > latent.numel() else None for one, latent in pairs]

    def outputs(self, groups: list[torch.Tensor], rest: list[torch.Tensor | None]) -> list[torch.Tensor]:
        """Predictions by groups as the network would return them; new tensors."""
        units = {}
        for indices, packed in zip(self._groups, groups, strict=True):
            shapes = [self._shapes[i] for i in indices]
            units.update(zip(indices, (_split if self._joined else _unpack)(packed, shapes), strict=True))
        ordered = [units[i] for i in range(len(units))]
        latents = ordered if self._listed or len(ordered) == 1 else [torch.cat(ordered)]
        pairs = zip(latents, rest, strict=True)
        whole = [one if more is None else more.to(one.device, copy=True) for one, more in pairs]
        for one, inner, latent in zip(whole, self._common(whole), latents, strict=True):
            if one is not latent:
                inner.copy_(latent)
        return whole

    def _overlapping(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [one.narrow(axis, 0, size) for one, (axis, size) in zip(tensors, self._overlaps, strict=True)]

    def _common(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        common = self._overlapping(tensors)
        if self.part is None:
            return common
        axis, start, stop = self.part
        return [one.narrow(axis, start, stop - start) for one in common]

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
    parts = [packed] if len(shapes) == 1 else packed.flatten().split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _split(packed: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    parts = packed.split([shape[1:].numel() for shape in shapes], -1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
