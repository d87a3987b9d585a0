"""Tracking in MLflow: one MLflow run per Run."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from flooding.tracking.masking import mask, masked_calls, masked_logs
from flooding.tracking.processes import close_killed, process_tags
from flooding.tracking.tracker import (
    Log,
    Status,
    Tracker,
    check_parameters,
    import_or_explain,
    run_name,
    run_parameters,
    warnings_ignored,
)
from flooding.training.run import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

__all__ = ["mlflow_tracker"]

# Between two writes: one takes 5 ms, as long as an epoch of a small network.
_SECONDS_BETWEEN_WRITES = 2.0


def mlflow_tracker(
    uri: str,
    *,
    experiment: str = "flooding",
    tags: Mapping[str, str] | None = None,
    parameters: Mapping[str, object] | None = None,
) -> Tracker:
    """Track in MLflow: one MLflow run per Run, with its level, method, seed and epochs.

    The client API alone is used: MLflow's active run and tracking URI stay as they are. Numbers are
    written every two seconds and at the end. No artifacts are logged; a new experiment keeps its
    own beside the database.

    Each MLflow run is tagged with its host and process. A run of the experiment that is still
    RUNNING although its process was killed is set to KILLED and named in the log. Runs of other
    hosts, or from before this one was restarted, stay as they are, and so do all where the system
    has no ``/proc``.

    Args:
        uri: ``sqlite:///FILE`` (made if it is missing) or the address of a tracking server.
            Passwords in it are left out of every error, and of MLflow's own log lines.
        experiment: Name of the experiment, made if it is missing.
        tags: Tags of each MLflow run.
        parameters: Further parameters of each MLflow run, such as the task.

    Returns:
        A consumer of rows.

    Raises:
        ImportError: If MLflow, or what it needs for SQLite, is not installed.
        ValueError: If the file cannot hold a database of MLflow's, the server or a driver is
            missing, the experiment is deleted, or a parameter is one that each Run has of its own.
            Nothing is written then.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> from flooding.training.loop import train
        >>> data, model = partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20)
        >>> problem = Problem(data, model, max_epochs=2)
        >>> uri = f"sqlite:///{getfixture('tmp_path')}/mlflow.db"
        >>> with mlflow_tracker(uri, parameters={"task": "two-gaussians"}) as tracker:
        ...     for row in train(Run(problem, level=0.2)):
        ...         tracker(row)
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    check_parameters(parameters)
    with warnings_ignored("mlflow", "sqlalchemy", "alembic"):
        import_or_explain("mlflow", "mlflow", "sqlalchemy", "alembic")
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        client, experiment_id = _connect(uri, experiment)
    masking = partial(masked_calls, uri, MlflowException)
    with masking():
        close_killed(client, experiment_id)

    def open_log(run: Run) -> Log:
        values = run_parameters(run, parameters)
        params = [Param(name, str(value)) for name, value in values.items()]
        all_tags = {**process_tags(), **(tags or {})}
        with masking():
            # Errors may show the address with its password, so all calls are masked.
            created = client.create_run(experiment_id, run_name=run_name(run), tags=all_tags)
            client.log_batch(created.info.run_id, params=params)
        return _MlflowLog(client, created.info.run_id, masking)

    return Tracker(open_log)


class _MlflowLog:
    """One MLflow run; numbers wait until a write is worth its time."""

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        masking: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._client, self._run_id, self._masking = client, run_id, masking
        self._pending: list[Metric] = []
        self._last_write = time.monotonic()

    def write(self, values: Mapping[str, float], epoch: int) -> None:
        """Add the numbers of an epoch, and write what is pending if it is due."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        # The numbers wait here: a write to a server takes longer than many epochs.
        self._pending += [Metric(name, value, now, epoch) for name, value in values.items()]
        if time.monotonic() - self._last_write >= _SECONDS_BETWEEN_WRITES:
            self._flush()

    def _flush(self) -> None:
        with self._masking():
            self._client.log_batch(self._run_id, metrics=self._pending)
        self._pending = []
        self._last_write = time.monotonic()

    def close(self, status: Status) -> None:
        """Write what is pending, and set the status also where that fails."""
        try:
            self._flush()
        finally:
            with self._masking():
                self._client.set_terminated(self._run_id, status)


def _connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """Open a store and find the experiment in it, or make it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    file = _sqlite_file(uri)
    address, artifacts = uri, None
    if file is not None:
        # Absolute: MLflow keeps stores by their address, and would find a relative one in an
        # earlier working directory.
        address = f"sqlite:///{file}"
        artifacts = (file.parent / f"{file.stem}-artifacts").as_uri()
    try:
        with masked_logs(uri):
            client = MlflowClient(address)
            return client, _experiment_id(client, experiment, artifacts)
    except (ImportError, OSError, MlflowException, SQLAlchemyError) as error:
        message = (
            f"uri must be a store MLflow can open, got {mask(uri, uri)!r}: {mask(str(error), uri)}."
        )
        raise ValueError(message) from None


def _experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Find an experiment, or make it; two programs may do so at the same time."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            # Did another program make it meanwhile?
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ValueError(
            f"experiment must be active, got the deleted {name!r}. "
            "Restore it or choose another name."
        )
    return experiment.experiment_id


def _sqlite_file(uri: str) -> Path | None:
    """Find the file of a SQLite URI, None for a server, and refuse a file that is not MLflow's."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # a port that is no number is a ValueError
        message = (
            f"uri must be sqlite:///FILE or a server's address, got {mask(uri, uri)!r}. "
            "Put sqlite:/// first."
        )
        raise ValueError(message) from None
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:":
        raise ValueError(f"uri must name a file, got {mask(uri, uri)!r}. Try sqlite:///mlflow.db.")
    path = Path(url.database).absolute()
    if path.is_dir():
        raise ValueError(
            f"uri must name a file, got the folder {path}. Try sqlite:///{path / 'mlflow.db'}."
        )
    if not path.parent.is_dir():
        raise ValueError(
            f"the file of uri must lie in a folder that exists, got {path}. "
            f"Make {path.parent} first."
        )
    if path.exists():
        _check_database(path)
    return path


def _check_database(path: Path) -> None:
    """Refuse a file that is no database, or one of another program: MLflow would fill it."""
    # Immutable: merely reading a database in WAL mode would leave two files beside it.
    address = f"file:{quote(str(path))}?immutable=1"
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            tables = {name for (name,) in database.execute(query)}
    except sqlite3.DatabaseError as error:
        message = f"uri must name a SQLite database, got {path}: {error}. Choose another file."
        raise ValueError(message) from None
    if tables and "experiments" not in tables:
        raise ValueError(
            f"uri must name a database of MLflow's, got another program's {path}. "
            "Choose another file."
        )
