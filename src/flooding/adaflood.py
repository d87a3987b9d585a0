"""AdaFlood: a level for each example, from auxiliary networks that were not trained on it.

:func:`adaflood` finds them for a Problem, :func:`held_out` for training code of your own.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flooding.atomic import write_atomic
from flooding.data import Split, Splits, map_tensors, sha256
from flooding.functional import adaflood_level
from flooding.levels import PerExample
from flooding.torch_losses import loss_options
from flooding.training.config import UnhashableConfigError, to_config
from flooding.training.loop import EpochResult, train
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed, fork_rng
from flooding.training.run import Run

__all__ = ["AdaFlood", "AdaFloodLevels", "LastLayer", "adaflood", "cross_fit_levels", "last_layer"]

log = logging.getLogger("flooding")

Predict = Callable[[Tensor], Any]


@dataclass(frozen=True, eq=False)
class AdaFloodLevels:
    """Levels per example, and the held-out results they come from.

    Cross-entropy: ``t_i = -ln((1 - gamma) * p_i + gamma)``. Squared error:
    ``t_i = (1 - gamma)^2 * e_i^2``. At gamma 1 every level is 0, that is plain training; at gamma 0
    it is the raw held-out loss.

    Args:
        ids: Ids of the training examples, int64 ``[examples]``, in the order of the data.
        folds: Fold of each example, int64 ``[examples]``; its network was trained on the other
            folds.
        gamma: Trust in the labels, in [0, 1].
        seed: Seed of the data, the folds and the auxiliary networks.
        data_sha256: Hash of the data that the levels belong to.
        probability: Held-out probability of the true label, float64 ``[examples]``, or None.
        error: Held-out ``f(x) - y``, float64 ``[examples]``, or None. Exactly one of the two is
            given.
        cost: Epochs trained in all, or None where somebody else's code trained.

    Raises:
        ValueError: If gamma or a probability lies outside [0, 1], or a level is not finite: at
            gamma 0 a probability of 0 has no level.

    Example:
        >>> two = torch.tensor([0, 1])
        >>> found = AdaFloodLevels(two, two, 0.0, 0, "", probability=torch.tensor([0.5, 1.0]))
        >>> found.levels.levels, found.with_gamma(0.5).levels.levels
        (tensor([0.6931, 0.0000]), tensor([0.2877, 0.0000]))
    """

    ids: Tensor
    folds: Tensor
    gamma: float
    seed: int
    data_sha256: str
    probability: Tensor | None = None
    error: Tensor | None = None
    cost: int | None = None
    levels: PerExample = field(init=False)  # in torch's default dtype

    def __post_init__(self) -> None:
        adaflood_level(1.0, self.gamma)  # refuses a gamma outside [0, 1]
        if self.probability is not None and self.error is None:
            _check(self.ids, self.probability, squared_error=False)
            levels = adaflood_level(self.probability, self.gamma)
            _refuse(
                self.ids,
                levels.isinf(),
                "at gamma 0 no probability may be 0",
                self.probability,
                "Try 0.01.",
            )
        elif self.error is not None and self.probability is None:
            _check(self.ids, self.error, squared_error=True)
            levels = (1 - self.gamma) ** 2 * self.error**2
        else:
            raise ValueError(
                "give either probability or error, got both or none. They belong to different losses."
            )
        object.__setattr__(
            self, "levels", PerExample(levels.to(torch.get_default_dtype()), self.ids)
        )

    def with_gamma(self, gamma: float) -> AdaFloodLevels:
        """Make the levels of another gamma from the same held-out results; nothing is trained."""
        return replace(self, gamma=gamma)

    def check(self, data: Problem | str, seed: int | None = None) -> None:
        """Make sure that the levels belong to this data: ids alone fit any data of the same size.

        Args:
            data: The Problem to train, or the hash of your own data as given to :func:`held_out`.
            seed: Seed of the Run, if it is not that of the levels.

        Raises:
            ValueError: If the data is another.
        """
        found = (
            data
            if isinstance(data, str)
            else data.splits(self.seed if seed is None else seed).sha256
        )
        if found != self.data_sha256:
            raise ValueError(
                f"levels must come from the data they are used on, sha256 {self.data_sha256[:12]}, got {found[:12]}. "
                "Find levels for this data and this seed."
            )

    def save(self, path: str | Path) -> Path:
        """Write everything to one file, whole or not at all; an old file is replaced, missing
        folders are made.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {name: getattr(self, name) for name in _STORED}
        return write_atomic(path, partial(torch.save, {**stored, "digest": _digest(stored)}))

    @staticmethod
    def load(path: str | Path) -> AdaFloodLevels:
        """Read what :meth:`save` wrote, executing nothing in it. Call :meth:`check` next.

        Args:
            path: File to read.

        Returns:
            The levels.

        Raises:
            ValueError: If the file holds something else, or is damaged.
        """
        rule = "a file of levels must be one that save() wrote"
        content = Path(path).read_bytes()
        try:
            stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # ruff: ignore[blind-except] -- torch raises whatever the bytes lead to
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{rule}, got {path}, which cannot be read: {reason}. Name another."
            ) from None
        digest = stored.pop("digest", None) if isinstance(stored, dict) else None
        if not isinstance(stored, dict) or set(stored) != set(_STORED):
            raise ValueError(f"{rule}, got {path}. Name another.")
        if digest is None:
            log.warning(
                "%s was written by flooding 0.1.0: nothing tells whether it is damaged. Save it again.",
                path,
            )
        elif digest != _digest(stored):
            raise ValueError(
                f"{rule}, got {path}, which is damaged: its digest differs. Find the levels again."
            )
        return AdaFloodLevels(**stored)


