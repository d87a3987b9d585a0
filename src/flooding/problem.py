"""Problem, Run, Record: what is trained, one training of it, and what that training measured."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import io
import json
import math
import numbers
import random
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from flooding import npz
from flooding.criterion import loss_options
from flooding.data import Splits, map_tensors, sha256
from flooding.losses import Flooding, Method, PerClass, PerExample, WaveBound, check_reduction
from flooding.numerics import LOCK, cuda_devices, fork_generators, without_contexts

__all__ = [
    "NotKeyable",
    "Problem",
    "Record",
    "Run",
    "Score",
    "TestCurve",
    "Watch",
    "choose",
    "describe",
    "describes_itself",
    "is_promised",
    "level_order",
    "merit",
    "seeded",
    "selection_key",
    "stream",
    "unchanged",
]

_OURS = {"flooding", "torch", "math", "builtins"}


class NotKeyable(TypeError):
    """Raised for a value that has no description that is the same in every process, such as a lambda."""


@dataclass(frozen=True)
class TestCurve:
    """Ask for curves of the test set along the way; more costs more than the training does.

    Args:
        examples: How many of the first test examples to use, at least 1.
        every: Epochs between two evaluations, at least 1.

    Raises:
        ValueError: If either is below 1.
    """

    __test__ = False  # not a pytest class

    examples: int = 500
    every: int = 5

    def __post_init__(self) -> None:
        for name in ("examples", "every"):
            _at_least(name, getattr(self, name), 1)


@dataclass(frozen=True)
class Score:
    """What a search maximises, or minimises, on the validation split.

    Args:
        function: ``(outputs, targets) -> number``, such as :func:`flooding.metrics.balanced_accuracy`.
        greater_is_better: Whether a larger number is the better one.
    """

    function: Callable[[Any, Tensor], Any]
    greater_is_better: bool = True


@dataclass(frozen=True, eq=False)
class Problem:
    """What is trained, without the level: callables and a few numbers.

    Callables that are ``functools.partial`` of this library's or torch's functions describe themselves, so that their
    Records can be looked up. Anything else (a lambda, your own class) works too, but is trained anew each time unless
    you give it a ``key``.

    Args:
        data: The splits, or a callable ``(*, seed: int) -> Splits``.
        model: A callable without arguments that builds a module, or a module, of which every Run gets a copy. Builders
            that draw from torch's generator find it seeded by the Run's seed; other generators are not touched. Lazy
            modules get their shapes from the first training batch.
        optimizer: A callable ``(parameters) -> Optimizer``. One with the methods ``train`` and ``eval``, such as a
            schedule-free one, is switched to its evaluation weights for all that is measured and returned.
        loss: Any torch loss ``(outputs, targets) -> scalar``, the mean over the batch. Targets that it ignores count
            nowhere: not in accuracy, score or calibration, and a batch without any other target is skipped. A loss of
            your own says which by an attribute or argument ``ignore_index``; without one it is -100.
        report: The loss that curves and finals report, by default ``loss``. Name the plain one where ``loss`` has label
            smoothing or the like.
        batch_size: Examples in a batch, at least 1. The last batch of an epoch may be smaller.
        eval_batch_size: Examples in a batch of an evaluation pass, at least 1.
        horizon: Epochs that fix the schedule, at least 1.
        schedule: A callable ``(optimizer) -> LRScheduler``, stepped after every epoch: lengths are in epochs, such as
            ``partial(OneCycleLR, max_lr=0.1, total_steps=horizon)``.
        clip: Largest gradient norm, or None. Applied after flooding; the sign commutes with it.
        test_curve: Test curves to measure along the way, or None.
        probe: A callable that gives inputs on which a classifier's probabilities are kept, such as a grid for drawing
            its decision boundary, or None.
        augment: A callable ``x -> x`` for the inputs of every training batch, drawing from torch's generator; or None.
        score: What the best epoch and a search are judged by, where that is neither accuracy nor the loss. Of outputs
            ``[n, classes]`` it sees those with a target that counts.
        watch: A callable ``(model, problem, splits) -> {name: number}`` whose numbers become curves of their own,
            after every epoch and before the first (more rarely as a :class:`Watch`); it sees the model in evaluation
            mode and must leave it as it was.
        key: Name under which Records of a problem that cannot describe itself are looked up, together with every part
            that can. Change it whenever the code behind it changes.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from functools import partial
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), horizon=3)
        >>> problem.splits(seed=0).train.x.shape
        torch.Size([100, 10])
    """

    data: Splits | Callable[..., Splits]
    model: nn.Module | Callable[[], nn.Module]
    optimizer: Callable[[Any], torch.optim.Optimizer] = functools.partial(torch.optim.Adam, lr=1e-3)
    loss: Callable[[Any, Tensor], Tensor] = nn.functional.cross_entropy
    report: Callable[[Any, Tensor], Tensor] | None = None
    batch_size: int = 100
    horizon: int = 500
    eval_batch_size: int = 500  # the activations of a 500-unit layer then stay in a 2 MB cache
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None
    clip: float | None = None
    test_curve: TestCurve | None = None
    probe: Callable[[], Any] | None = None
    augment: Callable[[Any], Any] | None = None
    score: Score | None = None
    watch: Callable[[nn.Module, Problem, Splits], Mapping[str, float]] | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        for name, fix in _CALLED.items():
            value = getattr(self, name)
            ready = isinstance(value, {"data": Splits, "model": nn.Module}.get(name, ()))
            if not ready and not callable(value):
                raise ValueError(f"{name} must be {fix}, got {type(value).__name__}.")
        check_reduction(self.loss, "loss")
        check_reduction(self.reported, "report")
        _at_least("batch_size", self.batch_size, 1)
        _at_least("horizon", self.horizon, 1)
        _at_least("eval_batch_size", self.eval_batch_size, 1)
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise ValueError(f"clip must be a positive norm, got {self.clip}. Leave it out for no clipping.")

    @property
    def reported(self) -> Callable[[Any, Tensor], Tensor]:
        """The loss that curves and finals report."""
        return self.loss if self.report is None else self.report

    @functools.cached_property
    def ignore_index(self) -> int | None:
        """The target that the loss ignores, or None where it names none."""
        index = loss_options(self.loss).ignore_index
        return loss_options(self.report).ignore_index if index is None and self.report is not None else index

    def target_mask(self, y: Tensor) -> Tensor:
        """Tell which targets count, all but those that the loss ignores.

        Args:
            y: Class labels of any shape.

        Returns:
            A mask of the shape of ``y``. -100, torch's own, is ignored where the loss names nothing else.
        """
        return y.long() != (-100 if self.ignore_index is None else self.ignore_index)

    def classes(self, seed: int) -> int | None:
        """Count the classes of a seed's data, without the target that the loss ignores.

        Args:
            seed: The Run's seed.

        Returns:
            The number of classes, or None for real-valued targets.
        """
        return self.splits(seed).count_classes(self.ignore_index)

    def splits(self, seed: int) -> Splits:
        """Make, or look up, the data of a seed.

        Args:
            seed: The Run's seed.

        Returns:
            The splits; the same object for the same callable and seed while it is among the last few used.

        Raises:
            ValueError: If a callable of the user's own makes something else.
        """
        if isinstance(self.data, Splits):
            return self.data
        with LOCK, without_contexts(torch.device("cpu")):
            try:
                config = json.dumps(describe(self.data), sort_keys=True)
            except NotKeyable:  # a callable of the user's own may read what has changed since
                splits = self.data(seed=seed)
                if not isinstance(splits, Splits):
                    rule = f"data must give {_CALLED['data'].split(' or ')[0]}"
                    raise ValueError(f"{rule}, got {type(splits).__name__}.") from None
                return splits
            if (config, seed) not in _SPLITS:
                while len(_SPLITS) >= _KEPT_SPLITS:
                    del _SPLITS[next(iter(_SPLITS))]
                _SPLITS[config, seed] = self.data(seed=seed)
            return _SPLITS[config, seed]

    def build(self, seed: int) -> nn.Module:
        """Build the model of a seed, leaving torch's generator as it was.

        Args:
            seed: The Run's seed.

        Returns:
            A fresh module in training mode, or a copy of the module given.

        Raises:
            ValueError: If the builder makes no module.
        """
        if isinstance(self.model, nn.Module) and not _is_lazy(self.model):
            return copy.deepcopy(self.model).train()
        with seeded(stream(seed, "model")), without_contexts(torch.device("cpu")):
            model = _copy(self.model) if isinstance(self.model, nn.Module) else self.model()
            if not isinstance(model, nn.Module):
                raise ValueError(f"model must build a module, got {type(model).__name__}. Return a torch.nn.Module.")
            if _is_lazy(model):
                split = self.splits(seed).train
                model.eval().to(split.y.device)
                with torch.no_grad():
                    model(map_tensors(lambda t: t[: self.batch_size].clone(), split.x))
            return model.train()


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except ValueError as error:  # of torch, for the buffers of lazy batch norm
        raise ValueError(
            f"a module that is built already must allow a copy, but a lazy {type(model).__name__} does not. Give a "
            "function that builds it."
        ) from error


def _is_lazy(model: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))


@dataclass(frozen=True)
class Watch:
    """A Problem's ``watch`` that is not asked after every epoch, since what it measures is costly.

    Args:
        function: A callable ``(model, problem, splits) -> {name: number}``.
        every: Epochs between two measurements, at least 1; the first is before training, one more after the last.
    """

    function: Callable[[nn.Module, Problem, Splits], Mapping[str, float]]
    every: int = 1

    def __post_init__(self) -> None:
        _at_least("every", self.every, 1)

    def __call__(self, model: nn.Module, problem: Problem, splits: Splits) -> Mapping[str, float]:
        """Measure."""
        return self.function(model, problem, splits)


_CALLED = {  # what each part of a Problem must be
    "data": "Splits or a callable seed -> Splits (flooding.data.loaders.splits reads datasets and loaders)",
    "model": "a module or a callable that builds one",
    "optimizer": "a callable parameters -> optimizer, such as partial(torch.optim.SGD, lr=0.1)",
    "loss": "a callable (outputs, targets) -> mean loss",
}
_KEPT_SPLITS = 16
_SPLITS: dict[tuple[str, int], Splits] = {}  # by description, so that a look-up does not draw the data again


@dataclass(frozen=True, eq=False)
class Run:
    """One Problem, one level, one method, one seed, and where to stop.

    Args:
        problem: What is trained.
        level: Flood level in the unit of the loss: a number, a tensor, a controller, or None for plain training.
        method: How the level acts; flooding of the mean batch loss unless said otherwise.
        seed: Seed of the data, the weights and the order of the batches, at least 0.
        until: Epoch to stop at, from 1 to the problem's horizon; None is the horizon.

    Raises:
        ValueError: If the level is not finite, the seed is negative or ``until`` is out of range.
    """

    problem: Problem
    level: Any = None
    method: Method = field(default_factory=Flooding)
    seed: int = 0
    until: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", _check_level(self.level))
        if isinstance(self.seed, np.integer):
            object.__setattr__(self, "seed", int(self.seed))
        if isinstance(self.level, (float, Tensor)) and not math.isfinite(self.level):
            raise ValueError(f"level must be finite, got {self.level}. Use None for plain training.")
        _check_method(self.level, self.method)
        _at_least("seed", self.seed, 0)
        if self.until is not None:
            _at_least("until", self.until, 1)
        if self.until is not None and self.until > self.problem.horizon:
            raise ValueError(f"until must lie in 1 to the horizon {self.problem.horizon}, got {self.until}.")

    @property
    def epochs(self) -> int:
        """Number of epochs this Run trains."""
        return self.until or self.problem.horizon

    def key(self, **circumstances: Any) -> str | None:
        """Name the trajectory of this Run, the same in every process.

        ``until`` is not part of it: Records are found by trajectory and epoch.

        Args:
            **circumstances: What else changes bits: engine, device, dtype, threads, kernel.

        Returns:
            64 hexadecimal digits, or None if the problem, the level or the method cannot describe itself and the
            problem has no key.
        """
        problem = self.problem
        told: dict[str, Any] = {"seed": self.seed}
        tell = describe if problem.key is None else functools.partial(describe, named=True)
        try:
            told |= {"level": describe(self.level), "method": describe(self.method)}  # the key answers for neither
            for name, value in ((f.name, value) for f, value in _fields(problem) if not _is_default(f, value)):
                told[name] = problem.splits(self.seed).sha256 if name == "data" else tell(value)
            if hasattr(self.level, "revision"):  # its rule changed, so that Records of the old one are no longer right
                told["revision"] = self.level.revision
            if _has_ignored(problem, self.seed):
                told["ignored targets"] = "left out"  # they were not, in Records of older versions
            if problem.key is None:
                describe(problem.data)  # equal bytes may come from code that will change
        except NotKeyable:
            return None
        return hashlib.sha256(json.dumps({**told, **circumstances}, sort_keys=True).encode()).hexdigest()


def _has_ignored(problem: Problem, seed: int) -> bool:
    splits = problem.splits(seed)
    targets = [split.y for split in (splits.train, splits.val, splits.test) if split is not None]
    return any(not y.is_floating_point() and not bool(problem.target_mask(y).all()) for y in targets)


def _check_level(level: Any) -> Any:
    """Make numbers floats, and refuse what is no level."""
    if isinstance(level, numbers.Real) and not isinstance(level, (bool, np.bool_)):
        return float(level)
    scalar = isinstance(level, Tensor) and level.ndim == 0
    looked_up = hasattr(level, "at") or hasattr(level, "resolve")
    if level is None or scalar or looked_up or (hasattr(level, "update") and hasattr(level, "init")):
        return level
    got = f"a tensor of shape {tuple(level.shape)}" if isinstance(level, Tensor) else repr(level)
    raise ValueError(
        f"level must be a number, a 0-d tensor, PerClass, PerExample, Excess, a controller or None, got {got}. "
        "Wrap a level for each class or example in PerClass or PerExample."
    )


def _check_method(level: Any, method: Method) -> None:
    if isinstance(method, WaveBound) and level is not None:
        raise ValueError(f"WaveBound's level is its teacher's loss, got level={level}. Leave the level out.")
    if (isinstance(level, (PerClass, PerExample)) or hasattr(level, "resolve")) and method.reduction == "mean":
        raise ValueError(
            f"{type(level).__name__} needs a method on each example, got {type(method).__name__}, which floods the "
            "batch mean. Use IFlood()."
        )


@dataclass(frozen=True, eq=False)
class Record:
    """What a Run measured, and apart from it the circumstances.

    Args:
        run: The Run, or None in a Record read without one.
        curves: Measured. One float32 value per epoch from 0 (before training) on; NaN where nothing was measured.
            ``train_loss`` and ``train_accuracy`` are means over the batches of the epoch as they were seen, in
            training mode, without flooding; ``flooded`` is the share of steps strictly below the level.
        arrays: Measured. ``best.reliability`` and ``last.reliability``: mean confidence, accuracy and count of 15 bins
            on the noisy test labels, ``[3, 15]``, and ``*.reliability_clean``; ``*.probe``: probabilities on the
            problem's probe, ``[inputs, classes]``.
        finals: Measured. Numbers named ``best.*`` (the epoch with the best validation score) and ``last.*``.
        weights: Measured. sha256 of the final weights and buffers.
        fingerprint: Measured. sha256 of the parameter shapes and the first batch loss.
        circumstances: Time, host, versions and the number of validation examples; never compared.
    """

    run: Run | None
    curves: Mapping[str, np.ndarray] = field(repr=False)
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    finals: Mapping[str, float] = field(repr=False)
    weights: str
    fingerprint: str
    circumstances: Mapping[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> float | None:
        """The level of the Run if it was a number, else the mean one in force in the last epoch; None: no flooding.

        0.0 is a level: a loss that may be negative is flooded at 0.
        """
        level = None if self.run is None else self.run.level
        level = level if isinstance(level, (int, float)) else self.finals.get("last.level", math.nan)
        return float(level) if math.isfinite(level) else None

    def pack(self) -> tuple[bytes, str]:
        """Pack the measured part for storage.

        Returns:
            Curves and arrays as compressed bytes, the rest as JSON; NaN is null there, infinities are "inf" and "-inf".
        """
        with io.BytesIO() as file:
            np.savez_compressed(file, **self.curves, **self.arrays)  # type: ignore[arg-type]
            return file.getvalue(), self._told()

    def _told(self) -> str:
        """Write what is measured and no array as JSON."""
        odd = {name: None if math.isnan(value) else str(value) for name, value in self.finals.items()}
        finals = {name: value if math.isfinite(value) else odd[name] for name, value in self.finals.items()}
        return json.dumps({"finals": finals, "weights": self.weights, "fingerprint": self.fingerprint})

    @staticmethod
    def unpack(run: Run | None, blob: bytes, rest: str, circumstances: str) -> Record:
        """Restore a Record from :meth:`pack`'s parts.

        Args:
            run: Its Run, or None.
            blob: Curves and arrays.
            rest: The rest of what is measured.
            circumstances: The circumstances as JSON.

        Returns:
            The Record.

        Raises:
            ValueError: If the parts are not what :meth:`pack` wrote.
        """
        arrays = npz.read(blob)
        try:
            told, about = json.loads(rest), json.loads(circumstances)
            finals = {n: math.nan if v is None else float(v) for n, v in told["finals"].items()}
            weights, fingerprint = told["weights"], told["fingerprint"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"its numbers cannot be read: {error!r}") from None
        if not (isinstance(weights, str) and isinstance(fingerprint, str) and isinstance(about, dict)):
            raise ValueError("weights, fingerprint or circumstances are of another type")
        curves = {name: value for name, value in arrays.items() if "." not in name}
        rest_of = {name: value for name, value in arrays.items() if "." in name}
        return Record(run, curves, rest_of, finals, weights, fingerprint, about)

    @property
    def measured(self) -> str:
        """Hash of everything measured; equal for bit-identical trainings."""
        digest = hashlib.sha256(self._told().encode())
        for name, values in sorted({**self.curves, **self.arrays}.items()):
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def describe(value: Any, *, named: bool = False) -> Any:
    """Describe a value in JSON such that equal descriptions mean equal behaviour, in every process.

    Fields equal to their default are left out, so that a new field does not change old keys.

    Args:
        value: Numbers, strings, tensors, dataclasses and functions of this library or torch, partials of them.
        named: Describe everything else by its name alone, whose behaviour a user's key answers for.

    Returns:
        Something ``json.dumps`` takes.

    Raises:
        NotKeyable: If the value has no such description, as a lambda or a user's own class.
    """
    tell = functools.partial(describe, named=named)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [tell(item) for item in value]
    if isinstance(value, dict):
        return {str(name): tell(item) for name, item in value.items()}
    if isinstance(value, Tensor):
        return {"tensor": sha256(value)}
    if isinstance(value, Splits):
        return {"splits": value.sha256}
    if isinstance(value, functools.partial):
        return {"call": tell(value.func), "args": tell(value.args), "with": tell(value.keywords)}
    kind = value if isinstance(value, (type, FunctionType, BuiltinFunctionType)) else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    ours = name.split(".")[0] in _OURS and "<" not in name
    if isinstance(value, FunctionType):
        ours = ours and _is_found(value)
    if kind is value and (ours or named):
        return name
    if dataclasses.is_dataclass(value) and (ours or named):
        return {"is": name, **{f.name: tell(v) for f, v in _fields(value) if not _is_default(f, v)}}
    if named:
        return {"a": name}
    raise NotKeyable(f"{name} does not describe itself. Give the Problem a key='...' to look its Records up.")


SESSION = "session "  # begins the key of a problem that is looked up in one process only


def is_promised(problem: Problem) -> bool:
    """Tell whether Records of a problem are looked up on a user's word, who may have changed the code meanwhile.

    Args:
        problem: The problem.

    Returns:
        Whether it has a key of the user's.
    """
    return problem.key is not None and not problem.key.startswith(SESSION)


def describes_itself(run: Run) -> bool:
    """Tell whether nothing of a Run is a user's own code.

    Args:
        run: The Run.

    Returns:
        Whether every part has a description that is the same in every process.
    """
    try:
        describe(run)
    except NotKeyable:
        return False
    return True


def _is_found(function: FunctionType) -> bool:
    """Tell whether a function is what its name says: ``functools.wraps`` gives a user's function another's name."""
    home = sys.modules.get(function.__module__)
    return (
        functools.reduce(lambda at, name: getattr(at, name, None), function.__qualname__.split("."), home) is function
    )


def _fields(value: Any) -> Iterator[tuple[dataclasses.Field, Any]]:
    return ((f, getattr(value, f.name)) for f in dataclasses.fields(value))


def _is_default(f: dataclasses.Field, value: Any) -> bool:
    default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    return value is default or (
        type(value) is type(default) and isinstance(value, (int, float, str)) and value == default
    )


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def selection_key(loss: float, accuracy: float | None = None) -> tuple[float, float]:
    """Order validation results: the larger key is the better result.

    Higher accuracy first, where there is one, then lower loss. NaN is worse than everything. Further ties go to the
    earlier epoch or the smaller level: compare with ``>`` in that order.

    Args:
        loss: Validation loss.
        accuracy: Validation accuracy or another score of which more is better, or None where there is none.

    Returns:
        A tuple to compare.

    Example:
        >>> selection_key(0.4, 0.9) > selection_key(0.1, 0.8), selection_key(0.4, 0.9) > selection_key(0.5, 0.9)
        (True, True)
    """
    if math.isnan(loss) or (accuracy is not None and math.isnan(accuracy)):
        return (-math.inf, -math.inf)
    return (0.0 if accuracy is None else accuracy, -loss)


def merit(values: Mapping[str, float], problem: Problem | None = None, prefix: str = "") -> tuple[float, float]:
    """Order what was measured on the validation split: the problem's score, else accuracy, else loss.

    Args:
        values: Measured numbers by name.
        problem: Where they were measured; None has no score of its own.
        prefix: What stands before the names, such as "last.".

    Returns:
        A tuple to compare, see :func:`selection_key`.
    """
    score = values.get(f"{prefix}val_accuracy")
    own = getattr(problem, "score", None)
    if own is not None:
        score = values[f"{prefix}val_score"] * (1 if own.greater_is_better else -1)
    return selection_key(values[f"{prefix}val_loss"], score)


def level_order(level: float | None) -> float:
    """Order levels: no flooding comes before every number.

    Args:
        level: A level, or None for no flooding.

    Returns:
        A number to sort by.

    Example:
        >>> sorted([0.1, 0.0, None, -0.5], key=level_order)
        [None, -0.5, 0.0, 0.1]
    """
    return -math.inf if level is None else level


def choose(records: Iterable[Record], at: Literal["best", "last"]) -> Record:
    """Choose the Record with the best validation result, on the labels the user has.

    Ties go to the lower validation loss, then to the smaller level; no flooding comes first.

    Args:
        records: Records that differ in their level alone, at least one.
        at: The epoch to judge: each Record's last, or its best (early stopping).

    Returns:
        One of the Records.

    Raises:
        ValueError: If there are no Records.
    """
    ordered = sorted(records, key=lambda record: level_order(record.level))
    if not ordered:
        raise ValueError("records must hold at least one Record, got none.")
    return max(ordered, key=lambda r: merit(r.finals, None if r.run is None else r.run.problem, f"{at}."))


def stream(seed: int, purpose: str, *more: int) -> int:
    """Derive an independent 63-bit seed for a purpose.

    Args:
        seed: The Run's seed.
        purpose: What the numbers are for, such as "model" or "order".
        *more: Further numbers, such as the epoch.

    Returns:
        A seed for ``torch.Generator.manual_seed``.
    """
    words = np.random.SeedSequence([seed, *purpose.encode(), *more]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Seed torch's CPU and CUDA generators for a block and give them back as they were.

    Args:
        seed: A seed as from :func:`stream`.

    Yields:
        Nothing.
    """
    with fork_generators():
        torch.manual_seed(seed)
        yield


@contextmanager
def unchanged() -> Generator[None, None, None]:
    """Give the generators of torch, NumPy and Python back as they were, whatever a user's code draws in a block.

    Yields:
        Nothing.
    """
    with LOCK, ExitStack() as before:  # no other thread is in the middle of an epoch
        before.callback(random.setstate, random.getstate())
        before.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 -- users draw from it
        before.enter_context(torch.random.fork_rng(devices=cuda_devices()))
        restore = before.pop_all()
    try:
        yield
    finally:
        with LOCK:
            restore.close()
