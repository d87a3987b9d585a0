"""Ranks: flooding the step of 2 or 3 gloo processes equals flooding the whole batch in one."""

from __future__ import annotations

import pytest
import torch

from _ranks import TOLERANCE
from framework_oracle import end_ranks, start_ranks

CASES = [
    "ddp, 3 ranks",
    "ddp, 3 ranks, 3 micro-batches, clipped",
    "ddp, 2 ranks",
    "ddp, 2 ranks, 4 micro-batches",
    "fsdp2, 2 ranks",
    "fsdp2, 2 ranks, 3 micro-batches, clipped",
]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """All checks in three ranks that start once: importing torch takes longer than most of them."""
    folder = tmp_path_factory.mktemp("ranks")
    return end_ranks(start_ranks("_ranks.py", folder, world=3), folder, seconds=120)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_ranks_equal_the_whole_batch(figures, case, dtype):
    got = figures[f"{case}, {dtype}"]
    print(f"{case}, {dtype}: exact {got['exact']:.1e}, naive {got['naive']:.1e}")
    assert got["exact"] <= TOLERANCE[dtype]
    # The naive wrapper decides per rank and micro-batch; 1e-4 is a tenth of one step of Adam at
    # this learning rate.
    assert got["naive"] > 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("ddp")])
def test_ranks_agree_and_count_alike(figures, case):
    got = figures[f"{case}, {torch.float64}"]
    assert got["ranks"] == 0
    assert got["counts"] == 0
    assert got["loss"] < 1e-12


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("ddp")])
def test_local_is_the_naive_method_by_its_name(figures, case):
    """Each micro-batch of each rank decides for itself: what flooding the loss before its backward
    does."""
    got = figures[f"{case}, {torch.float64}"]
    assert got["local and naive"] <= TOLERANCE[torch.float64]
    assert got["local"] > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rank_without_valid_targets_does_not_unflood_the_step(figures, dtype):
    got = figures[f"a masked rank, {dtype}"]
    assert got["slope"] == -1
    assert got["exact"] <= TOLERANCE[dtype] < got["plain"]
    assert got["loss"] <= TOLERANCE[dtype]
    assert got["non_finite"] == 1
