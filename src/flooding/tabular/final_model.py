"""Which network is kept after a search: plain or flooded, judged on the validation rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from flooding.data import Split, Splits
from flooding.methods import Flooding
from flooding.training.loop import EpochResult, train
from flooding.training.record import Record, validation_key
from flooding.training.run import Run

__all__ = ["EPOCHS", "Candidate", "FinalModel", "select_network"]


class _Source(NamedTuple):
    """Where the network of an epoch is found.

    Args:
        metrics: What the names of its metrics in a Record begin with.
        weights: Name of its weights in the last row of a training.
    """

    metrics: str
    weights: str


EPOCHS = {"best": _Source("best", "best"), "last": _Source("last", "last")}
"""Epochs whose network can be kept: the best one on the validation rows, and the last one."""

_OnStart = Callable[[list[Run]], object]
_OnRow = Callable[[EpochResult], object]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that could be kept.

    Args:
        name: What it is, for a reader.
        run: Its training.
        at: The epoch whose weights it has, one of :data:`EPOCHS`.
        metrics: What it measures, without the epoch: ``val_loss``, ``test_accuracy`` ...
    """

    name: str
    run: Run
    at: str
    metrics: Mapping[str, float]

    @property
    def key(self) -> tuple[float, float]:
        """Its validation result, the larger the better."""
        return validation_key(self.metrics, self.run.problem)


@dataclass(frozen=True, eq=False)
class FinalModel:
    """The network that is kept, and those it was selected from.

    Args:
        choice: The candidate that was selected.
        candidates: All candidates: plain training, plain training with early stopping and, where
            the search has a level, the flooded network.
        weights: State dict of the network, on the CPU.
        test_metrics: What the network measures on the test rows; after a refit other numbers than
            those of ``choice``.
        epochs: Epochs that it was trained for.
        is_refit: Whether it was trained on the validation rows as well.
    """

    choice: Candidate
    candidates: tuple[Candidate, ...]
    weights: Mapping[str, Tensor]
    test_metrics: Mapping[str, float]
    epochs: int
    is_refit: bool


def select_network(
    run: Run,
    *,
    records: Iterable[Record] = (),
    at: str = "best",
    refit: bool = False,
    device: str = "cpu",
    on_start: _OnStart | None = None,
    on_row: _OnRow | None = None,
) -> FinalModel:
    r"""Select the network to keep after a search, and train it.

    At the best epoch, the flooded network and the plain one with early stopping compete: the better
    validation result is kept, plain training where both are equal. At the last epoch the Run of
    the search is kept, which the search has compared with plain training over several epochs.

    A refit trains the selected network once more, from the beginning, on training and validation
    rows together, for as many epochs as the selected one had. Its preprocessing stays that of the
    training rows, and nothing is left to validate it on.

    Args:
        run: The Run that a search selected, of a Problem with splits that do not depend on the
            seed, as a table has.
        records: Records of the search; plain training is looked up among them.
        at: Whose weights to keep, one of :data:`EPOCHS`.
        refit: Whether to train on the validation rows as well.
        device: Where to train.
        on_start: Called with the Runs that are trained.
        on_row: Called with every row of them.

    Returns:
        The network and its candidates.

    Raises:
        ValueError: If ``at`` is none of the epochs.
    """
    if at not in EPOCHS:
        raise ValueError(f"at must be one of {', '.join(EPOCHS)}, got {at!r}.")
    run = replace(run, stop_epoch=None)
    plain_run = Run(run.problem, seed=run.seed)
    trainer = _Trainer(device, on_start, on_row)

    # 1. What is compared. Plain training is known from most searches.
    plain = _find_plain(records, plain_run) or trainer.record(plain_run)
    candidates = [
        _candidate("plain training", plain_run, plain, "last"),
        _candidate("plain training, early stopping", plain_run, plain, "best"),
    ]
    if not _is_plain(run):
        record = trainer.record(run)
        candidates.append(_candidate(_describe(run, at), run, record, at))

    # 2. The choice, on the validation rows alone. `max` takes the first of equals: plain training.
    same_epoch = [candidate for candidate in candidates if candidate.at == at]
    choice = candidates[-1] if not _is_plain(run) else same_epoch[0]
    if at != "last":
        choice = max(same_epoch, key=lambda candidate: candidate.key)

    # 3. Its weights: the ledger holds none.
    epochs = round(choice.metrics["epoch"])
    if refit:
        last_row = trainer.train(_refit_run(choice.run, epochs))
        weights, test_metrics = _weights(last_row, "last"), _metrics(last_row.record, "last")
    else:
        weights = _weights(trainer.train(choice.run), at)
        test_metrics = choice.metrics
    test_metrics = {k: v for k, v in test_metrics.items() if k.startswith("test_")}
    return FinalModel(choice, tuple(candidates), weights, test_metrics, epochs, refit)


