"""What the trackers wrote, read back through each tool's own interface."""

import itertools
import logging
import math
import re
import sqlite3
import subprocess
import sys
import traceback
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

import flooding
from flooding.data.synthetic import two_gaussians
from flooding.levels import Delayed
from flooding.tracking import Tracker, mlflow_tracker, tensorboard_tracker
from flooding.tracking import mlflow as mlflow_module
from flooding.tracking.masking import masked_logs
from flooding.tracking.processes import HOST_TAG, PROCESS_TAG, process_tags
from flooding.tracking.tracker import warnings_ignored
from flooding.training.ledger import Ledger
from flooding.training.loop import EpochResult, train
from flooding.training.run import Run
from flooding.training.runner import run_all
from small import small

names = map(
    "experiment-{}".format, itertools.count()
)  # an experiment for each test: making a database takes seconds


@contextmanager
def mlflow_warnings_ignored():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="mlflow")
        yield


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A database made by the tracker itself, in an empty working directory."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow_tracker("sqlite:///mlflow.db")
    assert [path.name for path in folder.iterdir()] == ["mlflow.db"]  # and no ./mlruns
    return f"sqlite:///{folder / 'mlflow.db'}"


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def read_mlflow(uri, experiment):
    """Give each MLflow run as (info, parameters, tags, {(name, epoch): value}), oldest first."""
    with mlflow_warnings_ignored():
        client = client_of(uri)
        found = client.search_runs(
            [client.get_experiment_by_name(experiment).experiment_id], order_by=["start_time"]
        )
        for run in found:
            histories = {
                name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics
            }
            assert all(
                len({m.step for m in history}) == len(history) for history in histories.values()
            )
            values = {
                (name, m.step): m.value for name, history in histories.items() for m in history
            }
            yield run.info, run.data.params, run.data.tags, values


