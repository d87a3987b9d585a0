"""Sharpness-aware minimisation, a baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flooding.extras import install_command
from flooding.methods.base import Method, OptimizerFactory
from flooding.methods.flooding import Flooding

__all__ = ["SAM"]


@dataclass(frozen=True)
class SAM(Method):
    """Sharpness-aware minimisation: take the gradient at ``w + rho * g / |g|``.

    Two forward and backward passes a step. The implementation is pytorch-optimizer's, around the
    problem's own optimiser. With a level, both passes are flooded. Batch norm sees every batch
    twice.

    Args:
        rho: Radius of the neighbourhood in weight space, above 0.

    Raises:
        ValueError: If ``rho`` is not finite and above 0.

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR
        2021.
    """

    rho: float = 0.05
    needs_closure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise ValueError(
                f"rho must be finite and above 0, got {self.rho}. The source uses 0.05."
            )

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood the loss, as :class:`flooding.methods.flooding.Flooding` does."""
        return Flooding()(loss, level)

    def wrap_optimizer(
        self, make_optimizer: OptimizerFactory, parameters: Sequence[Tensor]
    ) -> torch.optim.Optimizer:
        """Put SAM around an optimiser.

        Args:
            make_optimizer: The base optimiser, ``(parameters) -> Optimizer``.
            parameters: The parameters to train.

        Returns:
            An optimiser whose ``step`` needs the gradients in place and a closure that computes
            them again.

        Raises:
            ImportError: If pytorch-optimizer is missing.
        """
        try:
            import pytorch_optimizer
        except ImportError as error:
            raise ImportError(
                f"SAM needs pytorch-optimizer. Install it: {install_command('sam')}"
            ) from error
        return pytorch_optimizer.SAM(
            parameters,
            base_optimizer=make_optimizer,  # type: ignore[arg-type]
            rho=self.rho,
        )
