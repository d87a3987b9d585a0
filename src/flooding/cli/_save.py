"""The network that ``find --save`` keeps, beside what it must beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flooding.cli._console import console, progress

if TYPE_CHECKING:
    from flooding.level_search.result import SearchResult
    from flooding.tabular import TableProblem
    from flooding.tabular.baselines import Baseline
    from flooding.tabular.final_model import FinalModel
    from flooding.training.problem import Problem

__all__ = ["NetworkName", "SaveOptions", "save_network", "select_at"]

NetworkName: TypeAlias = Literal["best", "last", "average", "best-average"]
Metrics: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class SaveOptions:
    """What to keep, and where.

    Args:
        folder: Where to save the network.
        at: The network to keep, one of :data:`flooding.tabular.final_model.NETWORKS`.
        refit: Whether to train it on the validation rows as well.
        device: Where to train.
        origin: What tells this network from another command's.
    """

    folder: Path
    at: str
    refit: bool
    device: str
    origin: str


def select_at(at: NetworkName | None, problem: Problem) -> str:
    """Select which network of a training to save.

    Args:
        at: The option; None is the best epoch of the network that the search judges.
        problem: What is trained.

    Returns:
        One of :data:`flooding.tabular.final_model.NETWORKS`.

    Raises:
        ValueError: If it is an average, and there is none.
    """
    from flooding.training.record import monitor_prefix

    if at is None:
        return "best_average" if monitor_prefix(problem) else "best"
    if at.endswith("average") and problem.averaging is None:
        raise ValueError(f"--at {at} needs averaged weights. Add --average ema or --average mean.")
    return at.replace("-", "_")


def save_network(
    result: SearchResult, table: TableProblem, options: SaveOptions
) -> dict[str, object]:
    """Select a network, compare it with what needs no search, and save it.

    Args:
        result: A search on the table's Problem.
        table: The table.
        options: What to keep, and where.

    Returns:
        The comparison, for ``--json``.
    """
    from flooding.tabular import save_model
    from flooding.tabular.baselines import fit_constant, fit_models
    from flooding.tabular.final_model import select_network

    with progress() as (on_start, on_row):
        final = select_network(
            result.run,
            records=result.records,
            weights=result.weights,
            compare_plain=result.strategy != "auto",  # its price is one training
            at=options.at,
            refit=options.refit,
            device=options.device,
            on_start=on_start,
            on_row=on_row,
        )
    constant = fit_constant(table.problem, result.run.seed)
    models = fit_models(table.problem, result.run.seed)
    about = {
        "origin": options.origin,
        "network": final.choice.name,
        "level": result.level if final.choice.is_flooded else None,
        "seed": result.run.seed,
        "epochs": final.epochs,
        "refit": final.is_refit,
    }
    save_model(options.folder, final.weights, table, about=about)

    columns = _columns(table)
    _print_comparison(final, constant, columns)
    better = _better_models(final, models, table)
    for model in better:
        console.print_result(_describe_better(model, final, columns))
    if final.is_refit:
        _print_refit(final, columns)
    console.print_result(
        f"Model in {options.folder.absolute()}: flooding predict {options.folder} new.csv"
    )
    return _to_json(final, constant, models, options.folder)


@dataclass(frozen=True)
class _Column:
    """A metric as a reader sees it: its title, and the text of its value."""

    title: str
    metric: str
    format: Callable[[float], str]


def _columns(table: TableProblem) -> list[_Column]:
    """Choose what is shown: of classes accuracy and NLL, of a number its error in its own unit."""
    target = table.target
    if target.classes is None:

        def root(value: float) -> str:
            return f"{math.sqrt(value) * target.sd:.4g}"

        def explained(value: float) -> str:
            return f"{1 - value / variance:.3f}"

        variance = _test_variance(table)
        return [_Column("root mean squared error", "loss", root), _Column("R²", "loss", explained)]
    columns = [
        _Column("accuracy %", "accuracy", lambda value: f"{100 * value:.1f}"),
        _Column("NLL", "loss", lambda value: f"{value:.3f}"),
    ]
    if table.problem.score is not None:
        columns.insert(0, _Column("score", "score", lambda value: f"{value:.4g}"))
    return columns


def _test_variance(table: TableProblem) -> float:
    """Give the variance of the standardised target on the test rows."""
    test = table.problem.splits(0).test
    return math.nan if test is None else float(test.y.double().var(unbiased=False))


def _print_comparison(final: FinalModel, constant: Baseline, columns: Sequence[_Column]) -> None:
    """Print what the candidates reach on the test rows, and which of them is kept."""
    rows: list[tuple[str, Metrics, bool]] = [(constant.name, constant.metrics, False)]
    for candidate in final.candidates:
        rows.append((candidate.name, candidate.metrics, candidate is final.choice))
    # A table without test rows has nothing to show here.
    if f"test_{columns[0].metric}" not in constant.metrics:
        return
    table = Table(
        title="On the test rows, which chose nothing",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right")
    table.add_column("")
    for name, metrics, is_choice in rows:
        cells = [column.format(metrics[f"test_{column.metric}"]) for column in columns]
        table.add_row(name, *cells, "kept" if is_choice else "")
    console.print()
    console.print_table(table)
    flooded = [candidate for candidate in final.candidates if candidate.is_flooded]
    if len(flooded) == len(final.candidates):
        console.print_line(
            "Plain training is not compared: one training chose its own level. --budget 3 does."
        )
    if not flooded:
        console.print_line("The search has no level: flooding does not help here.")
    console.print_line(f"Kept, by the validation rows: {final.choice.name}, epoch {final.epochs}.")


def _better_models(
    final: FinalModel, models: Sequence[Baseline], table: TableProblem
) -> list[Baseline]:
    """List the models that are better than the network on the validation rows, the best first."""
    from flooding.training.record import validation_key

    problem = table.problem
    keyed = [(validation_key(model.metrics, problem), model) for model in models]
    better = [(key, model) for key, model in keyed if key > final.choice.key]
    better.sort(key=lambda pair: pair[0], reverse=True)
    return [model for _, model in better]


def _describe_better(model: Baseline, final: FinalModel, columns: Sequence[_Column]) -> str:
    """Say by how much a model is better, in one line."""
    parts = []
    for split, title in (("val", "validation"), ("test", "test")):
        numbers = []
        for column in columns:
            metric = f"{split}_{column.metric}"
            if metric in model.metrics and column.title != "R²":
                own = column.format(final.choice.metrics[metric])
                numbers.append(f"{column.title} {column.format(model.metrics[metric])}, not {own}")
        if numbers:
            parts.append(f"{'; '.join(numbers)} on the {title} rows")
    return (
        f"{model.name.capitalize()} (scikit-learn) is better than the network that is kept: "
        f"{'; '.join(parts)}. Consider it."
    )


def _print_refit(final: FinalModel, columns: Sequence[_Column]) -> None:
    """Print what the network reaches that was trained on the validation rows as well."""
    numbers = []
    for column in columns:
        value = final.test_metrics.get(f"test_{column.metric}")
        if value is not None:
            numbers.append(f"{column.title} {column.format(value)}")
    suffix = f": {', '.join(numbers)} on the test rows" if numbers else ""
    console.print_line(
        f"Trained again on training and validation rows for {final.epochs} epochs{suffix}."
    )


def _to_json(
    final: FinalModel, constant: Baseline, models: Sequence[Baseline], folder: Path
) -> dict[str, object]:
    """Write the comparison with plain names and numbers."""
    networks = {}
    for candidate in final.candidates:
        networks[candidate.name] = _select_metrics(candidate.metrics)
    baselines = {}
    for baseline in (constant, *models):
        baselines[baseline.name] = _select_metrics(baseline.metrics)
    return {
        "folder": folder.absolute(),
        "network": final.choice.name,
        "epochs": final.epochs,
        "refit": final.is_refit,
        "test": _select_metrics(final.test_metrics),
        "networks": networks,
        "baselines": baselines,
    }


def _select_metrics(metrics: Metrics) -> dict[str, float]:
    """Keep the losses, accuracies and scores on validation and test rows."""
    names = [
        f"{split}_{name}" for split in ("val", "test") for name in ("loss", "accuracy", "score")
    ]
    return {name: metrics[name] for name in names if name in metrics}