def read_tensorboard(folder):
    """Give {(name, epoch): value} and the accumulator of a run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()  # 0 keeps all
    scalars = [(name, event) for name in events.Tags()["scalars"] for event in events.Scalars(name)]
    values = {(name, event.step): event.value for name, event in scalars}
    assert len(values) == len(scalars)
    return values, events


def hyper_parameters(events):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}


def expected(rows):
    """Every finite number of rows, as (name, epoch): value."""
    values = {}
    for row in rows:
        values |= {(name, row.epoch): value for name, value in row.values.items()}
        if row.record is not None:
            values |= {(name, row.epoch): value for name, value in row.record.metrics.items()}
    return {at: value for at, value in values.items() if math.isfinite(value)}


def interleaved(*runs):
    """Rows of several Runs in turn, as they come from worker processes."""
    return [
        row for rows in itertools.zip_longest(*map(train, runs)) for row in rows if row is not None
    ]


def two_runs():
    return [Run(small(max_epochs=12), level=0.3), Run(small(max_epochs=3), level=None, seed=1)]


def test_mlflow_holds_every_finite_number_of_interleaved_runs(uri):
    runs, name = two_runs(), next(names)
    rows = interleaved(*runs)
    with mlflow_tracker(
        uri, experiment=name, tags={"who": "me"}, parameters={"task": "gaussians", "lr": 0.01}
    ) as log:
        for row in rows:
            log(row)
    results = list(read_mlflow(uri, name))
    assert len(results) == 2
    for run, (info, parameters, tags, values) in zip(runs, results, strict=True):
        wanted = expected(row for row in rows if row.run is run)
        assert values == wanted  # SQLite keeps all 64 bits
        assert {"train_loss", "last.test_accuracy", "best.epoch", "epochs"} <= {
            at[0] for at in values
        }
        assert ("level", 0) not in values  # NaN before training
        assert parameters == {
            "level": str(run.level),
            "method": "Flooding()",
            "seed": str(run.seed),
            "epochs": str(run.epochs),
            "task": "gaussians",
            "lr": "0.01",
        }
        assert tags["who"] == "me"
        assert info.status == "FINISHED"
        assert info.run_name == f"Flooding-level={run.level}-seed={run.seed}"


def test_mlflow_holds_more_numbers_than_it_takes_at_once(uri):
    name, wanted = next(names), {f"m{k}": k / 7 for k in range(1001)}  # its limit is 1,000
    with mlflow_tracker(uri, experiment=name) as log:
        log(EpochResult(Run(small()), 0, wanted))
    with mlflow_warnings_ignored():
        client = client_of(uri)
        (found,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert found.data.metrics == wanted


def test_tensorboard_holds_every_finite_number_of_interleaved_runs(tmp_path):
    runs = two_runs()
    rows = interleaved(*runs)
    with tensorboard_tracker(tmp_path / "a" / "b", parameters={"task": "gaussians"}) as log:
        for row in rows:
            log(row)
    for run, name in zip(
        runs, ["Flooding-level=0.3-seed=0", "Flooding-level=None-seed=1"], strict=True
    ):
        values, events = read_tensorboard(tmp_path / "a" / "b" / name)
        wanted = expected(row for row in rows if row.run is run)
        assert values == {
            at: float(np.float32(value)) for at, value in wanted.items()
        }  # TensorBoard's own rounding
        numbers = {"level": run.level or "None", "seed": run.seed, "epochs": run.epochs}
        assert hyper_parameters(events) == {**numbers, "method": "Flooding()", "task": "gaussians"}
        assert "_hparams_/session_end_info" in events._plugin_to_tag_to_content["hparams"]
    assert len(list((tmp_path / "a" / "b").iterdir())) == 2


def test_both_consume_the_rows_of_worker_processes(uri, tmp_path):
    name, runs, rows = next(names), [Run(small(), level) for level in (None, 0.3, 0.6)], []
    with (
        mlflow_tracker(uri, experiment=name) as mlflow,
        tensorboard_tracker(tmp_path) as tensorboard,
    ):
        records = run_all(
            runs,
            ledger=False,
            workers=2,
            on_row=lambda row: (rows.append(row), mlflow(row), tensorboard(row)),
        )
    values_of = {parameters["level"]: values for _, parameters, _, values in read_mlflow(uri, name)}
    for run, record in zip(runs, records, strict=True):
        wanted = expected(row for row in rows if row.run is run)
        assert values_of[str(run.level)] == wanted
        assert wanted["last.test_accuracy", 6] == record.metrics["last.test_accuracy"]
        values, _ = read_tensorboard(tmp_path / f"Flooding-level={run.level}-seed=0")
        assert values == {at: float(np.float32(value)) for at, value in wanted.items()}


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (None, "KILLED")],
    ids=["an error", "Ctrl-C", "left early"],
)
def test_unfinished_runs_are_closed_and_say_so(uri, tmp_path, error, status):
    name, long, short = next(names), Run(small(max_epochs=9), 0.3), Run(small(max_epochs=1), 0.3)
    rows = interleaved(long, short)[:8]
    with (
        suppress(RuntimeError, KeyboardInterrupt),
        mlflow_tracker(uri, experiment=name) as mlflow,
        tensorboard_tracker(tmp_path) as tensorboard,
    ):
        for row in rows:
            mlflow(row)
            tensorboard(row)
        if error:
            raise error
    results = {
        parameters["epochs"]: (info, values)
        for info, parameters, _, values in read_mlflow(uri, name)
    }
    assert {epochs: info.status for epochs, (info, _) in results.items()} == {
        "9": status,
        "1": "FINISHED",
    }
    assert all(info.end_time is not None for info, _ in results.values())
    wanted = expected(row for row in rows if row.run is long)
    assert results["9"][1] == wanted  # what was seen is kept
    values, events = read_tensorboard(tmp_path / "Flooding-level=0.3-seed=0")
    assert values == {at: float(np.float32(value)) for at, value in wanted.items()}
    assert hyper_parameters(events)["epochs"] == 9
    assert "_hparams_/session_end_info" not in events._plugin_to_tag_to_content["hparams"]
    assert (
        "_hparams_/session_end_info"
        in (
            read_tensorboard(tmp_path / "Flooding-level=0.3-seed=0-2")[1]._plugin_to_tag_to_content[
                "hparams"
            ]
        )
    )


class ListLog:
    """A log in memory."""

    def __init__(self, fails=False):
        self.written, self.statuses, self.fails = [], [], fails

    def write(self, values, epoch):
        self.written.append((epoch, dict(values)))

    def close(self, status):
        self.statuses.append(status)
        if self.fails:
            raise OSError("disk full")


def test_an_epoch_is_written_once_when_a_run_is_stopped_or_starts_over():
    run, logs = Run(small(), 0.3), []
    rows = train(run)
    seen = [next(rows), next(rows), next(rows)]
    seen.append(rows.send(True))  # the last row of a stopped Run repeats its epoch
    assert [row.epoch for row in seen] == [0, 1, 2, 2]
    with Tracker(lambda run: logs.append(ListLog()) or logs[-1]) as log:
        for row in [*seen[:2], *seen]:  # the worker died after epoch 1
            log(row)
        assert logs[0].statuses == ["FINISHED"]  # at the last row, not at the end of the block
    assert len(logs) == 1
    assert [epoch for epoch, _ in logs[0].written] == [0, 1, 2, 2]
    assert set(logs[0].written[-1][1]) <= set(seen[-1].record.metrics)


def test_equal_runs_are_distinguished_and_a_run_trained_again_has_a_log_of_its_own():
    problem, opened = small(max_epochs=1), []
    one, two = Run(problem, 0.3), Run(problem, 0.3)
    with Tracker(lambda run: opened.append((run, ListLog())) or opened[-1][1]) as log:
        for row in [*interleaved(one, two), *train(one)]:
            log(row)
    assert [run for run, _ in opened] == [one, two, one]
    assert all(log.statuses == ["FINISHED"] for _, log in opened)
    assert all([epoch for epoch, _ in log.written] == [0, 1, 1] for _, log in opened)


def test_a_log_that_cannot_be_closed_leaves_no_other_open():
    logs, runs = (
        [ListLog(), ListLog(fails=True), ListLog()],
        [Run(small(), seed=seed) for seed in range(3)],
    )
    opened = iter(logs)
    tracker = Tracker(lambda run: next(opened))
    for run in runs:
        tracker(EpochResult(run, 0, {}))
    with pytest.raises(OSError, match="disk full"):
        tracker.__exit__(None, None, None)
    assert [log.statuses for log in logs] == [["KILLED"]] * 3


def test_nan_and_infinities_are_left_out():
    log = ListLog()
    Tracker(lambda run: log)(
        EpochResult(Run(small()), 0, {"a": 1.0, "b": math.nan, "c": math.inf, "d": -math.inf})
    )
    assert log.written == [(0, {"a": 1.0})]


@pytest.mark.parametrize(
    ("seconds", "visible"), [(0.0, True), (math.inf, False)], ids=["due", "not due"]
)
def test_mlflow_is_written_to_while_a_run_goes_on_when_it_is_due(
    uri, monkeypatch, seconds, visible
):
    monkeypatch.setattr(mlflow_module, "_SECONDS_BETWEEN_WRITES", seconds)
    name, rows = next(names), train(Run(small(), 0.3))
    with mlflow_tracker(uri, experiment=name) as log:
        first = next(rows)
        log(first)
        ((info, _, _, values),) = read_mlflow(uri, name)
        assert info.status == "RUNNING"
        assert values == (expected([first]) if visible else {})


def test_mlflow_keeps_its_global_state_and_artifacts_lie_beside_the_database(uri):
    import mlflow

    name, before = next(names), mlflow.get_tracking_uri()
    rows = list(train(Run(small(max_epochs=1), Delayed(0.3, until_loss=0.5))))
    with mlflow_tracker(uri, experiment=name) as log:
        log(rows[0])
        assert mlflow.active_run() is None
        for row in rows[1:]:
            log(row)
    assert mlflow.get_tracking_uri() == before
    ((info, parameters, _, _),) = read_mlflow(uri, name)
    folder = uri.removeprefix("sqlite:///").removesuffix("mlflow.db")
    assert info.artifact_uri.startswith(f"file://{folder}mlflow-artifacts/")
    assert info.run_name == "Flooding-level=Delayed-seed=0"
    assert parameters["level"].startswith("Delayed(level=0.3, until_loss=0.5")


def test_mlflow_takes_values_of_any_length(uri):
    name = next(names)
    with mlflow_tracker(uri, experiment=name, parameters={"notes": "x" * 10_000}) as log:
        log(EpochResult(Run(small()), 0, {}))
    ((_, parameters, _, _),) = read_mlflow(uri, name)
    assert set(parameters["notes"]) == {"x"}


def test_a_second_tracker_adds_to_the_experiment(uri):
    name = next(names)
    for _ in range(2):
        with mlflow_tracker(uri, experiment=name) as log:
            for row in train(Run(small(max_epochs=1))):
                log(row)
    assert len(list(read_mlflow(uri, name))) == 2


def test_an_experiment_made_by_somebody_else_meanwhile_is_used():
    from mlflow.exceptions import MlflowException

    class Client:
        def __init__(self, *answers):
            self.answers = list(answers)

        def get_experiment_by_name(self, name):
            return self.answers.pop(0)

        def create_experiment(self, name, artifact_location):
            raise MlflowException("it exists")

    class Found:
        lifecycle_stage, experiment_id = "active", "7"

    assert mlflow_module._experiment_id(Client(None, Found), "name", None) == "7"
    with pytest.raises(MlflowException, match="it exists"):  # some other trouble
        mlflow_module._experiment_id(Client(None, None), "name", None)


def test_a_deleted_experiment_is_refused(uri):
    name = next(names)
    mlflow_tracker(uri, experiment=name)
    with mlflow_warnings_ignored():
        client = client_of(uri)
        client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    with pytest.raises(
        ValueError, match=rf"experiment must be active, got the deleted '{name}'. Restore it"
    ):
        mlflow_tracker(uri, experiment=name)


def test_a_server_is_asked_and_not_taken_for_a_file(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        ValueError, match=r"a store MLflow can open.*127\.0\.0\.1"
    ):  # port 9 discards; nobody listens
        mlflow_tracker("http://127.0.0.1:9")


SECRET = "s3cr3t/p@ss"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://user:{SECRET}@127.0.0.1:9",
        "http://user:s3cr3t%2Fp%40ss@127.0.0.1:9",
        "http://s3cr3t-token@127.0.0.1:9",
        "http://127.0.0.1:9/?password=s3cr3t&x=1",
        "http://127.0.0.1:9/#access_token=s3cr3t",
        "postgresql://user:s3cr3t@127.0.0.1:1/database",
        "postgresql://127.0.0.1:1/database?user=u&sslpassword=s3cr3t",
        "postgresql://user:s3cr3t@host:port/database",
        "nonsense://user:s3cr3t@host/database",
        "user:s3cr3t@host",
        "sqlite://?password=s3cr3t",
    ],
)
def test_passwords_in_an_address_are_never_printed(monkeypatch, caplog, capfd, uri):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.raises(ValueError, match=r"uri must .*[*]{3}") as error,
        caplog.at_level("DEBUG", "flooding"),
    ):
        mlflow_tracker(uri)
    shown = (
        "".join(traceback.format_exception(error.value)) + caplog.text + "".join(capfd.readouterr())
    )
    assert not re.search(r"s3cr3t|p@ss|p%40ss", shown)


@pytest.mark.parametrize("call", ["create_run", "log_batch", "set_terminated"])
def test_passwords_are_masked_when_the_server_fails_later(uri, monkeypatch, call):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fails(*_, **__):
        raise MlflowException(
            "API request to http://user:s3cr3t@host/api?token=s3cr3t failed, said a server s3cr3t2"
        )

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cr3t2")
    log, rows = mlflow_tracker(uri, experiment=next(names)), list(train(Run(small(max_epochs=1))))

    def track_all():
        with log:
            for row in rows:
                log(row)

    message = r"API request to http://[*]{3}@host/api\?token=[*]{3} failed"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, fails)
        with pytest.raises(ConnectionError, match=message) as error:
            track_all()
    assert "s3cr3t" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("logger", ["mlflow.utils.rest_utils", "urllib3.connectionpool"])
def test_passwords_are_masked_in_log_lines_of_mlflow_alone(caplog, logger):
    uri = "http://user:s3cr3t@host/?token=t0k3n"
    with masked_logs(uri):
        logging.getLogger(logger).warning("Retrying %s", uri)
        logging.getLogger("my.program").warning("I use %s", "s3cr3t")
        try:
            raise RuntimeError(f"no answer from {uri}")
        except RuntimeError:
            logging.getLogger(logger).exception("failed")
    logging.getLogger(logger).warning("after %s", "s3cr3t")
    retry, own, failure, after = caplog.messages
    assert retry == "Retrying http://***@host/?token=***"
    assert own == "I use s3cr3t"
    assert failure == "failed"
    assert "no answer from http://***@host/?token=***" in caplog.text
    assert "t0k3n" not in caplog.text
    assert after == "after s3cr3t"


def test_what_mlflow_logs_of_a_run_is_masked(uri, monkeypatch, caplog):
    from mlflow import MlflowClient

    create_run = MlflowClient.create_run

    def logs(self, *args, **kwargs):
        logging.getLogger("mlflow.tracking").warning("to http://user:s3cr3t@host")
        return create_run(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", logs)
    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    with mlflow_tracker(uri, experiment=next(names)) as log:
        log(EpochResult(Run(small()), 0, {"loss": 1.0}))
    assert "to http://***@host" in caplog.messages


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[3:]
from flooding.training.loop import EpochResult
from flooding.training.run import Run
from flooding.tracking import mlflow_tracker
from small import small
log = mlflow_tracker(sys.argv[1], experiment=sys.argv[2])
log(EpochResult(Run(small(), level=0.25), 0, {"loss": 1.0}))
print("open", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="processes are identified by /proc"
)
def test_runs_of_killed_processes_are_closed_at_the_next_start(uri, caplog):
    name = next(names)
    here = [str(Path(flooding.__file__).parents[1]), str(Path(__file__).parent)]
    command = [sys.executable, "-W", "ignore", "-c", KILLED, uri, name, *here]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        process.stdout.read()  # until it is dead; it is not reaped yet
        with mlflow_warnings_ignored():
            client = client_of(uri)
            experiment = client.get_experiment_by_name(name).experiment_id
            mine = process_tags()
            pid, _, start = mine[PROCESS_TAG].partition(":")
            others = {
                "alive": mine,
                "another host": {**mine, HOST_TAG: "elsewhere", PROCESS_TAG: "999999999:1"},
                "an older process of the same number": {
                    **mine,
                    PROCESS_TAG: f"{pid}:{int(start) - 1}",
                },
                "not of this library": {},
                "of a form unknown": {**mine, PROCESS_TAG: "-1"},
            }
            for run_name, tags in others.items():
                client.create_run(experiment, run_name=run_name, tags=tags)
        with mlflow_tracker(uri, experiment=name):
            pass
    statuses = {info.run_name: (info.status, info.end_time) for info, *_ in read_mlflow(uri, name)}
    killed = {
        name for name, (status, end) in statuses.items() if status == "KILLED" and end is not None
    }
    assert killed == {"Flooding-level=0.25-seed=0", "an older process of the same number"}
    assert {status for name, (status, _) in statuses.items() if name not in killed} == {"RUNNING"}
    warned = [message for message in caplog.messages if "killed process" in message]
    assert len(warned) == 2
    assert any("Flooding-level=0.25-seed=0" in message for message in warned)
    mlflow_tracker(uri, experiment=name)
    assert [message for message in caplog.messages if "killed process" in message] == warned  # once


def contents(folder):
    return {
        path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def busy(tmp_path):
    """A folder with a text file, another program's database and a ledger."""
    (tmp_path / "text").write_text(
        "not a database, though long enough to hold the header of one" * 20
    )
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE songs (title)")
    database.close()
    Ledger(tmp_path / "ledger.sqlite").close()
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "sqlite:///{}/missing/mlflow.db",
            "must lie in a folder that exists, got {}/missing/mlflow.db. Make {}/missing",
        ),
        (
            "sqlite:///{}/text/mlflow.db",
            "must lie in a folder that exists, got {}/text/mlflow.db. Make {}/text",
        ),
        ("sqlite:///{}", "must name a file, got the folder {}. Try sqlite:///{}/mlflow.db."),
        (
            "sqlite:///{}/text",
            "must name a SQLite database, got {}/text: file is not a database. Choose",
        ),
        (
            "sqlite:///{}/other.db",
            "must name a database of MLflow's, got another program's {}/other.db. Choose",
        ),
        (
            "sqlite:///{}/ledger.sqlite",
            "must name a database of MLflow's, got another program's {}/ledger.sqlite.",
        ),
        ("sqlite://", "must name a file, got 'sqlite://'. Try sqlite:///mlflow.db."),
        ("sqlite:///:memory:", "must name a file, got 'sqlite:///:memory:'. Try"),
        (
            "mlflow.db",
            "must be sqlite:///FILE or a server's address, got 'mlflow.db'. Put sqlite:/// first.",
        ),
    ],
    ids=[
        "no folder",
        "below a file",
        "a folder",
        "text",
        "other",
        "ledger",
        "nothing",
        "memory",
        "no scheme",
    ],
)
def test_a_uri_that_cannot_be_mlflows_is_refused_and_nothing_written(
    busy, monkeypatch, uri, message
):
    monkeypatch.chdir(busy)
    before = contents(busy)
    with pytest.raises(ValueError, match=r"^(uri|the file of uri) must") as error:
        mlflow_tracker(uri.format(busy))
    assert message.replace("{}", str(busy)) in str(error.value)
    assert contents(busy) == before


