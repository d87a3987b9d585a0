"""Contract tests for parts you write yourself: a broken rule fails your test with its name."""

from flooding.testing.controllers import check_controller
from flooding.testing.exactness import Exactness, check_exact, measure_exactness
from flooding.testing.methods import check_method
from flooding.testing.records import fake_record
from flooding.testing.runners import check_runner
from flooding.testing.strategies import check_strategy

__all__ = [
    "Exactness",
    "check_controller",
    "check_exact",
    "check_method",
    "check_runner",
    "check_strategy",
    "fake_record",
    "measure_exactness",
]
