"""Experiments: studies of published claims, one file a source.

Each is a generator that yields Runs, receives their Records and returns a report.
:data:`flooding.entries.EXPERIMENTS` lists them.
"""

from flooding.experiments.archive import Source
from flooding.experiments.estimate import estimate
from flooding.experiments.experiment import Experiment, Study
from flooding.experiments.provenance import describe_provenance, machine

__all__ = ["Experiment", "Source", "Study", "describe_provenance", "estimate", "machine"]
