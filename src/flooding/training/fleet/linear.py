"""A linear layer of many runs: batched products, and a gradient of the weights that is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["GradientBuffer", "stacked_linear"]


class GradientBuffer:
    """Memory for the gradient of a weight, which the next step uses again.

    Large memory that is new in every step costs more than what is written into it.
    """

    def __init__(self) -> None:
        self._tensor: Tensor | None = None

    def like(self, weight: Tensor) -> Tensor:
        """Give memory of the shape of a weight; what it holds is of no meaning.

        Args:
            weight: The weight.

        Returns:
            A tensor without a graph.
        """
        kept = self._tensor
        if kept is None or kept.shape != weight.shape or kept.dtype != weight.dtype:
            kept = self._tensor = torch.empty_like(weight, requires_grad=False)
        return kept


def stacked_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, gradient: GradientBuffer
) -> Tensor:
    """Pass a batch of each run through a linear layer of its own.

    Args:
        x: Inputs ``[runs, batch, ..., features]``.
        weight: Weights ``[runs, outputs, features]``.
        bias: Biases ``[runs, outputs]``, or None.
        gradient: Where the gradient of the weight goes, for one backward pass at a time.

    Returns:
        Outputs ``[runs, batch, ..., outputs]``.
    """
    if x.dim() > 3:  # further axes belong to the batch
        flat = stacked_linear(x.flatten(1, -2), weight, bias, gradient)
        return flat.unflatten(1, x.shape[1:-1])
    keeps_gradient = weight.requires_grad and weight.is_leaf and torch.is_grad_enabled()
    # A compiler keeps memory itself, and cannot trace a backward pass that sets gradients.
    if not torch.compiler.is_compiling() and keeps_gradient:
        return _StackedLinear.apply(x, weight, bias, gradient)  # type: ignore[no-any-return]
    return _multiply(x, weight, bias)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


class _StackedLinear(torch.autograd.Function):
    """The layer, whose backward pass sets ``weight.grad`` itself, so that its memory is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gradient: GradientBuffer
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gradient = gradient
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        # A layer of a plain sequence is used once in a pass, so there is nothing to add to.
        weight.grad = torch.bmm(grad.transpose(1, 2), x, out=ctx.gradient.like(weight))
        needs_x, _, needs_bias, _ = ctx.needs_input_grad
        grad_x = torch.bmm(grad, weight) if needs_x else None
        return grad_x, None, grad.sum(1) if needs_bias else None, None
