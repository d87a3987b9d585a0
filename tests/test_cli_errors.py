"""Every command ends with one line for an error, and nothing in a user's files acts on the
terminal."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest

from flooding import Run, cli
from flooding.cli import _console, _errors, _interrupts
from flooding.training.loop import EpochResult
from small import small

TINY = [
    "--width",
    "4",
    "--depth",
    "1",
    "--epochs",
    "2",
    "--train-samples",
    "20",
    "--test-samples",
    "20",
]
MINE = """
import sys
from functools import partial
from torch import nn
import torch
from flooding import Problem
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp

data = partial(two_gaussians, n_train=30, n_val=20, n_test=20)
problem = Problem(data, partial(mlp, 10, 2, width=4, depth=1), max_epochs=2)
network = nn.Linear(10, 2)

class Class: pass
class Failing(nn.Linear):
    def forward(self, x):
        raise KeyError("line\\nbreak \\x1b[31m")
class Ending(nn.Linear):
    def forward(self, x):
        sys.exit(7)

def make(): return problem
def needs(width, *, depth): return problem
def defaults(width=3, *more, **others): return problem
def none(): problem
def text(): return "problem"
def raises(): return [][0]
def ends(): sys.exit(3)
def wrong(): return Problem(data, mlp, max_epochs=0)
async def later(): return problem
def failing(): return Problem(data, partial(Failing, 10, 2), max_epochs=2)
def ending(): return Problem(data, partial(Ending, 10, 2), max_epochs=2)
def shapes(): return Problem(data, partial(nn.Linear, 3, 2), max_epochs=2)
def large(): return Problem(data, partial(nn.Linear, 10**9, 10**6), max_epochs=2)
"""


@pytest.fixture
def flooding(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flooding", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert "FLOODING_TRACEBACK" in os.environ or "Traceback" not in captured.out + captured.err
        return end.value.code, captured.out, captured.err

    return call


@pytest.fixture
def mine(tmp_path):
    """A module of the user's own."""
    (tmp_path / "mine.py").write_text(MINE)
    _forget()
    yield
    _forget()


def _forget():
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


