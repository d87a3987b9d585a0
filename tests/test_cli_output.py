"""What the commands print: versions, JSON, quiet, tables on narrow terminals, completion."""

import json
import os
import re
import subprocess
import sys
from io import StringIO

import pytest
from rich.table import Table

import flooding as package
from flooding import cli
from flooding.cli import _console
from flooding.cli._console import Terminal

SINUSOID = ("run", "sinusoid", "--width", 8, "--depth", 1, "--epochs", 2, "--test-samples", 50)


@pytest.fixture
def flooding(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    lines = ["x,y"] + [f"{(i * 7) % 11 + 2 * (i % 2)},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(lines))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["flooding", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    yield call
    _console.set_output()


def test_the_version_is_printed(flooding):
    assert flooding("--version") == (0, f"flooding {package.__version__}\n", "")


def test_the_help_begins_with_what_it_is_for(flooding):
    code, out, _ = flooding("--help")
    assert code == 0
    text = " ".join(out.split())
    assert "A loss, a level, and many runs at once" in text
    assert text.index("A loss, a level") < text.index("Options")
    assert "--install-completion" in text
    assert "--version" in text
    assert "demo" in text


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_each_shell_is_written(flooding, monkeypatch, shell):
    environment = {**os.environ, "_FLOODING_COMPLETE": f"source_{shell}"}
    done = subprocess.run(
        [sys.executable, "-m", "flooding"], env=environment, capture_output=True, text=True
    )
    assert "_FLOODING_COMPLETE" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("find", "--fo"),
        ("compare", "--meth"),
        ("predict", "--prob"),
    ],
    ids=" ".join,
)
def test_new_options_are_completed(words):
    line = " ".join(("flooding", *words))
    environment = {
        **os.environ,
        "_FLOODING_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": "2",
    }
    command = [sys.executable, "-m", "flooding"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert any(option.startswith(words[1]) for option in done.stdout.split()), done


# JSON and quiet


def test_find_prints_its_result_as_json(flooding, tmp_path):
    code, out, err = flooding(
        "find", "a.csv", "--target", "y", "--epochs", 3, "--workers", 0, "--json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["folder"] == str(tmp_path / "flooding-find")
    assert result["strategy"] == "finder"
    assert result["trainings"][0]["level"] is None
    assert any("a.csv: 60 rows" in sentence for sentence in result["assumptions"])
    assert (
        result["level"]
        == json.loads((tmp_path / "flooding-find" / "found.json").read_text())["level"]
    )


def test_run_and_reproduce_print_json(flooding):
    code, out, err = flooding(*SINUSOID, "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["epochs"] == 2
    assert json.loads(out)["weights"] is None
    code, out, _ = flooding("reproduce", "--list", "--json")
    assert "ishida2020" in json.loads(out)["experiments"]


def test_predict_prints_json(flooding, tmp_path):
    words = ("find", "a.csv", "--target", "y", "--epochs", 1, "--workers", 0, "--save", "model")
    assert flooding(*words)[0] == 0
    code, out, _ = flooding("predict", "model", "a.csv", "--json", "--keep", "x")
    rows = json.loads(out)["predictions"]
    assert (code, len(rows)) == (0, 60)
    assert rows[0].keys() == {"x", "y"}
    code, out, _ = flooding("predict", "model", "a.csv", "--json", "-o", "p.csv")
    assert json.loads(out)["file"] == str(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (0.1, 0.1),
        ((1, "a", None, True), [1, "a", None, True]),
        ({"a": {1: [float("inf")]}}, {"a": {"1": [None]}}),
    ],
    ids=str,
)
def test_json_has_no_infinities(capsys, value, expected):
    _console.print_json({"value": value})
    assert json.loads(capsys.readouterr().out) == {"value": expected}


def test_an_error_prints_no_json(flooding):
    code, out, err = flooding("find", "missing.csv", "--target", "y", "--json")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("option", ["-q"])
def test_quiet_prints_the_result_alone(flooding, option):
    words = ("find", "a.csv", "--target", "y", "--epochs", 3, "--workers", 0)
    code, out, err = flooding(*words, option)
    assert code == 0
    assert re.fullmatch(r"(flood level [\d.]+|train without flooding)\n", out)
    assert all(line.startswith("note: ") for line in err.splitlines())
    code, out, err = flooding(*SINUSOID, option)
    assert "test accuracy" in out
    assert err == ""
    code, out, _ = flooding("reproduce", "--list", option)
    assert "ishida2020" in out


def test_quiet_does_not_outlast_its_command(flooding):
    flooding(*SINUSOID, "--quiet")
    _, _, err = flooding(*SINUSOID)
    assert "1 of 1 runs from the ledger" in err


def test_o_is_the_folder_or_the_file(flooding, tmp_path):
    code, _, err = flooding(
        "find", "a.csv", "--target", "y", "--epochs", 1, "--workers", 0, "-o", "here"
    )
    assert code == 0, err
    assert (tmp_path / "here" / "found.json").exists()
    for command in ("demo", "reproduce", "compare", "predict"):
        _, out, _ = flooding(command, "--help")
        assert "-o" in out.split()


# Narrow terminals


def shown(width, *, terminal, columns=4, note="a note of several words"):
    table = Table(title="A title of five words")
    table.add_column("name", no_wrap=True)
    for number in range(columns):
        table.add_column(f"the column {number}", justify="right")
    table.add_column("note")
    table.add_row("first", *(f"{number}.123456789" for number in range(columns)), note)
    stream = Terminal(width=width)
    stream.file = StringIO()
    stream._force_terminal = terminal
    stream.no_color = True
    stream.print_table(table)
    return stream.file.getvalue()


@pytest.mark.parametrize("width", [5, 12, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_number_is_cut(width, terminal):
    text = shown(width, terminal=terminal)
    for number in range(4):
        assert f"{number}.123456789" in text
    assert "…" not in text
    assert "first" in text


def test_a_narrow_terminal_gets_a_line_for_each_cell():
    lines = shown(20, terminal=True).splitlines()
    assert "the column 0: 0.123456789" in lines
    assert "note: a note of several words" in lines
    wide = shown(20, terminal=False)
    assert any("0.123456789" in line and "3.123456789" in line for line in wide.splitlines())


def test_titles_are_broken_before_the_table_is():
    lines = shown(76, terminal=True).splitlines()
    assert any("0.123456789" in line and "3.123456789" in line for line in lines)


@pytest.mark.parametrize("columns", ["20", "40", "80"])
def test_numbers_of_a_search_are_whole_in_a_narrow_terminal(flooding, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = flooding(*SINUSOID)
    assert code == 0, err
    from flooding.training.ledger import Ledger

    ledger = Ledger(os.environ["FLOODING_LEDGER"])
    [(_, record)] = ledger.records()
    ledger.close()
    for name in ("last.val_loss", "best.val_loss", "last.test_nll", "last.train_loss"):
        assert f"{record.metrics[name]:.4g}" in out
    assert "…" not in out


# Speed


def test_the_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom flooding import cli\nsys.argv = ['flooding', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
