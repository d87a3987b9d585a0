"""The levels of many runs as one tensor; their controllers as stacked states."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flooding.levels import Controller, State, StepInfo
from flooding.training.evaluation import mean_level
from flooding.training.run import Run
from flooding.training.state import TrainingState

__all__ = ["StackedLevels"]


@dataclass
class _Group:
    """Runs with one controller.

    Args:
        rows: Which runs.
        index: The same as a tensor.
        controller: The controller.
        state: Its state, every tensor ``[runs, ...]``.
    """

    rows: list[int]
    index: Tensor
    controller: Controller
    state: State


class StackedLevels:
    """The levels in force in the runs of a fleet.

    Numbers are one tensor. Runs with equal controllers share a stacked state, since controllers are
    element-wise.

    Args:
        runs: The Runs.
        states: Their states, which hold those of the controllers.
        device: Where they train.
    """

    def __init__(
        self, runs: Sequence[Run], states: Sequence[TrainingState], device: torch.device
    ) -> None:
        self._device = device
        self._runs = list(runs)
        # -inf floods nothing, as None does. In float64, so that every float32 keeps its value.
        numbers = []
        for run in runs:
            level = run.level
            if level is None or isinstance(level, Controller):
                numbers.append(-math.inf)
            else:
                numbers.append(float(level))  # type: ignore[arg-type]
        self._numbers = torch.tensor(numbers, dtype=torch.float64)
        self._groups = _group(self._runs, states, device)
        self._cache: dict[torch.dtype, Tensor] = {}

    def current(self, dtype: torch.dtype) -> Tensor:
        """Give the level of each run.

        Args:
            dtype: Type of the loss.

        Returns:
            Levels ``[runs]``, of that type or float32, whichever is wider.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        if dtype not in self._cache:
            self._cache[dtype] = self._numbers.to(dtype).to(self._device)
        levels = self._cache[dtype]
        for group in self._groups:
            levels = levels.index_copy(0, group.index, group.state["level"].to(dtype))
        return levels

    def end_step(self, losses: Tensor) -> None:
        """Show the controllers the losses of a step.

        Args:
            losses: Mean raw loss of each run, ``[runs]``, without its graph.
        """
        for group in self._groups:
            info = StepInfo(losses.index_select(0, group.index))
            group.state = group.controller.update(group.state, info)

    def end_epoch(self, infos: Sequence[StepInfo]) -> None:
        """Show the controllers the end of an epoch.

        Args:
            infos: What each run measured, as numbers.
        """
        for group in self._groups:
            info = _stack_infos([infos[row] for row in group.rows], self._device)
            group.state = group.controller.update(group.state, info)

    @property
    def has_controllers(self) -> bool:
        """Whether any level moves."""
        return bool(self._groups)

    def fill_constants(self, means: Sequence[float], steps: int) -> list[float]:
        """Give the mean levels of an epoch as the curves of single Runs hold them.

        Args:
            means: Mean of the level of each run over the steps.
            steps: How many there were.

        Returns:
            The same, but constants as the single loop averages them, and NaN without a level.
        """
        result = []
        for run, mean in zip(self._runs, means, strict=True):
            if isinstance(run.level, float):
                result.append(mean_level([run.level] * steps))
            else:
                result.append(math.nan if run.level is None else mean)
        return result

    def state_of(self, row: int) -> State | None:
        """Copy the state of a run's controller; None without one.

        Args:
            row: Which run.

        Returns:
            Tensors by name.
        """
        for group in self._groups:
            if row in group.rows:
                position = group.rows.index(row)
                return {name: t[position].clone() for name, t in group.state.items()}
        return None

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some runs and forget the others.

        Args:
            rows: Which runs, in order.
        """
        self._runs = [self._runs[row] for row in rows]
        self._numbers = self._numbers[list(rows)]
        self._cache = {}
        new_row = {row: position for position, row in enumerate(rows)}
        groups = []
        for group in self._groups:
            positions = [p for p, row in enumerate(group.rows) if row in new_row]
            if not positions:
                continue
            index = torch.tensor(positions, device=self._device)
            kept = [new_row[group.rows[p]] for p in positions]
            state = {name: t.index_select(0, index) for name, t in group.state.items()}
            kept_index = torch.tensor(kept, device=self._device)
            groups.append(_Group(kept, kept_index, group.controller, state))
        self._groups = groups


def _group(
    runs: Sequence[Run], states: Sequence[TrainingState], device: torch.device
) -> list[_Group]:
    """Group the runs that have equal controllers."""
    rows_of: list[tuple[Controller, list[int]]] = []
    for row, run in enumerate(runs):
        if not isinstance(run.level, Controller):
            continue
        for controller, rows in rows_of:
            if _is_same(controller, run.level):
                rows.append(row)
                break
        else:
            rows_of.append((run.level, [row]))
    groups = []
    for controller, rows in rows_of:
        single_states: list[State] = []
        for row in rows:
            state = states[row].controller
            assert state is not None
            single_states.append(state)
        stacked = {}
        for name in single_states[0]:
            stacked[name] = torch.stack([state[name] for state in single_states]).to(device)
        groups.append(_Group(rows, torch.tensor(rows, device=device), controller, stacked))
    return groups


def _is_same(a: Controller, b: Controller) -> bool:
    """Tell whether two controllers do the same; objects that are no dataclass only if identical."""
    if a is b:
        return True
    return type(a) is type(b) and dataclasses.is_dataclass(a) and a == b


def _stack_infos(infos: Sequence[StepInfo], device: torch.device) -> StepInfo:
    """Stack what several runs measured at the end of an epoch."""
    fields = {}
    for name in ("train_accuracy", "val_loss", "val_accuracy", "val_score"):
        values = [getattr(info, name) for info in infos]
        if values[0] is not None:
            fields[name] = torch.tensor(values, dtype=torch.float32, device=device)
    return StepInfo(n_val=infos[0].n_val, **fields)