def program(*arguments, **options):
    """Run the command line as a program of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flooding", *arguments], capture_output=True, **options
    )


HUGE = ["1e39", "-1e39", "1e308", "inf", "-inf", "nan", "9" * 400]
WHOLE = ["1e30", "9" * 25, "1" + "0" * 4000, "nan", "inf", "2.5", "x", "²"]


@pytest.mark.parametrize(
    ("option", "values"),
    [(f"--{name}", [*HUGE, "x", ""]) for name in ("level", "label-noise", "negative-mean")]
    + [(f"--{name}", [*HUGE, "x", ""]) for name in ("until-loss", "gamma")]
    + [(f"--{name}", [*HUGE, "x"]) for name in ("sigma", "epsilon", "decay", "rho", "penalty")]
    + [("--until-accuracy", [*HUGE, "x"])]
    + [(f"--{name}", HUGE) for name in ("momentum", "weight-decay", "dropout")]
    + [(f"--{name}", HUGE) for name in ("label-smoothing", "clip-norm")]
    + [("--learning-rate", [*HUGE, "0", "-1"])]
    + [(f"--{name}", WHOLE) for name in ("width", "depth", "epochs", "seed", "threads")]
    + [(f"--{name}", WHOLE) for name in ("folds", "warmup-steps", "dimension")]
    + [(f"--{name}", WHOLE) for name in ("train-samples", "val-samples", "test-samples")]
    + [(f"--{name}", WHOLE) for name in ("batch-size", "eval-batch-size")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_run_refuses_extreme_numbers(flooding, tmp_path, option, values):
    for value in values:
        code, out, err = flooding("run", "two-gaussians", *TINY, option, value)
        assert (code, out) == (2, ""), (value, err)
        assert len(err.splitlines()) == 1, err
        assert "got" in err or "Invalid value" in err
        assert option[2:] in err or option[2:].replace("-", "_") in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--seeds", "1e30"],
        ["--seeds", "9" * 25],
        ["--budget", "1e39"],
        ["--budget", "nan"],
        ["--strategy", "tpe", "--trainings", "9" * 25],
        ["--strategy", "grid", "--levels", "0,1e39"],
        ["--strategy", "grid", "--levels", "0,nan"],
        ["--strategy", "grid", "--levels", ""],
        ["--strategy", "grid", "--levels", ","],
        ["--epochs", "9" * 25],
        ["--epochs", "-1"],
        ["--label-noise", "inf"],
        ["--workers", "9" * 25],
        ["--device", ""],
        ["--device", "meta"],
        ["--device", "cuda:99999999999999999999"],
    ],
    ids=" ".join,
)
def test_find_refuses_extreme_numbers(flooding, tmp_path, words):
    code, out, err = flooding("find", "spiral", *words)
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "spiral", "--seeds", "9" * 25],
        ["compare", "spiral", "--epochs", "9" * 25],
        ["compare", "spiral", "--label-noise", "1e400"],
        ["reproduce", "ishida2020", "--seeds", "1000000000000"],
        ["reproduce", "ishida2020", "--seeds", "9" * 25],
        ["demo", "--workers", "9" * 25],
    ],
    ids=" ".join,
)
def test_the_others_refuse_extreme_numbers(flooding, tmp_path, words):
    code, _, err = flooding(*words)
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("mine:needs", 2, "it needs width, depth. Give them defaults, or add problem = needs(...)"),
        ("mine:none", 2, "got None. Does it return?"),
        ("mine:text", 2, "got a str"),
        ("mine:Class", 2, "got a Class"),
        ("mine:network", 2, "got a Linear"),
        ("mine:later", 2, "got a coroutine"),
        ("mine:sys", 2, "got a module"),
        ("mine:nothing", 2, "has no attribute 'nothing'"),
        ("mine:a.b", 2, "has no attribute 'a.b'"),
        ("mine:Problem", 2, "it needs data, model"),
        (
            "mine:raises",
            1,
            "in your code, {here}/mine.py, line 27: IndexError: list index out of range.",
        ),
        ("mine:ends", 1, "in your code, {here}/mine.py, line 28: SystemExit: 3."),
        ("mine:wrong", 2, "at least 1, got 0. It comes from your code, {here}/mine.py, line 29."),
        ("mine:", 2, "must name a module and an object in it, got mine:. Try my_module:object."),
        (":problem", 2, "must name a module and an object in it, got :problem."),
        (":", 2, "must name a module and an object in it, got :."),
        ("a:b:c", 2, "No module named 'a:b'"),
        ("..:x", 2, "must name something that can be imported, got ..:x"),
        (".mine:x", 2, "must name something that can be imported, got .mine:x"),
        ("mine.below:x", 2, "'mine' is not a package"),
        ("missing:problem", 2, "No module named 'missing'"),
        ("folder/missing.py:problem", 2, "folder/missing.py is missing"),
        (
            "mine.py",
            2,
            "a Python file needs the name of its Problem, got mine.py alone. Try mine.py:problem.",
        ),
        ("random.py:problem", 2, "must not be that of another module, but random is"),
    ],
    ids=lambda value: value if isinstance(value, str) and ":" in value and " " not in value else "",
)
def test_a_module_that_gives_no_problem(flooding, tmp_path, what, code, message):
    (tmp_path / "random.py").write_text("problem = 1")
    ended, _, err = flooding("find", what, "--workers", 0, "--out", "out")
    assert ended == code, err
    assert message.format(here=tmp_path) in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            "import sys\nsys.exit('no')",
            2,
            "broken called sys.exit(no). Put its script below if __name__",
        ),
        ("raise SystemExit", 2, "broken called sys.exit()"),
        ("x = 1\ndef (", 1, "broken.py, line 2: SyntaxError: invalid syntax"),
        (
            "import nothing_of_this_name",
            1,
            "line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
        ("from mine import nothing", 1, "line 1: ImportError: cannot import name 'nothing'"),
        ("1 / 0", 1, "line 1: ZeroDivisionError: division by zero"),
        ("raise TypeError('x')", 1, "line 1: TypeError: x"),
        ("input()", 1, "line 1: "),
        ("class E(BaseException): pass\nraise E('\\x1b[31m')", 1, "line 2: E: \\x1b[31m"),
    ],
    ids=[
        "exit",
        "SystemExit",
        "syntax",
        "import",
        "from",
        "division",
        "TypeError",
        "input",
        "BaseException",
    ],
)
def test_a_module_that_cannot_be_imported(flooding, tmp_path, text, code, message):
    (tmp_path / "broken.py").write_text(text)
    ended, _, err = flooding("find", "broken:problem", "--workers", 0)
    assert ended == code, err
    assert message in err
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("failing", 1, "mine.py, line 17: KeyError: 'line\\nbreak \\x1b[31m'."),
        ("ending", 1, "mine.py, line 20: SystemExit: 7."),
        ("shapes", 1, "unexpected RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("large", 2, "there is too little memory"),
    ],
)
def test_an_error_in_training_is_one_line_with_its_place(
    flooding, name, code, message, monkeypatch
):
    words = ["find", f"mine:{name}", "--workers", 0, "--strategy", "grid", "--levels", "0,0.1"]
    ended, _, err = flooding(*words)
    assert ended == code, err
    assert message in err.splitlines()[-1]


@pytest.mark.usefixtures("mine")
def test_an_error_in_a_worker_has_its_place(flooding):
    words = ["--workers", 1, "--strategy", "grid", "--levels", "0,0.1"]
    code, _, err = flooding("find", "mine:failing", *words)
    assert code == 1
    assert "mine.py, line 17: KeyError" in err.splitlines()[-1]


@pytest.mark.usefixtures("mine")
def test_a_traceback_is_printed_when_asked_for(flooding, monkeypatch):
    monkeypatch.setenv("FLOODING_TRACEBACK", "1")
    code, _, err = flooding("find", "mine:raises")
    assert code == 1
    assert err.splitlines()[0] == "Traceback (most recent call last):"
    assert ", line 27, in raises" in err
    assert "in your code" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            TypeError("x"),
            1,
            "unexpected TypeError: x. If no code of your own is part of it, this is a bug.",
        ),
        (RuntimeError(""), 1, "unexpected RuntimeError. If no code"),
        (RecursionError("deep"), 1, "unexpected RecursionError: deep."),
        (OverflowError("large"), 1, "unexpected OverflowError: large."),
        (EOFError(), 1, "unexpected EOFError."),
        (GeneratorExit("x"), 1, "unexpected GeneratorExit: x."),
        (MemoryError(), 2, "there is too little memory: MemoryError."),
        (
            RuntimeError("CUDA out of memory. Tried 20 GiB"),
            2,
            "there is too little memory: RuntimeError: CUDA out of memory.",
        ),
        (RuntimeError("Could not determine home directory."), 2, "--ledger FILE"),
        (ValueError("a\n\tb"), 2, "error: a b"),
        (OSError(28, "No space left on device", "\x1b[2J"), 2, "No space left on device"),
        (BrokenPipeError(), 2, "BrokenPipeError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 2, "can't decode byte 0xff"),
        (KeyboardInterrupt(), 130, "goes on from there"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, BaseException) else "",
)
def test_whatever_is_raised_is_one_line(flooding, monkeypatch, error, code, message):
    monkeypatch.setattr("flooding.cli._demo.check_numbers", compile_away(error))
    ended, out, err = flooding("demo")
    assert (ended, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert err.replace("\n", "").isprintable()


def compile_away(error):
    """Make a function that raises an error from no file, as C code does."""
    space = {"error": error}
    exec(compile("def fail(_):\n    raise error", "<nowhere>", "exec"), space)
    return space["fail"]


def test_what_this_package_raises_itself_is_no_bug(flooding, monkeypatch):
    from flooding.data import map_tensors

    monkeypatch.setattr("flooding.cli._demo.check_numbers", lambda _: None)
    with pytest.raises(TypeError) as caught:
        map_tensors(lambda x: x, "text")
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    assert _errors._explain(error) == (str(error), 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nothing"], "No such option: --nothing"),
        (["run", "sinusoid", "--width", "\x1b[31m"], "Invalid value for '--width'"),
        (["run", "sinusoid", "--\x1b[31m"], "No such option"),
        (["nothing\x1b[31m\n"], "No such command"),
        (["run"], "Missing argument"),
        (["run", "a", "b\u202e"], "unexpected extra argument"),
        (["run", "[red]x[/]"], "got [red]x[/]"),
        (["run", "sinusoid\x1b]0;x\x07"], r"got sinusoid\x1b]0;x\x07"),
        (["find", "a\nb"], "got a b."),
        (
            ["find", "missing\x1b[31m.csv", "--target", "y"],
            r"missing\x1b[31m.csv, which is missing",
        ),
        (["find", "a.csv", "--target", "\x1b[31m"], r"\x1b[31m"),
        (["run", "sinusoid", "--out", "x"], "No such option"),
        (["run", "sinusoid", "--tag", "a:b"], "tag belongs to MLflow"),
        (["predict", "model\x1b[31m", "a.csv"], r"model\x1b[31m"),
        (["reproduce", "bakeoff", "--from", "\x1b[31m.npz"], r"\x1b[31m.npz"),
        (["reproduce", "\u2066x"], r"got \u2066x"),
        (["run", "sinusoid", *TINY, "--ledger", "a.csv/\x1b[31m"], "a.csv is a file"),
        (["run", "sinusoid", *TINY, "--save", "loop"], "broken link"),
        (["run", "sinusoid", *TINY, "--ledger", "~nobody-of-this-name/l.sqlite"], "no home folder"),
    ],
    ids=lambda value: ascii(" ".join(value)) if isinstance(value, list) else "",
)
def test_an_argument_is_shown_and_not_obeyed(flooding, tmp_path, words, message):
    (tmp_path / "a.csv").write_text("x,y\n" + "1,2\n3,4\n" * 20)
    (tmp_path / "loop").symlink_to("loop")
    code, out, err = flooding(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1, err
    assert err.replace("\n", "").isprintable()
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "loop"]


ODD = "\x1b[31m[red]\u202e[/]"


def table(path):
    """Write a table with odd names of columns and classes."""
    rows = "".join(f"{i % 7},{(i * 5) % 11},{'[/]' if i % 2 else ODD}\n" for i in range(60))
    path.write_text(f"x,{ODD},y\n{rows}")


def test_odd_names_of_files_columns_and_classes(flooding, tmp_path):
    name = f"data[final]{ODD.replace('/', '')}.csv"
    table(tmp_path / name)
    out = f"res[v2]{ODD.replace('/', '')}"
    words = ["--epochs", 3, "--workers", 0, "--save", "[bold]model"]
    code, out_text, err = flooding("find", name, "--target", "y", "--out", out, *words)
    assert code == 0, err
    shown = r"\x1b[31m[red]\u202e[]"
    assert out_text.startswith(f"Assumed of data[final]{shown}.csv:\n")
    assert f"Table, curves and picture in {tmp_path}/res[v2]{shown}\n" in out_text
    assert f"Model in {tmp_path}/[bold]model: flooding predict [bold]model new.csv\n" in out_text
    assert r"\x1b[31m[red]\u202e[/]" in out_text
    assert (out_text + err).replace("\n", "").isprintable()
    assert (tmp_path / out / "found.json").exists()
    code, out_text, err = flooding("predict", "[bold]model", name, "--out", "p[v2].csv")
    assert out_text == f"60 rows in {tmp_path}/p[v2].csv\n"
    code, out_text, _ = flooding("predict", "[bold]model", name, "--probabilities")
    assert ODD in out_text, "into a pipe the names are as they are"


def test_predictions_on_a_terminal_are_printable(monkeypatch, capsys):
    from flooding.cli._predict import _print_csv

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _print_csv(f"class\n{ODD}\n")
    assert capsys.readouterr().out == "class\n\\x1b[31m[red]\\u202e[/]\n"


def test_the_log_and_warnings_are_printable_lines(flooding, monkeypatch):
    import logging

    def warn(_):
        logging.getLogger("flooding").warning("of %s", "\x1b[31m[red]\n")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("of \x1b[31m[/]\n  more", stacklevel=1)
        raise ValueError("end")

    monkeypatch.setattr("flooding.cli._demo.check_numbers", warn)
    _, _, err = flooding("demo")
    assert err.splitlines()[:2] == [r"of \x1b[31m[red]", r"warning: of \x1b[31m[/] more"]
    assert len(err.splitlines()) == 3


def test_a_console_obeys_no_name_in_a_table(capsys):
    from rich.table import Table

    shown = Table(ODD, title=ODD)
    shown.add_row(ODD)
    _console.console.print(shown)
    _console.console.print_line(ODD)
    out = capsys.readouterr().out
    assert out.count("[red]") == 4
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pipe", "got pipe, a pipe or a device. Write what comes out of it into a file first"),
        (os.devnull, "a pipe or a device"),
        ("missing", "got missing, which is missing"),
        ("missing.csv.gz", "got missing.csv.gz, which is missing"),
        ("a:b.csv", "got a:b.csv, which is missing"),
        ("folder.csv", "got the folder folder.csv"),
    ],
    ids=lambda value: value if " " not in value else "",
)
def test_what_is_no_file_is_called_what_it_is(flooding, tmp_path, what, message):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder.csv").mkdir()
    for words in (
        ["find", what, "--target", "y"],
        ["compare", what, "--target", "y"],
        ["predict", "model", what],
    ):
        code, _, err = flooding(*words)
        assert code == 2
        assert message in err
        assert len(err.splitlines()) == 1


def test_a_strategy_by_accuracy_needs_classes(flooding, tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{i % 13},{i / 7}\n" for i in range(60)))
    code, _, err = flooding("find", "a.csv", "--target", "y", "--strategy", "heuristic")
    assert code == 2
    assert (
        err == "error: heuristic needs the accuracy of classes, but a.csv has numbers. "
        "Choose another --strategy.\n"
    )


def test_predictions_replace_neither_their_table_nor_a_device(flooding, tmp_path):
    table(tmp_path / "a.csv")
    (tmp_path / "link.csv").symlink_to("a.csv")
    for out in ("a.csv", "link.csv", os.devnull):
        code, _, err = flooding("predict", "model", "a.csv", "--out", out)
        assert code == 2
        assert "out must be a file of its own" in err


def test_without_a_home_the_ledger_is_asked_for(flooding, tmp_path, monkeypatch):
    def none(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.delenv("FLOODING_LEDGER")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("flooding.training.ledger.Path.expanduser", none)
    monkeypatch.setattr("flooding.cli._problem.load_problem", None)  # it would be asked too late
    for words in (["demo"], ["run", "sinusoid", *TINY], ["find", "spiral"], ["compare", "spiral"]):
        code, out, err = flooding(*words)
        assert (code, out) == (2, "")
        assert "there is no home folder" in err
        assert "--ledger FILE" in err
        assert len(err.splitlines()) == 1
    assert flooding("run", "sinusoid", *TINY, "--ledger", "here.sqlite")[0] == 0


def test_a_ledger_that_is_read_only_is_refused_at_once(flooding, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "old.sqlite").write_bytes(b"")
    access = os.access
    readonly = {str(tmp_path / "home"), str(tmp_path / "old.sqlite")}
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(path) not in readonly and access(path, mode)
    )
    for ledger in ("home/state/l.sqlite", "old.sqlite"):
        code, _, err = flooding("run", "sinusoid", *TINY, "--ledger", ledger)
        assert code == 2
        assert "must be writable, but" in err
        assert "Name another: --ledger FILE" in err


def test_a_reader_that_leaves_ends_neither_the_work_nor_the_program(tmp_path):
    # The same of `predict`: test_cli_shell.py.
    table(tmp_path / "a.csv")
    environment = {**os.environ, "FLOODING_LEDGER": str(tmp_path / "l.sqlite")}
    command = f"{sys.executable} -m flooding find a.csv --target y --epochs 2 --workers 0"
    command = f"{command} --save model --out out | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "0\n", done.stderr
    assert "Error" not in done.stderr
    assert (tmp_path / "model" / "model.json").exists(), "what was asked for is saved all the same"


def test_a_reader_that_leaves_the_help_sees_no_error(tmp_path):
    command = f"{sys.executable} -m flooding run --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("> /dev/full", 2, "error: [Errno 28] No space left on device\n"),
    ],
    ids=["closed output", "all closed", "full disk"],
)
def test_an_output_that_cannot_be_written(tmp_path, end, code, message):
    command = f"{sys.executable} -m flooding --help {end}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, message)


def test_an_output_without_unicode(tmp_path):
    done = program("naïve−", cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert rb"No such command 'na\xefve\u2212'." in done.stderr


@pytest.mark.parametrize("seconds", [0.35, 1.5, 4.0])
def test_an_interrupt_at_any_moment(tmp_path, seconds):
    environment = {**os.environ, "FLOODING_LEDGER": str(tmp_path / "l.sqlite")}
    # Tests that a shell started with "&" ignore SIGINT, and their children would too.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "print(flush=True); import runpy; runpy.run_module('flooding', run_name='__main__')"
    command = [sys.executable, "-c", start, "run", "sinusoid", "--epochs", "100000"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **options) as process:
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == _interrupts.MESSAGE
    assert "Traceback" not in err


def test_an_interrupt_that_a_library_made_an_error_of_is_one(monkeypatch, capsys):
    monkeypatch.setattr(_interrupts, "_count", 1)
    assert _errors.report_error(ImportError("numpy failed to import")) == 130
    assert capsys.readouterr().err == f"{_interrupts.MESSAGE}\n"


def test_an_interrupt_that_a_library_caught_ends_the_work_at_the_next_row(monkeypatch):
    monkeypatch.setattr(_interrupts, "_count", 0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    row = EpochResult(Run(small(max_epochs=2), 0.1), 1, {}, None)
    try:
        with _interrupts.note_interrupts(), _console.progress() as (_, on_row):
            on_row(row)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                on_row(row)
    finally:
        signal.signal(signal.SIGINT, before)