_STORED = tuple(f.name for f in fields(AdaFloodLevels) if f.init)


def _digest(stored: Mapping[str, Any]) -> str:
    """Hash tensors and numbers of saved levels."""
    tensors = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in stored.items() if name not in tensors}
    names = json.dumps([sorted(tensors), numbers], sort_keys=True, default=str)
    return hashlib.sha256(
        f"{names}{sha256(*(tensors[name] for name in sorted(tensors)))}".encode()
    ).hexdigest()


@dataclass(frozen=True)
class AdaFlood:
    """A level for each example, found when the Run is trained: it describes itself, so its Record
    can be looked up.

    The auxiliary networks of equal arguments are trained once in a process, whatever gamma.

    Args:
        gamma: Trust in the labels, in [0, 1].
        folds: Number of folds, at least 2.
        epochs: Epochs of each auxiliary network; None is the problem's max_epochs.
        at: Weights to score with: ``best`` on the validation split, or ``last``.

    Example:
        >>> from functools import partial
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.methods import IFlood
        >>> from flooding.models import mlp
        >>> problem = Problem(partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20), max_epochs=3)
        >>> [row.epoch for row in train(Run(problem, AdaFlood(gamma=0.5, folds=2), IFlood()))]
        [0, 1, 2, 3]
    """

    gamma: float = 0.5
    folds: int = 5
    epochs: int | None = None
    at: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        adaflood_level(1.0, self.gamma)  # refuses a gamma outside [0, 1]

    def resolve(self, problem: Problem, seed: int, device: torch.device) -> AdaFloodLevels:
        """Train the auxiliary networks, or take the levels from those that were trained.

        Args:
            problem: The Problem of the Run.
            seed: Its seed.
            device: Where it trains.

        Returns:
            The levels; ``cost`` is 0 where nothing was trained.
        """
        how: dict[str, Any] = {
            "folds": self.folds,
            "epochs": self.epochs,
            "at": self.at,
            "seed": seed,
        }
        try:
            told = json.dumps(to_config(problem), sort_keys=True)
        except UnhashableConfigError:  # code of the user's own may have changed since
            return adaflood(
                problem, gamma=self.gamma, device=device, threads=torch.get_num_threads(), **how
            )
        key = (told, str(device), torch.get_num_threads(), *how.values())
        if key in _SCORED:
            return replace(_SCORED[key].with_gamma(self.gamma), cost=0)
        while len(_SCORED) >= _KEPT:
            del _SCORED[next(iter(_SCORED))]
        found = adaflood(
            problem, gamma=self.gamma, device=device, threads=torch.get_num_threads(), **how
        )
        _SCORED[key] = found
        return found


_KEPT = 32
_SCORED: dict[tuple[Any, ...], AdaFloodLevels] = {}


