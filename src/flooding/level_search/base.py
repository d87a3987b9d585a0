"""The old home of these names; to be deleted once nothing imports it."""

from flooding.level_search.driver import run_concurrently, run_generator, search
from flooding.level_search.level_stats import (
    adjacent_levels,
    best_level,
    check_levels,
    reached_level,
    tail_means,
)
from flooding.level_search.level_stats import effective_level as make_result
from flooding.level_search.level_stats import end_of_range_warning as end_of_range
from flooding.level_search.level_stats import interval_ends as as_numbers
from flooding.level_search.level_stats import loss_is_negative as may_be_negative
from flooding.level_search.level_stats import tail_key as tail_mean
from flooding.level_search.protocol import RunAll as Evaluate
from flooding.level_search.protocol import Strategy
from flooding.level_search.result import Cost, LevelEstimate, SearchResult
from flooding.level_search.result import total_cost as cost

__all__ = [
    "Cost",
    "Evaluate",
    "LevelEstimate",
    "SearchResult",
    "Strategy",
    "adjacent_levels",
    "as_numbers",
    "best_level",
    "check_levels",
    "cost",
    "end_of_range",
    "make_result",
    "may_be_negative",
    "reached_level",
    "run_concurrently",
    "run_generator",
    "search",
    "tail_mean",
    "tail_means",
]
