"""A report is written whole: page, tables, figures; failures come first."""

import csv
import io

import pytest
from matplotlib.figure import Figure

from flooding.atomic import write_atomic
from flooding.report.document import Report, Table

TABLE = Table(
    "numbers", "Two numbers, n = 1", ["name", "value"], [["a|b", 1.5], ["c", "2 ± 1"]], "A note."
)


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
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [
        ["name", "value"],
        ["a|b", "1.5"],
        ["c", "2 ± 1"],
    ]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells, got 1"):
        Table("x", "x", ["a", "b"], [["only"]])


def report(**changes):
    given = {
        "failures": ("It failed.",),
        "findings": ("It held.",),
        "tables": (TABLE,),
        "provenance": "A machine.",
    }
    figures = {"line": ("A line.", lambda: Figure(figsize=(2, 2)))}
    return Report("Title", "About.", **given | {"figures": figures} | changes)


def test_failures_come_before_findings_and_empty_parts_are_left_out():
    text = report().markdown("try")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# Title",
        "## Not reproduced",
        "## Found",
        "## Tables",
        "## Figures",
        "## Circumstances",
    ]
    assert text.index("It failed.") < text.index("It held.")
    assert "![A line.](try-line.png)" in text
    bare = report(failures=(), tables=(), figures={}, provenance="").markdown("try")
    assert [line for line in bare.splitlines() if line.startswith("#")] == ["# Title", "## Found"]


def test_an_answer_comes_first_with_a_picture_and_how_it_was_done_last():
    figures = {name: (f"{name}.", lambda: Figure(figsize=(2, 2))) for name in ("One", "Two")}
    text = report(answer="It <b>holds</b>.", figures=figures).markdown("try")
    parts = text.split("\n\n")
    assert parts[:4] == ["# Title", "It &lt;b>holds&lt;/b>.", "![One.](try-One.png)", "One."]
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("##")]
    assert headings == [
        "Not reproduced",
        "Found",
        "Tables",
        "Figures",
        "How it was done",
        "Circumstances",
    ]
    assert text.count("](try-One.png)") == text.count("](try-Two.png)") == 1
    assert text.index("](try-Two.png)") > text.index("## Figures")
    assert "## How it was done\n\nAbout." in text
    assert "## Figures" not in report(answer="It holds.").markdown("try")


def test_saving_writes_every_part_and_leaves_no_part_behind(tmp_path):
    files = report().save(tmp_path / "deep" / "er", "try")
    assert [file.name for file in files] == ["try.md", "try-numbers.csv", "try-line.png"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)
    assert files[0].read_text() == report().markdown("try")
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a.txt", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


HOSTILE = "<script>alert(1)</script>\n| # `x` &lt; \\| \x1b[31m\u202e"


def test_nothing_in_a_cell_is_html_code_or_the_end_of_a_cell():
    table = Table("t", HOSTILE, ["a", HOSTILE], [[HOSTILE, "p < 0.1"]], HOSTILE)
    lines = table.markdown().splitlines()
    assert [line.replace("\\\\", "").replace("\\|", "").count("|") for line in lines] == [
        1,
        0,
        3,
        3,
        3,
        0,
        1,
    ]
    text = table.markdown()
    assert "<script" not in text
    assert "&lt;script>alert(1)&lt;/script>" in text
    assert "&amp;lt;" in text, "what is written stays what is read"
    assert "p < 0.1" in text, "a sign is no tag"
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\`x\\`" in lines[4]


def test_nothing_on_a_page_is_html():
    figures = {"line": (HOSTILE, lambda: Figure(figsize=(2, 2)))}
    page = report(
        failures=(HOSTILE,), findings=(HOSTILE,), provenance=HOSTILE, figures=figures
    ).markdown("x")
    page += Report(HOSTILE, HOSTILE).markdown("x")
    assert "<script" not in page
    assert page.count("&lt;script>") == 7
    assert page.splitlines()[0] == "# Title"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>", "&lt;b>"),
        ("</b>", "&lt;/b>"),
        ("<!-- x", "&lt;!-- x"),
        ("<?php", "&lt;?php"),
        ("a <b", "a &lt;b"),
        ("1 < 2 & 3", "1 < 2 & 3"),
        ("p<0.05", "p<0.05"),
        ("R&D; &#60;", "R&amp;D; &amp;#60;"),
        ("a\nb", "a b"),
    ],
    ids=ascii,
)
def test_what_is_escaped_on_a_page(text, shown):
    assert f"| {shown} |" in Table("t", "t", ["c"], [[text]]).markdown()