def cross_fit_levels(
    fit: Callable[[Tensor], Predict],
    ids: int | Tensor,
    *,
    labels: Tensor | None = None,
    gamma: float = 0.5,
    folds: int = 5,
    seed: int = 0,
    squared_error: bool = False,
    data_sha256: str | None = None,
) -> AdaFloodLevels:
    """Score every example by training code that is never given it.

    For each fold, ``predict = fit(ids of the other folds)``, then ``predict(ids of the fold)``.
    Folds differ in size by at most one, and with ``labels`` so do the counts of each class in them:
    a fold rich in a class is scored by a network trained on data poor in it, which biases
    probabilities downwards.

    Args:
        fit: Trains from scratch on the ids given, int64 ``[n]``, and returns ``predict``: ids
            ``[m]`` to the probability of each one's true label ``[m]``, a tensor, array or list.
        ids: Ids of all training examples, each once, or their number for 0, 1, ... .
        labels: Class of each example ``[examples]`` to spread over the folds; None deals at random.
        gamma: Trust in the labels, in [0, 1].
        folds: Number of folds, from 2 to the number of examples.
        seed: Seed of the folds, at least 0.
        squared_error: Whether ``predict`` gives ``f(x) - y``, for a squared-error loss, instead.
        data_sha256: Hash of your data, such as ``flooding.data.sha256(x, y)``; by default that of
            ids and labels.

    Returns:
        The levels.

    Raises:
        ValueError: If an argument is out of range, or ``predict`` does not give one valid number
            per id.

    Example:
        >>> y = torch.tensor([0, 1, 1, 1, 0, 1])
        >>> def fit(train_ids):
        ...     ones = y[train_ids].double().mean()
        ...     return lambda ids: torch.where(y[ids] == 1, ones, 1 - ones)
        >>> held_out(fit, len(y), labels=y, folds=2).probability
        tensor([0.3333, 0.6667, 0.6667, 0.6667, 0.3333, 0.6667], dtype=torch.float64)
    """
    ids = torch.arange(ids) if isinstance(ids, int) else torch.as_tensor(ids).cpu()
    adaflood_level(1.0, gamma)  # refuses a gamma outside [0, 1] before anything trains
    if len(ids.unique()) < len(ids):
        raise ValueError(
            "every id must come once, got one twice. Give each example an id of its own."
        )
    if labels is not None and labels.shape != ids.shape:
        raise ValueError(
            f"labels must be one per id, shape {list(ids.shape)}, got {list(labels.shape)}. Leave none out."
        )
    if not 2 <= folds <= len(ids):
        raise ValueError(
            f"folds must lie in 2 to the {len(ids)} examples, got {folds}. 5 is usual."
        )
    labels = torch.zeros_like(ids) if labels is None else labels.cpu()
    order = torch.randperm(
        len(ids), generator=torch.Generator().manual_seed(derive_seed(seed, "folds"))
    )
    order = order[labels[order].argsort(stable=True)]
    fold, scores = torch.empty_like(ids), torch.empty(len(ids), dtype=torch.float64)
    fold[order] = torch.arange(len(ids)) % folds
    for own in (fold == number for number in range(folds)):
        given = fit(ids[~own])(ids[own])
        given = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
        if given.shape != ids[own].shape:
            raise ValueError(
                f"predict must give one number per id, shape {list(ids[own].shape)}, got {list(given.shape)}. "
                "Leave no id out."
            )
        _check(ids[own], given, squared_error)
        scores[own] = given
    probability, error = (None, scores) if squared_error else (scores, None)
    return AdaFloodLevels(
        ids, fold, gamma, seed, data_sha256 or sha256(ids, labels), probability, error
    )


def last_layer(model: nn.Module) -> nn.Module:
    """Find the last module, in the order of registration, that has parameters of its own."""
    return [
        module for module in model.modules() if any(True for _ in module.parameters(recurse=False))
    ][-1]


@dataclass(frozen=True)
class LastLayer:
    """Train one network on all examples; per fold, re-initialise and tune only its last layer on
    the other folds.

    Cheaper, but **not held out**: the features have seen every example with its label. A network
    that memorises gives probabilities nearer 1, hence levels nearer 0, than a network per fold.

    Args:
        epochs: Epochs to tune each last layer, at least 1; None is as many as the network was
            trained for.
        layer: Finds the layer: a callable ``(model) -> submodule``.
    """

    epochs: int | None = None
    layer: Callable[[nn.Module], nn.Module] = last_layer


