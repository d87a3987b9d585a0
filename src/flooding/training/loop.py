"""THE training loop: ``train(runs)`` yields a row per epoch; printing and tracking are consumers of
rows.
"""

from __future__ import annotations

import copy
import enum
import functools
import hashlib
import inspect
import math
import os
import platform
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flooding import metrics
from flooding.data import Split, Splits, map_tensors, sha256
from flooding.functional import is_flooded
from flooding.levels import Excess, PerClass, PerExample, StepInfo, lookup_levels
from flooding.methods import (
    SAM,
    EMATeacher,
    Flooding,
    GradientPenalty,
    WaveBound,
    flooded_fraction,
    objective,
)
from flooding.numerics import LOCK, capture_settings, pinned, without_contexts
from flooding.torch_losses import (
    check_class_weight,
    example_weight,
    reduction_word,
    signature_reduction,
    unwrap,
)
from flooding.training.checks import (
    check_labels,
    check_last_batch,
    check_scheduler,
    check_targets,
    explain_dtype_error,
    first_loss,
    is_class_loss,
)
from flooding.training.problem import Problem
from flooding.training.record import Record, validation_key
from flooding.training.rng import derive_seed, fork_rng, preserve_rng_state
from flooding.training.run import Run

__all__ = ["NUMERICS_VERSION", "EpochResult", "fingerprint", "mean_level", "train", "unreduced"]

NUMERICS_VERSION = (
    2  # raised whenever the same Run gives other bits; a golden Record in the tests watches over it
)


@dataclass(frozen=True)
class EpochResult:
    """What one epoch of one Run measured.

    Args:
        run: The Run.
        epoch: 0 before training, then 1 to the Run's epochs.
        values: Measured numbers by name, see :class:`flooding.Record`.
        record: The Record, on the last row of a Run only.
        weights: State dicts by name, on the last row only: ``best``, ``last``, and
            ``first_flooded`` if it was asked for and happened.
        losses: Raw losses of the epoch's steps, ``[steps]``, where the Run is plain and takes one
            pass a step.
        snapshot: Gives the state to go on from after this epoch, for ``resume``. It refers to
            tensors that the next row will have changed; ``snapshot(copied=True)`` does not. None
            where there is nothing to go on to.
    """

    run: Run
    epoch: int
    values: dict[str, float]
    record: Record | None = None
    weights: dict[str, dict[str, Tensor]] | None = None
    losses: Tensor | None = field(default=None, repr=False)
    snapshot: Callable[..., dict[str, Any]] | None = field(default=None, repr=False)


def train(
    runs: Run | Iterable[Run],
    *,
    device: str | torch.device = "cpu",
    threads: int = 1,
    first_flooded: bool = False,
    resume: Mapping[str, Any] | None = None,
    conclude: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Generator[EpochResult, bool | None, None]:
    """Train Runs one after another and yield a row per epoch, the first before training.

    ``rows.send(True)`` ends the Run in hand: what it returns is that Run's last row. The caller's
    generator state and thread count are as before between any two rows. Nothing is looked up or
    stored: that is :func:`run_all`.

    Args:
        runs: A Run or several.
        device: Where to train.
        threads: torch threads to train with; one and two give different bits.
        first_flooded: Keep the weights from before the first step whose loss lies below the level.
            Costs a host sync per step until then.
        resume: A :attr:`Row.snapshot` of the same Run, or of a shorter one: what follows is
            bit-identical to what would have followed. The rows up to there are told again.
        conclude: Whether the last row has a Record, which takes passes over the test split.
        settings: Torch's global settings to train under, see
            :func:`flooding.numerics.capture_settings`; None is those in force when a Run
            starts. Enclosing contexts (``autocast``, ``no_grad``, a default device) have no effect.

    Yields:
        A row per epoch.

    Example:
        >>> from flooding import Problem, Run
        >>> from functools import partial
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), max_epochs=2)
        >>> [row.epoch for row in train(Run(problem, level=0.2))]
        [0, 1, 2]
    """
    for run in [runs] if isinstance(runs, Run) else runs:
        global_state = _GlobalState.capture(threads, torch.device(device), settings)
        yield from _train(run, global_state, first_flooded, resume, conclude)


@dataclass
class _State:
    """Everything that changes while a Run trains."""

    model: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    generator: tuple[
        Tensor, ...
    ]  # torch's generator states on the CPU and the device, for dropout and the like
    device: torch.device
    controller: Any = None  # the state of a level controller
    lookup: PerClass | PerExample | Excess | None = None  # levels to look up, on the model's device
    teacher: EMATeacher | None = None  # WaveBound's moving average of the model
    again: bool = False  # whether the optimiser wants a closure that computes gradients anew
    ignores: bool = False  # whether the loss ignores some training targets
    checked: bool = False  # whether a training batch has been through model and loss
    first_loss: float = math.nan
    curves: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, float] = (-math.inf, -math.inf)
    best_epoch: int = 0
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    losses: list[Tensor] = field(
        default_factory=list
    )  # of every step of a plain Run, an epoch each
    trained: int = 0  # epochs that this Run paid for
    seconds: float = 0.0


