"""Contract tests for parts you write yourself: called in your tests, they fail with the broken
rule.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flooding.level_search.base import Evaluate, SearchResult, Strategy
from flooding.levels import Controller, LevelTable, State, StepInfo, as_controller, simulate
from flooding.methods import Method, objective
from flooding.methods.base import check_method as require_method
from flooding.training.record import Record, validation_key
from flooding.training.run import Run

__all__ = ["check_controller", "check_evaluate", "check_method", "check_strategy", "fake_record"]

_STEPS_PER_EPOCH = 4
_Part = TypeVar("_Part")


def check_controller(controller: Controller, *, steps: int = 40, compiled: bool = False) -> None:
    """Check that a level controller keeps the protocol of :class:`flooding.levels.Controller`.

    The controller is shown a made-up training of ``steps`` steps in epochs of four: losses that
    fall from about 3 to 1e-7, and accuracies that rise to 1, some as floats and some as tensors.
    Checked are: the state (tensors by name, with a float ``"level"`` without axes, neither NaN nor
    inf); that ``update`` is pure (bit for bit the same answer again, nothing changed that it was
    given, nothing kept that the caller may write over, no graph kept) and keeps names, dtypes,
    shapes and device; that it never waits for the device; that pickled and copied controllers act
    alike; that a state saved in the middle of an epoch and loaded with ``weights_only=True``
    continues exactly in a new process; that NaN losses and accuracies never make the level NaN. The
    random numbers are fixed and the global generator is left alone.

    Args:
        controller: The controller to check.
        steps: Optimiser steps of the made-up training, at least 8. Take more than your controller's
            own max_epochs.
        compiled: Check also that ``torch.compile(update, fullgraph=True)`` gives the same bits from
            at most two graphs, one for steps and one for epochs. Takes seconds, and resets what was
            compiled before.

    Raises:
        TypeError: If ``init`` or ``update`` gives something that is not a state.
        ValueError: If ``steps`` is below 8.
        AssertionError: If any other rule is broken; the message names it.

    Example:
        >>> from flooding.levels import Warmup
        >>> check_controller(Warmup(0.1, steps=20))
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    if steps < 2 * _STEPS_PER_EPOCH:
        raise ValueError(
            f"steps must be at least {2 * _STEPS_PER_EPOCH}, got {steps}. Two epochs are needed."
        )
    seens = _training(steps)
    # Before the first call, as in a new process: what init or update leaves on the object is not
    # there.
    copied, pickled = _copies_of("controller", controller)
    _check_state(controller.init(), "init")
    states = _check_updates(controller, seens)
    _check_waiting(controller, seens)
    _check_device(controller, seens)
    _check_resume(pickled, seens, states)
    _require(
        _all_same(simulate(copied, seens), states), "a copied controller must give the same states."
    )
    _check_nan(controller, seens)
    if compiled:
        _check_compiled(controller, seens)


