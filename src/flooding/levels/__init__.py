"""Levels: controllers that move the level during training, and tables of levels.

One file for each controller. ``base`` holds the type of a level and the protocols, ``tables`` the
levels that are looked up for each batch.
"""

from flooding.levels.auto import Auto
from flooding.levels.base import (
    Controller,
    Level,
    LevelSource,
    LevelTable,
    State,
    StepInfo,
    first_flooded_step,
    simulate,
)
from flooding.levels.constant import Constant, as_controller
from flooding.levels.delayed import Delayed
from flooding.levels.heuristic import Heuristic
from flooding.levels.plateau import Plateau
from flooding.levels.range import Range
from flooding.levels.tables import (
    Excess,
    PerClass,
    PerExample,
    excess,
    lookup_levels,
    target_entropy,
)
from flooding.levels.warmup import Warmup

__all__ = [
    "Auto",
    "Constant",
    "Controller",
    "Delayed",
    "Excess",
    "Heuristic",
    "Level",
    "LevelSource",
    "LevelTable",
    "PerClass",
    "PerExample",
    "Plateau",
    "Range",
    "State",
    "StepInfo",
    "Warmup",
    "as_controller",
    "excess",
    "first_flooded_step",
    "lookup_levels",
    "simulate",
    "target_entropy",
]
