"""Row consumers: what Runs measure, epoch by epoch, in MLflow or TensorBoard.

Both have one shape: a :class:`Tracker`, called with rows inside a ``with`` block.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import os
import re
import socket
import sqlite3
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import quote, unquote

from flooding.training.loop import EpochResult
from flooding.training.run import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Log", "Tracker", "mlflow_tracker", "tensorboard_tracker"]

log = logging.getLogger("flooding")
_OWN = ("level", "method", "seed", "epochs")  # parameters that each Run tells of itself
_HOST, _PROCESS = (
    "flooding.host",
    "flooding.process",
)  # tags that tell whether a run's process is alive
_SECONDS = (
    2.0  # between two writes to MLflow: a write takes 5 ms, as long as an epoch of a small network
)


class Log(Protocol):
    """Where the numbers of one Run go."""

    def write(self, values: Mapping[str, float], epoch: int) -> None:
        """Take finite numbers of an epoch."""
        ...

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Write what is waiting and close."""
        ...


class Tracker:
    """Pass rows on to one log per Run, opened at the Run's first row and closed at its last.

    Rows of several Runs may come interleaved, as from :func:`flooding.run_all`'s workers; Runs are
    told apart by identity, so give each Run object once. Every finite value of a row is written
    under its own name at its epoch, and the finals of a Record, ``best.*`` and ``last.*``, at the
    last epoch. NaN and infinities are left out. An epoch is written once: a Run that starts over
    because its worker died goes on in the same log.

    Leaving the ``with`` block closes every log. One that is unfinished ends as FAILED after an
    exception, and as KILLED after Ctrl-C or when the loop was left early.

    Args:
        open_log: Opens the log of a Run.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> from flooding.training.loop import train
        >>> class Printed:
        ...     def write(self, values, epoch):
        ...         print(epoch, sorted(values)[:2])
        ...     def close(self, status):
        ...         print(status)
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), max_epochs=1)
        >>> with Tracker(lambda run: Printed()) as log:
        ...     for row in train(Run(problem, level=0.2)):
        ...         log(row)
        0 ['flooded', 'lr']
        1 ['flooded', 'level']
        1 ['best.epoch', 'best.flooded']
        FINISHED
    """

    def __init__(self, open_log: Callable[[Run], Log]) -> None:
        self._open_log = open_log
        self._logs: dict[
            Run, tuple[Log, int]
        ] = {}  # with the last epoch written; a Run is equal to itself alone

    def __call__(self, row: EpochResult) -> None:
        """Write a row, and its Record if it is the last one.

        Args:
            row: What one epoch of one Run measured.
        """
        run = row.run
        log, written = self._logs[run] if run in self._logs else (self._open_log(run), -1)
        self._logs[run] = log, max(row.epoch, written)
        if row.epoch > written:
            log.write(_finite(row.values), row.epoch)
        if row.record is not None:
            log.write(_finite(row.record.metrics), row.epoch)
            log.close("FINISHED")
            del self._logs[run]

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with ExitStack() as stack:  # one that cannot be closed must not keep the others open
            for log, _ in self._logs.values():
                stack.callback(log.close, status)
            self._logs = {}


