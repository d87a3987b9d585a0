"""The command line: what it prints and saves, and that bad input is refused before anything is
written."""

import math
import re
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from flooding import cli
from flooding.entries import CONTROLLERS, DATASETS, METHODS, entry_names
from flooding.training.ledger import Ledger

# Those whose data are not fetched.
TASKS = [entry.name for entry in DATASETS if entry.summary != "fetched"]
TINY = ["--width", "8", "--depth", "1", "--epochs", "3", "--test-samples", "50"]


@pytest.fixture
def flooding(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; give exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flooding", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return call


def test_run_says_what_stayed_plain(flooding):
    _, _, err = flooding("run", "spiral", "--schedule", "auto", "--average", "ema", *TINY)
    assert "no step was flooded, this is plain training: no level was chosen." in err
    assert "mean of the weights" not in err
    _, _, err = flooding("run", "spiral", "--level", "0.001", "--average", "mean", *TINY)
    assert "this is plain training: the lowest training loss was 0." in err
    assert "begins with the first flooded step: it is the network itself" in " ".join(err.split())
    _, _, err = flooding("run", "spiral", *TINY)
    assert "plain" not in err
    _, _, err = flooding("run", "spiral", "--level", "0.9", *TINY)
    assert "plain" not in err


def test_run_prints_the_last_and_the_best_epoch_and_looks_up_the_second_time(flooding, tmp_path):
    code, first, err = flooding("run", "sinusoid", "--level", "0.2", *TINY)
    assert code == 0
    assert "0 of 1 runs from the ledger" in err
    assert re.search(r"test accuracy clean +0\.\d+ +0\.\d+", first)
    code, again, err = flooding("run", "sinusoid", "--level", "0.2", *TINY)
    assert (code, " ".join(again.split())) == (0, " ".join(first.split()))
    assert "1 of 1 runs from the ledger" in err
    assert len(Ledger(tmp_path / "ledger.sqlite").starts()) == 1
    flooding("run", "sinusoid", "--level", "0.2", *TINY, "--overwrite")
    assert len(Ledger(tmp_path / "ledger.sqlite").starts()) == 2


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs(flooding, task):
    samples = [] if task == "digits" else ["--test-samples", "50"]
    assert flooding("run", task, "--width", "8", "--epochs", "1", *samples)[0] == 0


def test_every_option_reaches_the_record(flooding, tmp_path):
    data = "--label-noise 0.3 --negative-mean 2 --dimension 4"
    data += " --train-samples 30 --val-samples 20 --test-samples 40"
    network = "--model mlp --width 7 --depth 3"
    training = "--optimizer sgd --learning-rate 0.05 --momentum 0.5 --weight-decay 0.01"
    training += " --clip-norm 0.5 --batch-size 10"
    rest = "--epochs 2 --seed 4 --level -1"
    words = f"{data} {network} {training} {rest}".split()
    assert flooding("run", "two-gaussians", *words)[0] == 0
    [(_, record)] = Ledger(tmp_path / "ledger.sqlite").records()
    assert record.metrics["last.level"] == -1
    assert record.metrics["last.lr"] == pytest.approx(0.05)
    assert record.metrics["epochs"] == 2
    values = [
        n + 1 for n in range(0, len(words), 2) if words[n] != "--optimizer"
    ]  # the others have no momentum
    for n in values:
        other = (
            "mlp-bn" if words[n] == "mlp" else "0.25" if "." in words[n] else str(int(words[n]) + 1)
        )
        assert flooding("run", "two-gaussians", *words[:n], other, *words[n + 1 :])[0] == 0
    assert len(Ledger(tmp_path / "ledger.sqlite")) == 1 + len(
        values
    )  # every option made another Run of it


def test_save_keeps_three_sets_of_weights(flooding, tmp_path):
    code, out, _ = flooding(
        "run",
        "sinusoid",
        "--level",
        "0.6",
        *TINY,
        "--epochs",
        "30",
        "--learning-rate",
        "0.1",
        "--save",
        "weights",
    )
    assert code == 0
    saved = {path.stem: load_file(path) for path in (tmp_path / "weights").iterdir()}
    assert set(saved) == {"first_flooded", "best", "last"}
    assert all(f"{name}.safetensors" in out for name in saved)
    assert not torch.equal(
        *(next(iter(saved[name].values())) for name in ("first_flooded", "last"))
    )
    code, out, _ = flooding("run", "sinusoid", *TINY, "--save", "weights2")
    assert "no step was flooded" in out


def test_trackers_get_every_epoch(flooding, tmp_path):
    import mlflow

    extra = [
        "--mlflow",
        "sqlite:///mlflow.db",
        "--tensorboard",
        "runs",
        "--tag",
        "team:blue",
        "--tag",
        "quick",
    ]
    code, _, err = flooding("run", "sinusoid", "--level", "0.2", *TINY, *extra)
    assert code == 0, err
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {"team": "blue", "quick": "true"}.items() <= run.data.tags.items()
    assert run.data.params["level"] == "0.2"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")] == [
        0,
        1,
        2,
        3,
    ]
    assert list((tmp_path / "runs").rglob("events*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "sinusoidd"], "Did you mean sinusoid?"),
        (["run", "sinusoid", "--epochs", "-3"], "at least 1, got -3"),
        (["run", "sinusoid", "--label-noise", "1.5"], r"must lie in \[0, 1\), got 1.5"),
        (["run", "sinusoid", "--level", "nan"], "level must be finite, got nan"),
        (["run", "sinusoid", "--ledger", "."], "ledger must be a file, got the folder"),
        (["run", "sinusoid", "--ledger", "plain.txt/l.sqlite"], "plain.txt is a file"),
        (["run", "sinusoid", "--ledger", "plain.txt"], "SQLite file this tool can open"),
        (["run", "sinusoid", "--save", "plain.txt/weights"], "plain.txt is one"),
        (["run", "sinusoid", "--tensorboard", "plain.txt"], "plain.txt"),
        (["run", "sinusoid", "--mlflow", "sqlite:///nowhere/m.db"], "nowhere"),
        (["run", "sinusoid", "--mlflow", "foo://bar"], "a store MLflow can open"),
        (
            ["run", "sinusoid", "--ledger", "/proc/nowhere/l.sqlite"],
            "SQLite file this tool can open",
        ),
        (
            ["run", "sinusoid", "--batch-size", "0"],
            "batch_size must be a whole number of at least 1, got 0",
        ),
        (["run", "sinusoid", "--batch-size", "99"], "no batch may hold a single example"),
        (["run", "sinusoid", "--device", "cuda:7"], "device must be there"),
        (["run", "sinusoid", "--device", "toaster"], "device must be there"),
        (
            ["run", "sinusoid", "--optimizer", "adam", "--momentum", "0.9"],
            "momentum belongs to sgd",
        ),
        (["run", "sinusoid", "--learning-rate", "inf"], "learning_rate must"),
        (["run", "sinusoid", "--dimension", "3"], "dimension"),
        (["run", "digits", "--train-samples", "1797"], "1797"),
        (["run", "sinusoid", "--seed", "-1"], "seed"),
        (["run", "sinusoid", "--threads", "0"], "threads must be at least 1"),
        (["run", "sinusoid", "--width", "many"], "Invalid value"),
        (["demo", "--out", "plain.txt/pictures"], "plain.txt is one"),
        (["demo", "--ledger", "."], "ledger must be a file"),
        (["demo", "--workers", "-1"], "Invalid value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_with_rule_value_and_fix_and_nothing_is_written(
    flooding, tmp_path, arguments, message
):
    (tmp_path / "plain.txt").write_text("mine")
    code, out, err = flooding(*arguments)
    assert code == 2
    assert re.search(message, " ".join(err.split())), err
    assert "Traceback" not in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["plain.txt"]
    assert (tmp_path / "plain.txt").read_text() == "mine"


NUMBERS = st.one_of(
    st.integers(-2, 60),
    st.floats(-1, 2),
    st.sampled_from(["nan", "inf", "-inf", "1e400", "x", "", "0"]),
)
OPTIONS = [
    "--label-noise", "--spiral-noise", "--negative-mean", "--dimension", "--train-samples",
    "--val-samples", "--level", "--depth", "--learning-rate", "--momentum", "--weight-decay",
    "--clip-norm", "--batch-size", "--eval-batch-size", "--seed", "--threads",
]  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    task=st.sampled_from([*TASKS, "sinusoid", "spirals"]),
    model=st.sampled_from(["mlp", "mlp-bn", "resnet"]),
    optimizer=st.sampled_from(["sgd", "adam", "adamw", "lion"]),
    options=st.dictionaries(st.sampled_from(OPTIONS), NUMBERS, max_size=3),
)
def test_no_option_ends_in_a_traceback(flooding, task, model, optimizer, options):
    words = [str(word) for pair in options.items() for word in pair]
    size = ["--width", "4", "--epochs", "1", "--model", model, "--optimizer", optimizer]
    code, out, err = flooding("run", task, *size, *words)
    assert code in {0, 2}, err
    assert "Traceback" not in out + err


METHOD_OPTIONS = {
    "iflood": ["--level", "0.3"],
    "softad": ["--level", "0.3", "--sigma", "0.5"],
    "hinge": ["--level", "0.3"],
    "relaxloss": ["--level", "0.6"],
    "wavebound": ["--epsilon", "0.01", "--decay", "0.9"],
    "sam": ["--rho", "0.1"],
    "gradient-penalty": ["--penalty", "0.1"],
    "adaflood": ["--gamma", "0.3", "--folds", "2"],
}


def weights(path):
    return [record.weights_sha256 for _, record in Ledger(path).records()]


def test_every_method_runs_and_is_another_training(flooding, tmp_path):
    flooding("run", "sinusoid", *TINY, "--epochs", "6", "--learning-rate", "0.05")
    for method, numbers in METHOD_OPTIONS.items():
        code, _, err = flooding(
            "run",
            "sinusoid",
            *TINY,
            "--epochs",
            "6",
            "--learning-rate",
            "0.05",
            "--method",
            method,
            *numbers,
        )
        assert code == 0, err
    assert {"flooding", *METHOD_OPTIONS} == {*entry_names(METHODS)}
    assert len(set(weights(tmp_path / "ledger.sqlite"))) >= len(
        METHOD_OPTIONS
    )  # a hinge never reached equals plain training


@pytest.mark.parametrize("schedule", entry_names(CONTROLLERS))
def test_every_schedule_runs(flooding, tmp_path, schedule):
    start = {"delayed": ["--until-loss", "0.69"], "heuristic": ["--until-accuracy", "0.5"]}.get(
        schedule, []
    )
    # Auto chooses the level, or none where no level is worth holding.
    level = [] if schedule == "auto" else ["--level", "0.3"]
    code, _, err = flooding("run", "sinusoid", *TINY, "--schedule", schedule, *level, *start)
    assert code == 0, err
    [(_, record)] = Ledger(tmp_path / "ledger.sqlite").records()
    level = record.metrics["last.level"]
    assert level <= 0.5 or (schedule == "auto" and math.isnan(level))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "softadd"], "Did you mean softad?"),
        (
            ["--method", "sam", "--sigma", "1"],
            "an argument of method sam must be one of rho; got sigma",
        ),
        (["--method", "iflood", "--sigma", "1"], "must be one of none at all; got sigma"),
        (["--method", "wavebound"], "needs epsilon"),
        (["--method", "wavebound", "--epsilon", "0.1", "--level", "0.3"], "Leave .*out"),
        (["--method", "adaflood", "--level", "0.3"], "finds its own levels"),
        (["--method", "adaflood", "--folds", "1"], "folds"),
        (["--method", "adaflood", "--gamma", "2"], "gamma"),
        (["--schedule", "warmup"], "needs one level"),
        (["--level", "0.1,0.2"], "Use IFlood"),
        (["--level", "0.1,0.2,0.3", "--method", "iflood"], "each of 2 classes, got 3"),
        (["--level", "low"], "numbers with commas, got 'low'"),
        (["--excess"], "excess needs one constant level"),
        (
            ["--level", "0.1", "--schedule", "plateau", "--excess"],
            "excess needs one constant level",
        ),
        (
            ["--schedule", "delayed", "--level", "0.3", "--warmup-steps", "4"],
            "an argument of schedule delayed",
        ),
        (["--until-loss", "0.1"], "a constant level has no until_loss"),
        (["--dropout", "1"], r"dropout must lie in \[0, 1\)"),
        (["--label-smoothing", "-1"], "label_smoothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_methods_and_schedules_are_refused(flooding, tmp_path, options, message):
    code, out, err = flooding("run", "sinusoid", *TINY, *options)
    assert code == 2
    assert re.search(message, " ".join(err.split())), err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


def test_levels_per_class_and_of_the_excess(flooding, tmp_path):
    many = [*TINY, "--epochs", "40", "--learning-rate", "0.1", "--label-smoothing", "0.1"]
    for options in (
        ["--method", "iflood", "--level", "0.1,0.6"],
        ["--level", "0.3", "--excess"],
        ["--level", "0.3"],
    ):
        code, _, err = flooding("run", "sinusoid", *many, *options)
        assert code == 0, err
    levels = sorted(
        record.metrics["last.level"] for _, record in Ledger(tmp_path / "ledger.sqlite").records()
    )
    assert levels[0] == pytest.approx(0.3)
    assert 0.1 < levels[1] < 0.6  # the mean of 0.1 and 0.6 over the labels
    assert levels[2] == pytest.approx(
        0.3 + 0.1985, abs=1e-4
    )  # 0.1985: entropy of a label smoothed by 0.1, 2 classes
