"""Flooding: a loss, a level, and many runs at once.

Names are imported on first use (PEP 562), so that ``import flooding`` and ``flooding --help`` cost
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flooding.criterion import Flood
    from flooding.functional import flood, soft_flood
    from flooding.level_search.driver import search
    from flooding.level_search.find import find_level
    from flooding.step import FloodStep
    from flooding.training.loop import train
    from flooding.training.problem import Problem
    from flooding.training.record import Record
    from flooding.training.run import Run
    from flooding.training.runner import run_all

# The module of each public name.
_MODULE_OF = {
    "Flood": "flooding.criterion",
    "FloodStep": "flooding.step.flood_step",
    "Problem": "flooding.training.problem",
    "Record": "flooding.training.record",
    "Run": "flooding.training.run",
    "find_level": "flooding.level_search.find",
    "flood": "flooding.functional",
    "run_all": "flooding.training.runner",
    "search": "flooding.level_search.driver",
    "soft_flood": "flooding.functional",
    "train": "flooding.training.loop",
}
__all__ = [
    "Flood",
    "FloodStep",
    "Problem",
    "Record",
    "Run",
    "find_level",
    "flood",
    "run_all",
    "search",
    "soft_flood",
    "train",
]
__version__ = "0.3.0"


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(
        f"module 'flooding' has no attribute {name!r}. It has {', '.join(__all__)}."
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
