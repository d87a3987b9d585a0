"""The page on accumulation: its blocks run in order, and its loop does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "accumulation.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names():
    return {"__name__": "page"}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_blocks_run_in_order(names, number):
    if number:
        assert "flood_step" in names, "the first block did not run"
    exec(compile(BLOCKS[number], f"accumulation.md, block {number + 1}", "exec"), names)
    if number == 0:
        history, level = names["history"], names["level"]
        assert history[0] > 2 * level
        # Held near the level, not passed: plain training falls to half of it in these steps.
        assert abs(sum(history[-20:]) / 20 - level) < level / 4
        assert min(history) > 0.7 * level
        assert names["flood_step"].state["n_flooded"] >= 5


def test_the_loop_is_changed_by_two_lines():
    assert BLOCKS[0].count("# <-- added") == 2
    assert len(BLOCKS) == PAGE.count("```") // 2 >= 6