def _train(
    run: Run,
    global_state: _GlobalState,
    keep: bool,
    resume: Mapping[str, Any] | None,
    conclude: bool,
) -> Generator[EpochResult, bool | None, None]:
    began, tick = time.time(), time.perf_counter()
    with preserve_rng_state(), _isolated_rng(global_state):
        splits, state = _start(run, global_state.device)
    state.seconds = time.perf_counter() - tick
    if resume is not None:
        _restore(run, state, resume)
    past = list(state.curves)
    epoch, values, losses = 0, {}, None
    for epoch in range(run.epochs + 1):
        if epoch < len(past):
            values = past[epoch]
        else:
            with _isolated_rng(global_state, state):
                values = _epoch(run, state, splits.train, epoch, keep) if epoch else {}
                with _eval_weights(state):
                    values |= {} if epoch else _before(run.problem, state, splits)
                    values |= _watch(
                        run.problem,
                        state.model,
                        splits,
                        epoch,
                        last=epoch == run.problem.max_epochs,
                    )
                    _end_epoch(run, state, values, epoch)
        losses = state.losses[epoch - 1] if 0 < epoch <= len(state.losses) else None
        if epoch == run.epochs and conclude:
            break
        if (
            yield EpochResult(run, epoch, dict(values), None, None, losses, _snapshot(state, epoch))
        ):
            break
    if not conclude:
        return
    end = (
        None
        if _snapshot(state, epoch) is None or epoch == run.problem.max_epochs
        else _state(state, copied=True)
    )
    with _isolated_rng(global_state, state), _eval_weights(state):
        record = _record(run, state, splits)
    told = {"began": began, "seconds": round(state.seconds, 3), "epochs_trained": state.trained}
    told["val_examples"] = len(splits.val)
    record = replace(record, metadata={**told, "pid": os.getpid(), **_versions()})
    yield EpochResult(
        run, epoch, values, record, state.weights, losses, None if end is None else lambda **_: end
    )


def _snapshot(state: _State, epoch: int) -> Callable[..., dict[str, Any]] | None:
    """Give what takes a snapshot after an epoch, unless the state is already beyond it."""
    return functools.partial(_state, state) if epoch == len(state.curves) - 1 else None


def _state(state: _State, *, copied: bool = False) -> dict[str, Any]:
    """Give all that changes while a Run trains, in types that a checkpoint may hold."""
    told: dict[str, Any] = {"generator": list(state.generator), "controller": state.controller}
    for name in ("model", "optimizer", "lr_scheduler", "teacher"):
        part = getattr(state, name)
        told[name] = None if part is None else part.state_dict()
    told = copy.deepcopy(told) if copied else told
    for name in ("first_loss", "best_epoch", "trained", "seconds"):
        told[name] = getattr(state, name)
    told |= {
        "curves": list(state.curves),
        "weights": dict(state.weights),
        "best": list(state.best),
    }  # never changed
    told["losses"] = torch.stack(state.losses) if state.losses else None
    return told | {"mark": _fingerprint(state.model, state.first_loss)}