class _Trainer:
    """Trains each Run once, and keeps what it ended with."""

    def __init__(self, device: str, on_start: _OnStart | None, on_row: _OnRow | None) -> None:
        self._device, self._on_start, self._on_row = device, on_start, on_row
        self._rows: list[tuple[Run, EpochResult]] = []

    def train(self, run: Run) -> EpochResult:
        """Give the last row of a training, which has the weights and the Record."""
        for trained_run, row in self._rows:
            if trained_run is run:
                return row
        if self._on_start is not None:
            self._on_start([run])
        last_row = None
        for row in train(run, device=self._device):
            if self._on_row is not None:
                self._on_row(row)
            last_row = row
        assert last_row is not None
        self._rows.append((run, last_row))
        return last_row

    def record(self, run: Run) -> Record:
        """Give the Record of a training."""
        record = self.train(run).record
        assert record is not None
        return record


def _find_plain(records: Iterable[Record], plain_run: Run) -> Record | None:
    """Look for plain training in full, with the seed and the score of the network to keep."""
    problem = plain_run.problem
    for record in records:
        run = record.run
        if run is None or not _is_plain(run) or run.seed != plain_run.seed:
            continue
        if run.epochs == problem.max_epochs and run.problem.score == problem.score:
            return record
    return None


def _is_plain(run: Run) -> bool:
    return run.level is None and type(run.method) is Flooding


def _describe(run: Run, at: str) -> str:
    """Name a flooded network."""
    level = f"level {run.level:.4g}" if isinstance(run.level, float) else "a moving level"
    suffix = ", early stopping" if at == "best" else ""
    return f"flooded, {level}{suffix}"


def _candidate(name: str, run: Run, record: Record, at: str) -> Candidate:
    return Candidate(name, run, at, _metrics(record, at))


def _metrics(record: Record | None, at: str) -> dict[str, float]:
    """Give the metrics of an epoch, without its name."""
    assert record is not None
    prefix = f"{EPOCHS[at].metrics}."
    values = {}
    for name, value in record.metrics.items():
        if name.startswith(prefix):
            values[name.removeprefix(prefix)] = value
    return values


def _weights(row: EpochResult, at: str) -> dict[str, Tensor]:
    assert row.weights is not None
    return {name: tensor.cpu() for name, tensor in row.weights[EPOCHS[at].weights].items()}


def _refit_run(run: Run, epochs: int) -> Run:
    """Make the Run that trains on training and validation rows."""
    splits = run.problem.splits(run.seed)
    train_split = _concatenate([splits.train, splits.val])
    # The validation rows are measured as well, but nothing is chosen by them any more.
    data = Splits(train_split, splits.val, splits.test)
    problem = replace(run.problem, data=data, key=None)
    return replace(run, problem=problem, stop_epoch=epochs)


def _concatenate(parts: Sequence[Split]) -> Split:
    """Put the examples of several splits of a table together, numbered anew."""
    return Split(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