def mlflow_tracker(
    uri: str,
    *,
    experiment: str = "flooding",
    tags: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Tracker:
    """Track in MLflow: one MLflow run per Run, with its level, method, seed and epochs as
    parameters.

    The client API alone is used: MLflow's active run and tracking URI stay as they are. Numbers are
    written every two seconds and at the end. No artifacts are logged; a new experiment keeps its
    own beside the database.

    Each MLflow run is tagged with its host and process. Runs of the experiment that are still
    RUNNING although their process has ended, since it was killed, are set to KILLED and named in
    the log. Runs of other hosts, or from before this one was restarted, stay as they are, and so do
    all where the system has no ``/proc``.

    Args:
        uri: ``sqlite:///FILE`` (made if it is missing) or the address of a tracking server.
            Passwords in it are left out of every error.
        experiment: Name of the experiment, made if it is missing.
        tags: Tags of each MLflow run.
        parameters: Further parameters of each MLflow run, such as the task.

    Returns:
        A consumer of rows.

    Raises:
        ImportError: If MLflow, or what it needs for SQLite, is not installed.
        ValueError: If the file cannot hold a database of MLflow's, the server or a driver is
            missing, the experiment is deleted, or a parameter is one that each Run tells of itself.
            Nothing is written then.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> from flooding.training.loop import train
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), max_epochs=2)
        >>> folder = getfixture("tmp_path")
        >>> with mlflow_tracker(f"sqlite:///{folder}/mlflow.db", parameters={"task": "two-gaussians"}) as log:
        ...     for row in train(Run(problem, level=0.2)):
        ...         log(row)
    """
    if wrong := _taken(parameters):
        raise ValueError(wrong)
    with _quiet("mlflow", "sqlalchemy", "alembic"):
        if missing := _missing("mlflow", "mlflow", "sqlalchemy", "alembic"):
            raise ImportError(missing)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        file = _database(uri)
        # Absolute: MLflow keeps stores by their address, and would find a relative one in an
        # earlier working directory.
        place = None if file is None else (file.parent / f"{file.stem}-artifacts").as_uri()
        try:
            client = MlflowClient(uri if file is None else f"sqlite:///{file}")
            number = _experiment(client, experiment, place)
        except (ImportError, OSError, MlflowException, SQLAlchemyError) as error:
            got = f"{_masked(uri, uri)!r}: {_masked(str(error), uri)}"
            raise ValueError(f"uri must be a store MLflow can open, got {got}.") from None
    masking = partial(_masked_errors, uri, MlflowException)
    with masking():
        _close_killed(client, number)

    def open_log(run: Run) -> Log:
        told = {name: str(value) for name, value in _parameters(run, parameters).items()}
        with masking():
            opened = client.create_run(
                number, run_name=_name(run), tags={**_process_tags(), **(tags or {})}
            )
            client.log_batch(
                opened.info.run_id, params=[Param(name, value) for name, value in told.items()]
            )
        return _MlflowLog(client, opened.info.run_id, Metric, masking)

    return Tracker(open_log)


@contextmanager
def _masked_errors(uri: str, kind: type[Exception]) -> Generator[None, None, None]:
    """Raise an error of MLflow's again, without the passwords in its text and in what it came
    from.
    """
    try:
        yield
    except kind as error:
        got = _masked(str(error), uri)
        raise ConnectionError(
            f"MLflow must take what is measured, got from {_masked(uri, uri)}: {got}"
        ) from None


def _masked(text: str, uri: str) -> str:
    """Replace the passwords of an address, and whatever looks like one in a text about it, by
    ``***``.
    """
    user, _, password = uri.partition("://")[2].rpartition("@")[0].partition(":")
    query = [part.partition("=")[2] for part in re.split(r"[?&;#]", uri)[1:]]
    names = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    secrets = {password or user, *query, *(os.environ.get(name, "") for name in names)}
    for secret in sorted(
        {s for part in secrets for s in (part, unquote(part))}, key=len, reverse=True
    ):
        if len(secret) > 3:  # of a shorter one every occurrence would be a chance hit
            text = text.replace(secret, "***")
    text = re.sub(r"""(://)[^\s'"]*@""", r"\1***@", text)
    text = re.sub(r"""[^\s'":/@]+:[^\s'"/@]+@""", "***@", text)
    return re.sub(r"""([?&;#][^\s=&'"]+=)[^\s&'"]+""", r"\1***", text)


def _close_killed(client: MlflowClient, experiment: str) -> None:
    """Set runs to KILLED whose process on this host has ended without doing so."""
    if not (tags := _process_tags()):
        return
    # A host's name may have no quotes, but nothing else is sure about it.
    mine = f"attributes.status = 'RUNNING' and tags.`{_HOST}` = '{tags[_HOST]}'"
    token: str | None = None
    while True:
        page = client.search_runs([experiment], filter_string=mine, page_token=token)
        for run in page:
            process, _, start = run.data.tags.get(_PROCESS, "").partition(":")
            if process.isdecimal() and start and _start_of(process) != start:
                client.set_terminated(run.info.run_id, "KILLED")
                log.warning(
                    "MLflow run %s was left open by a killed process: it is KILLED now.",
                    run.info.run_name,
                )
        if not (token := page.token):
            return


def _process_tags() -> dict[str, str]:
    """Name this process: its host since its last start, its number there, and when it began."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # Containers of one host have numbers of their own.
        numbers = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
        start = _start_of("self")
    except OSError:
        return {}
    host = re.sub(r"[^\w.-]", "_", socket.gethostname())
    return {_HOST: f"{host}/{boot}/{numbers}", _PROCESS: f"{os.getpid()}:{start}"} if start else {}


def _start_of(process: str) -> str | None:
    """Look up when a process began, in ticks since the host's start; None if it has ended."""
    try:
        # The name, in brackets, may hold anything.
        state, *fields = (
            Path("/proc", process, "stat").read_text(errors="replace").rpartition(")")[2].split()
        )
    except (OSError, ValueError):
        return None
    return None if state in {"Z", "X"} else fields[18]


class _MlflowLog:
    """One MLflow run; numbers wait until a write is worth its time."""

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        metric: Callable[..., Any],
        masking: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._client, self._run_id, self._metric, self._masking = client, run_id, metric, masking
        self._waiting: list[Any] = []
        self._flushed = time.monotonic()

    def write(self, values: Mapping[str, float], epoch: int) -> None:
        now = round(time.time() * 1000)
        self._waiting += [self._metric(name, value, now, epoch) for name, value in values.items()]
        if time.monotonic() - self._flushed >= _SECONDS:
            self._flush()

    def _flush(self) -> None:
        with self._masking():
            self._client.log_batch(self._run_id, metrics=self._waiting)
        self._waiting = []
        self._flushed = time.monotonic()

    def close(self, status: str) -> None:
        try:
            self._flush()
        finally:
            with self._masking():
                self._client.set_terminated(self._run_id, status)


def _database(uri: str) -> Path | None:
    """Find the file of a SQLite URI and refuse one that MLflow would fail on, or fill, though it is
    not MLflow's.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # a port that is no number is a ValueError
        raise ValueError(
            f"uri must be sqlite:///FILE or a server's address, got {_masked(uri, uri)!r}. Put sqlite:/// first."
        ) from None
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:":
        raise ValueError(
            f"uri must name a file, got {_masked(uri, uri)!r}. Try sqlite:///mlflow.db."
        )
    path = Path(url.database).absolute()
    if path.is_dir():
        raise ValueError(
            f"uri must name a file, got the folder {path}. Try sqlite:///{path / 'mlflow.db'}."
        )
    if not path.parent.is_dir():
        raise ValueError(
            f"the file of uri must lie in a folder that exists, got {path}. Make {path.parent} first."
        )
    if path.exists():
        _check_ours(path)
    return path


def _check_ours(path: Path) -> None:
    # Immutable: merely reading a database in WAL mode would leave two files beside it.
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?immutable=1", uri=True)) as database:
            tables = {
                name
                for (name,) in database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                )
            }
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"uri must name a SQLite database, got {path}: {error}. Choose another file."
        ) from None
    if tables and "experiments" not in tables:
        raise ValueError(
            f"uri must name a database of MLflow's, got another program's {path}. Choose another file."
        )


def _experiment(client: MlflowClient, name: str, place: str | None) -> str:
    """Find an experiment, or make it; two programs may do so at the same time."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException:
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"experiment must be active, got the deleted {name!r}. Restore it or choose another name."
        )
    return found.experiment_id