def check_strategy(make: Callable[[], Strategy]) -> None:
    """Check that a strategy keeps the protocol of :mod:`flooding.level_search.base`.

    It is driven with made-up Records (see :func:`make_up`), each time twice: with accuracies and
    with losses alone, with NaN validation losses for half of the levels, for the other half, and
    for all. Checked are: that it yields non-empty lists of Runs, none twice in a list, and ends;
    that the same Records make it ask the same Runs and find the same; that it ends with a Found
    whose ``run`` is a Run and whose suggestions have ``low <= level <= high``; that it never finds
    a level whose validation loss was NaN while there are others; that torch's, NumPy's and Python's
    global generators are left alone. It may ask nothing at all.

    Args:
        make: A callable that gives a fresh generator each time.

    Raises:
        TypeError: If it yields or returns something of the wrong kind.
        AssertionError: If any other rule is broken; the message names it.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> from flooding.level_search.grid import grid
        >>> problem = Problem(data=two_gaussians, model=partial(mlp, 10, 2, width=20), max_epochs=10)
        >>> check_strategy(lambda: grid(problem, [0.0, 0.1, 0.2]))
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    before = _global_generators()
    for accuracy in (True, False):
        for diverges in _DIVERGES:
            (asked, found), (again, same) = (_drive(make(), accuracy, diverges) for _ in range(2))
            names = [[_name(run) for run in runs] for runs in asked]
            rule = "the same Records must make a strategy ask the same Runs"
            _require(
                names == [[_name(run) for run in runs] for runs in again],
                f"{rule}. Seed what it draws.",
            )
            _check_found(found)
            told = [repr((_name(f.run), f.suggestions, f.warnings)) for f in (found, same)]
            _require(
                told[0] == told[1],
                f"the same Records must make a strategy find the same, got {told}.",
            )
            _check_choice(asked, found, diverges)
    rule = "torch's, NumPy's and Python's global generators must be left alone; draw from one of your own"
    _require(before == _global_generators(), f"{rule}.")


def check_evaluate(run_all: Evaluate, problem: Any) -> None:
    """Check that an ``evaluate`` of your own, a cluster's say, keeps the protocol that strategies
    count on.

    Four short Runs of the problem are trained twice, in different orders. Checked are: a Record for
    each Run, in the order asked, that carries this Run; a validation loss at the end; curves with a
    value before training and one after each epoch; the same measurements again, whatever else is
    asked and in whatever order; that a Run of fewer epochs sees what a longer one saw until then;
    that no Runs give no Records.

    Args:
        evaluate: Runs to Records.
        problem: A small Problem of two epochs or more whose data, model and loss are reproducible.

    Raises:
        AssertionError: If a rule is broken; the message names it.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, run_all
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), max_epochs=3)
        >>> check_evaluate(partial(run_all, ledger=False, workers=0), problem)
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    asked = [(None, 0, None), (0.3, 1, None), (0.3, 0, problem.max_epochs - 1), (0.3, 0, None)]
    runs = [Run(problem, level, seed=seed, stop_epoch=until) for level, seed, until in asked]
    _require(list(run_all([])) == [], "no Runs must give no Records.")
    told = list(run_all(runs))
    _require(
        len(told) == len(runs),
        f"there must be a Record for each Run, got {len(told)} for {len(runs)}.",
    )
    for run, record in zip(runs, told, strict=True):
        _require(
            record.run is run,
            "Records must come in the order asked, each with the Run it was asked for.",
        )
        _require(
            "last.val_loss" in record.metrics,
            "finals must have the validation loss at the end: last.val_loss.",
        )
        lengths = {name: len(curve) for name, curve in record.curves.items()}
        rule = f"curves must have {run.epochs + 1} values, from before training to the last of {run.epochs} epochs"
        _require(set(lengths.values()) <= {run.epochs + 1}, f"{rule}, got {lengths}.")
    again = list(run_all(runs[::-1]))[::-1]
    same = all(_measured(a) == _measured(b) for a, b in zip(told, again, strict=True))
    _require(
        same,
        "the same Run must be measured alike whatever else is asked, in whatever order. Seed what it draws.",
    )
    short, whole = told[2].curves, told[3].curves
    same = all(
        np.array_equal(curve, whole[name][: len(curve)], equal_nan=True)
        for name, curve in short.items()
    )
    _require(
        same and short.keys() == whole.keys(),
        "a shorter Run must see what a longer one saw until then.",
    )


