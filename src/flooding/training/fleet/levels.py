"""The levels of many runs as one tensor; their controllers as stacked states."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from flooding.levels import Controller, State, StepInfo
from flooding.training.evaluation import mean_level
from flooding.training.run import Run
from flooding.training.state import TrainingState

__all__ = ["StackedLevels"]


@dataclass
class _Group:
    """Runs whose controllers are one, or differ in numbers alone.

    Args:
        rows: Which runs.
        index: The same as a tensor.
        controller: The controller, with the numbers of :attr:`numbers` as tensors.
        state: Its state, every tensor ``[runs, ...]``.
        numbers: The numbers in which they differ, by name of the field, float32 ``[runs]``.
    """

    rows: list[int]
    index: Tensor
    controller: Controller
    state: State
    numbers: dict[str, Tensor]


class StackedLevels:
    """The levels in force in the runs of a fleet.

    Numbers are one tensor. Runs whose controllers are of one class share a stacked state, since
    controllers are element-wise, if they differ in numbers alone and a trial gives equal states.

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
            numbers = {name: t.index_select(0, index) for name, t in group.numbers.items()}
            controller = _with_numbers(group.controller, numbers)
            kept_index = torch.tensor(kept, device=self._device)
            groups.append(_Group(kept, kept_index, controller, state, numbers))
        self._groups = groups


def _group(
    runs: Sequence[Run], states: Sequence[TrainingState], device: torch.device
) -> list[_Group]:
    """Group the runs whose controllers share a stacked state."""
    rows_of: dict[object, list[int]] = {}
    for row, run in enumerate(runs):
        if isinstance(run.level, Controller):
            rows_of.setdefault(type(run.level), []).append(row)
    groups = []
    for rows in rows_of.values():
        numbers = _differing_numbers([runs[row].level for row in rows], device)
        if numbers is not None and _is_verified(runs, rows, numbers, device):
            groups.append(_make_group(runs, rows, states, numbers, device))
            continue
        # Only equal ones together.
        for equal in _group_equal(runs, rows):
            groups.append(_make_group(runs, equal, states, {}, device))
    return groups


def _make_group(
    runs: Sequence[Run],
    rows: list[int],
    states: Sequence[TrainingState],
    numbers: dict[str, Tensor],
    device: torch.device,
) -> _Group:
    single_states: list[State] = []
    for row in rows:
        state = states[row].controller
        assert state is not None
        single_states.append(state)
    controller = _with_numbers(cast(Controller, runs[rows[0]].level), numbers)
    index = torch.tensor(rows, device=device)
    return _Group(rows, index, controller, _stack_states(single_states, device), numbers)


def _group_equal(runs: Sequence[Run], rows: Sequence[int]) -> list[list[int]]:
    """Group rows by equal controllers."""
    groups: list[list[int]] = []
    for row in rows:
        for group in groups:
            if _is_same(runs[group[0]].level, runs[row].level):
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


def _is_same(a: object, b: object) -> bool:
    """Tell whether two controllers do the same; objects that are no dataclass only if identical."""
    if a is b:
        return True
    return type(a) is type(b) and dataclasses.is_dataclass(a) and a == b


def _differing_numbers(
    controllers: Sequence[object], device: torch.device
) -> dict[str, Tensor] | None:
    """Give the numbers in which controllers of a class differ; None if more than numbers do."""
    first = controllers[0]
    if not dataclasses.is_dataclass(first):
        return {} if all(controller is first for controller in controllers) else None
    numbers = {}
    for field in dataclasses.fields(first):
        values = [getattr(controller, field.name) for controller in controllers]
        if all(value == values[0] for value in values):
            continue
        if not all(type(value) is float for value in values):
            return None
        numbers[field.name] = torch.tensor(values, dtype=torch.float32, device=device)
    return numbers


def _with_numbers(controller: Controller, numbers: dict[str, Tensor]) -> Controller:
    """Copy a controller with tensors in place of some of its numbers."""
    if not numbers:
        return controller
    merged = copy.copy(controller)
    for name, tensor in numbers.items():
        object.__setattr__(merged, name, tensor)  # past the guard of a frozen class
    return merged


def _is_verified(
    runs: Sequence[Run], rows: Sequence[int], numbers: dict[str, Tensor], device: torch.device
) -> bool:
    """Try a controller with tensors for numbers: its states must be those of each on its own."""
    if not numbers:
        return True
    controllers = [cast(Controller, runs[row].level) for row in rows]
    merged = _with_numbers(controllers[0], numbers)
    states = [{k: t.to(device) for k, t in c.init().items()} for c in controllers]
    stacked = _stack_states(states, device)
    for loss, accuracy in ((0.9, 0.5), (0.3, 0.8), (0.6, 0.7), (0.2, 1.0), (0.25, 0.9)):
        epoch_end = StepInfo(None, accuracy, loss, accuracy, 100)
        for info in (StepInfo(torch.tensor(loss, device=device)), epoch_end):
            count = len(controllers)
            stacked_info = StepInfo(torch.full((count,), loss, device=device))
            if info.loss is None:
                stacked_info = _stack_infos([info] * count, device)
            states = [c.update(s, info) for c, s in zip(controllers, states, strict=True)]
            try:
                stacked = merged.update(stacked, stacked_info)
                expected = _stack_states(states, device)
            except (RuntimeError, TypeError, ValueError):
                return False
            if not all(torch.equal(stacked[name], t) for name, t in expected.items()):
                return False
    return True


def _stack_states(states: Sequence[State], device: torch.device) -> State:
    return {name: torch.stack([s[name] for s in states]).to(device) for name in states[0]}


def _stack_infos(infos: Sequence[StepInfo], device: torch.device) -> StepInfo:
    """Stack what several runs measured at the end of an epoch."""
    fields = {}
    for name in ("train_accuracy", "val_loss", "val_accuracy", "val_score"):
        values = [getattr(info, name) for info in infos]
        if values[0] is not None:
            fields[name] = torch.tensor(values, dtype=torch.float32, device=device)
    return StepInfo(n_val=infos[0].n_val, **fields)
