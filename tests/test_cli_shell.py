"""The shell around the command line: odd names, no home, locked ledgers, pipes, old files."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from flooding import cli

SOURCE = Path(cli.__file__).parents[2]
FAST = ("--target", "y", "--epochs", "2", "--workers", "0")


def write_table(path, rows=60):
    lines = ["id,x,y"]
    for i in range(rows):
        lines.append(f"{i:03d},{(i * 7) % 11 + 2 * (i % 2)},{'pos' if i % 2 else 'neg'}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def flooding(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    write_table(tmp_path / "a.csv")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["flooding", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return end.value.code or 0, captured.out, captured.err

    return call


def program(*words, cwd, wrapper=(), env=None, **options):
    """Run the command line as a program of its own."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **(env or {})}
    for name in [name for name, value in environment.items() if value is None]:
        del environment[name]
    return subprocess.run(
        [*wrapper, sys.executable, "-m", "flooding", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        **options,
    )


# Brackets in names


@pytest.mark.parametrize(
    "name", ["data[final]", "[/]", "[red]x[/red] x[link=file:y] [[bold]] \\[b]"]
)
def test_brackets_in_names_are_names(flooding, tmp_path, name):
    name = name.replace("/", "")
    write_table(tmp_path / f"{name}.csv")
    folder = f"res{name}"
    code, out, err = flooding("find", f"{name}.csv", *FAST, "--out", folder, "--save", f"m{name}")
    assert code == 0, err
    assert out.splitlines()[0] == f"Assumed of {name}.csv:"
    assert f"Table, curves and picture in {tmp_path / folder}\n" in out
    assert f"Model in {tmp_path}/m{name}: flooding predict m{name} new.csv\n" in out
    assert (tmp_path / folder / "found.json").exists()
    code, out, err = flooding("predict", f"m{name}", "a.csv", "-o", f"{name}.txt")
    assert (code, out) == (0, f"60 rows in {tmp_path}/{name}.txt\n"), err


def test_brackets_with_a_slash_are_a_folder_in_a_folder(flooding, tmp_path):
    (tmp_path / "res[").mkdir()
    code, out, err = flooding("find", "a.csv", *FAST, "--out", "res[/v2]", "--save", "model")
    assert code == 0, err
    assert f"Table, curves and picture in {tmp_path}/res[/v2]\n" in out
    assert (tmp_path / "model" / "model.json").exists()


@pytest.mark.parametrize("name", ["col[umn] [/bold] [red]y"])
def test_brackets_in_columns_and_classes_are_names(flooding, tmp_path, name):
    text = (tmp_path / "a.csv").read_text().replace("id,x,y", f"id,x,{name}")
    (tmp_path / "b.csv").write_text(text.replace("pos", f"{name}!"))
    words = ("--epochs", 2, "--workers", 0, "--save", "model")
    code, out, err = flooding("find", "b.csv", "--target", name, *words)
    assert code == 0, err
    assert f"{name}!" in out
    code, out, _ = flooding("predict", "model", "b.csv", "--probabilities")
    assert out.splitlines()[0] == f"{name},probability of {name}!,probability of neg"


@pytest.mark.parametrize(
    "words",
    [
        ("find", "[red]a.csv", "--target", "y"),
        ("find", "a.csv", "--target", "[/]"),
        ("predict", "[bold]model[/]", "a.csv"),
        ("reproduce", "ishida2020", "--from", "[b].npz"),
        ("find", "[i]:problem"),
        ("--[red]",),
    ],
    ids=" ".join,
)
def test_brackets_in_errors_are_names(flooding, words):
    code, _, err = flooding(*words)
    assert code == 2
    assert len(err.splitlines()) == 1
    odd = next(word for word in words if "[" in word)
    assert odd.lstrip("-").split(":")[0] in err


# No home, a read-only home


def have_namespaces():
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-U", "--map-user=54321", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


NO_HOME = {"HOME": None, "FLOODING_LEDGER": None, "XDG_STATE_HOME": None}
# A user without an entry among the passwords.
STRANGER = ("unshare", "-U", "--map-user=54321")
namespaces = pytest.mark.skipif(not have_namespaces(), reason="unshare is not allowed here")


@namespaces
@pytest.mark.parametrize("words", [("find", "a.csv", *FAST), ("run", "sinusoid")])
def test_without_a_home_one_line_names_the_ledger(tmp_path, words):
    write_table(tmp_path / "a.csv")
    done = program(*words, cwd=tmp_path, wrapper=STRANGER, env=NO_HOME)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "there is no home folder" in line
    assert "--ledger FILE" in line
    assert os.listdir(tmp_path) == ["a.csv"]


@namespaces
def test_without_a_home_the_named_ledger_is_enough(tmp_path):
    write_table(tmp_path / "a.csv")
    tmp_path.chmod(0o777)
    words = ("find", "a.csv", *FAST, "--ledger", "l.sqlite", "--quiet", "--save", "model")
    done = program(*words, cwd=tmp_path, wrapper=STRANGER, env=NO_HOME)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.json").exists()


@pytest.mark.parametrize("variable", ["HOME", "XDG_STATE_HOME", "FLOODING_LEDGER"])
def test_a_read_only_home_is_refused_in_one_line(flooding, tmp_path, monkeypatch, variable):
    (tmp_path / "home").mkdir()
    access = os.access
    home = str(tmp_path / "home")
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).startswith(home) and access(path, mode)
    )
    for name in NO_HOME:
        monkeypatch.delenv(name, raising=False)
    value = f"{home}/ledger.sqlite" if variable == "FLOODING_LEDGER" else home
    monkeypatch.setenv(variable, value)
    code, out, err = flooding("find", "a.csv", *FAST)
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert f"but {home} is not" in line
    assert "--ledger FILE" in line
    assert flooding("find", "a.csv", *FAST, "--ledger", "here.sqlite")[0] == 0


