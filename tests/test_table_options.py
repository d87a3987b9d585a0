"""What a user says of a table: in Python by keywords, on the command line by options."""

import io
import subprocess
import sys

import pytest

from flooding.cli._table_options import TableOptions
from flooding.tabular import table_problem

SHORT = "--epochs 1 --workers 0 --strategy grid --levels none"


@pytest.fixture
def table(tmp_path):
    rows = [f"{i},{i % 7 if i % 9 else 'gone'},{i % 5},0{i % 3},{'ab'[i % 2]}\n" for i in range(90)]
    (tmp_path / "a.csv").write_text("row,x,z,code,y\n" + "".join(rows))
    return tmp_path / "a.csv"


def test_options_of_columns(table):
    columns = table_problem(table, "y", na=["gone"]).preprocessing.columns
    assert columns == ("x", "z", "code")
    columns = table_problem(table, "y", drop=["z", "code"], na=["gone"]).preprocessing.columns
    assert columns == ("x",)
    dropped = table_problem(table, "y", drop="z,code", na=["gone"])
    assert dropped.preprocessing.columns == ("x",)
    assert dropped.preprocessing.dropped_columns == ("row", "z", "code")
    assert "Dropped as you said, of 90 cells each: 'z', 'code'." in dropped.assumptions
    columns = table_problem(table, "y", use=["row"], na=["gone"]).preprocessing.columns
    assert columns == ("row", "x", "z", "code")
    text = table_problem(table, "y", text=["z"], na=["gone"]).preprocessing
    assert text.categorical_columns == ("z",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ["zz"]}, r"drop must name columns of .*a\.csv, got 'zz'\. Did you mean 'z'\?"),
        ({"use": ["none"]}, r"use must name columns of .*, got 'none'"),
        ({"text": ["u,v"]}, r"text must name columns of .*, got 'u'"),
        ({"drop": ["y"]}, "drop must not name the target, got 'y'"),
        ({"decimal": "x"}, "decimal must be '.' or ',', got 'x'"),
        ({"encoding": "no-such"}, "must be text in its encoding"),
    ],
)
def test_options_that_cannot_be(table, options, message):
    with pytest.raises(ValueError, match=message):
        table_problem(table, "y", **options)


def test_a_decimal_sign_decides_where_the_cells_do_not(tmp_path):
    rows = "".join(f'"{1 + i % 7},250","{i % 2}"\n' for i in range(60))
    (tmp_path / "a.csv").write_text("x,y\n" + rows)
    table = table_problem(tmp_path / "a.csv", "y")
    assert any("'1,250' is read as 1250" in s and "--decimal ','" in s for s in table.assumptions)
    table = table_problem(tmp_path / "a.csv", "y", decimal=",")
    assert any("'1,250' is read as 1.25" in s for s in table.assumptions)


def test_options_are_those_of_table_problem():
    options = TableOptions("y", "regression", ["a"], ["b"], ["c"], "-,?", "latin-1", False, ",")
    assert options.keywords() == {
        "kind": "regression",
        "drop": ["a"],
        "use": ["b"],
        "text": ["c"],
        "na": ("-", "?"),
        "encoding": "latin-1",
        "header": False,
        "decimal": ",",
    }
    assert TableOptions().keywords() == {}
    assert TableOptions(na="").keywords() == {"na": ("",)}
    assert TableOptions("y", drop=["a"]).names() == ("--target", "--drop")


def test_options_on_the_command_line(flooding, table):
    code, out, err = flooding(f"find a.csv --target y --drop z,code --na gone --use row {SHORT}")
    assert code == 0, err
    assert "2 numeric columns, standardised on the training rows: row, x." in out
    assert "Dropped as you said, of 90 cells each: 'z', 'code'." in out
    code, out, err = flooding(f"find a.csv --target 1 --no-header --kind regression {SHORT}")
    assert code == 2
    assert "regression needs a target of numbers, got 'x'" in err
    code, out, err = flooding(f"find a.csv --target y --encoding utf-16 {SHORT}")
    assert code == 2
    assert "must be text in its encoding" in err
    code, out, err = flooding(f"find spiral --na x {SHORT}")
    assert code == 2
    assert "--na belongs to a table, got spiral" in err


def test_a_table_from_standard_input(flooding, table, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(table.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, err = flooding(f"find - --target y --na gone {SHORT}")
    assert code == 0, err
    assert "Assumed of standard input: - standard input: 90 rows, 5 columns." in out


def test_a_table_from_a_pipe_of_a_shell(table, tmp_path):
    command = (
        f"{sys.executable} -m flooding find <(cat a.csv) --target y --na gone {SHORT} "
        f"--ledger {tmp_path}/l.sqlite"
    )
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "90 rows, 5 columns." in result.stdout


@pytest.mark.parametrize(
    ("n_rows", "epochs", "batch_size"), [(1000, 100, 100), (40_000, 31, 100), (200_000, 6, 300)]
)
def test_large_tables_are_trained_for_fewer_epochs(tmp_path, n_rows, epochs, batch_size):
    lines = "".join(f"{i * 7919 % 1013},{i % 2}\n" for i in range(1000))
    (tmp_path / "a.csv").write_text("x,y\n" + lines * (n_rows // 1000))
    table = table_problem(tmp_path / "a.csv", "y")
    assert table.problem.max_epochs == epochs
    assert table.problem.batch_size == batch_size
    texts = [s for s in table.assumptions if "--epochs" in s]
    assert bool(texts) == (epochs < 100)
    assert all(f"{epochs} epochs, as many as suit" in s for s in texts)
    if n_rows == 1000:
        assert table_problem(tmp_path / "a.csv", "y", max_epochs=7).problem.max_epochs == 7
