"""What conditionings hold: the values in their parts, where in the latent and at which noise levels they are active."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .identities import Identities, contents


def content_of(cond: Sequence[dict], identities: Identities) -> dict:
    """What the parts of a conditioning hold, by name."""
    content = {}
    for i, part in enumerate(cond):
        for key, value in part.items():
            if key == "model_conds":
                content |= {("cond", i, name): identities.of(one) for name, one in value.items()}
            elif key != "uuid":
                content["cond", i, key] = identities.of(value)
    return content


def tensors_named(cond: Sequence[dict], model_options: dict, name: tuple) -> list[torch.Tensor]:
    """Those that a part of a conditioning holds, named as by content_of, or an entry of the options, named as by
    values_of: in lists, dicts and ComfyUI's holders of conditionings.
    """
    found: list = []
    kind, *place = name
    if kind == "cond":
        i, key = place
        contents(cond[i].get("model_conds", {}).get(key, cond[i].get(key)), found.append)
    elif kind == "option":
        contents(model_options["transformer_options"].get(place[0]), found.append)
    return [one for one in found if isinstance(one, torch.Tensor)]


def tensors_of(conds: Sequence) -> Iterator[torch.Tensor]:
    """Of these conditionings, what the network is given; some of them may be None."""
    held = (one.cond for cond in conds for part in cond or () for one in part.get("model_conds", {}).values())
    return (one for one in held if isinstance(one, torch.Tensor))


def where_active(cond: Sequence[dict], timestep: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """The answer to a conditioning; zero at noise levels where none of its parts is active, as ComfyUI has it there
    without the network. Some guiders look for that. Does not wait for the device. timestep: sigma, (batch,).
    """
    ranges = [(part.get("timestep_start"), part.get("timestep_end")) for part in cond]
    if (None, None) in ranges:
        return answer
    active, sigma = False, timestep[0]
    for start, end in ranges:
        active = active | ((start is None or sigma <= start) & (end is None or sigma >= end))
    return answer * active


def covers(cond: Sequence[dict], x: torch.Tensor) -> bool:
    """Whether each place of a latent x, (batch, channels, ...), has a part of the conditioning, by masks and areas.
    Elsewhere ComfyUI takes 0 for its answer. True for masks and areas of another form than ComfyUI's. Waits for the
    device where all parts have a mask.
    """
    if any(part.get("default") or (part.get("mask") is None and part.get("area") is None) for part in cond):
        return True
    covered = torch.zeros(x.shape[2:], dtype=torch.bool, device=x.device)
    try:
        for part in cond:
            covered |= _covered_by(part, torch.zeros_like(covered))
    except (RuntimeError, TypeError, ValueError):
        return True
    return bool(covered.all())


def _covered_by(part: dict, here: torch.Tensor) -> torch.Tensor:
    """here: nothing, by place."""
    sizes, starts = np.split(np.array(part.get("area") or [*here.shape, *[0] * here.ndim]), 2)
    where = [slice(start, start + size) for size, start in zip(sizes, starts, strict=True)]
    where = [slice(None)] * (here.ndim - len(where)) + where  # areas as of pictures, in videos
    here[tuple(where[: here.ndim])] = True
    if part.get("mask") is not None:
        here &= (part["mask"].to(here.device) > 0).any(0)  # (frames or 1, height, width), say
    return here