@pytest.mark.parametrize("below", ["text", "text/runs", "text/a/runs"])
def test_a_folder_that_is_or_lies_below_a_file_is_refused_and_nothing_written(busy, below):
    before = contents(busy)
    with pytest.raises(
        ValueError,
        match=r"folder must not be, or lie below, a file, but .*/text is one. Choose another",
    ):
        tensorboard_tracker(busy / below)
    assert contents(busy) == before


@pytest.mark.parametrize(
    "tracker",
    [
        lambda path, **options: mlflow_tracker(f"sqlite:///{path}/m.db", **options),
        tensorboard_tracker,
    ],
)
def test_parameters_that_each_run_has_are_refused(tmp_path, tracker):
    with pytest.raises(
        ValueError, match=r"parameters must not name .*, got \['level', 'seed'\]. Leave them out"
    ):
        tracker(tmp_path, parameters={"seed": 1, "level": 0.1, "task": "x"})
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("module", ["mlflow", "sqlalchemy", "alembic"])
def test_without_mlflow_the_error_names_the_install_line(tmp_path, monkeypatch, module):
    monkeypatch.setitem(
        sys.modules, module, None
    )  # what Python keeps for a module that must not be imported
    with pytest.raises(ImportError, match=rf"got: .*{module}.* Run pip install .*\[mlflow\]'"):
        mlflow_tracker(f"sqlite:///{tmp_path}/mlflow.db")
    assert contents(tmp_path) == {}


def test_without_tensorboard_the_error_names_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        ImportError, match=r"got: .*tensorboard.* Run pip install .*\[tensorboard\]'"
    ):
        tensorboard_tracker(tmp_path / "runs")
    assert contents(tmp_path) == {}


def test_only_the_warnings_of_the_named_packages_are_ignored():
    with warnings_ignored("mlflow", "alembic"):
        for module in ("mlflow", "mlflow.store.tracking", "alembic.op"):
            warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)
        for module in ("mlflowers", "my.mlflow", "flooding.tracking"):
            with pytest.raises(DeprecationWarning):
                warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module="mlflow")


def test_tracking_does_not_change_what_is_measured(tmp_path):
    run = Run(small(data=two_gaussians_small), 0.3)
    plain = list(train(run))[-1].record
    with tensorboard_tracker(tmp_path) as log:
        for row in train(run):
            log(row)
    assert row.record.content_hash == plain.content_hash


def two_gaussians_small(*, seed):
    return two_gaussians(n_train=20, n_val=20, n_test=50, seed=seed)