# A locked ledger


@contextmanager
def locked(path, seconds, *, wal=False):
    """Lock a ledger in another process for a while."""
    code = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        + ("c.execute('PRAGMA journal_mode=WAL'); c.execute('BEGIN IMMEDIATE'); " if wal else "")
        + ("" if wal else "c.execute('BEGIN EXCLUSIVE'); ")
        + "print('locked', flush=True); time.sleep(float(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(path), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("command", ["find", "run"])
@pytest.mark.parametrize("wal", [False, True], ids=["exclusive", "a writer"])
def test_a_locked_ledger_is_named_at_once_with_cause_and_fix(
    flooding, tmp_path, monkeypatch, command, wal
):
    monkeypatch.setattr("flooding.training.ledger_file._PATIENCE", 2.0)
    words = ("find", "a.csv", *FAST) if command == "find" else ("run", "sinusoid", "--epochs", 1)
    if wal:
        from flooding.training.ledger import Ledger

        Ledger(tmp_path / "l.sqlite").close()
    with locked(tmp_path / "l.sqlite", 60, wal=wal) as process:
        start = time.monotonic()
        code, _, err = flooding(*words, "--ledger", "l.sqlite")
        seconds = time.monotonic() - start
    waiting, error = [line for line in err.splitlines() if "has locked" in line]
    for line in (waiting, error):
        assert f"process {process.pid} has locked" in line
        assert "End that process, or name another ledger: --ledger FILE." in line
    assert code == 2
    assert seconds < 20


def test_a_lock_is_reported_within_a_second(tmp_path, caplog):
    from flooding.training.ledger import Ledger

    Ledger(tmp_path / "l.sqlite").close()
    connection = sqlite3.connect(tmp_path / "l.sqlite", isolation_level=None)
    ledger = Ledger(tmp_path / "l.sqlite")
    connection.execute("BEGIN EXCLUSIVE")
    thread = threading.Thread(target=ledger.start, args=("key", 1))
    thread.start()
    start = time.monotonic()
    while "has locked the ledger" not in caplog.text and time.monotonic() < start + 5:
        time.sleep(0.02)
    assert time.monotonic() - start < 2
    connection.close()
    thread.join()
    ledger.close()


# Missing files


