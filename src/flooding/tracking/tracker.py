"""The tracker: it sorts rows by their Run and writes each Run to a log of its own."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

from flooding.extras import install_command
from flooding.training.loop import EpochResult
from flooding.training.run import Run

__all__ = [
    "Log",
    "Status",
    "Tracker",
    "check_parameters",
    "import_or_explain",
    "run_name",
    "run_parameters",
    "warnings_ignored",
]

# How a tracked Run ended.
Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]

_OWN_PARAMETERS = ("level", "method", "seed", "epochs")


class Log(Protocol):
    """Where the numbers of one Run go."""

    def write(self, values: Mapping[str, float], epoch: int) -> None:
        """Write finite numbers of an epoch."""
        ...

    def close(self, status: Status) -> None:
        """Write what is waiting and close."""
        ...


class Tracker:
    """Pass rows on to one log per Run, opened at the Run's first row and closed at its last.

    Rows of several Runs may come interleaved, as from :func:`flooding.run_all`'s workers. Runs are
    distinguished by identity, so give each Run object once. Every finite value of a row is written
    under its own name at its epoch, and the metrics of a Record, ``best.*`` and ``last.*``, at the
    last epoch. NaN and infinities are left out. An epoch is written once: a Run that starts over
    because its worker died continues in the same log.

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
        >>> class PrintedLog:
        ...     def write(self, values, epoch):
        ...         print(epoch, sorted(values)[:2])
        ...     def close(self, status):
        ...         print(status)
        >>> data, model = partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20)
        >>> with Tracker(lambda run: PrintedLog()) as tracker:
        ...     for row in train(Run(Problem(data, model, max_epochs=1), level=0.2)):
        ...         tracker(row)
        0 ['flooded', 'lr']
        1 ['flooded', 'level']
        1 ['best.epoch', 'best.flooded']
        FINISHED
    """

    def __init__(self, open_log: Callable[[Run], Log]) -> None:
        self._open_log = open_log
        # With the last epoch written. A Run is equal to itself alone.
        self._logs: dict[Run, tuple[Log, int]] = {}

    def __call__(self, row: EpochResult) -> None:
        """Write a row, and its Record if it is the last one.

        Args:
            row: What one epoch of one Run measured.
        """
        run = row.run
        if run in self._logs:
            log, last_epoch = self._logs[run]
        else:
            log, last_epoch = self._open_log(run), -1
        self._logs[run] = log, max(row.epoch, last_epoch)
        if row.epoch > last_epoch:
            log.write(_finite(row.values), row.epoch)
        if row.record is not None:
            log.write(_finite(row.record.metrics), row.epoch)
            log.close("FINISHED")
            del self._logs[run]

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        status: Status = "FAILED" if isinstance(error, Exception) else "KILLED"
        # A log that cannot be closed must not keep the others open.
        with ExitStack() as stack:
            for log, _ in self._logs.values():
                stack.callback(log.close, status)
            self._logs = {}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def check_parameters(parameters: Mapping[str, object] | None) -> None:
    """Refuse parameters that each Run has of its own.

    Args:
        parameters: Further parameters of each Run, or None.

    Raises:
        ValueError: If a name is one of a Run's own.
    """
    names = sorted(set(parameters or {}) & set(_OWN_PARAMETERS))
    if names:
        raise ValueError(
            f"parameters must not name what each Run has of its own, got {names}. Leave them out."
        )


def run_parameters(run: Run, parameters: Mapping[str, object] | None) -> dict[str, object]:
    """Collect the parameters of a Run.

    Args:
        run: The Run.
        parameters: Further parameters, or None.

    Returns:
        The further ones, then level, method, seed and epochs.
    """
    own = {name: getattr(run, name) for name in _OWN_PARAMETERS}
    return {**(parameters or {}), **own}


def run_name(run: Run) -> str:
    """Name a Run by method, level and seed.

    Args:
        run: The Run.

    Returns:
        A name such as "Flooding-level=0.2-seed=0".
    """
    level = run.level
    if not (level is None or isinstance(level, (int, float))):
        level = type(level).__name__
    return f"{type(run.method).__name__}-level={level}-seed={run.seed}"


def import_or_explain(extra: str, *modules: str) -> None:
    """Import modules, or say what has to be installed.

    Args:
        extra: The extra of this package that installs them.
        *modules: Names of modules.

    Raises:
        ImportError: If one cannot be imported.
    """
    message = None
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        message = f"tracking needs {' and '.join(modules)}, got: {error}."
    # Outside the block: the traceback of the import would not help.
    if message is not None:
        raise ImportError(f"{message} Run {install_command(extra)}.")


@contextmanager
def warnings_ignored(*packages: str) -> Generator[None, None, None]:
    """Ignore warnings that these packages cause in themselves, and no others.

    Args:
        *packages: Names of packages.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        for package in packages:
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
        yield
