"""WaveBound: flooding of each output at the loss of a moving average of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flooding.functional import flood
from flooding.methods.base import Method, Reduction, floodable

__all__ = ["EMATeacher", "WaveBound"]


@dataclass(frozen=True)
class WaveBound(Method):
    """Flood each output at a teacher's loss: ``|r_j - (r*_j - e)| + (r*_j - e)``.

    ``r_j`` is the mean of output j's loss over the batch. The level is the teacher's raw loss
    ``r*_j`` on the same batch less the error bound ``e``. With one loss per example and no outputs
    this is flooding at the teacher's mean loss less ``e``.

    Args:
        epsilon: How far below the teacher's loss the level lies, in the unit of the loss.
        decay: Weight of the old average in each update of the :class:`EMATeacher`.

    Raises:
        ValueError: If ``epsilon`` is not finite.

    Example:
        >>> student = torch.tensor([[1.0, 0.1], [1.0, 0.3]])
        >>> teacher = torch.tensor([[0.5, 0.4], [0.7, 0.6]])
        >>> WaveBound(epsilon=0.1)(student, teacher)
        tensor([1.0000, 0.6000])

    References:
        Cho et al., *WaveBound*, NeurIPS 2022, eq. (5).
    """

    epsilon: float
    decay: float = 0.99
    reduction: ClassVar[Reduction] = "none"
    level_source: ClassVar[Literal["run", "teacher"]] = "teacher"

    def __post_init__(self) -> None:
        if not math.isfinite(self.epsilon):
            raise ValueError(
                f"epsilon must be finite, got {self.epsilon}. The source uses 0.01 or 0.001."
            )

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood each output's batch mean.

        Args:
            loss: Raw losses ``[batch, outputs...]``.
            level: The teacher's raw losses, of the shape of ``loss``, or a number for every output.

        Returns:
            Flooded means ``[outputs...]``.
        """
        student, bound = self.comparison(loss, level)
        return torch.where(floodable(student, bound), flood(student, bound), student)

    def make_teacher(self, model: nn.Module) -> EMATeacher:
        """Build the teacher, a moving average of the model."""
        return EMATeacher(model, self.decay)

    def comparison(self, loss: Tensor, level: float | Tensor) -> tuple[Tensor, float | Tensor]:
        """Give the student's batch means and their bounds, the teacher's less ``epsilon``.

        Args:
            loss: Raw losses ``[batch, outputs...]``.
            level: The teacher's raw losses, of the shape of ``loss``, or a number for every output.

        Returns:
            Two tensors ``[outputs...]``.

        Raises:
            ValueError: If the teacher's losses differ from the student's in shape.
        """
        if isinstance(level, Tensor):
            if level.shape != loss.shape:
                raise ValueError(
                    f"the teacher's losses must have shape {tuple(loss.shape)}, got "
                    f"{tuple(level.shape)}. Compute both with reduction='none'."
                )
            level = level.detach().mean(0)
        return loss.mean(0), level - self.epsilon


class EMATeacher(AveragedModel):
    """A slowly moving copy of a model, whose losses are the level of :class:`WaveBound`.

    Weights are exponential moving averages, buffers copies of the model's own. It always runs in
    evaluation mode and without gradients. Before the first ``update_parameters(model)`` it is a
    plain copy, and the first call copies too.

    Args:
        model: The model that learns; it is deep-copied.
        decay: Weight of the old average in each update, in [0, 1).

    Raises:
        ValueError: If ``decay`` lies outside [0, 1).

    Example:
        >>> from flooding.methods import objective
        >>> model = nn.Linear(2, 1)
        >>> teacher = EMATeacher(model, decay=0.99)
        >>> teacher.update_parameters(model)  # after every optimiser step
        >>> x, y = torch.zeros(3, 2), torch.zeros(3, 1)
        >>> loss, level = (model(x) - y).square(), (teacher(x) - y).square()
        >>> objective(loss, level, WaveBound(epsilon=0.01)).backward()

    References:
        Cho et al., *WaveBound*, NeurIPS 2022, section 4.
    """

    def __init__(self, model: nn.Module, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}. The source uses 0.99.")
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EMATeacher:  # ruff: ignore[unused-method-argument]
        """Stay in evaluation mode, also as part of a model that trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the average without gradients."""
        return super().forward(*args, **kwargs)
