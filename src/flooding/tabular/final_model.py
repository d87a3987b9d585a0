"""Which network is kept after a search: plain or flooded, judged on the validation rows."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flooding.data import Split, Splits
from flooding.levels import Auto, Heuristic, Plateau
from flooding.methods import Flooding
from flooding.training.loop import EpochResult, train
from flooding.training.record import AVERAGE, Record, validation_key
from flooding.training.run import Run

__all__ = ["NETWORKS", "Candidate", "FinalModel", "select_network"]

NETWORKS = ("best", "last", "average", "best_average")
"""Networks that can be kept: that of the best epoch on the validation rows and of the last one;
with averaging also the averaged weights of the last epoch and of their own best one."""

# Prefix of what each network measured, and how its name goes on for a reader.
_PREFIXES = {
    "best": "best.",
    "last": "last.",
    "average": f"{AVERAGE}last.",
    "best_average": f"{AVERAGE}best.",
}
_SUFFIXES = {
    "best": ", early stopping",
    "last": "",
    "average": ", averaged",
    "best_average": ", averaged, early stopping",
}
_States = Mapping[str, Mapping[str, Tensor]]
_OnStart = Callable[[list[Run]], object]
_OnRow = Callable[[EpochResult], object]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that could be kept.

    Args:
        name: What it is, for a reader.
        run: Its training.
        at: Whose weights it has, one of :data:`NETWORKS`.
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

    @property
    def is_flooded(self) -> bool:
        """Whether it was trained with a level, or by another method than flooding."""
        return not _is_plain(self.run)


@dataclass(frozen=True, eq=False)
class FinalModel:
    """The network that is kept, and those it was selected from.

    Args:
        choice: The candidate that was selected.
        candidates: All candidates: plain training, plain training with early stopping, with
            averaged weights those of plain training and, where the search has a level, the flooded
            network.
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
    weights: _States | None = None,
    compare_plain: bool = True,
    at: str = "best",
    refit: bool = False,
    device: str = "cpu",
    on_start: _OnStart | None = None,
    on_row: _OnRow | None = None,
) -> FinalModel:
    r"""Select the network to keep after a search, and train it.

    At the best epoch, the flooded network and the plain one with early stopping compete, both with
    averaged weights where these are to be kept: the better validation result is kept, plain
    training where both are equal. At the last epoch the Run of the search is kept, which the search
    has compared with plain training over several epochs.

    A refit trains the selected network once more, from the beginning, on training and validation
    rows together, for as many epochs as the selected one had. Its preprocessing stays that of the
    training rows, and nothing is left to validate it on.

    Args:
        run: The Run that a search selected, of a Problem with splits that do not depend on the
            seed, as a table has.
        records: Records of the search; plain training is looked up among them.
        weights: State dicts of ``run`` as the search has kept them; it is then not trained again,
            and its Record is among ``records``.
        compare_plain: Whether to train plainly where no Record of that is known.
        at: Whose weights to keep, one of :data:`NETWORKS`.
        refit: Whether to train on the validation rows as well.
        device: Where to train.
        on_start: Called with the Runs that are trained.
        on_row: Called with every row of them.

    Returns:
        The network and its candidates.

    Raises:
        ValueError: If ``at`` is none of the networks, the problem has no averaging for it, or the
            level follows the validation rows, which a refit trains on.
    """
    _check(run, at, refit)
    run, records = replace(run, stop_epoch=None), tuple(records)
    plain_run = run if _is_plain(run) else Run(run.problem, seed=run.seed)
    trainer = _Trainer(device, on_start, on_row)
    if weights is not None:
        trainer.add(run, _find_record(records, run), weights)

    # 1. What is compared. Plain training is known from most searches.
    candidates = []
    plain = _find_plain(records, plain_run)
    if plain is None and (compare_plain or _is_plain(run)):
        plain = trainer.record(plain_run)
    if plain is not None:
        for network in dict.fromkeys(("last", "best", at)):
            name = f"plain training{_SUFFIXES[network]}"
            candidates.append(Candidate(name, plain_run, network, _metrics(plain, network)))
    if not _is_plain(run):
        record = trainer.record(run)
        candidates.append(Candidate(_describe(run, record, at), run, at, _metrics(record, at)))

    # 2. The choice, on the validation rows alone. `max` takes the first of equals: plain training.
    same_network = [candidate for candidate in candidates if candidate.at == at]
    choice = same_network[-1]
    if at.startswith("best"):
        choice = max(same_network, key=lambda candidate: candidate.key)

    # 3. Its weights: the ledger holds none.
    epochs = round(choice.metrics["epoch"])
    if refit:
        last = "average" if at.endswith("average") else "last"
        result = trainer.train(_refit_run(choice.run, epochs))
        state, test_metrics = result.weights[last], _metrics(result.record, last)
    else:
        state = trainer.train(choice.run).weights[at]
        test_metrics = choice.metrics
    state = {name: tensor.cpu() for name, tensor in state.items()}
    test_metrics = {k: v for k, v in test_metrics.items() if k.startswith("test_")}
    return FinalModel(choice, tuple(candidates), state, test_metrics, epochs, refit)


