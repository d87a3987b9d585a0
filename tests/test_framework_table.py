"""The table of docs/frameworks is that of the stored cells, and nothing in it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework_table import COLUMNS, FOLDER_VARIABLE, cell, draw, read_cells

FOLDER = Path(__file__).parents[1] / "docs" / "frameworks"
CELLS = read_cells(FOLDER / "cells.jsonl")


def test_the_page_shows_the_stored_cells():
    assert draw(CELLS) in (FOLDER / "README.md").read_text(), "run: python benchmarks/frameworks.py"


@pytest.mark.parametrize(
    "entry", CELLS, ids=lambda entry: f"{entry['framework']} {entry['column']}"
)
def test_a_stored_cell_is_exact_and_the_naive_line_is_not(entry):
    assert entry["column"] in COLUMNS
    if not isinstance(entry["value"], str):
        assert entry["value"] <= entry["tolerance"]
    if entry["naive"] is not None:
        assert entry["naive"] > 1e-3


def test_a_cell_is_checked_and_written(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    for value in (1e-16, 3e-16, 2e-16):
        cell("Mine", "clipping", value, naive=0.4)
    cell("Mine", "resume", "refused: it has none")
    with pytest.raises(AssertionError, match=r"Mine, clipping: 1\.0e-09 is above 1e-10"):
        cell("Mine", "clipping", 1e-9)
    with pytest.raises(AssertionError, match="exact as well"):
        cell("Mine", "clipping", 0.0, naive=1e-9)
    with pytest.raises(AssertionError, match="text must start"):
        cell("Mine", "resume", "wrong")
    (file,) = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 4
    worst, text = read_cells(file)
    assert (worst["value"], text["value"]) == (3e-16, "refused: it has none")
    later = tmp_path / "later.jsonl"
    later.write_text(json.dumps(worst | {"value": 0.0}))
    assert "| Mine |  |  |  | 0 (0.4) |  | refused: it has none |  |" in draw(
        read_cells(file, later)
    )