def _restore(run: Run, state: _State, told: Mapping[str, Any]) -> None:
    """Put a fresh state where a snapshot was taken."""
    if told["mark"] != _fingerprint(state.model, told["first_loss"]):
        raise ValueError(
            "a checkpoint must have this model's parameter shapes, got others. Train afresh."
        )
    for name in ("model", "optimizer", "lr_scheduler", "teacher"):
        if told[name] is not None:
            getattr(state, name).load_state_dict(copy.deepcopy(told[name]))
    state.generator = tuple(t.cpu() for t in told["generator"])
    if told["controller"] is not None:
        state.controller = {name: t.to(state.device) for name, t in told["controller"].items()}
    state.curves = [dict(row) for row in told["curves"]]
    state.losses = [] if told["losses"] is None else list(told["losses"].to(state.device))
    state.best, state.weights = tuple(told["best"]), dict(told["weights"])
    for name in ("first_loss", "best_epoch", "trained", "seconds"):
        setattr(state, name, told[name])
    if len(state.curves) > run.epochs + 1:
        raise ValueError(
            f"a Run of {run.epochs} epochs cannot go on from epoch {len(state.curves) - 1}."
        )


def _start(run: Run, device: torch.device) -> tuple[Splits, _State]:
    problem = run.problem
    splits = problem.splits(run.seed)
    there = {name: getattr(splits, name) for name in ("train", "val", "test")}
    splits = replace(
        splits, **{name: split.to(device) for name, split in there.items() if split is not None}
    )
    check_targets(problem, splits)
    with explain_dtype_error(
        torch.get_default_dtype(), splits.train.x
    ):  # a lazy module meets them as it is built
        model = problem.build(run.seed).to(device)
    check_last_batch(problem, run.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "the model must have parameters that require a gradient, got none. Unfreeze some of them."
        )
    method, make = run.method, problem.optimizer
    optimizer = method.wrap(make, parameters) if isinstance(method, SAM) else make(parameters)
    if (switched := _schedule_free(optimizer)) is not None:
        switched.train()
    schedule = problem.lr_scheduler(optimizer) if problem.lr_scheduler else None
    check_scheduler(schedule, problem.max_epochs)
    with fork_rng(derive_seed(run.seed, "train")):
        state = _State(model, parameters, optimizer, schedule, _generators(device), device)
    if hasattr(run.level, "update"):
        state.controller = {name: t.to(device) for name, t in run.level.init().items()}
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    wants_closure = closure is not None and closure.default is not None
    state.again = isinstance(method, SAM) or wants_closure
    state.ignores = _ignores(problem, splits.train)
    if isinstance(run.method, WaveBound):
        state.teacher = EMATeacher(model, run.method.decay)
    level = run.level
    if hasattr(level, "resolve"):
        found = level.resolve(problem, run.seed, device)
        level, state.trained = found.levels, found.cost or 0
    if hasattr(level, "at"):
        state.lookup = level.to(device)
    if isinstance(state.lookup, PerExample):
        state.lookup.check(splits.train.id)
    return splits, state


def _ignores(problem: Problem, split: Split) -> bool:
    """Tell whether the loss ignores some of a split's targets."""
    y = split.y
    return (
        problem.ignore_index is not None
        and not y.is_floating_point()
        and not bool(problem.target_mask(y).all())
    )


def _schedule_free(optimizer: Any) -> Any:
    """Give the optimiser that evaluates other weights than it trains, itself or inside SAM; None if
    there is none.
    """
    for part in (optimizer, getattr(optimizer, "base_optimizer", None)):
        if all(callable(getattr(part, name, None)) for name in ("train", "eval")):
            return part
    return None


@contextmanager
def _eval_weights(state: _State) -> Generator[None, None, None]:
    """Put the weights that a schedule-free optimiser evaluates in place, then those that it
    trains.
    """
    switched = _schedule_free(state.optimizer)
    if switched is None:
        yield
        return
    trained = [p.detach().clone() for p in state.parameters]
    switched.eval()
    try:
        yield
    finally:
        switched.train()
        with torch.no_grad():  # to the bit: the way there and back rounds
            for p, value in zip(state.parameters, trained, strict=True):
                p.copy_(value)


class _Batch(NamedTuple):
    """What one pass over a batch gave; its gradients are in place."""

    output: Any
    loss: Tensor  # raw: 0-d, or one per example
    level: Any
    mean: Tensor  # of the raw loss
    value: Tensor  # what was differentiated
    weight: Tensor | None  # of each loss in torch's mean


