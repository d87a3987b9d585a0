"""AdaFlood: a level for each example, from auxiliary networks that were not trained on it.

:func:`adaflood` computes them for a Problem, :class:`AdaFlood` when a Run is trained;
:func:`cross_fit_levels` is for training code of your own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from flooding.cross_fit import AdaFloodLevels, Predict, check_gamma, cross_fit_levels
from flooding.data import Split, Splits
from flooding.torch_losses import loss_options
from flooding.training.config import UnhashableConfigError, to_config
from flooding.training.loop import EpochResult, train
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed, fork_rng
from flooding.training.run import Run

__all__ = ["AdaFlood", "AdaFloodLevels", "LastLayer", "adaflood", "cross_fit_levels", "last_layer"]


class _Options(TypedDict):
    """Arguments of :func:`adaflood` that the held-out results depend on."""

    folds: int
    epochs: int | None
    at: Literal["best", "last"]
    seed: int


@dataclass(frozen=True)
class AdaFlood:
    """A level for each example, computed when the Run is trained; its Record can be looked up.

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
        >>> data = partial(two_gaussians, n_test=100)
        >>> problem = Problem(data, partial(mlp, 10, 2, width=20), max_epochs=3)
        >>> run = Run(problem, AdaFlood(gamma=0.5, folds=2), IFlood())
        >>> [row.epoch for row in train(run)]
        [0, 1, 2, 3]
    """

    gamma: float = 0.5
    folds: int = 5
    epochs: int | None = None
    at: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_gamma(self.gamma)

    def resolve(self, problem: Problem, seed: int, device: torch.device) -> AdaFloodLevels:
        """Train the auxiliary networks, or reuse those that were trained in this process.

        Args:
            problem: The Problem of the Run.
            seed: Its seed.
            device: Where it trains.

        Returns:
            The levels; ``cost`` is 0 where nothing was trained.
        """
        # All but gamma, which changes the levels but no training.
        options: _Options = {
            "folds": self.folds,
            "epochs": self.epochs,
            "at": self.at,
            "seed": seed,
        }
        threads = torch.get_num_threads()
        compute = functools.partial(
            adaflood, problem, gamma=self.gamma, device=device, threads=threads, **options
        )
        try:
            config = json.dumps(to_config(problem), sort_keys=True)
        except UnhashableConfigError:  # code of the user's own may have changed since
            return compute()
        key = (config, str(device), threads, *options.values())
        if key in _CACHE:
            return replace(_CACHE[key].with_gamma(self.gamma), cost=0)
        # The oldest goes first: dictionaries keep the order of insertion.
        while len(_CACHE) >= _CACHE_SIZE:
            del _CACHE[next(iter(_CACHE))]
        _CACHE[key] = result = compute()
        return result


_CACHE_SIZE = 32
_CACHE: dict[tuple[object, ...], AdaFloodLevels] = {}


def last_layer(model: nn.Module) -> nn.Module:
    """Find the last module, in the order of registration, that has parameters of its own."""
    result = model
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            result = module
    return result


@dataclass(frozen=True)
class LastLayer:
    """Train one network on all examples; per fold, tune only its last layer on the other folds.

    Cheaper, but **not held out**: the features have seen every example with its label. A network
    that memorises gives probabilities nearer 1, hence levels nearer 0, than a network per fold.

    Args:
        epochs: Epochs to tune each last layer, which starts afresh, at least 1; None is as many as
            the network was trained for.
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
    """Train auxiliary networks on the other folds, plainly, and score each example held out.

    Folds are stratified by class. Use the levels in Runs of this seed: data made by a callable
    differs from seed to seed while its ids do not, which :meth:`AdaFloodLevels.check` detects.
    Classes are scored by the softmax of logits ``[n, classes]``; for ``mse_loss`` targets and
    outputs must be ``[n]``; for anything else use :func:`cross_fit_levels`. If the Problem holds a
    module instead of a builder, every network starts from it: it must not have seen the training
    data.

    Args:
        problem: The Problem; nothing of it is changed.
        gamma: Trust in the labels, in [0, 1].
        folds: Number of folds, from 2 to the number of training examples.
        seed: Seed of the data and the folds; the auxiliary networks share one derived from it.
        epochs: Epochs of each auxiliary network, at least 1; None is the problem's max_epochs.
        at: Weights to score with: ``best`` on the validation split (early stopping), or ``last``. A
            network trained to the end is confident also where it memorised a wrong label.
        variant: None for a network per fold, or :class:`LastLayer`.
        device: Where to train.
        threads: torch threads to train with; one and two give different bits.
        on_row: Called with every row of every auxiliary training.

    Returns:
        The levels.

    Raises:
        ValueError: If an argument is out of range, a training label is ignored by the loss, or the
            Problem has neither classes nor a squared error.

    Example:
        >>> from functools import partial
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.methods import IFlood
        >>> from flooding.models import mlp
        >>> data = partial(two_gaussians, n_test=100)
        >>> problem = Problem(data, partial(mlp, 10, 2, width=20), max_epochs=3)
        >>> result = adaflood(problem, gamma=0.5, folds=2)
        >>> run = Run(problem, result.levels, IFlood())
        >>> len(result.probability), result.cost
        (100, 6)

    References:
        Bae et al., *AdaFlood: Adaptive Flood Regularization*, TMLR 2024, arXiv 2311.02891, section
        3.
    """
    if at not in {"best", "last"}:
        raise ValueError(f"at must be 'best' or 'last', got {at!r}. The first is early stopping.")
    splits = problem.splits(seed)
    split, squared_error = splits.train.to("cpu"), splits.train.y.is_floating_point()
    _check_labels(problem, split)

    # 1. The plain Problems of the auxiliary networks and of the last layers.
    max_epochs = problem.max_epochs if epochs is None else epochs
    plain = replace(
        problem,
        max_epochs=max_epochs,
        test_curve=None,
        probe_inputs=None,
        averaging=None,
        key=None,
    )
    fold_problem = plain
    if variant is not None and variant.epochs is not None:
        fold_problem = replace(plain, max_epochs=variant.epochs)
    trainer = _Trainer(plain, splits, derive_seed(seed, "adaflood"), at, device, threads, on_row)

    # 2. What cannot be scored, or has no such layer, fails before the training and not after it.
    trainer.score(problem.build(seed), split.take(slice(2)))
    if variant is not None:
        _with_fresh_layer(problem, problem.build(seed), variant, seed)

    # 3. The network that LastLayer tunes trains once, after the arguments have been checked.
    @functools.cache
    def fold_trainer() -> _Trainer:
        if variant is None:
            return trainer
        model = _with_fresh_layer(problem, trainer.train(split), variant, seed)
        return replace(trainer, problem=replace(fold_problem, model=model))

    index_of = {example: index for index, example in enumerate(split.id.tolist())}

    def take(ids: Tensor) -> Split:
        return split.take(torch.tensor([index_of[example] for example in ids.tolist()]))

    def fit(train_ids: Tensor) -> Predict:
        model = fold_trainer().train(take(train_ids))
        return lambda ids: trainer.score(model, take(ids))

    # 4. A training for each fold.
    result = cross_fit_levels(
        fit,
        split.id,
        labels=None if squared_error else split.y,
        gamma=gamma,
        folds=folds,
        seed=seed,
        squared_error=squared_error,
    )
    # In epochs; that of the network whose last layer is tuned comes on top.
    cost = folds * fold_problem.max_epochs + (0 if variant is None else max_epochs)
    return replace(result, data_sha256=splits.sha256, cost=cost)


