"""Operations on the gradients of many parameters that wait for no device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["any_nonzero_gradient", "graph_leaves", "multiply_gradients", "to_float32"]

# A graph beyond this size is not searched; one of this size takes about 0.1 s.
_MAX_NODES = 100_000


def to_float32(tensor: Tensor, copy: bool = False) -> Tensor:
    """Detach a tensor of one element and widen it: bfloat16 cannot tell 0.0500 from 0.0502.

    Args:
        tensor: One element, of any shape.
        copy: Whether to copy it in any case.

    Returns:
        A 0-d tensor of at least float32.
    """
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().reshape(()).to(dtype, copy=copy)


def multiply_gradients(parameters: Iterable[Tensor], slope: Tensor) -> None:
    """Multiply the gradients of parameters in place.

    Args:
        parameters: Parameters; those without a gradient are left out.
        slope: The factor, 0-d.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = _local_shard(parameter.grad)
            groups[gradient.device, gradient.dtype].append(gradient)
    for (device, dtype), gradients in groups.items():
        torch._foreach_mul_(gradients, slope.to(device, dtype))


def _local_shard(gradient: Tensor) -> Tensor:
    """Give the plain tensor of a sharded one: right for every placement, without dispatch."""
    to_local = getattr(gradient, "to_local", None)
    return gradient if to_local is None else to_local()


def any_nonzero_gradient(parameters: Iterable[Tensor], device: torch.device) -> Tensor | None:
    """Tell whether any gradient has an element that is not 0.

    Args:
        parameters: Parameters, at least one of them with a gradient.
        device: Where to put the answer.

    Returns:
        A 0-d bool tensor; None for shards, of which one may be 0 or empty and others not.
    """
    flags = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if hasattr(gradient, "to_local"):
            return None
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        flags.append(values.any().to(device))
    return torch.stack(flags).any()


def graph_leaves(loss: Tensor) -> list[Tensor]:
    """List the tensors whose gradients a backward of a loss accumulates.

    Args:
        loss: A tensor with a graph.

    Returns:
        The leaves; only a part of them for graphs beyond 100,000 nodes.
    """
    nodes = [loss.grad_fn]
    visited = set()
    leaf_tensors = []
    while nodes and len(visited) < _MAX_NODES:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if type(node).__name__ == "AccumulateGrad":
            # Only this kind of node has a variable.
            leaf_tensors.append(getattr(node, "variable"))  # noqa: B009
        nodes += [following for following, _ in node.next_functions]
    return leaf_tensors
