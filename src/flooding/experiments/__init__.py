"""Experiments: studies of published claims, one file a source.

Each file ends with its ``EXPERIMENT``; :data:`flooding.entries.EXPERIMENTS` lists them. A study is
a generator: it yields Runs, receives their Records and returns a report.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from flooding.report.document import Report
from flooding.training.archive import Archive, Source
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["Experiment", "Study"]

Study: TypeAlias = Generator[list[Run], list[Record], Report]
"""A study under way: it yields Runs, receives their Records and returns its report."""


@dataclass(frozen=True)
class Experiment:
    """A study that ``flooding reproduce`` runs.

    Args:
        name: Its name, which its files begin with.
        start: Begins the study. Its arguments: whether to take the short form of it, and seeds
            other than its own, or None.
        curves: Curves to keep in an archive.
        is_exact: Tells whose curves an archive must not round; None rounds all.
        load: Reads an archive in place of trainings.
    """

    name: str
    start: Callable[[bool, Sequence[int] | None], Study]
    curves: tuple[str, ...]
    is_exact: Callable[[Run], bool] | None = None
    load: Callable[[Path], Source] = Archive
