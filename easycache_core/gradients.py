"""Whether somebody differentiates through the network: a prediction has another gradient, or none."""

from collections import deque
from collections.abc import Iterable

import torch
from torch.autograd.forward_ad import unpack_dual

MAX_NODES = 1000  # of a tensor's graph, that are looked at


def are_differentiated(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether somebody may ask for a gradient with respect to one of these, or to what it is made of, or carries a
    derivative along with it (forward mode, torch.func.jvp). Where a sampler merely leaves gradients switched on, its
    latent is made of the network's weights alone.
    """
    tensors = list(tensors)
    if any(unpack_dual(one).tangent is not None for one in tensors):
        return True
    return torch.is_grad_enabled() and any(one.requires_grad and _is_made_of_more_than_weights(one) for one in tensors)


def _is_made_of_more_than_weights(tensor: torch.Tensor) -> bool:
    if tensor.grad_fn is None:
        return not isinstance(tensor, torch.nn.Parameter)
    nodes, seen = deque([tensor.grad_fn]), set()
    while nodes and len(seen) < MAX_NODES:
        node = nodes.popleft()
        variable = getattr(node, "variable", None)
        if variable is not None and not isinstance(variable, torch.nn.Parameter):
            return True
        seen.add(node)
        nodes += [one for one, _ in node.next_functions if one is not None and one not in seen]
    return False
