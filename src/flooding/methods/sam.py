"""Sharpness-aware minimisation, a baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flooding.methods.flooding import Flooding

__all__ = ["SAM"]


@dataclass(frozen=True)
class SAM:
    """Sharpness-aware minimisation: take the gradient at ``w + rho * g / |g|``. Two passes a step.

    pytorch-optimizer's implementation around the problem's own optimiser. With a level, both passes
    are flooded. Batch norm sees every batch twice.

    Args:
        rho: Radius of the neighbourhood in weight space, above 0.

    Raises:
        ValueError: If ``rho`` is not finite and above 0.

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR
        2021.
    """

    rho: float = 0.05
    reduction: ClassVar[Literal["mean", "none"]] = "mean"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise ValueError(
                f"rho must be finite and above 0, got {self.rho}. The source uses 0.05."
            )

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood the loss, as :class:`flooding.methods.flooding.Flooding` does."""
        return Flooding()(loss, level)

    def wrap(
        self, optimizer: Callable[..., torch.optim.Optimizer], parameters: Iterable[Tensor]
    ) -> torch.optim.Optimizer:
        """Put SAM around an optimiser.

        Args:
            optimizer: The base, ``(parameters) -> Optimizer``.
            parameters: What it trains.

        Returns:
            An optimiser whose ``step`` wants gradients in place and a closure that computes them
            anew.

        Raises:
            ImportError: If pytorch-optimizer is missing.
        """
        try:
            from pytorch_optimizer import SAM as Sharpness  # ruff: ignore[constant-imported-as-non-constant]
        except ImportError as error:
            raise ImportError("SAM needs pytorch-optimizer: pip install 'flooding[sam]'") from error
        return Sharpness(parameters, base_optimizer=optimizer, rho=self.rho)  # type: ignore[arg-type]
