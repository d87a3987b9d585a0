"""Some made-up tables of ``benchmarks/tables_fuzz.py``: no column is lost without a sentence."""

import logging
import random
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("seed", range(4))
def test_made_up_tables_are_read_as_they_were_written(tmp_path, monkeypatch, caplog, seed):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import tables_fuzz

    caplog.set_level(logging.ERROR)
    for index in range(10):
        table = tables_fuzz.make_table(random.Random(f"{seed} {index}"))
        folder = tmp_path / str(index)
        folder.mkdir()
        tables_fuzz.check_table(table, folder)
        assert not table.problems, (index, table.file)