def adaflood(
    problem: Problem,
    *,
    gamma: float = 0.5,
    folds: int = 5,
    seed: int = 0,
    epochs: int | None = None,
    at: Literal["best", "last"] = "best",
    variant: LastLayer | None = None,
    device: str | torch.device = "cpu",
    threads: int = 1,
    on_row: Callable[[EpochResult], object] | None = None,
) -> AdaFloodLevels:
    """Train auxiliary networks, plain Runs of the Problem on the other folds, and score each
    example held out.

    Folds are stratified by class. Use the levels in Runs of this seed: data made by a callable
    differs from seed to seed while its ids do not (:meth:`AdaFloodLevels.check` tells). Classes are
    scored by the softmax of logits ``[n, classes]``; for ``mse_loss`` targets and outputs must be
    ``[n]``; anything else goes through :func:`held_out`. If the Problem holds a module instead of a
    builder, every network starts from it: it must not have seen the training data.

    Args:
        problem: The Problem; nothing of it is changed.
        gamma: Trust in the labels, in [0, 1].
        folds: Number of folds, from 2 to the number of training examples.
        seed: Seed of the data and the folds; the auxiliary networks share one derived from it.
        epochs: Epochs of each auxiliary network, at least 1; None is the problem's max_epochs.
        at: Weights to score with: ``best`` on the validation split (early stopping), or ``last``. A
            network trained to the end is sure also where it memorised a wrong label.
        variant: None for a network per fold, or :class:`LastLayer`.
        device: Where to train.
        threads: torch threads to train with; one and two give different bits.
        on_row: Called with every row of every auxiliary training.

    Returns:
        The levels.

    Raises:
        ValueError: If an argument is out of range, or the Problem has neither classes nor a squared
            error.

    Example:
        >>> from functools import partial
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.methods import IFlood
        >>> from flooding.models import mlp
        >>> problem = Problem(partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20), max_epochs=3)
        >>> found = adaflood(problem, gamma=0.5, folds=2)
        >>> run = Run(problem, found.levels, IFlood())
        >>> len(found.probability), found.cost
        (100, 6)

    References:
        Bae et al., *AdaFlood: Adaptive Flood Regularization*, TMLR 2024, arXiv 2311.02891, section
        3.
    """
    if at not in {"best", "last"}:
        raise ValueError(f"at must be 'best' or 'last', got {at!r}. The first is early stopping.")
    splits, max_epochs = problem.splits(seed), problem.max_epochs if epochs is None else epochs
    plain = replace(problem, max_epochs=max_epochs, test_curve=None, probe_inputs=None, key=None)
    tuned = (
        plain
        if variant is None or variant.epochs is None
        else replace(plain, max_epochs=variant.epochs)
    )
    network = _Auxiliary(plain, splits, derive_seed(seed, "adaflood"), at, device, threads, on_row)
    split, squared = splits.train.to("cpu"), splits.train.y.is_floating_point()
    place = {one: n for n, one in enumerate(split.id.tolist())}

    def take(ids: Tensor) -> Split:
        return split.take(torch.tensor([place[one] for one in ids.tolist()]))

    # Trains the network that LastLayer tunes, once, after held_out has looked at its arguments
    @functools.cache
    def start() -> _Auxiliary:
        if variant is None:
            return network
        return replace(
            network,
            problem=replace(tuned, model=_headed(problem, network.trained(split), variant, seed)),
        )

    def fit(ids: Tensor) -> Predict:
        model = start().trained(take(ids))
        return lambda ids: network.scores(model, take(ids))

    # What cannot be scored, or has no such layer, fails before the training and not after it.
    network.scores(problem.build(seed), split.take(slice(2)))
    if variant is not None:
        _headed(problem, problem.build(seed), variant, seed)
    labels = None if squared else split.y
    found = cross_fit_levels(
        fit, split.id, labels=labels, gamma=gamma, folds=folds, seed=seed, squared_error=squared
    )
    cost = folds * tuned.max_epochs + (0 if variant is None else max_epochs)
    return replace(found, data_sha256=splits.sha256, cost=cost)