@pytest.mark.parametrize(
    "words",
    [
        ("find", "no.csv", "--target", "y"),
        ("find", "no-suffix", "--target", "y"),
        ("find", "below/no.csv", "--target", "y"),
        ("find", "no.csv"),
        ("compare", "no.tsv", "--target", "y"),
        ("predict", "no-model", "a.csv"),
        ("predict", "empty", "a.csv"),
        ("predict", "model", "no.csv"),
        ("reproduce", "bakeoff", "--from", "no.npz"),
        ("find", "no.py:problem"),
    ],
    ids=" ".join,
)
def test_a_missing_file_is_called_missing(flooding, tmp_path, words):
    (tmp_path / "empty").mkdir()
    code, _, err = flooding(*words)
    assert code == 2
    [line] = err.splitlines()
    assert "missing" in line
    assert next(word for word in words if "no" in word or word == "empty").split(":")[0] in line


# Nothing is overwritten


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder in which ``find a.csv --save model --out out`` has run."""
    folder = tmp_path_factory.mktemp("searched")
    write_table(folder / "a.csv")
    words = ("find", "a.csv", *FAST, "--ledger", "l.sqlite", "--save", "model", "--out", "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["flooding", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return folder


@pytest.fixture
def again(searched, tmp_path, monkeypatch):
    """A copy of that folder, to work in."""
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "l.sqlite"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--score", "loss", "--out", "out"), "out must not hold what another command wrote"),
        (("--score", "loss", "--save", "model", "--out", "o2"), "the model of another command"),
        (("--at", "last", "--save", "model", "--out", "o2"), "replace the model: --force"),
        (("--out", "mine"), "which has a table.csv"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_another_search_replaces_nothing(flooding, again, words, message):
    (again / "mine").mkdir()
    (again / "mine" / "table.csv").write_text("mine")
    before = {name: contents(again / name) for name in ("out", "model", "mine")}
    code, _, err = flooding("find", "a.csv", *FAST, *words)
    assert code == 2
    assert message in err
    assert "--force" in err
    assert len(err.splitlines()) == 1
    assert {name: contents(again / name) for name in before} == before
    assert not (again / "o2").exists()
    if words[-1] == "mine":
        code, _, err = flooding("find", "a.csv", *FAST, *words, "--force")
        assert code == 0, err


def test_the_same_search_again_ends_normally(flooding, again):
    # As after a kill: the model was not written yet, or half of the results.
    for missing in ("model", "out"):
        path = again / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        code, _, err = flooding("find", "a.csv", *FAST, "--save", "model", "--out", "out")
        assert code == 0, err
        assert "training 5 runs" not in err, "the race is in the ledger"
        assert (again / "model" / "model.json").exists()
        assert (again / "out" / "found.json").exists()


def test_a_changed_table_is_another_search(flooding, again):
    write_table(again / "a.csv", rows=64)
    code, _, err = flooding("find", "a.csv", *FAST, "--save", "model", "--out", "out")
    assert code == 2
    assert "--force" in err


def test_without_out_the_next_free_folder_is_taken(flooding, again):
    for folder, words in (
        ("flooding-find", ()),
        ("flooding-find-2", ("--score", "loss")),
        ("flooding-find", ()),
    ):
        code, out, err = flooding("find", "a.csv", *FAST, *words)
        assert code == 0, err
        assert f"picture in {again / folder}\n" in out
    assert not (again / "flooding-find-3").exists()


def test_predictions_and_weights_are_not_replaced(flooding, again):
    (again / "p.csv").write_text("mine")
    code, _, err = flooding("predict", "model", "a.csv", "-o", "p.csv")
    assert code == 2
    assert "out must be a new file, got p.csv, which exists" in err
    assert (again / "p.csv").read_text() == "mine"
    assert flooding("predict", "model", "a.csv", "-o", "p.csv", "--force")[0] == 0
    (again / "weights").mkdir()
    (again / "weights" / "best.safetensors").write_text("mine")
    words = ("run", "sinusoid", "--width", 8, "--epochs", 1, "--save", "weights")
    code, _, err = flooding(*words)
    assert code == 2
    assert "weights/best.safetensors exists" in err
    assert flooding(*words, "--force")[0] == 0


def test_a_folder_of_other_files_is_no_model_even_with_force(flooding, again):
    (again / "mine").mkdir()
    (again / "mine" / "thesis.txt").write_text("mine")
    code, _, err = flooding("find", "a.csv", *FAST, "--save", "mine", "--force")
    assert code == 2
    assert "folder must be new or hold a saved model alone" in err


# Predictions


def test_predictions_have_the_name_of_the_target_and_what_is_kept(flooding, again):
    _, out, _ = flooding("predict", "model", "a.csv")
    lines = out.splitlines()
    assert lines[0] == "y"
    assert set(lines[1:]) <= {"pos", "neg"}
    _, out, _ = flooding("predict", "model", "a.csv", "--keep", "id, x")
    assert out.splitlines()[:3] == ["id,x,y", f"000,0,{lines[1]}", f"001,9,{lines[2]}"]
    _, out, _ = flooding("predict", "model", "a.csv", "--keep", "y", "--keep", "id,id")
    assert out.splitlines()[:2] == ["y,id,predicted y", f"neg,000,{lines[1]}"]
    _, out, _ = flooding("predict", "model", "a.csv", "--probabilities")
    header, first, *_ = out.splitlines()
    assert header == "y,probability of neg,probability of pos"
    probabilities = [float(value) for value in first.split(",")[1:]]
    assert sum(probabilities) == pytest.approx(1)
    assert first.split(",")[0] == ("neg", "pos")[probabilities[1] > probabilities[0]]


def test_kept_columns_come_back_letter_by_letter(flooding, again):
    cells = ["007", "1E5", "12345678901234567", "1.10", "+3", "00.50"]
    rows = [f'"{cell}","a,b",{i},{i}' for i, cell in enumerate(cells)]
    (again / "new.csv").write_text("\n".join(['code,"last, first",x,id', *rows]))
    words = ("predict", "model", "new.csv", "--keep", 'code,"last, first"')
    code, out, err = flooding(*words)
    assert code == 0, err
    assert [line.split(",")[0] for line in out.splitlines()] == ["code", *cells]
    assert out.splitlines()[0] == 'code,"last, first",y'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keep", "idd"), "keep must name columns of a.csv, got 'idd'. Did you mean 'id'?"),
        (("--keep", "id;x"), "keep must name columns"),
        (("--keep", ""), "keep must name columns"),
    ],
    ids=str,
)
def test_columns_to_keep_must_exist(flooding, again, words, message):
    code, out, err = flooding("predict", "model", "a.csv", *words)
    if words[1] == "":
        assert code == 0
        return
    assert (code, out) == (2, "")
    assert message in err


def test_a_reader_that_leaves_ends_predictions_without_an_error(again):
    with (again / "a.csv").open("a") as file:
        file.write("1,2,pos\n" * 20_000)
    for words in ("--json", "--probabilities --keep id,x"):
        command = f"{sys.executable} -m flooding predict model a.csv {words} | head -1"
        done = subprocess.run(
            ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
            cwd=again,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
        )
        assert done.stdout.splitlines()[1:] == ["0"], done.stderr
        assert done.stderr == ""


# The network that is kept


@pytest.mark.parametrize("at", ["last"])
def test_the_report_puts_the_networks_side_by_side(flooding, again, at):
    words = ("--epochs", 20, "--save", "m2", "--at", at, "--json", "--out", "o2")
    code, out, err = flooding("find", "a.csv", "--target", "y", "--workers", 0, *words)
    assert code == 0, err
    model = json.loads(out)["model"]
    names = list(model["networks"])
    assert names[:2] == ["plain training", "plain training, early stopping"]
    assert model["network"] in names
    assert set(model["baselines"]) == {
        "majority class",
        "logistic regression",
        "gradient boosting",
    }
    about = json.loads((again / "m2" / "model.json").read_text())["about"]
    assert about["network"] == model["network"]
    # The loss on the test rows is that of the saved network.
    code, out, _ = flooding("predict", "m2", "a.csv", "--probabilities")
    assert code == 0


def test_a_better_linear_model_is_named_in_one_line(flooding, tmp_path):
    lines = ["a,b,y"]
    for i in range(200):
        a, b = (37 * i % 101) / 50 - 1, (53 * i % 97) / 48 - 1
        lines.append(f"{a:.3f},{b:.3f},{'pos' if a + b > 0.1 else 'neg'}")
    (tmp_path / "b.csv").write_text("\n".join(lines))
    # One epoch is too little for the network.
    words = ("--target", "y", "--epochs", 1, "--workers", 0, "--save", "model")
    code, out, err = flooding("find", "b.csv", *words)
    assert code == 0, err
    [line] = [line for line in out.splitlines() if line.startswith("Logistic regression")]
    pattern = (
        r"Logistic regression \(scikit-learn\) is better than the network that is kept: "
        r"accuracy % \d+\.\d, not \d+\.\d; NLL \d\.\d+, not \d\.\d+ on the validation rows; "
        r"accuracy % .* on the test rows\. Consider it\."
    )
    assert re.fullmatch(pattern, line)
    assert "majority class" in out
    assert "kept" in out


def test_a_number_is_compared_by_its_error_and_refitted(flooding, tmp_path):
    lines = ["a,price"]
    for i in range(120):
        lines.append(f"{i % 17},{100 + 3.5 * (i % 17) + 0.1 * (i % 5)}")
    (tmp_path / "b.csv").write_text("\n".join(lines))
    words = ("--epochs", 2, "--workers", 0, "--save", "model", "--refit")
    code, out, err = flooding("find", "b.csv", "--target", "price", *words)
    assert code == 0, err
    assert re.search(r"^ ?mean +[\d.]+ +-?0\.\d+", out, re.MULTILINE)
    assert re.search(r"Trained again on training and validation rows for \d epochs: root", out)
    assert "Ridge regression (scikit-learn) is better" in out
    _, out, _ = flooding("predict", "model", "b.csv")
    assert out.splitlines()[0] == "price"
    code, _, err = flooding("predict", "model", "b.csv", "--probabilities")
    assert code == 2
    assert "probabilities belong to classes, but 'price' is a number" in err


@pytest.mark.parametrize("words", [("--refit",), ("--at", "last")], ids=" ".join)
def test_options_of_a_saved_network_need_one(flooding, words):
    code, _, err = flooding("find", "a.csv", *FAST, *words)
    assert code == 2
    assert "Add --save FOLDER" in err


# Checkpoints


def test_checkpoints_are_bounded_and_their_size_is_printed(flooding, again, monkeypatch):
    from flooding.training import checkpoints

    halving = ("--strategy", "halving", "--levels", "none,0.3,0.6")
    words = ("find", "a.csv", "--target", "y", "--workers", 0, *halving)
    code, _, err = flooding(*words, "--epochs", 30)
    assert code == 0
    [line] = [line for line in err.splitlines() if line.startswith("checkpoints for longer")]
    assert f"in {again}/l.sqlite.checkpoints; they may be deleted" in line
    folder = again / "l.sqlite.checkpoints"
    size = sum(path.stat().st_size for path in folder.glob("*.pt"))
    assert size > 0
    # With a lower limit the finished ones go, the oldest first, also those of this call.
    monkeypatch.setitem(checkpoints.Checkpoints.prune.__kwdefaults__, "idle_limit", size // 2)
    code, *_ = flooding(*words, "--epochs", 31)
    assert code == 0
    assert sum(path.stat().st_size for path in folder.glob("*.pt")) <= size // 2


def test_only_idle_checkpoints_fall_below_the_lower_limit(tmp_path):
    import torch

    from flooding.training.checkpoints import Checkpoints

    files = Checkpoints(tmp_path)
    for name, is_idle in (("a", True), ("b", False), ("c", True)):
        files.save(name, 1, {"x": torch.zeros(1000)}, is_idle=is_idle)
        time.sleep(0.01)
    size = files.size()
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    files.prune()
    assert files.size() == size
    files.prune(idle_limit=size // 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b-1.pt", "c-1.pt"]
    files.prune(idle_limit=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b-1.pt"]
    assert files.find("b", 1) is not None
