"""Data that say whether their process would draw a bar, for workers to import."""

import sys
from functools import partial

from flooding.data.synthetic import two_gaussians
from flooding.training.progress import show_progress
from small import small


def reporting_data(*, seed):
    """Two Gaussians, and a line on standard error."""
    with show_progress(True) as display:
        print(f"shown: {display.is_shown}", file=sys.stderr)
    return two_gaussians(n_train=40, n_val=30, n_test=20, seed=seed)


def reporting(**changes):
    """A problem of these data."""
    return small(data=partial(reporting_data), **changes)
