"""The groups of a search's page: trainings of one level share a colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flooding.level_search.decision_text import describe_candidates
from flooding.level_search.level_stats import reached_level
from flooding.level_search.plot_data import Measure, is_plain, level_position, run_of
from flooding.level_search.result import SearchResult
from flooding.report.groups import Group, level_groups
from flooding.text import brief
from flooding.training.record import Record

__all__ = ["PLAIN", "Groups", "make_groups"]

# Name of the group of plain training.
PLAIN = "no flooding"


@dataclass(frozen=True)
class Groups:
    """The groups of a page.

    Args:
        shown: The groups, plain training first, then from low to high levels.
        chosen: Index of the one that was selected; None where nothing was trained at that level.
    """

    shown: Sequence[Group]
    chosen: int | None

    def index_of(self, name: str) -> int | None:
        """Find a group by its name."""
        for index, group in enumerate(self.shown):
            if group.name == name:
                return index
        return None

    def of_record(self, record: Record) -> int | None:
        """Find the group of a training."""
        return self.index_of(_name(record))

    def of_level(self, level: float | None) -> int | None:
        """Find the group of a level."""
        return self.index_of(_level_name(level))


def _level_name(level: float | None) -> str:
    return PLAIN if level is None else f"level {level:.4g}"


def group_level(record: Record) -> float | None:
    """Give the level that a training is grouped by; None for plain training, and where it moves."""
    if is_plain(record):
        return None
    position = level_position(record)
    if position is None:
        # A controller that waits, and then holds one level.
        level = getattr(run_of(record).level, "level", None)
        position = level if isinstance(level, float) else None
    return position


def _name(record: Record) -> str:
    level = group_level(record)
    if level is None and not is_plain(record):
        return f"moving level, {brief(run_of(record).level)}"
    return _level_name(level)


def make_groups(result: SearchResult, measures: Sequence[Measure]) -> Groups:
    """Group the trainings of a search by their level.

    Args:
        result: The result.
        measures: What was measured on the validation split.

    Returns:
        The groups.
    """
    levels: dict[str, float | None] = {}
    for record in result.records:
        levels[_name(record)] = group_level(record)
    known = [level for level in levels.values() if level is not None]

    def order(name: str) -> tuple[bool, float, str]:
        level = levels[name]
        return (name != PLAIN, float("inf") if level is None else level, name)

    names = sorted(levels, key=order)
    shares: list[float | None] = []
    for name in names:
        level = levels[name]
        if name == PLAIN:
            shares.append(None)
        elif level is None:
            shares.append(1.0)
        else:
            width = max(known) - min(known)
            shares.append((level - min(known)) / width if width else 0.5)
    sentences = describe_candidates(result, measures)
    details = []
    for name in names:
        known = sentences.get(levels[name]) if _has_level(name) else None
        details.append(known or _not_compared(result, name))
    groups = Groups(level_groups(names, shares, details), None)
    return Groups(groups.shown, groups.index_of(_chosen_name(result)))


def _not_compared(result: SearchResult, name: str) -> Sequence[str]:
    """Say why a level has no verdict."""
    if result.decision is None:
        return ()
    if any(reached_level(record) for record in result.records if _name(record) == name):
        return ("It was left out before the last comparison.",)
    return ("It was not compared: no training came down to this level.",)


def _has_level(name: str) -> bool:
    return not name.startswith("moving level")


def _chosen_name(result: SearchResult) -> str:
    """Name the group of the Run to use."""
    run = result.run
    if isinstance(run.level, float) or run.level is None:
        return _level_name(run.level)
    level = getattr(run.level, "level", None)
    return _level_name(level) if isinstance(level, float) else f"moving level, {brief(run.level)}"
