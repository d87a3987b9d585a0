"""The result of a search: a level, every estimate of it, the Records behind it, and their cost."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from torch import Tensor

from flooding.atomic import write_atomic
from flooding.level_search.decision import Decision
from flooding.levels.base import Controller
from flooding.levels.tables import PerClass, PerExample
from flooding.text import join_parts
from flooding.training.problem import Problem
from flooding.training.record import AVERAGE, Record, monitor_prefix
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from flooding.level_search.search_page import ReportPage, SearchAbout

__all__ = ["Cost", "LevelEstimate", "SearchResult", "TableRow", "total_cost"]

# A row of the table of a search: cells by column.
TableRow: TypeAlias = dict[str, float | int | str | None]

# Columns of a result's table, as far as they were measured.
_COLUMNS = ("val_score", "val_accuracy", "val_loss", "train_accuracy", "train_loss", "flooded")

# Networks of one training, by the names of their weights.
_Network: TypeAlias = Literal["last", "best", "average", "best_average"]


@dataclass(frozen=True)
class LevelEstimate:
    """One estimate of the level.

    Args:
        name: How it was estimated, such as "range test".
        level: Flood level in the unit of the loss; None is no flooding.
        low: Lower end of the interval in which the level lies, as far as this estimate can tell;
            ``-inf`` if there is none and the level may be negative.
        high: Upper end of the interval.
        note: What the reader should know, in a few words.
    """

    name: str
    level: float | None
    low: float = 0.0
    high: float = math.inf
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """What a search trained.

    Args:
        trainings: Epochs divided by those of a full training. A Run that continues a shorter one
            counts once.
        steps: The same for the optimiser steps that were really taken. Shared prefixes make it
            smaller than ``trainings``.
        epochs: Number of epochs that were really trained.
        hours: Wall-clock hours of training, summed over all workers.
    """

    trainings: float
    steps: float
    epochs: int
    hours: float


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The result of a search.

    Args:
        strategy: Name of the strategy.
        run: The Run to train for use: with the selected level, with its controller, or without a
            level.
        estimates: Every estimate of the level, with its interval; the strategy's own comes first.
        warnings: What the reader should know before trusting the result.
        records: Everything that was measured, in the order of the Runs;
            :func:`flooding.level_search.driver.search` fills it in.
        device: Where :meth:`model` trains.
        weights: State dicts "last" and "best" of ``run``, where the search itself trained it in
            this process; :meth:`model` then trains nothing.
        decision: What the strategy compared to select the level; None where it compared no levels.
    """

    strategy: str
    run: Run
    estimates: tuple[LevelEstimate, ...] = ()
    warnings: tuple[str, ...] = ()
    records: tuple[Record, ...] = field(default=(), repr=False)
    device: str = "cpu"
    weights: Mapping[str, dict[str, Tensor]] | None = field(default=None, repr=False)
    decision: Decision | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        # A result that somebody's strategy made wrongly must show itself in the error about it.
        if not isinstance(self.run, Run):
            return f"SearchResult({self.strategy!r}, run={self.run!r})"
        parts: dict[str, object] = {"level": self.level, "strategy": self.strategy}
        if not isinstance(self.run.level, (float, Tensor, type(None))):
            parts["run.level"] = self.run.level
        cost = self.cost
        parts |= {"trainings": round(cost.trainings, 2), "epochs": cost.epochs}
        parts["warnings"] = len(self.warnings)
        return f"SearchResult({join_parts(parts)})"

    def _repr_html_(self) -> str:
        """Show the result in a notebook: a table and the picture."""
        from flooding.level_search.result_html import result_html  # only a notebook needs it

        return result_html(self)

    @property
    def level(self) -> float | None:
        """The level, in the unit of the loss.

        None means "train without flooding", which is a valid result. 0.0 is a level where the loss
        may be negative. For a controller it is the level of the first estimate.
        """
        level = self.run.level
        if level is None:
            return None
        if isinstance(level, (float, Tensor)):
            return float(level)
        # A controller moves its level; the strategy's own estimate says where it ended.
        return self.estimates[0].level if self.estimates else None

    @property
    def cost(self) -> Cost:
        """What the search trained."""
        return total_cost(self.records)

    @property
    def table(self) -> list[TableRow]:
        """One row per Record: level, seed, epochs, and the results of the last epoch.

        The results are those on training and validation data, as far as they were measured.
        """
        return [_table_row(record) for record in self.records]

    def plot(self) -> Figure:
        """Draw validation score and loss against the level, and the curves of all Runs.

        Returns:
            A matplotlib figure.
        """
        from flooding.level_search.plot import plot_search  # matplotlib is an extra

        return plot_search(self)

    def save(self, folder: str | Path) -> Path:
        """Write ``found.json``, ``table.csv``, ``curves.npz`` and ``search.png``.

        Args:
            folder: Where to write; made if it is missing. Files of the same names are replaced,
                each as a whole.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "found.json", _summary_json(self))
        write_atomic(folder / "table.csv", _table_csv(self.table))
        write_atomic(folder / "curves.npz", _curves_npz(self.records))
        from flooding.report.plots import save as save_figure  # matplotlib is an extra

        save_figure(self.plot(), folder / "search.png")
        return folder

    def report(
        self, path: str | Path | None = None, about: SearchAbout | None = None
    ) -> ReportPage:
        """Make the report page: the answer, why this level, every curve, and how to repeat it.

        Args:
            path: A file that ends in ``.html`` to write it to, or None. An older report page there
                is replaced.
            about: What the result does not know of itself, such as the name of the data.

        Returns:
            The page, which a notebook shows; its ``save(path)`` writes it.
        """
        from flooding.level_search.search_page import SearchAbout, search_page  # needs Jinja2

        page = search_page(self, about or SearchAbout())
        if path is not None:
            page.save(path)
        return page

    @preserve_rng_state()
    def model(self, at: _Network | None = None) -> nn.Module:
        """Give the model of the selected Run, trained in full unless the search has done so.

        Args:
            at: Whose weights: "last"; "best", the epoch with the best validation result; with
                averaging also "average", that of the last epoch, or "best_average". None is what
                the search judged: "average" where its problem's averaging says so, else "last".

        Returns:
            A new module in evaluation mode, on ``device``.

        Raises:
            ValueError: If ``at`` is none of these, or the training code is the caller's own.
        """
        from flooding.training.loop import train  # strategies do not need the loop

        if not isinstance(self.run.problem, Problem):
            raise ValueError(
                f"only a Problem's model can be trained here. Train your own at level {self.level}."
            )
        if at is None:
            at = "average" if monitor_prefix(self.run.problem) else "last"
        _check_network(at, self.run.problem)
        weights = self.weights
        if weights is None:
            # The last row of a training carries the weights.
            *_, row = train(self.run, device=self.device)
            assert row.weights is not None
            weights = row.weights
        model = self.run.problem.build(self.run.seed).to(self.device)
        model.load_state_dict(weights[at])
        return model.eval()


def _check_network(at: str, problem: Problem) -> None:
    """Refuse the name of a network that a training of the problem does not have."""
    if at not in get_args(_Network):
        raise ValueError(
            f"at must be last or best, or with averaging average or best_average, got {at!r}. "
            "Try last."
        )
    if at.endswith("average") and problem.averaging is None:
        raise ValueError(
            f"{at} needs averaged weights, but the problem has no averaging. Give it one: "
            "Problem(..., averaging=flooding.averaging.EMA())."
        )


def total_cost(records: Iterable[Record]) -> Cost:
    """Add up what Records cost; a Run that continued a shorter one of its own is counted once.

    Args:
        records: Records with their Runs.

    Returns:
        The cost.
    """
    # Epochs and full length of the longest Run, by what Runs that continue each other share.
    longest: dict[tuple[int, int, str, str], tuple[int, int]] = {}
    steps, epochs, seconds = 0.0, 0, 0.0
    for record in records:
        run = record.run
        assert run is not None
        max_epochs = run.problem.max_epochs
        identity = (id(run.problem), run.seed, _level_identity(run), repr(run.method))
        # A Run that a strategy trains further counts once, with its last length.
        longest[identity] = max(longest.get(identity, (0, 0)), (run.epochs, max_epochs))
        trained = record.metadata.get("epochs_trained", run.epochs)
        steps += float(trained) / max_epochs
        epochs += round(trained)
        seconds += float(record.metadata.get("seconds", 0.0))
    trainings = sum(length / max_epochs for length, max_epochs in longest.values())
    return Cost(trainings, steps, epochs, seconds / 3600)


def _level_identity(run: Run) -> str:
    """Tell levels apart: a table as an object, all others by their value."""
    # The repr of a table leaves most of its levels out, that of a tensor most of the digits.
    if isinstance(run.level, Tensor):
        return repr(float(run.level))
    if isinstance(run.level, (PerClass, PerExample)):
        return f"table {id(run.level)}"
    return repr(run.level)


def _table_row(record: Record) -> TableRow:
    run = record.run
    assert run is not None
    level = run.level
    if not (level is None or isinstance(level, float)):
        level = _level_text(level)
    row: TableRow = {"level": level, "seed": run.seed, "epochs": run.epochs}
    for name in _COLUMNS:
        if f"last.{name}" in record.metrics:
            row[name] = record.metrics[f"last.{name}"]
        if f"{AVERAGE}last.{name}" in record.metrics:
            row[f"{AVERAGE}{name}"] = record.metrics[f"{AVERAGE}last.{name}"]
    return row


def _level_text(level: object) -> str:
    """Write a level that is no number; of a controller what differs from its defaults."""
    if not (isinstance(level, Controller) and is_dataclass(level)) or isinstance(level, type):
        return repr(level)
    parts = {}
    for each in fields(level):
        value = getattr(level, each.name)
        if value != each.default:
            parts[each.name] = value
    return f"{type(level).__name__}({join_parts(parts)})"


def _summary_json(result: SearchResult) -> str:
    """Write everything but the Records as JSON."""
    estimates = []
    for estimate in result.estimates:
        numbers = asdict(estimate)
        estimates.append({name: _finite_or_none(value) for name, value in numbers.items()})
    summary = {
        "level": result.level,
        "strategy": result.strategy,
        "seed": result.run.seed,
        "suggestions": estimates,  # the key that flooding 0.1.0 wrote
        "cost": asdict(result.cost),
        "warnings": list(result.warnings),
    }
    return json.dumps(summary, indent=1) + "\n"


def _finite_or_none(value: object) -> object:
    """Replace NaN and infinities, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table_csv(rows: Sequence[TableRow]) -> str:
    # In the order of their first appearance: not every row has every column.
    names = list(dict.fromkeys(name for row in rows for name in row))
    with io.StringIO() as text:
        table = csv.DictWriter(text, names)
        table.writeheader()
        table.writerows(rows)
        return text.getvalue()


def _curves_npz(records: Sequence[Record]) -> bytes:
    curves = {}
    for number, record in enumerate(records):
        for name, curve in record.curves.items():
            curves[f"{number}/{name}"] = curve
    with io.BytesIO() as file:
        np.savez_compressed(file, **curves)  # type: ignore[arg-type]
        return file.getvalue()
