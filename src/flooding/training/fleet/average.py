"""The averaged weights of a fleet: one set of tensors with an axis of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flooding.averaging import Averaging
from flooding.training.fleet.model import StackedModel, Tensors, take_rows
from flooding.training.state import TrainingState

__all__ = ["StackedAverage"]


class StackedAverage:
    """Running averages of the weights of several runs.

    Args:
        averaging: How to average.
        model: Their model.
        states: Their states, whose averages go on here.
    """

    def __init__(
        self, averaging: Averaging, model: StackedModel, states: Sequence[TrainingState]
    ) -> None:
        self._averaging = averaging
        self.parameters: Tensors = {}
        for name in model.parameters:
            tensors = []
            for state in states:
                assert state.average is not None
                tensors.append(dict(state.average.module.named_parameters())[name].detach())
            self.parameters[name] = torch.stack(tensors)
        # How many weights each run's average holds; known to the host.
        self.counts: list[int] = []
        for state in states:
            assert state.average is not None
            self.counts.append(int(state.average.n_averaged))

    @torch.no_grad()
    def update(self, model: StackedModel, epoch: int, is_flooded: Callable[[], list[bool]]) -> None:
        """Put the weights after a step into the average of each run that has begun one.

        Args:
            model: The model.
            epoch: The epoch, from 1.
            is_flooded: Tells for each run whether a loss of the step lay below its level.
        """
        flooded: list[bool] | None = None
        begins = []
        for row, count in enumerate(self.counts):
            if count:
                begins.append(True)
                continue

            def row_is_flooded(row: int = row) -> bool:
                nonlocal flooded
                if flooded is None:
                    flooded = is_flooded()
                return flooded[row]

            begins.append(self._averaging.begins(epoch, row_is_flooded))
        if all(begins) and len(set(self.counts)) == 1:
            self._update(model, None, self.counts[0])
        else:
            for row, begun in enumerate(begins):
                if begun:
                    self._update(model, row, self.counts[row])
        self.counts = [n + begun for n, begun in zip(self.counts, begins, strict=True)]

    def _update(self, model: StackedModel, row: int | None, count: int) -> None:
        """Update all runs, or one."""
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for name, parameter in model.parameters.items():
            index = slice(None) if row is None else row
            averaged.append(self.parameters[name][index])
            current.append(parameter.detach()[index])
        # The first weights are copied, as torch's AveragedModel does.
        if count == 0:
            for a, b in zip(averaged, current, strict=True):
                a.copy_(b)
        else:
            self._averaging.combine(averaged, current, count)

    def effective(self, model: StackedModel) -> Tensors:
        """Give the averaged weights; the network's own where no average has begun.

        Args:
            model: The model.

        Returns:
            Parameters ``[runs, ...]`` by name.
        """
        begun = torch.tensor([count > 0 for count in self.counts])
        if bool(begun.all()):
            return self.parameters
        result = {}
        for name, parameter in model.parameters.items():
            mask = begun.to(parameter.device).view(-1, *(1,) * (parameter.dim() - 1))
            result[name] = torch.where(mask, self.parameters[name], parameter.detach())
        return result

    def copy_into(self, state: TrainingState, model: StackedModel, row: int) -> None:
        """Give the average of a single Run the state of a run.

        Args:
            state: The state of the single Run; changed in place.
            model: The model, for its buffers.
            row: Which run.
        """
        assert state.average is not None
        model.load_into(state.average.module, row, self.parameters)
        state.average.n_averaged.fill_(self.counts[row])

    def keep(self, rows: Tensor) -> None:
        """Keep some runs and forget the others.

        Args:
            rows: Which runs, int64.
        """
        self.parameters = take_rows(self.parameters, rows)
        self.counts = [self.counts[row] for row in rows.tolist()]