def _epoch(run: Run, state: _State, split: Split, epoch: int, keep: bool) -> dict[str, float]:
    """Train one epoch and tell what it saw."""
    model, optimizer, controller = state.model, state.optimizer, run.level
    criterion = _criterion(run)
    order = _batch_indices(run, split, epoch)
    counts = _counts(run.problem, split, order, ignores=state.ignores)
    order = [
        index for index, count in zip(order, counts, strict=True) if count
    ]  # torch's mean of nothing is NaN
    counts = [count for count in counts if count]
    losses, levels, shares, outputs = [], [], [], []
    constant = isinstance(run.level, float) and run.method.reduction == "mean"
    model.train()
    for index in order:
        x, y = (
            map_tensors(lambda t, i=index: _index_copy(t, i), split.x),
            _index_copy(split.y, index),
        )
        if run.problem.augment is not None:
            x = run.problem.augment(x)
        ids = None if state.lookup is None else split.id[index]
        gradient = functools.partial(_backward, run, state, criterion, x, y, ids)
        with nullcontext() if state.checked else _explain_first_pass(run.problem, model, y):
            output, loss, level, mean, _, weight = gradient()
        if keep and "first_flooded" not in state.weights and bool(is_flooded(loss, level).any()):
            with _eval_weights(state):
                state.weights["first_flooded"] = _copy(model)
        if state.again:
            optimizer.step(lambda again=gradient: float(again().value))
        else:
            optimizer.step()
        losses.append(mean)
        if level is not None:
            levels.append(level)
            if not constant and state.ignores:
                shares.append(flooded_fraction(loss, level, weight))
            elif not constant:
                shares.append(is_flooded(loss, level).float().mean())
        if state.controller is not None and controller is not None:
            state.controller = controller.update(state.controller, StepInfo(loss=mean))
        if state.teacher is not None:
            state.teacher.update_parameters(model)
        if _is_logits(output, y):
            outputs.append(output.detach())
    values = {"lr": float(optimizer.param_groups[0]["lr"])}
    if epoch == 1:
        state.first_loss = float(losses[0])
    weights = torch.tensor(counts)
    values["train_loss"] = float(
        (torch.stack(losses).float().cpu() * weights).sum() / weights.sum()
    )
    if run.level is None and not state.again:
        state.losses.append(torch.stack(losses))
    state.trained += 1
    values["level"] = mean_level(levels)
    if constant and state.teacher is None:
        shares = list(is_flooded(torch.stack(losses), run.level).float())
    values["flooded"] = float(torch.stack(shares).mean()) if shares else 0.0
    if outputs:
        seen = split if isinstance(order[0], slice) else _labels(split, torch.cat(order))
        values |= _against_labels(run.problem, "train", torch.cat(outputs), seen)
    return values


def _index_copy(t: Tensor, index: Any) -> Tensor:
    """Take examples as a copy: a model or a loss may work in place, and the data are the
    caller's.
    """
    return t[index].clone() if isinstance(index, slice) else t[index]


def _labels(split: Split, index: Tensor) -> Split:
    """Take the labels of examples, and leave the inputs where they are."""
    y = split.y[index]
    return Split(y, y, None if split.clean is None else split.clean[index])


def mean_level(levels: Sequence[Any]) -> float:
    """Average the levels in force over the steps of an epoch.

    Args:
        levels: A number or tensor for each step.

    Returns:
        Their mean, as curves hold it; NaN where there are none.
    """
    if not levels:
        return math.nan
    if isinstance(levels[0], float) and all(level is levels[0] for level in levels):
        return float(torch.full((len(levels),), levels[0], dtype=torch.float32).mean())
    return float(
        torch.stack([torch.as_tensor(level, dtype=torch.float32).mean() for level in levels]).mean()
    )