def _check_labels(problem: Problem, split: Split) -> None:
    """Refuse labels that the loss ignores: no network can score them."""
    if split.y.is_floating_point():
        return
    is_ignored = ~problem.target_mask(split.y)
    if is_ignored.any():
        raise ValueError(
            "every training label must count, since its probability gives the level, got "
            f"{int(is_ignored.sum())} of {is_ignored.numel()} that the loss ignores, "
            f"{int(split.y[is_ignored][0])}. Leave these examples out of the training split."
        )


@dataclass(frozen=True)
class _Trainer:
    """Trains auxiliary networks and scores examples with them."""

    problem: Problem
    splits: Splits
    seed: int
    at: Literal["best", "last"]
    device: str | torch.device
    threads: int
    on_row: Callable[[EpochResult], object] | None

    def train(self, examples: Split) -> nn.Module:
        # The validation split stands in for the test split, so that the examples of the fold are
        # nowhere near the training of the network that scores them.
        data = replace(self.splits, train=examples, test=self.splits.val, posterior=None)
        # Without a level: auxiliary networks are trained plainly.
        run, row = Run(replace(self.problem, data=data), seed=self.seed), None
        for row in train(run, device=self.device, threads=self.threads):
            if self.on_row is not None:
                self.on_row(row)
        assert row is not None
        assert row.weights is not None
        model = self.problem.build(self.seed)
        model.load_state_dict(row.weights[self.at])
        return model

    def score(self, model: nn.Module, examples: Split) -> Tensor:
        """Give the probability of each label, or the error of each output, ``[examples]``."""
        model, examples = model.to(self.device).eval(), examples.to(self.device)
        size = self.problem.eval_batch_size
        scores = []
        with torch.inference_mode(), fork_rng(self.seed), _torch_threads(self.threads):
            for start in range(0, len(examples), size):
                batch = examples.take(slice(start, start + size))
                scores.append(_score(self.problem, model(batch.x), batch.y))
        return torch.cat(scores)


