"""A fleet: many Runs of one Problem as one set of tensors with a leading axis of runs."""

from __future__ import annotations

from flooding.training.fleet.loop import Fleet
from flooding.training.fleet.rules import FleetError, group_key, refusal

__all__ = ["Fleet", "FleetError", "group_key", "refusal"]