def _backward(
    run: Run, state: _State, criterion: Callable[..., Tensor], x: Any, y: Tensor, ids: Tensor | None
) -> _Batch:
    """Put the gradients of one batch in place: raw loss, level, objective, penalty, clipping."""
    problem, method, optimizer = run.problem, run.method, state.optimizer
    output, loss, weight = _raw(run, state, criterion, x, y)
    level = _level(run, state, criterion, x, y, ids, weight)
    if (
        isinstance(level, Tensor) and 0 < level.ndim < loss.ndim
    ):  # a level per example, several losses each
        level = level.reshape(level.shape + (1,) * (loss.ndim - level.ndim))
    # Flooding's gradient is the raw one times a sign; an optimiser that asks for the value itself
    # gets that.
    signed = level if type(method) is Flooding and not state.again else None
    value = objective(loss, level if signed is None else None, method, weight)
    if isinstance(method, GradientPenalty):
        value = value + method.penalty(loss, state.parameters)
    if not value.requires_grad:
        raise ValueError(
            "the loss must have a gradient, got a constant. Compute it from the outputs, in torch."
        )
    optimizer.zero_grad()
    value.backward(None if signed is None else Flooding.slope(loss, signed))
    if problem.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(state.parameters, problem.max_grad_norm)
    loss = loss.detach()
    mean = objective(loss, None, method, weight)
    if isinstance(
        method, WaveBound
    ):  # what it compares are batch means, and a bound below the teacher's
        loss, level = method.student_and_bound(loss, level)
    return _Batch(output, loss, level, mean, value.detach(), weight)


def _criterion(run: Run) -> Callable[..., Tensor]:
    return unreduced(run.problem.loss) if run.method.reduction == "none" else run.problem.loss


def _raw(
    run: Run, state: _State, criterion: Callable[..., Tensor], x: Any, y: Tensor
) -> tuple[Any, Tensor, Any]:
    """Give a batch's output, its raw loss as the method needs it, and the examples' weights in
    torch's mean.
    """
    output = state.model(x)
    if state.checked:
        loss = criterion(output, y)
    else:
        loss = first_loss(criterion, output, y, trained=run.method.reduction)
        state.checked = True
    if state.teacher is not None:
        loss = _drop_ignored(run.problem, state, loss, y)
    weight = None
    if run.method.reduction == "none" and state.teacher is None:
        weight = example_weight(criterion, y, loss)
    if weight is not None:  # the level acts on the loss before its class weight
        loss = loss / weight.masked_fill(weight == 0, 1.0)
    return output, loss, weight


def _drop_ignored(problem: Problem, state: _State, losses: Tensor, y: Tensor) -> Tensor:
    """Leave out the losses of ignored targets, for a method that averages them itself."""
    return losses[problem.target_mask(y)] if state.ignores and losses.shape == y.shape else losses


def _batch_indices(run: Run, split: Split, epoch: int) -> list[Any]:
    """Index every batch of an epoch, in an order that depends on nothing but the seed and the
    epoch.
    """
    size = run.problem.batch_size
    if len(split) <= size:
        return [slice(None)]
    generator = torch.Generator().manual_seed(derive_seed(run.seed, "order", epoch))
    return list(torch.randperm(len(split), generator=generator).to(split.y.device).split(size))


def _level(
    run: Run,
    state: _State,
    criterion: Callable[..., Tensor],
    x: Any,
    y: Tensor,
    ids: Tensor | None,
    weight: Tensor | None,
) -> Any:
    if state.teacher is not None:
        return _drop_ignored(run.problem, state, criterion(state.teacher(x), y), y)
    if state.controller is not None:
        return state.controller["level"]
    if state.lookup is None:
        return run.level
    assert ids is not None
    levels = lookup_levels(state.lookup, y, ids, weight)
    return levels.mean() if run.method.reduction == "mean" else levels