def _score(problem: Problem, output: object, y: Tensor) -> Tensor:
    """Compute probabilities of the true labels, or errors, in float64."""
    # A float32 probability is 0 from a loss of 104.
    if isinstance(output, Tensor) and y.ndim == 1:
        if output.ndim == 2 and not y.is_floating_point():
            return output.cpu().double().softmax(1).gather(1, y.cpu()[:, None])[:, 0]
        loss = loss_options(problem.loss)
        is_squared_error = loss.function is nn.functional.mse_loss and loss.weight is None
        if output.shape == y.shape and is_squared_error:
            return output.cpu().double() - y.cpu()
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        "outputs must be logits [n, classes] for labels [n], or [n] for mse_loss and targets [n], "
        f"got {shape} for {y.dtype} {list(y.shape)}. Use cross_fit_levels() for anything else."
    )


def _with_fresh_layer(
    problem: Problem, model: nn.Module, variant: LastLayer, seed: int
) -> nn.Module:
    """Give a trained network a fresh last layer, the only part that still trains."""
    layer = variant.layer(model)
    # The layer is found in a fresh model by its name, to take new weights from there.
    names = {module: name for name, module in model.named_modules()}
    if layer not in names:
        raise ValueError(
            "layer must return a submodule of the model it is given, got another. Return "
            "model.<name>."
        )
    name = names[layer]
    new_layer = problem.build(derive_seed(seed, "adaflood", 1)).get_submodule(name)
    model.requires_grad_(False)
    layer.load_state_dict(new_layer.state_dict())
    layer.requires_grad_(True)
    return _LastLayerOnly(model, name)


class _LastLayerOnly(nn.Module):
    """A network of which only the last layer is ever in training mode.

    Batch norm and dropout thus leave the features alone.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def train(self, mode: bool = True) -> _LastLayerOnly:
        super().train(False)
        self.model.get_submodule(self.name).train(mode)
        return self

    def forward(self, x: object) -> object:
        return self.model(x)


@contextmanager
def _torch_threads(threads: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