def tensorboard_tracker(
    folder: str | Path, *, parameters: Mapping[str, Any] | None = None
) -> Tracker:
    """Track in TensorBoard: one folder per Run, named for its method, level and seed.

    TensorBoard keeps values in float32. The Run's level, method, seed and epochs are
    hyper-parameters of its folder.

    Args:
        folder: Where the folders of the Runs go; made if it is missing. A name that is taken gets a
            number.
        parameters: Further hyper-parameters of each Run, such as the task.

    Returns:
        A consumer of rows.

    Raises:
        ImportError: If tensorboard is not installed.
        ValueError: If ``folder`` is, or lies below, a regular file, or a parameter is one that each
            Run tells of itself. Nothing is written then.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> from flooding.training.loop import train
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), max_epochs=2)
        >>> folder = getfixture("tmp_path")
        >>> with tensorboard_tracker(folder) as log:
        ...     for row in train(Run(problem, level=0.2)):
        ...         log(row)
        >>> [path.name for path in folder.iterdir()]
        ['Flooding-level=0.2-seed=0']
    """
    if wrong := _taken(parameters):
        raise ValueError(wrong)
    folder = Path(folder).absolute()
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(
                f"folder must not be, or lie below, a file, but {path} is one. Choose another folder."
            )
    with _quiet("torch.utils.tensorboard", "tensorboard", "google.protobuf"):
        if missing := _missing("tensorboard", "tensorboard", "torch.utils.tensorboard"):
            raise ImportError(missing)
        from torch.utils.tensorboard import SummaryWriter

    def open_log(run: Run) -> Log:
        return _TensorboardLog(
            SummaryWriter(str(_make_folder(folder, _name(run)))), _parameters(run, parameters)
        )

    return Tracker(open_log)


class _TensorboardLog:
    """One folder of TensorBoard's."""

    def __init__(self, writer: SummaryWriter, parameters: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        told = {
            name: value if isinstance(value, (int, float)) else str(value)
            for name, value in parameters.items()
        }
        _, start, self._end = hparams(
            told, {}
        )  # without the first, TensorBoard finds the metrics by itself
        self._writer = writer
        self._summary(start)

    def _summary(self, summary: Any) -> None:
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_summary(summary)

    def write(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self, status: str) -> None:
        if status == "FINISHED":
            self._summary(self._end)
        self._writer.close()


def _make_folder(folder: Path, name: str) -> Path:
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError  # never: itertools.count has no end


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _parameters(run: Run, more: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**(more or {}), **{name: getattr(run, name) for name in _OWN}}


def _name(run: Run) -> str:
    plain = run.level is None or isinstance(run.level, (int, float))
    level = run.level if plain else type(run.level).__name__
    return f"{type(run.method).__name__}-level={level}-seed={run.seed}"


def _taken(parameters: Mapping[str, Any] | None) -> str | None:
    """Say what is wrong with parameters, if anything."""
    taken = sorted(set(parameters or {}) & set(_OWN))
    return (
        f"parameters must not name what each Run tells of itself, got {taken}. Leave them out."
        if taken
        else None
    )


def _missing(extra: str, *modules: str) -> str | None:
    """Say what has to be installed, if anything."""
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        return f"tracking needs {' and '.join(modules)}, got: {error}. Run pip install 'flooding[{extra}]'."
    return None


@contextmanager
def _quiet(*packages: str) -> Generator[None, None, None]:
    """Ignore warnings that these packages cause in themselves, and no others."""
    with warnings.catch_warnings():
        for package in packages:
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
        yield