def unreduced(loss: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Turn a mean loss into the per-example losses it is the mean of.

    Args:
        loss: A torch loss function with a ``reduction`` argument, or a module with a ``reduction``
            attribute.

    Returns:
        A callable ``(outputs, targets) -> losses[batch]``.

    Raises:
        ValueError: If the loss has no reduction to set.
    """
    check_class_weight(loss)
    bound = loss if isinstance(loss, functools.partial) else functools.partial(loss)
    function, args, options = bound.func, bound.args, bound.keywords
    if isinstance(function, nn.Module):
        function = _with_reduction_none(unwrap(function)[0], loss)
        options = {name: value for name, value in options.items() if name != "reduction"}
    else:
        try:  # also by the wrapper itself, where functools.wraps hides one
            inspect.signature(function, follow_wrapped=False).bind_partial(*args, reduction="none")
        except (TypeError, ValueError) as error:
            raise ValueError(_NO_REDUCTION.format(loss)) from error
        options = {
            name: value for name, value in options.items() if name not in {"size_average", "reduce"}
        }
        options["reduction"] = "none"
    each = functools.partial(function, *args, **options) if args or options else function
    if (
        signature_reduction(loss) == "batchmean"
    ):  # the mean over examples of the sum over their elements
        return lambda outputs, targets: each(outputs, targets).flatten(1).sum(1)
    return each


_NO_REDUCTION = (
    "a per-example method needs a loss with reduction='none', got {}. Give it that argument."
)


def _with_reduction_none(module: nn.Module, loss: Any) -> nn.Module:
    """Copy a module with its reduction set to none, as a string or as the member of its Enum."""
    word: Any = getattr(module, "reduction", _NO_REDUCTION)
    none = "none"
    if isinstance(word, enum.Enum):
        none = next(
            (member for member in type(word) if reduction_word({"reduction": member}) == "none"),
            None,
        )
    if word is _NO_REDUCTION or none is None:
        raise ValueError(_NO_REDUCTION.format(loss))
    each = copy.copy(module)
    each.reduction = none  # type: ignore[assignment]
    return each


def _before(problem: Problem, state: _State, splits: Splits) -> dict[str, float]:
    """Measure the training split before training, in evaluation mode, and check the parts against
    each other.
    """
    values = {"lr": float(state.optimizer.param_groups[0]["lr"]), "level": math.nan, "flooded": 0.0}
    with _explain_first_pass(problem, state.model, splits.train.y, splits.train.x):
        return values | _measure(problem, state.model, splits.train, "train", first=splits)[1]


def _explain_first_pass(
    problem: Problem, model: nn.Module, y: Tensor, x: Any = None
) -> AbstractContextManager[None]:
    """Say which tensor to convert where a first pass fails for its type."""
    types = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return explain_dtype_error(
        [*types, torch.get_default_dtype()][0], x, None if is_class_loss(problem.loss) else y
    )


def _watch(
    problem: Problem, model: nn.Module, splits: Splits, epoch: int, last: bool
) -> dict[str, float]:
    """Measure validation, and the test subset where its curve was asked for."""
    values = _measure(problem, model, splits.val, "val")[1]
    curve = problem.test_curve
    if curve is not None and splits.test is not None and (epoch % curve.every == 0 or last):
        values |= _measure(problem, model, splits.test.take(slice(curve.examples)), "test")[1]
    if problem.extra_metrics is not None and (
        epoch % getattr(problem.extra_metrics, "every", 1) == 0 or last
    ):
        values |= {
            name: float(value)
            for name, value in problem.extra_metrics(model, problem, splits).items()
        }
    return values


def _measure(
    problem: Problem, model: nn.Module, split: Split, name: str, first: Splits | None = None
) -> tuple[Any, dict[str, float]]:
    """Pass a split through the model once, in evaluation mode, and measure against noisy and clean
    labels.
    """
    size = problem.eval_batch_size
    report = problem.reported if first is None else functools.partial(first_loss, problem.reported)
    model.eval()
    with torch.no_grad():
        parts = [slice(i, i + size) for i in range(0, len(split), size)]
        outputs = [
            model(map_tensors(lambda t, i=part: _index_copy(t, i), split.x)) for part in parts
        ]
        if first is not None:  # before they reach the loss: on a GPU its own check ends the process
            check_labels(problem, outputs[0], first)
        if isinstance(outputs[0], Tensor):
            output = torch.cat(outputs)
            values = {f"{name}_loss": float(report(output, split.y))}
        else:
            output = None
            counts = _counts(problem, split, parts, ignores=_ignores(problem, split))
            measured = [
                (o, part) for o, part, count in zip(outputs, parts, counts, strict=True) if count
            ]
            losses = [float(report(o, split.y[part])) for o, part in measured]
            values = {
                f"{name}_loss": float(
                    np.average(losses, weights=[count for count in counts if count])
                )
            }
        if output is not None and _is_logits(output, split.y):
            values |= _against_labels(problem, name, output, split)
        if problem.score is not None and name != "train":
            if output is None:
                raise ValueError(
                    f"a score needs outputs that are one tensor, got {type(outputs[0]).__name__}."
                )
            values[f"{name}_score"] = float(
                problem.score.function(*_drop_ignored_examples(problem, output, split.y))
            )
    return output, values


def _counts(problem: Problem, split: Split, parts: Sequence[Any], *, ignores: bool) -> list[float]:
    """Count what each part's mean loss divides by: its examples, or its targets where some are
    ignored.
    """
    if ignores:
        valid = problem.target_mask(split.y)
        return torch.stack([valid[part].sum() for part in parts]).double().tolist()
    return [
        float(len(range(len(split))[part] if isinstance(part, slice) else part)) for part in parts
    ]


def _drop_ignored_examples(problem: Problem, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out the examples whose target is ignored; all of them are the very same tensors."""
    if not _is_logits(output, y) or bool((valid := problem.target_mask(y)).all()):
        return output, y
    return output[valid], y[valid]


def _against_labels(problem: Problem, name: str, logits: Tensor, split: Split) -> dict[str, float]:
    """Measure logits against noisy and clean labels."""
    with torch.no_grad():
        values = {f"{name}_accuracy": _accuracy(*_drop_ignored_examples(problem, logits, split.y))}
        if split.clean is not None:
            values[f"{name}_loss_clean"] = float(problem.reported(logits, split.clean))
            values[f"{name}_accuracy_clean"] = _accuracy(
                *_drop_ignored_examples(problem, logits, split.clean)
            )
    return values


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).float().mean())