def check_method(method: Method) -> None:
    """Check that a method keeps the protocol of :class:`flooding.methods.Method`.

    Its objective is computed for losses above, at and below a level. Checked are: that it is a
    method, whose copies by ``deepcopy`` and ``pickle`` act alike; that the objective is finite, has
    a graph and gives the same bits again; that the method changes no argument; that a level of
    ``-inf`` ("no level yet") leaves the loss and its gradient as they are; with ``shares_prefix``
    that the gradient above the level is exactly that of the loss; with ``has_slope`` that ``slope``
    is the factor of the gradient.

    Args:
        method: The method to check.

    Raises:
        TypeError: If it is no method.
        ValueError: If its ``reduction`` is unknown.
        AssertionError: If any other rule is broken; the message names it.

    Example:
        >>> from flooding.methods import Flooding
        >>> check_method(Flooding())
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    require_method(method)
    copies = _copies_of("method", method)
    level = torch.tensor(0.3)
    for losses in ([0.9], [0.3], [0.05], [2.0, 0.4, 0.3, 0.1]):
        loss = torch.tensor(losses)
        if method.reduction == "mean":
            loss = loss.mean()
        value, gradient = _differentiate(method, loss, level)
        _require(math.isfinite(value), f"the objective must be finite, got {value} for {losses}.")
        for other in (method, *copies):
            again = _differentiate(other, loss, level)
            same = again[0] == value and torch.equal(again[1], gradient)
            _require(same, "a method and its copies must give the same bits again.")
        raw_gradient = torch.full_like(loss, 1 / len(losses)) if loss.ndim else torch.ones(())
        plain = _differentiate(method, loss, torch.tensor(-math.inf))
        is_plain = torch.equal(torch.tensor(plain[0]), loss.mean())
        is_plain = is_plain and torch.equal(plain[1], raw_gradient)
        rule = "a level of -inf must leave the loss and its gradient as they are"
        _require(is_plain, f"{rule}, got {plain} for {losses}. Use torch.where.")
        if method.shares_prefix and bool((loss > level).all()):
            rule = "with shares_prefix the gradient above the level must be that of the loss"
            _require(torch.equal(gradient, raw_gradient), f"{rule}, got a factor of {gradient}.")
        if method.has_slope:
            slope = method.slope(loss, level)
            factor = torch.ones(()) if slope is None else slope
            rule = "slope must be the factor of the gradient"
            _require(torch.equal(factor, gradient), f"{rule}, got {factor} for {gradient}.")


def _differentiate(method: Method, loss: Tensor, level: Tensor) -> tuple[float, Tensor]:
    """Compute the objective and its gradient."""
    if method.level_source == "teacher":  # whose losses have the shape of the model's
        level = level.expand_as(loss)
    raw = loss.clone().requires_grad_()
    value = objective(raw, level, method)
    _require(value.requires_grad, "a method must keep the graph of the loss. Do not detach it.")
    value.backward()
    _require(torch.equal(raw.detach(), loss), "a method must not change the loss it is given.")
    assert raw.grad is not None
    return value.item(), raw.grad


def _measured(record: Record) -> dict[str, Any]:
    return {
        name: np.asarray(value).tobytes()
        for name, value in {**record.curves, **record.metrics}.items()
    }


# Which of the levels diverge, by the order in which they were first asked.
_DIVERGES: list[Callable[[int], bool]] = [
    lambda _: False,
    lambda place: place % 2 == 0,
    lambda place: place % 2 == 1,
    lambda _: True,
]
_MOST_LISTS = 1000


def fake_record(run: Run, *, accuracy: bool = True, diverges: bool = False) -> Record:
    """Make up the Record of a Run, in no time: the curves of a training that overfits, by a
    formula.

    The training loss falls to 1e-6 or the level in force, whichever is higher; a controller is
    shown a step an epoch. Validation is best near level 0.1, with a little noise that depends on
    level, seed and epoch. What the problem's ``watch`` measures falls from 1 to -1.

    Args:
        run: The Run.
        accuracy: Whether accuracies are measured.
        diverges: Whether losses and scores are NaN from the first epoch on; the accuracies then are
            high.

    Returns:
        A Record with curves and finals.

    Example:
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from torch.nn import Linear
        >>> record = make_up(Run(Problem(two_gaussians, Linear(10, 2), max_epochs=50), 0.1))
        >>> record.metrics["last.train_loss"] > 0.09
        True
    """
    problem = run.problem
    # Levels of examples are not one number.
    controller = as_controller(None if isinstance(run.level, LevelTable) else run.level)
    watched = {} if problem.extra_metrics is None else _watched(run)
    draw = random.Random(f"{run.level!r} {run.seed}")
    state, rows = controller.init(), []
    for epoch in range(run.epochs + 1):
        level, share = float(state["level"]), epoch / problem.max_epochs
        plain = 3 * 10 ** (-6.5 * share)
        gain = 0.2 * share * math.exp(-5 * abs(level - 0.1)) if epoch and plain < level else 0.0
        right = 0.5 + 0.25 * min(1.0, 3 * share) + gain + 0.02 * draw.random()
        row = {"train_loss": max(plain, level) if epoch else plain, "val_loss": 1.2 - right}
        row |= {
            "train_accuracy": min(1.0, 0.5 + share),
            "val_accuracy": right,
            "level": level if epoch else math.nan,
        }
        if problem.score is not None:
            row["val_score"] = right if problem.score.greater_is_better else -right
        if diverges and epoch:
            row = {
                n: 0.99 if n.endswith("accuracy") else v if n == "level" else math.nan
                for n, v in row.items()
            }
        rows.append(row | dict.fromkeys(watched, 1 - 2 * share))
        if (
            epoch
        ):  # the controller sees accuracies in any case: what it needs is not the Record's business
            state = controller.update(state, StepInfo(torch.tensor(row["train_loss"])))
            shown = (row[name] for name in ("train_accuracy", "val_loss", "val_accuracy"))
            state = controller.update(state, StepInfo(None, *shown))
    rows = [
        {n: v for n, v in row.items() if accuracy or not n.endswith("accuracy")} for row in rows
    ]
    ends = {
        "best": max(range(1, len(rows)), key=lambda epoch: validation_key(rows[epoch], problem)),
        "last": run.epochs,
    }
    finals = {
        f"{end}.{n}": v
        for end, epoch in ends.items()
        for n, v in {"epoch": float(epoch), **rows[epoch]}.items()
    }
    curves = {name: np.array([row[name] for row in rows], np.float32) for name in rows[0]}
    return Record(
        run, curves, {}, {"epochs": float(run.epochs), **finals}, weights_sha256="", fingerprint=""
    )


def _watched(run: Run) -> Mapping[str, float]:
    splits = run.problem.splits(run.seed)
    assert run.problem.extra_metrics is not None
    return run.problem.extra_metrics(run.problem.build(run.seed).eval(), run.problem, splits)


def _drive(
    strategy: Strategy, accuracy: bool, diverges: Callable[[int], bool]
) -> tuple[list[list[Run]], SearchResult]:
    """Drive a strategy with made-up Records.

    Returns:
        What it asked and what it found.

    Raises:
        TypeError: If it yields or returns something else.
    """
    asked: list[list[Run]] = []
    answer = None
    while True:
        try:
            runs = next(strategy) if answer is None else strategy.send(answer)
        except StopIteration as end:
            found = end.value
            break
        if not isinstance(runs, list) or not all(isinstance(run, Run) for run in runs):
            raise TypeError(
                f"a strategy must yield lists of Runs, got {runs!r}. Yield [run] for a single one."
            )
        _require(
            len(runs) > 0,
            "a strategy must not yield an empty list; return when there is nothing to ask.",
        )
        names = {(id(run.problem), _name(run)) for run in runs}
        _require(len(names) == len(runs), "a list must not hold the same Run twice.")
        asked.append(runs)
        _require(len(asked) < _MOST_LISTS, f"a strategy must end, got {_MOST_LISTS} lists of Runs.")
        places = _places(asked)
        answer = [
            fake_record(r, accuracy=accuracy, diverges=diverges(places[repr(r.level)]))
            for r in runs
        ]
    if not isinstance(found, SearchResult) or not isinstance(found.run, Run):
        raise TypeError(f"a strategy must return a Found with a Run, got {found!r}.")
    return asked, found


def _check_found(found: SearchResult) -> None:
    rule = "found.level must be a number or None"
    _require(found.level is None or math.isfinite(found.level), f"{rule}, got {found.level}.")
    for s in found.suggestions:
        rule = "a suggestion must have low <= level <= high"
        _require(s.low <= (s.low if s.level is None else s.level) <= s.high, f"{rule}, got {s}.")


def _check_choice(
    asked: list[list[Run]], found: SearchResult, diverges: Callable[[int], bool]
) -> None:
    places = _places(asked)
    level = repr(found.run.level)
    if found.run.level is None:  # every strategy's way out, unless level 0 stood for it
        level = "0.0" if "None" not in places else ""
    if not all(diverges(place) for place in places.values()):
        rule = "a level whose validation loss is NaN must not be chosen while there are others"
        _require(level not in places or not diverges(places[level]), f"{rule}, got {level}.")


def _places(asked: list[list[Run]]) -> dict[str, int]:
    """Number the levels in the order in which they were first asked."""
    return {
        name: place
        for place, name in enumerate(
            dict.fromkeys(repr(run.level) for runs in asked for run in runs)
        )
    }


def _name(run: Run) -> tuple[Any, ...]:
    return repr(run.level), repr(run.method), run.seed, run.epochs


def _global_generators() -> tuple[Any, ...]:
    numpys = pickle.dumps(np.random.get_state())  # ruff: ignore[numpy-legacy-random]
    return torch.get_rng_state().tolist(), numpys, random.getstate()


def _training(steps: int) -> list[StepInfo]:
    """Make up what a training shows: losses with a graph, ends of epochs with floats and tensors in
    turn.
    """
    draw = torch.Generator().manual_seed(0)
    seens = []
    for step in range(1, steps + 1):
        share = min(1.0, 1.5 * step / steps)
        noise = torch.rand(4, generator=draw)
        # A graph hangs on the loss, as on that of a real step.
        seens.append(
            StepInfo(torch.tensor(3 * 10 ** (-7.5 * share), requires_grad=True) * (0.5 + noise[0]))
        )
        if step % _STEPS_PER_EPOCH == 0:
            shown = [torch.tensor(share), 0.2 + noise[1], (share + noise[2]) / 2]
            seens.append(
                StepInfo(
                    None, *(shown if step % (2 * _STEPS_PER_EPOCH) else [t.item() for t in shown])
                )
            )
    return seens


def _require(holds: bool, rule: str) -> None:
    # Not `assert`: python -O must not switch a contract off.
    if not holds:
        raise AssertionError(rule)


def _check_state(state: Any, origin: str, like: State | None = None) -> None:
    """Check the form of a state, and that it has the form of an earlier one.

    Raises:
        TypeError: If it is no state at all.
    """
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise TypeError(
            f"{origin} must give a dict of tensors by name, got {type(state).__name__}."
        )
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(
                f"state[{name!r}] from {origin} must be a tensor, got {kind}. Wrap it in torch.tensor."
            )
        _require(
            not value.requires_grad,
            f"state[{name!r}] from {origin} keeps a graph. Detach the loss.",
        )
    if "level" not in state:
        raise TypeError(f'the state from {origin} must hold "level", got {sorted(state)}.')
    level = state["level"]
    if level.ndim or level.dtype not in {torch.float32, torch.float64}:
        got = f"{level.dtype} {list(level.shape)}"
        raise TypeError(
            f'state["level"] from {origin} must be float32 or float64 without axes, got {got}.'
        )
    if like is not None:
        _require(
            state.keys() == like.keys(),
            f"update must keep the names {sorted(like)}, got {sorted(state)}.",
        )
        for name, value in state.items():
            had, got = [f"{t.dtype} {list(t.shape)} on {t.device}" for t in (like[name], value)]
            _require(had == got, f"update must keep state[{name!r}] {had}, got {got}.")


def _check_level(state: State, when: str) -> None:
    level = state["level"].item()
    _require(
        not math.isnan(level) and level < math.inf,
        f"the level must be finite or -inf, got {level} {when}.",
    )


def _check_updates(controller: Controller, seens: list[StepInfo]) -> list[State]:
    """Check every single update, and return the states."""
    states = [controller.init()]
    _check_level(states[0], "from init")
    for i, seen in enumerate(seens):
        before, shown = _cloned(states[-1]), _cloned(seen._asdict())
        after = controller.update(states[-1], seen)
        _check_state(after, "update", like=before)
        _check_level(after, f"after entry {i} of the training")
        _require(
            _same(states[-1], before),
            "update must not change the state it is given; build a new one.",
        )
        _require(_same(seen._asdict(), shown), "update must not change what it is shown.")
        again = controller.update(states[-1], seen)
        _require(
            _same(after, again),
            "update must give the same bits for the same input; keep nothing on the object.",
        )
        kept = _cloned(after)
        for value in (value for value in seen if isinstance(value, Tensor)):
            written = value.detach().clone()
            value.detach().fill_(-1.0)
            holds = _same(after, kept)
            value.detach().copy_(written)
            _require(holds, "the state must not share memory with what is shown; clone it.")
        states.append(kept)
    _require(
        _all_same(simulate(controller, seens), states),
        "a second training must give the same states as the first.",
    )
    return states


class _Waits(TorchDispatchMode):
    """Note every operation whose result the host must wait for."""

    # The four through which a tensor's values reach Python or a shape.
    _WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self._WAITING:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _check_waiting(controller: Controller, seens: list[StepInfo]) -> None:
    with _Waits() as waits:
        simulate(controller, seens)
    fix = "Use torch.where instead of if, float() or .item() on a tensor."
    _require(
        not waits.seen,
        f"update must not wait for the device, got {len(waits.seen)} {waits.seen[:1]}. {fix}",
    )


def _check_device(controller: Controller, seens: list[StepInfo]) -> None:
    """Check on the meta device, which has no values: what reads one fails, and what is made
    elsewhere shows.

    Raises:
        AssertionError: If a value is read or devices are mixed.
    """
    state = _to_meta(controller.init())
    for seen in seens:
        try:
            after = controller.update(state, StepInfo(**_to_meta(seen._asdict())))
        except (NotImplementedError, RuntimeError, TypeError) as error:
            rule = "update must neither read a tensor's value nor mix devices; make new tensors from those of the state"
            raise AssertionError(
                f"{rule}, got {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        _check_state(after, "update", like=state)
        state = after


def _copies_of(kind: str, part: _Part) -> tuple[_Part, _Part]:
    """Copy a controller or a method with ``copy.deepcopy`` and with ``pickle``.

    Returns:
        The two copies, in this order.

    Raises:
        AssertionError: If one of them fails.
    """
    try:
        return copy.deepcopy(part), pickle.loads(pickle.dumps(part))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        fix = "Define its class at the top of a module and keep plain numbers on it."
        raise AssertionError(
            f"a {kind} must survive deepcopy and pickle, got {error}. {fix}"
        ) from error


def _check_resume(controller: Controller, seens: list[StepInfo], states: list[State]) -> None:
    """Check that a saved state continues exactly with a controller that has seen nothing before.

    Raises:
        AssertionError: If it does not.
    """
    for middle in range(
        2, len(seens), 7
    ):  # mostly in the middle of an epoch, which is five entries long
        file = io.BytesIO()
        torch.save(states[middle], file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        rule = f"a state saved before entry {middle} of the training must continue exactly in a new process"
        try:
            rest = list(itertools.accumulate(seens[middle:], controller.update, initial=state))
        except (AttributeError, KeyError) as error:
            raise AssertionError(
                f"{rule}, got {type(error).__name__}: {error}. Keep all of it in the state."
            ) from error
        _require(_all_same(rest, states[middle:]), f"{rule}. Keep all of it in the state.")


def _check_nan(controller: Controller, seens: list[StepInfo]) -> None:
    nans = [
        seen._replace(**{k: v * math.nan for k, v in seen._asdict().items() if v is not None})
        for seen in seens
    ]
    # Every third entry, so that ends of epochs (every fifth) and steps are both hit and both
    # recover.
    mixed = [
        nan if i % 3 == 2 else seen for i, (seen, nan) in enumerate(zip(seens, nans, strict=True))
    ]
    for shown in (mixed, nans):
        for state in simulate(controller, shown):
            _check_level(state, "after a NaN was shown")


def _check_compiled(controller: Controller, seens: list[StepInfo]) -> None:
    """Check that update compiles without a break, and not anew as the level moves.

    Raises:
        AssertionError: If it does not.
    """
    from torch._dynamo.exc import TorchDynamoException  # seconds to import

    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        if graphs > 2:
            raise RuntimeError("a third graph")  # the compiler turns it into its own error
        return graph.forward

    # Tensors only: a Python float is a new constant to the compiler each time.
    tensors = [
        StepInfo(*(None if v is None else torch.as_tensor(v).detach() for v in seen))
        for seen in seens
    ]
    torch.compiler.reset()
    update = torch.compile(controller.update, fullgraph=True, backend=count)
    try:
        states = list(itertools.accumulate(tensors, update, initial=controller.init()))
    except TorchDynamoException as error:
        if graphs > 2:
            rule = "update must compile to one graph for steps and one for epochs, got a third"
            raise AssertionError(f"{rule}. Keep what changes in tensors.") from error
        raise AssertionError(
            f"update must compile with fullgraph=True, got {type(error).__name__}."
        ) from error
    _require(
        _all_same(states, simulate(controller, tensors)),
        "compiled, update must give the same bits.",
    )


def _to_meta(entries: dict[str, Any]) -> dict[str, Any]:
    return {
        name: v.detach().to("meta") if isinstance(v, Tensor) else v for name, v in entries.items()
    }


def _cloned(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in entries.items()}


def _same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Compare bit for bit, NaN with NaN."""
    return left.keys() == right.keys() and all(
        _bits(left[name]) == _bits(right[name]) for name in left
    )


def _all_same(left: list[State], right: list[State]) -> bool:
    return len(left) == len(right) and all(map(_same, left, right))


def _bits(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.dtype, value.shape, value.detach().reshape(-1).view(torch.uint8).tolist()
