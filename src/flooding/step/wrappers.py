"""The optimiser inside what Accelerate, Lightning Fabric and DeepSpeed wrap around it."""

from __future__ import annotations

from typing import TypeGuard

import torch

__all__ = ["inner_optimizer", "is_torch_optimizer", "partitioning_wrapper"]

# Wrappers whose steps cannot be flooded, by the name of their class, and why.
_UNSUPPORTED = {
    "DeepSpeedZeroOptimizer_Stage3": (
        "ZeRO 3 steps each part of the parameters by itself. Use ZeRO 0, 1 or 2, or FSDP2."
    ),
    "MegatronLMOptimizerWrapper": (
        "Megatron-LM steps inside the model and, with pipeline parallelism, has no loss on some "
        "ranks. Train with DDP, FSDP2 or ZeRO 0 to 2."
    ),
    "PipelineEngine": (
        "Pipeline parallelism has no loss on some ranks. Train with DDP, FSDP2 or ZeRO 0 to 2."
    ),
}


def is_torch_optimizer(optimizer: object) -> TypeGuard[torch.optim.Optimizer]:
    """Tell whether an object is a torch optimiser whose ``step`` calls step hooks.

    Args:
        optimizer: Any object.

    Returns:
        Whether it is.
    """
    step = getattr(type(optimizer), "step", None)
    return isinstance(optimizer, torch.optim.Optimizer) and getattr(step, "hooked", False)


def _layers(optimizer: object) -> list[object]:
    """List an optimiser's wrappers from the outside, and the innermost object last."""
    layers = [optimizer]
    while not is_torch_optimizer(layers[-1]):
        inner = getattr(layers[-1], "optimizer", None)
        if inner is None or any(inner is layer for layer in layers):
            break
        layers.append(inner)
    return layers


def inner_optimizer(optimizer: object) -> object:
    """Find the optimiser inside its wrappers, each of which holds the next one as ``optimizer``.

    A torch optimiser that calls step hooks is its own inner optimiser, even if it holds another.

    Args:
        optimizer: An optimiser, or a wrapper of one.

    Returns:
        The innermost object, which need not be an optimiser.

    Raises:
        ValueError: If one of the wrappers is known to step in a way that cannot be flooded.
    """
    layers = _layers(optimizer)
    for layer in layers:
        for kind in type(layer).__mro__:
            if kind.__name__ in _UNSUPPORTED:
                reason = _UNSUPPORTED[kind.__name__]
                raise ValueError(f"{kind.__name__} cannot be flooded: {reason}")
    return layers[-1]


def partitioning_wrapper(optimizer: object) -> object | None:
    """Find the wrapper that may call the inner optimiser's ``step`` several times in one step.

    DeepSpeed's ZeRO 1 and 2 do so once for each parameter group.

    Args:
        optimizer: An optimiser, or a wrapper of one.

    Returns:
        The wrapper, or None.
    """
    for layer in _layers(optimizer)[:-1]:
        if type(layer).__module__.startswith("deepspeed."):
            return layer
    return None