def _is_logits(output: Any, y: Tensor) -> bool:
    return (
        isinstance(output, Tensor)
        and output.ndim == 2
        and y.ndim == 1
        and not y.is_floating_point()
    )


def _end_epoch(run: Run, state: _State, values: dict[str, float], epoch: int) -> None:
    """Keep an epoch's curves, show it to the controller, and keep the weights if they are the best
    so far.
    """
    state.curves.append(values)
    if epoch == 0:
        return
    if isinstance(state.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        state.lr_scheduler.step(values["val_loss"])
    elif state.lr_scheduler is not None:
        state.lr_scheduler.step()
    if state.controller is not None:
        seen = StepInfo(
            None, *(values.get(name) for name in ("train_accuracy", "val_loss", "val_accuracy"))
        )
        state.controller = run.level.update(state.controller, seen)
    if (found := validation_key(values, run.problem)) > state.best:
        state.best, state.best_epoch = found, epoch
        state.weights["best"] = _copy(state.model)


def _record(run: Run, state: _State, splits: Splits) -> Record:
    """Measure the test split with the last and the best weights."""
    last = len(state.curves) - 1
    finals = {"epochs": float(last)}
    state.weights["last"] = _copy(state.model)
    state.weights.setdefault("best", state.weights["last"])
    tested, views = _test(run.problem, state.model, splits)
    finals |= _finals("last", last, state.curves[last], tested)
    arrays = {f"last.{name}": view for name, view in views.items()}
    if state.best_epoch != last:
        state.model.load_state_dict(state.weights["best"])
        tested, views = _test(run.problem, state.model, splits)
    finals |= _finals(
        "best", state.best_epoch or last, state.curves[state.best_epoch or last], tested
    )
    arrays |= {f"best.{name}": view for name, view in views.items()}
    names = sorted(set().union(*state.curves))
    curves = {
        n: np.array([row.get(n, math.nan) for row in state.curves], np.float32) for n in names
    }
    weights = sha256(*(t for t in state.weights["last"].values() if isinstance(t, Tensor)))
    return Record(run, curves, arrays, finals, weights, _fingerprint(state.model, state.first_loss))


def _finals(
    name: str, epoch: int, row: dict[str, float], tested: dict[str, float]
) -> dict[str, float]:
    watched = {n: v for n, v in row.items() if not n.startswith("test_")}
    return {f"{name}.{n}": v for n, v in {"epoch": float(epoch), **watched, **tested}.items()}


def _test(
    problem: Problem, model: nn.Module, splits: Splits
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Pass the whole test split through the model once and measure it for noisy and clean
    labels.
    """
    test = splits.test
    if test is None:
        return {}, {}
    logits, values = _measure(problem, model, test, "test")
    if not _is_logits(logits, test.y):
        return values, {}
    views = {}
    with torch.no_grad():
        for suffix, y in (("", test.y), ("_clean", test.clean)):
            if y is not None:
                scored = _drop_ignored_examples(problem, logits, y)
                error, bins = metrics.calibration(*scored)
                told = {"nll": metrics.nll(*scored), "brier": metrics.brier(*scored), "ece": error}
                told["over_confidence"] = metrics.over_confidence(*scored)
                values |= {f"test_{n}{suffix}": float(value) for n, value in told.items()}
                parts = [part.float() for part in (bins.confidence, bins.accuracy, bins.count)]
                views[f"reliability{suffix}"] = torch.stack(parts).cpu().numpy()
        if splits.posterior is not None:
            values["test_kl_to_posterior"] = float(
                metrics.kl_to_posterior(logits, splits.posterior.to(logits.device))
            )
        if problem.probe_inputs is not None:
            inputs = map_tensors(lambda t: t.to(logits.device), problem.probe_inputs())
            views["probe"] = metrics.probabilities(model(inputs)).float().cpu().numpy()
    return values, views


def fingerprint(run: Run, device: str | torch.device = "cpu", threads: int = 1) -> str:
    """Hash the parameter shapes and the first batch loss of a Run, to tell whether a Record can be
    its own.

    Args:
        run: The Run.
        device: Where it trains.
        threads: torch threads it trains with.

    Returns:
        What the Run's Record carries as ``fingerprint``.
    """
    until = replace(run, problem=replace(run.problem, test_curve=None), stop_epoch=1)
    global_state = _GlobalState.capture(threads, torch.device(device))
    with preserve_rng_state(), _isolated_rng(global_state):
        splits, state = _start(until, torch.device(device))
    with _isolated_rng(global_state, state), torch.no_grad():
        index = _batch_indices(run, splits.train, 1)[0]
        state.model.train()
        x, y = (
            map_tensors(lambda t: _index_copy(t, index), splits.train.x),
            _index_copy(splits.train.y, index),
        )
        if run.problem.augment is not None:
            x = run.problem.augment(x)
        _, loss, weight = _raw(run, state, _criterion(run), x, y)
        return _fingerprint(state.model, float(objective(loss, None, run.method, weight)))


def _fingerprint(model: nn.Module, first_loss: float) -> str:
    shapes = [tuple(p.shape) for p in model.parameters()]
    return hashlib.sha256(f"{shapes} {np.float32(first_loss)!r}".encode()).hexdigest()


def _copy(model: nn.Module) -> dict[str, Tensor]:
    weights = model.state_dict()
    return {
        n: t.detach().clone() if isinstance(t, Tensor) else copy.deepcopy(t)
        for n, t in weights.items()
    }


class _GlobalState(NamedTuple):
    """What of torch's global state a Run trains under, whatever the caller changes meanwhile."""

    threads: int
    dtype: torch.dtype
    settings: Mapping[str, Any]  # see flooding.numerics
    device: torch.device

    @staticmethod
    def capture(
        threads: int, device: torch.device, settings: Mapping[str, Any] | None = None
    ) -> _GlobalState:
        """Take those in force now, but for the given ones."""
        settings = capture_settings() if settings is None else settings
        return _GlobalState(threads, torch.get_default_dtype(), settings, device)


@contextmanager
def _isolated_rng(
    global_state: _GlobalState, state: _State | None = None
) -> Generator[None, None, None]:
    """Work with the Run's threads, settings and generator while no other thread does, then give the
    caller's back.
    """
    threads, dtype, settings, device = global_state
    with LOCK, pinned(settings), without_contexts(device):
        before, outside, tick = torch.get_num_threads(), _generators(device), time.perf_counter()
        caller_dtype = torch.get_default_dtype()
        torch.set_num_threads(
            threads
        )  # always: torch's own number may not be that of its libraries
        torch.set_default_dtype(dtype)
        if state is not None:
            _set_generators(state.generator, device)
        try:
            yield
        finally:
            if state is not None:
                state.generator = _generators(device)
                state.seconds += time.perf_counter() - tick
            _set_generators(outside, device)
            torch.set_default_dtype(caller_dtype)
            torch.set_num_threads(before)


def _generators(device: torch.device) -> tuple[Tensor, ...]:
    here = torch.get_rng_state()
    return (here, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (here,)


def _set_generators(states: tuple[Tensor, ...], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@functools.cache
def _versions() -> dict[str, str | int]:
    return {
        "engine": NUMERICS_VERSION,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": platform.machine(),
    }