def _check(run: Run, at: str, refit: bool) -> None:
    """Refuse what cannot be kept."""
    if at not in NETWORKS:
        raise ValueError(f"at must be one of {', '.join(NETWORKS)}, got {at!r}.")
    if at.endswith("average") and run.problem.averaging is None:
        raise ValueError(
            f"{at} needs averaged weights, but the problem has no averaging. Give it one: "
            "Problem(..., averaging=flooding.averaging.EMA())."
        )
    if refit and isinstance(run.level, (Auto, Heuristic, Plateau)):
        raise ValueError(
            "refit needs a level that does not follow the validation rows, got "
            f"{type(run.level).__name__}. Leave refit out."
        )


@dataclass(frozen=True, eq=False)
class _Training:
    """What a training ended with."""

    run: Run
    record: Record
    weights: _States


class _Trainer:
    """Trains each Run once, and keeps what it ended with."""

    def __init__(self, device: str, on_start: _OnStart | None, on_row: _OnRow | None) -> None:
        self._device, self._on_start, self._on_row = device, on_start, on_row
        self._trainings: list[_Training] = []

    def add(self, run: Run, record: Record, weights: _States) -> None:
        """Add what is trained already."""
        self._trainings.append(_Training(run, record, weights))

    def train(self, run: Run) -> _Training:
        """Give what a training ended with."""
        for training in self._trainings:
            if training.run is run:
                return training
        if self._on_start is not None:
            self._on_start([run])
        last_row = None
        for row in train(run, device=self._device):
            if self._on_row is not None:
                self._on_row(row)
            last_row = row
        # The last row of a training has its weights and its Record.
        assert last_row is not None
        assert last_row.record is not None
        assert last_row.weights is not None
        self.add(run, last_row.record, last_row.weights)
        return self._trainings[-1]

    def record(self, run: Run) -> Record:
        """Give the Record of a training."""
        return self.train(run).record


def _find_record(records: Iterable[Record], run: Run) -> Record:
    """Find the Record of the Run that the search has kept the weights of."""
    for record in records:
        other = record.run
        if other is not None and other.level is run.level and other.seed == run.seed:
            return record
    raise ValueError("weights need the Record of their Run among records. Pass all of the search.")


def _find_plain(records: Iterable[Record], plain_run: Run) -> Record | None:
    """Look for plain training in full, with seed, score and average of the network to keep."""
    problem = plain_run.problem
    for record in records:
        run = record.run
        if run is None or not _is_plain(run) or run.seed != plain_run.seed:
            continue
        settings = (run.epochs, run.problem.score, run.problem.averaging)
        if settings == (problem.max_epochs, problem.score, problem.averaging):
            return record
    return None


def _is_plain(run: Run) -> bool:
    return run.level is None and type(run.method) is Flooding


def _describe(run: Run, record: Record, at: str) -> str:
    """Name a flooded network."""
    kind = "flooded, a moving level"
    if isinstance(run.level, float):
        kind = f"flooded, level {run.level:.4g}"
    elif isinstance(run.level, Auto):
        # The level of the epoch that the weights are of. The first epochs of a training are plain,
        # and all of them where no level is worth holding.
        epoch = round(record.metrics[f"{_PREFIXES[at]}epoch"])
        levels = np.asarray(record.curves["level"])[: epoch + 1]
        if np.isfinite(levels[-1]):
            kind = f"flooded, level {levels[-1]:.4g} (chosen in training)"
        elif np.isfinite(levels).any():
            kind = "flooded, no level any more (chosen in training)"
        elif np.isfinite(record.curves["level"]).any():
            kind = "auto level, plain until then"
        else:
            kind = "auto level, none chosen: plain training"
    return f"{kind}{_SUFFIXES[at]}"


def _metrics(record: Record, at: str) -> dict[str, float]:
    """Give the metrics of a network, without its name."""
    prefix = _PREFIXES[at]
    values = {}
    for name, value in record.metrics.items():
        if name.startswith(prefix):
            values[name.removeprefix(prefix)] = value
    return values


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