@dataclass(frozen=True)
class _Auxiliary:
    """How auxiliary networks are trained and asked."""

    problem: Problem
    splits: Splits
    seed: int
    at: Literal["best", "last"]
    device: str | torch.device
    threads: int
    on_row: Callable[[EpochResult], object] | None

    def trained(self, examples: Split) -> nn.Module:
        # The test split is a stand-in: a fold never goes near the training of the network that
        # scores it.
        data = replace(self.splits, train=examples, test=self.splits.val, posterior=None)
        run, row = Run(replace(self.problem, data=data), seed=self.seed), None
        for row in train(run, device=self.device, threads=self.threads):
            if self.on_row is not None:
                self.on_row(row)
        assert row is not None
        assert row.weights is not None
        model = self.problem.build(self.seed)
        model.load_state_dict(row.weights[self.at])
        return model

    def scores(self, model: nn.Module, examples: Split) -> Tensor:
        model, examples, size = (
            model.to(self.device).eval(),
            examples.to(self.device),
            self.problem.eval_batch_size,
        )
        with torch.inference_mode(), fork_rng(self.seed), _threads(self.threads):
            parts = [slice(n, n + size) for n in range(0, len(examples), size)]
            outputs = [model(map_tensors(lambda t, i=part: t[i], examples.x)) for part in parts]
            return torch.cat([
                _score(self.problem, o, examples.y[i]) for o, i in zip(outputs, parts, strict=True)
            ])


def _score(problem: Problem, output: Any, y: Tensor) -> Tensor:
    """Give probabilities of the true labels, or errors, in float64: a float32 probability is 0 from
    a loss of 104.
    """
    if isinstance(output, Tensor) and y.ndim == 1:
        if output.ndim == 2 and not y.is_floating_point():
            return output.cpu().double().softmax(1).gather(1, y.cpu()[:, None])[:, 0]
        loss = loss_options(problem.loss)
        if (
            output.shape == y.shape
            and loss.function is nn.functional.mse_loss
            and loss.weight is None
        ):
            return output.cpu().double() - y.cpu()
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"outputs must be logits [n, classes] for labels [n], or [n] for mse_loss and targets [n], got {shape} for "
        f"{y.dtype} {list(y.shape)}. Use held_out() for anything else."
    )


def _headed(problem: Problem, model: nn.Module, variant: LastLayer, seed: int) -> nn.Module:
    """Give a trained network a fresh last layer, the only part that still trains."""
    head = variant.layer(model)
    name = next((name for name, module in model.named_modules() if module is head), None)
    if name is None:
        raise ValueError(
            "layer must return a submodule of the model it is given, got another. Return model.<name>."
        )
    fresh = problem.build(derive_seed(seed, "adaflood", 1)).get_submodule(name)
    model.requires_grad_(False)
    head.load_state_dict(fresh.state_dict())
    head.requires_grad_(True)
    return _LastLayerOnly(model, name)


class _LastLayerOnly(nn.Module):
    """A network in evaluation mode but for its last layer, so that batch norm and dropout leave the
    features alone.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def train(self, mode: bool = True) -> _LastLayerOnly:
        super().train(False)
        self.model.get_submodule(self.name).train(mode)
        return self

    def forward(self, x: Any) -> Any:
        return self.model(x)


def _check(ids: Tensor, scores: Tensor, squared_error: bool) -> None:
    if squared_error:
        _refuse(
            ids, ~scores.isfinite(), "an error must be finite", scores, "Did the training diverge?"
        )
    else:
        bad = ~((scores >= 0) & (scores <= 1))
        _refuse(
            ids,
            bad,
            "a probability must lie in [0, 1]",
            scores,
            "Did it diverge, or are these logits?",
        )


def _refuse(ids: Tensor, bad: Tensor, rule: str, scores: Tensor, fix: str) -> None:
    if bad.any():
        raise ValueError(
            f"{rule}, got {scores[bad][:3].tolist()} for {int(bad.sum())} of {len(ids)} ids, first "
            f"{ids[bad][:3].tolist()}. {fix}"
        )


@contextmanager
def _threads(threads: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
