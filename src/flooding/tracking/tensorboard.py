"""Tracking in TensorBoard: one folder per Run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

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
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["tensorboard_tracker"]


def tensorboard_tracker(
    folder: str | Path, *, parameters: Mapping[str, object] | None = None
) -> Tracker:
    """Track in TensorBoard: one folder per Run, named by its method, level and seed.

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
            Run has of its own. Nothing is written then.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> from flooding.training.loop import train
        >>> data, model = partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20)
        >>> folder = getfixture("tmp_path")
        >>> with tensorboard_tracker(folder) as tracker:
        ...     for row in train(Run(Problem(data, model, max_epochs=2), level=0.2)):
        ...         tracker(row)
        >>> [path.name for path in folder.iterdir()]
        ['Flooding-level=0.2-seed=0']
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    check_parameters(parameters)
    folder = Path(folder).absolute()
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(
                f"folder must not be, or lie below, a file, but {path} is one. "
                "Choose another folder."
            )
    with warnings_ignored("torch.utils.tensorboard", "tensorboard", "google.protobuf"):
        import_or_explain("tensorboard", "tensorboard", "torch.utils.tensorboard")
        from torch.utils.tensorboard import SummaryWriter

    def open_log(run: Run) -> Log:
        writer = SummaryWriter(str(_make_folder(folder, run_name(run))))
        return _TensorboardLog(writer, run_parameters(run, parameters))

    return Tracker(open_log)


class _TensorboardLog:
    """One folder of TensorBoard's."""

    def __init__(self, writer: SummaryWriter, parameters: Mapping[str, object]) -> None:
        from torch.utils.tensorboard.summary import hparams

        values = {}
        for name, value in parameters.items():
            values[name] = value if isinstance(value, (int, float)) else str(value)
        # The summary of the experiment is left out: TensorBoard finds the metrics by itself.
        _, session_start, self._session_end = hparams(values, {})
        self._writer = writer
        self._add_summary(session_start)

    def _add_summary(self, summary: object) -> None:
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_summary(summary)

    def write(self, values: Mapping[str, float], epoch: int) -> None:
        """Write the numbers of an epoch."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self, status: Status) -> None:
        """Close the folder; only a finished Run has an end in it."""
        if status == "FINISHED":
            self._add_summary(self._session_end)
        self._writer.close()


def _make_folder(folder: Path, name: str) -> Path:
    """Make a folder with the first name that is free: ``name``, ``name-2``, and so on."""
    for number in itertools.count(1):
        suffix = "" if number == 1 else f"-{number}"
        path = folder / f"{name}{suffix}"
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError  # never: itertools.count has no end
