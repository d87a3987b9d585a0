"""Flooding: a loss, a level, and many runs at once.

Names are imported on first use (PEP 562), so that ``import flooding`` and ``flooding --help`` cost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flooding.engine import evaluate
    from flooding.find import find_level, search
    from flooding.functional import flood, soft_flood
    from flooding.loop import train
    from flooding.losses import Flood
    from flooding.problem import Problem, Record, Run
    from flooding.step import FloodStep

_HOME = {
    "Flood": "flooding.losses",
    "FloodStep": "flooding.step",
    "Problem": "flooding.problem",
    "Record": "flooding.problem",
    "Run": "flooding.problem",
    "evaluate": "flooding.engine",
    "find_level": "flooding.find",
    "flood": "flooding.functional",
    "search": "flooding.find",
    "soft_flood": "flooding.functional",
    "train": "flooding.loop",
}
__all__ = [
    "Flood",
    "FloodStep",
    "Problem",
    "Record",
    "Run",
    "evaluate",
    "find_level",
    "flood",
    "search",
    "soft_flood",
    "train",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'flooding' has no attribute {name!r}. It has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
