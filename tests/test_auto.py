"""A level that one training chooses: the rule against a slow twin, and everywhere it is taken."""

import gc
import json
import math
import shlex
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flooding import Flood, FloodStep, Run, cli, find_level, run_all
from flooding.level_search.auto import auto
from flooding.level_search.finder import finder
from flooding.level_search.sweep import sweep_of
from flooding.levels import Auto, StepInfo, Warmup, epoch_end, simulate
from flooding.testing import check_controller, check_strategy
from flooding.training import loop
from flooding.training.loop import train
from flooding.training.problem import Score
from small import normed, regression, small

NAN = math.nan


def end(val_loss, val_accuracy=None, n_val=None, val_score=None):
    return StepInfo(None, None, val_loss, val_accuracy, n_val, val_score)


def levels(controller, infos):
    return [state["level"].item() for state in simulate(controller, infos)]


# ---------------------------------------------------------------- the rule


def test_it_keeps_the_protocol():
    check_controller(Auto(epochs=10), compiled=True)
    check_controller(Auto(epochs=500), steps=8)


some_ends = st.lists(
    st.tuples(
        st.sampled_from([0.9, 0.7, 0.5, 0.3, 0.0, -0.2, NAN, math.inf]),
        st.sampled_from([0.5, 0.6, 0.61, 0.9, 1.0, NAN]),
    ),
    max_size=14,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    epochs=st.integers(1, 14),
    ends=some_ends,
    kind=st.sampled_from(["accuracy", "counted", "score", "loss"]),
)
def test_the_levels_are_those_of_a_slow_twin(epochs, ends, kind):
    infos = []
    for val_loss, accuracy in ends:
        infos.append(StepInfo(torch.tensor(0.5)))
        infos.append({
            "accuracy": end(val_loss, accuracy),
            "counted": end(val_loss, accuracy, n_val=50),
            "score": end(val_loss, 0.3, 50, val_score=accuracy),
            "loss": end(val_loss),
        }[kind])
    controller = Auto(epochs=epochs, memory=0.1)
    result = levels(controller, infos)
    assert result[::2][: len(ends) + 1] == pytest.approx(twin(controller, ends, kind), rel=1e-4)
