"""Levels per example from cross-fitting: networks that were not trained on the example score it.

:func:`cross_fit_levels` takes training code of your own; :func:`flooding.adaflood.adaflood` trains
the networks of a Problem.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from flooding.atomic import write_atomic
from flooding.data import sha256
from flooding.functional import adaflood_level
from flooding.levels import PerExample
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed

__all__ = ["AdaFloodLevels", "Predict", "cross_fit_levels"]

log = logging.getLogger("flooding")

# Turns ids [m] into a number for each.
Predict: TypeAlias = Callable[[Tensor], Tensor | np.ndarray | Sequence[float]]


@dataclass(frozen=True, eq=False)
class AdaFloodLevels:
    """Levels per example, and the held-out results that they are computed from.

    Cross-entropy: ``t_i = -ln((1 - gamma) * p_i + gamma)``. Squared error:
    ``t_i = (1 - gamma)^2 * e_i^2``. At gamma 1 every level is 0, which is plain training; at gamma
    0 it is the raw held-out loss.

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
        cost: Epochs trained in all, or None where code of the user's own trained.

    Raises:
        ValueError: If gamma or a probability lies outside [0, 1], or a level is not finite: at
            gamma 0 a probability of 0 has no level.

    Example:
        >>> ids = folds = torch.tensor([0, 1])
        >>> result = AdaFloodLevels(ids, folds, 0.0, 0, "", probability=torch.tensor([0.5, 1.0]))
        >>> result.levels.levels, result.with_gamma(0.5).levels.levels
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
        check_gamma(self.gamma)
        if self.probability is not None and self.error is None:
            _check_scores(self.ids, self.probability, squared_error=False)
            levels = adaflood_level(self.probability, self.gamma)
            _refuse_scores(
                self.ids,
                self.probability,
                levels.isinf(),
                "at gamma 0 no probability may be 0",
                "Try 0.01.",
            )
        elif self.error is not None and self.probability is None:
            _check_scores(self.ids, self.error, squared_error=True)
            # The squared error of a prediction that gamma has moved towards the target.
            levels = (1 - self.gamma) ** 2 * self.error**2
        else:
            raise ValueError(
                "give either probability or error, got both or none. They belong to different "
                "losses."
            )
        table = PerExample(levels.to(torch.get_default_dtype()), self.ids)
        object.__setattr__(self, "levels", table)

    def with_gamma(self, gamma: float) -> AdaFloodLevels:
        """Compute the levels of another gamma from the same held-out results, without training."""
        return replace(self, gamma=gamma)

    def check(self, data: Problem | str, seed: int | None = None) -> None:
        """Check that the levels belong to this data: ids alone fit any data of the same size.

        Args:
            data: The Problem to train, or the hash of your own data as given to
                :func:`cross_fit_levels`.
            seed: Seed of the Run, if it is not that of the levels.

        Raises:
            ValueError: If the data is another.
        """
        digest = data
        if not isinstance(digest, str):
            digest = digest.splits(self.seed if seed is None else seed).sha256
        if digest != self.data_sha256:
            raise ValueError(
                "levels must come from the data they are used on, sha256 "
                f"{self.data_sha256[:12]}, got {digest[:12]}. Find levels for this data and "
                "this seed."
            )

    def save(self, path: str | Path) -> Path:
        """Write everything to one file, whole or not at all; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {name: getattr(self, name) for name in _STORED_FIELDS}
        return write_atomic(path, partial(torch.save, {**content, "digest": _digest(content)}))

    @staticmethod
    def load(path: str | Path) -> AdaFloodLevels:
        """Read a file that :meth:`save` wrote, executing nothing in it. Call :meth:`check` next.

        Args:
            path: File to read.

        Returns:
            The levels.

        Raises:
            ValueError: If the file holds something else, or is damaged.
        """
        rule = "a file of levels must be one that save() wrote"
        file = io.BytesIO(Path(path).read_bytes())
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # ruff: ignore[blind-except] -- damaged bytes raise many kinds
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{rule}, got {path}, which cannot be read: {reason}. Name another."
            ) from None
        digest = content.pop("digest", None) if isinstance(content, dict) else None
        if not isinstance(content, dict) or set(content) != set(_STORED_FIELDS):
            raise ValueError(f"{rule}, got {path}. Name another.")
        if digest is None:
            log.warning(
                "%s was written by flooding 0.1.0 without a digest, so damage cannot be noticed. "
                "Save it again.",
                path,
            )
        elif digest != _digest(content):
            raise ValueError(
                f"{rule}, got {path}, which is damaged: its digest differs. Find the levels again."
            )
        return AdaFloodLevels(**content)


_STORED_FIELDS = tuple(f.name for f in fields(AdaFloodLevels) if f.init)


def _digest(content: Mapping[str, object]) -> str:
    """Hash the tensors and numbers of saved levels."""
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in content.items() if name not in tensors}
    names = sorted(tensors)
    text = json.dumps([names, numbers], sort_keys=True, default=str)
    tensor_digest = sha256(*(tensors[name] for name in names))
    return hashlib.sha256(f"{text}{tensor_digest}".encode()).hexdigest()


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
    """Score every example by training code that never sees it.

    For each fold, ``predict = fit(ids of the other folds)``, then ``predict(ids of the fold)``.
    Folds differ in size by at most one, and with ``labels`` so do the counts of each class in them:
    a network that scores a fold rich in a class is trained on data poor in it, which biases
    probabilities downwards.

    Args:
        fit: Trains from scratch on ids, int64 ``[n]``, and returns ``predict``: ids ``[m]`` to the
            probability of each one's true label ``[m]``, a tensor, array or list.
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
        >>> cross_fit_levels(fit, len(y), labels=y, folds=2).probability
        tensor([0.3333, 0.6667, 0.6667, 0.6667, 0.3333, 0.6667], dtype=torch.float64)
    """
    # 1. Everything is checked before anything trains.
    ids = torch.arange(ids) if isinstance(ids, int) else torch.as_tensor(ids).cpu()
    check_gamma(gamma)
    if len(ids.unique()) < len(ids):
        raise ValueError(
            "every id must come once, got one twice. Give each example an id of its own."
        )
    if labels is not None and labels.shape != ids.shape:
        raise ValueError(
            f"labels must be one per id, shape {list(ids.shape)}, got {list(labels.shape)}. "
            "Leave none out."
        )
    if not 2 <= folds <= len(ids):
        raise ValueError(
            f"folds must lie in 2 to the {len(ids)} examples, got {folds}. 5 is usual."
        )
    # Without labels all examples are of one class, and are dealt at random.
    labels = torch.zeros_like(ids) if labels is None else labels.cpu()

    # 2. The folds.
    fold_of = _deal_folds(labels, folds, seed)

    # 3. A training for each fold, which scores the fold.
    scores = torch.empty(len(ids), dtype=torch.float64)
    for fold_index in range(folds):
        is_scored = fold_of == fold_index
        predict = fit(ids[~is_scored])
        fold_scores = torch.as_tensor(predict(ids[is_scored]), dtype=torch.float64).detach().cpu()
        if fold_scores.shape != ids[is_scored].shape:
            raise ValueError(
                f"predict must give one number per id, shape {list(ids[is_scored].shape)}, got "
                f"{list(fold_scores.shape)}. Leave no id out."
            )
        _check_scores(ids[is_scored], fold_scores, squared_error)
        scores[is_scored] = fold_scores
    probability, error = (None, scores) if squared_error else (scores, None)
    digest = data_sha256 or sha256(ids, labels)
    return AdaFloodLevels(ids, fold_of, gamma, seed, digest, probability, error)


def _deal_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Give the fold of each example: shuffled, sorted by class, and dealt in turn."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "folds"))
    order = torch.randperm(len(labels), generator=generator)
    # The stable sort keeps the random order within each class.
    order = order[labels[order].argsort(stable=True)]
    fold_of = torch.empty(len(labels), dtype=torch.int64)
    fold_of[order] = torch.arange(len(labels)) % folds
    return fold_of


def check_gamma(gamma: float) -> None:
    """Check that gamma lies in [0, 1]; the ValueError is that of the formula.

    Args:
        gamma: Trust in the labels.
    """
    adaflood_level(1.0, gamma)


def _check_scores(ids: Tensor, scores: Tensor, squared_error: bool) -> None:
    if squared_error:
        is_invalid, rule = ~scores.isfinite(), "an error must be finite"
        fix = "Did the training diverge?"
    else:
        is_invalid, rule = ~((scores >= 0) & (scores <= 1)), "a probability must lie in [0, 1]"
        fix = "Did it diverge, or are these logits?"
    _refuse_scores(ids, scores, is_invalid, rule, fix)


def _refuse_scores(ids: Tensor, scores: Tensor, is_invalid: Tensor, rule: str, fix: str) -> None:
    if is_invalid.any():
        raise ValueError(
            f"{rule}, got {scores[is_invalid][:3].tolist()} for {int(is_invalid.sum())} of "
            f"{len(ids)} ids, first {ids[is_invalid][:3].tolist()}. {fix}"
        )
