"""What an experiment is: a study by name, and how its Records are kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from flooding.experiments.archive import Archive
from flooding.report.document import Report
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["Experiment", "Source", "Study"]

Study: TypeAlias = Generator[list[Run], list[Record], Report]
"""A study under way: it yields Runs, receives their Records and returns its report."""


class Source(Protocol):
    """Records in place of trainings, such as an :class:`Archive`."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its Runs, smallest first."""
        ...

    def __contains__(self, run: Run) -> bool:
        """Tell whether it has a Run."""
        ...

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look Runs up."""
        ...


def _round_all(run: Run) -> bool:  # noqa: ARG001
    """Keep no curve exact."""
    return False


@dataclass(frozen=True)
class Experiment:
    """A study that ``flooding reproduce`` runs.

    Args:
        name: Its name, which its files begin with.
        start: Begins the study. Its arguments: whether to take the short form of it, and seeds
            other than its own, or None.
        curves: Curves to keep in an archive.
        is_exact: Tells whose curves an archive must not round.
        load: Reads an archive in place of trainings.
    """

    name: str
    start: Callable[[bool, Sequence[int] | None], Study]
    curves: tuple[str, ...]
    is_exact: Callable[[Run], bool] = _round_all
    load: Callable[[Path], Source] = Archive
