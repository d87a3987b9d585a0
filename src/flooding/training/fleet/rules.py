"""Which Runs can go in a fleet, and which of them together."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import fields

import torch
from torch import nn

from flooding.data import Splits
from flooding.levels import LevelSource, LevelTable
from flooding.numerics import has_global_hooks
from flooding.training.config import UnhashableConfigError, to_config
from flooding.training.problem import Problem
from flooding.training.run import Run
from flooding.training.state import TrainingState, has_ignored_targets

__all__ = ["FleetError", "check_group", "check_state", "group_key", "refusal"]


class FleetError(ValueError):
    """Raised for Runs that cannot train together as one set of tensors."""


def refusal(run: Run) -> str | None:
    """Tell why a Run cannot go in a fleet, as far as that shows before it is built.

    Args:
        run: The Run.

    Returns:
        A sentence, or None if nothing speaks against it.
    """
    problem = run.problem
    if run.method.needs_run:
        return (
            f"{type(run.method).__name__} needs more than one loss and one step of an optimiser, "
            "so its Runs train one by one."
        )
    if isinstance(run.level, (LevelTable, LevelSource)):
        return (
            f"a level that is looked up for each batch, {type(run.level).__name__}, trains one by "
            "one."
        )
    if problem.augment is not None:
        return "an augmentation draws for one Run at a time, so its Runs train one by one."
    if problem.extra_metrics is not None:
        return "extra_metrics take one model at a time, so their Runs train one by one."
    if has_global_hooks():
        return "with global hooks of torch.nn or torch.optim Runs train one by one."
    return None


def check_state(run: Run, state: TrainingState, splits: Splits) -> None:
    """Refuse a Run that cannot go in a fleet, now that it is built.

    Args:
        run: The Run.
        state: Its state.
        splits: Its splits.

    Raises:
        FleetError: If it must train alone.
    """
    optimizer = type(state.optimizer).__name__
    reason = refusal(run)
    if reason is None and state.needs_closure:
        reason = f"{optimizer} computes gradients again within a step; its Runs train one by one."
    elif reason is None and isinstance(state.optimizer, torch.optim.SparseAdam):
        reason = "a fleet has no sparse gradients; Runs with SparseAdam train one by one."
    elif reason is None and state.schedule_free is not None:
        reason = f"{optimizer} evaluates other weights than it trains; its Runs train one by one."
    elif reason is None and state.average is not None and _has_batch_norm(state.model):
        reason = (
            "averaged weights need the statistics of batch norm anew after every epoch; such Runs "
            "train one by one."
        )
    elif reason is None and _is_intercepted(state.model):
        reason = (
            "hooks, and a forward of a module's own, see one run at a time; such Runs train one by "
            "one."
        )
    elif reason is None:
        parts = [split for split in (splits.train, splits.val, splits.test) if split is not None]
        if any(has_ignored_targets(run.problem, split) for split in parts):
            reason = (
                "targets that the loss ignores make batches of different sizes; such Runs train "
                "one by one."
            )
    if reason is not None:
        raise FleetError(f"{reason[0].upper()}{reason[1:]} Leave fleet out for them.")


def _is_intercepted(model: nn.Module) -> bool:
    """Tell whether code beside the classes of the modules takes part in a pass."""
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        hooks += (module._backward_hooks, module._backward_pre_hooks)
        if any(hooks) or "forward" in vars(module):
            return True
    return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())


def _has_batch_norm(model: nn.Module) -> bool:
    kind = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kind) for module in model.modules())


def group_key(run: Run) -> Hashable:
    """Name what the Runs of one fleet must share: all but seed, level and optimiser.

    Args:
        run: The Run.

    Returns:
        Something to compare.
    """
    parts: list[Hashable] = [_identity(run.method)]
    for field in fields(Problem):
        if field.name not in {"optimizer", "data", "model"}:
            parts.append(_identity(getattr(run.problem, field.name)))
    for part in (run.problem.data, run.problem.model):
        # Data and modules may be large; those of one fleet are the same object or callable.
        is_object = isinstance(part, (Splits, nn.Module))
        parts.append(id(part) if is_object else _identity(part))
    return tuple(parts)


def _identity(value: object) -> Hashable:
    """Give the configuration of a value as text, or the object's own number."""
    try:
        return json.dumps(to_config(value), sort_keys=True)
    except UnhashableConfigError:
        return id(value)


def check_group(runs: Sequence[Run]) -> None:
    """Refuse Runs that differ in more than seed, level and optimiser.

    Args:
        runs: The Runs, at least one.

    Raises:
        FleetError: If there is none, or they differ in more.
    """
    if not runs:
        raise FleetError("a fleet must have at least one Run, got none.")
    if len({group_key(run) for run in runs}) > 1:
        raise FleetError(
            "the Runs of a fleet may differ in seed, level and optimiser alone, got other "
            "differences. Put each Problem into a fleet of its own."
        )
