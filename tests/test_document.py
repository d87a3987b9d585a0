"""A report is written whole: page, tables, figures; failures come first."""

import csv
import io

import pytest
from matplotlib.figure import Figure

from flooding.report.document import Report, Table, write

TABLE = Table("numbers", "Two numbers, n = 1", ["name", "value"], [["a|b", 1.5], ["c", "2 ± 1"]], "A note.")


def test_a_table_as_markdown_and_csv():
    assert TABLE.markdown().splitlines() == [
        "**Two numbers, n = 1**",
        "",
        "| name | value |",
        "| --- | --- |",
        "| a\\|b | 1.5 |",
        "| c | 2 ± 1 |",
        "",
        "A note.",
    ]
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [["name", "value"], ["a|b", "1.5"], ["c", "2 ± 1"]]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells, got 1"):
        Table("x", "x", ["a", "b"], [["only"]])


def report(**changes):
    given = {"failures": ("It failed.",), "findings": ("It held.",), "tables": (TABLE,), "told": "A machine."}
    figures = {"line": ("A line.", lambda: Figure(figsize=(2, 2)))}
    return Report("Title", "About.", **given | {"figures": figures} | changes)


def test_failures_come_before_findings_and_empty_parts_are_left_out():
    text = report().markdown("try")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# Title", "## Not reproduced", "## Found", "## Tables", "## Figures", "## Circumstances"]
    assert text.index("It failed.") < text.index("It held.")
    assert "![A line.](try-line.png)" in text
    bare = report(failures=(), tables=(), figures={}, told="").markdown("try")
    assert [line for line in bare.splitlines() if line.startswith("#")] == ["# Title", "## Found"]


def test_saving_writes_every_part_and_leaves_no_part_behind(tmp_path):
    files = report().save(tmp_path / "deep" / "er", "try")
    assert [file.name for file in files] == ["try.md", "try-numbers.csv", "try-line.png"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)
    assert files[0].read_text() == report().markdown("try")
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(path, "new")
    assert path.read_text() == "old"
