"""Archives: Records in a compact file, kept beside the figures that were drawn from them.

Metrics at the last and best epoch are exact. So are curves where they are asked for, else they are
float16: rounded by at most 2^-11 of the value, 2^-25 near zero, and finite ones cut off at 65,504,
which is checked when a file is written. A Record is looked up by a hash of its Run's configuration.
The file has a digest of everything in it; those of flooding 0.1.0 have none, and are checked for
what they must hold.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from flooding import npz
from flooding.atomic import write_atomic
from flooding.training.config import Config, to_config
from flooding.training.legacy import legacy_run_configs
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["Archive", "Source", "is_missing", "pack", "run_id", "to_half", "with_fallback"]

_LARGEST = float(np.finfo(np.float16).max)
_NO_CURVE = np.empty(0, np.float32)
# Kinds of NumPy's dtypes of the arrays that every file has.
_KINDS = {
    "runs": "U",
    "finals_names": "U",
    "finals": "f",
    "seconds": "f",
    "seeds": "iu",
    "on": "U",
}


class Source(Protocol):
    """Records in place of trainings, such as an :class:`Archive`.

    Attributes:
        seeds: Seeds of its Runs, smallest first.
    """

    seeds: tuple[int, ...]

    def __contains__(self, run: Run) -> bool:
        """Tell whether it has a Run."""
        ...

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look Runs up."""
        ...


class Archive:
    """Records in place of trainings, from a file.

    Args:
        path: A file that :func:`pack` wrote.
        may_lack: Tells which Runs the file need not have: their Records are empty, see
            :func:`is_missing`. None lets it lack none.

    Attributes:
        path: The file.
        seeds: Seeds of its Runs, smallest first.
        indices: Index of each Run by its :func:`run_id`.

    Raises:
        ValueError: If the file is no archive, or damaged.
    """

    def __init__(self, path: str | Path, may_lack: Callable[[Run], bool] | None = None) -> None:
        self.path = Path(path)
        self._may_lack = may_lack
        try:
            arrays = npz.read(self.path)
            _check(arrays)
        except ValueError as error:
            raise ValueError(
                f"an archive must be a file of flooding reproduce, got {path}: {error}. Name "
                "another, or write it again."
            ) from None
        self.indices = {str(name): index for index, name in enumerate(arrays["runs"])}
        self.seeds = tuple(sorted(set(arrays["seeds"].tolist())))
        self._metric_names = [str(name) for name in arrays["finals_names"]]
        self._metrics, self._seconds = arrays["finals"], arrays["seconds"]
        self._machines = arrays["on"].tolist()
        # Every kind of curve lies in one row; each Record's part ends where the next begins.
        self._curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, values in arrays.items():
            if name.startswith("curve/"):
                ends = np.concatenate([[0], arrays[_ends_name(name)]])
                self._curves[name.removeprefix("curve/")] = (values, ends)

    def __len__(self) -> int:
        return len(self.indices)

    def __contains__(self, run: Run) -> bool:
        return self._index(run) is not None

    def _index(self, run: Run) -> int | None:
        """Look a Run up, also under the names of flooding 0.1.0."""
        config = to_config(run)
        for known_config in (config, *legacy_run_configs(config)):
            index = self.indices.get(_hash(known_config))
            if index is not None:
                return index
        return None

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look Runs up.

        Args:
            runs: The Runs.

        Returns:
            Their Records, with the curves that were kept.

        Raises:
            ValueError: If one of them is not in the file, and must be.
        """
        indices = [self._index(run) for run in runs]
        # All that must be there first, so that the error can say how many are missing.
        missing = 0
        for run, index in zip(runs, indices, strict=True):
            is_optional = self._may_lack is not None and self._may_lack(run)
            missing += index is None and not is_optional
        if missing:
            raise ValueError(
                f"{self.path} lacks {missing} of {len(runs)} runs: it was written by other code, "
                "or only a part of the experiment was trained. Add --more, which trains them, or "
                "run it without --from."
            )
        records = []
        for run, index in zip(runs, indices, strict=True):
            if index is None:
                records.append(Record(run, {}, {}, {}, "", "", {}))
            else:
                records.append(self.record_at(index, run))
        return records

    def record_at(self, index: int, run: Run) -> Record:
        """Read the Record at an index.

        Args:
            index: An index of :attr:`indices`.
            run: The Run it is for.

        Returns:
            The Record.
        """
        metrics = {}
        for name, value in zip(self._metric_names, self._metrics[index].tolist(), strict=True):
            if not np.isnan(value):
                metrics[name] = value
        curves = {}
        for name, (values, ends) in self._curves.items():
            first, end = ends[index], ends[index + 1]
            # An empty part: this Record has no such curve.
            if first < end:
                curves[name.partition("/")[0]] = values[first:end].astype(np.float32)
        metadata = {"seconds": float(self._seconds[index]), "on": self._machines[index]}
        return Record(run, curves, {}, metrics, "", "", metadata)


def is_missing(record: Record) -> bool:
    """Tell whether a Record stands for a Run that an :class:`Archive` lacks, and may lack.

    Args:
        record: A Record.

    Returns:
        Whether it has neither metrics nor curves.
    """
    return not record.metrics and not record.curves


def pack(
    path: str | Path,
    records: Sequence[Record],
    keep: Collection[str],
    on: str,
    is_exact: Callable[[Run], bool] | None = None,
) -> Path:
    """Write an archive, whole or not at all.

    Args:
        path: The file, ending in ``.npz``.
        records: Records with Runs that can be hashed; of equal Runs the first is kept.
        keep: Names of the curves to keep; a Record may lack some.
        on: The machine, see :func:`flooding.report.provenance.machine`, of Records that do not say
            where they were trained.
        is_exact: Tells whose curves to keep in float32: those on which a search decides what to ask
            next. None rounds all.

    Returns:
        The path.
    """
    # A Record that several strategies asked for is written once.
    by_id: dict[str, tuple[Run, Record]] = {}
    for record in records:
        assert record.run is not None
        by_id.setdefault(run_id(record.run), (record.run, record))
    runs = [run for run, _ in by_id.values()]
    records = [record for _, record in by_id.values()]
    names = sorted({name for record in records for name in record.metrics})
    # One row a Record; NaN where a Record lacks a metric.
    metrics = np.full((len(records), len(names)), np.nan)
    for row, record in zip(metrics, records, strict=True):
        row[:] = [record.metrics.get(name, np.nan) for name in names]
    seconds = [record.metadata.get("seconds", np.nan) for record in records]
    machines = [str(record.metadata.get("on", on)) for record in records]
    arrays = {
        "runs": np.array(list(by_id)),
        "finals_names": np.array(names, dtype=str),
        "finals": metrics,
        "seconds": np.array(seconds, np.float32),
        "seeds": np.array([run.seed for run in runs]),
        "on": np.array(machines),
    }
    # Curves lie one after the other, each kind with the positions at which they end.
    exact = [is_exact is not None and is_exact(run) for run in runs]
    for name in sorted(keep):
        arrays |= _pack_curve(name, records, exact)
    arrays["digest"] = np.array(_digest(arrays))
    with io.BytesIO() as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return write_atomic(Path(path), file.getvalue())


def _pack_curve(
    name: str, records: Sequence[Record], exact: Sequence[bool]
) -> dict[str, np.ndarray]:
    """Pack one curve of all Records: the exact ones in one row, the others in another."""
    arrays = {}
    # A Record has an empty part in the row that it does not belong to.
    for kind, wanted in (("float16", False), ("float32", True)):
        curves = []
        for record, is_exact in zip(records, exact, strict=True):
            curves.append(record.curves.get(name, _NO_CURVE) if is_exact == wanted else _NO_CURVE)
        row = np.concatenate(curves)
        if len(row):
            arrays[f"curve/{name}/{kind}"] = row if wanted else to_half(row)
            arrays[f"ends/{name}/{kind}"] = np.cumsum([len(curve) for curve in curves])
    return arrays


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Check an archive's digest, and what its arrays are: a ValueError says what is wrong."""
    curves = {name for name in arrays if name.startswith("curve/")}
    required = {*_KINDS, *map(_ends_name, curves)}
    if missing := sorted(required - set(arrays)):
        raise ValueError(f"it lacks {missing[0]}")
    if unknown := sorted(set(arrays) - required - curves - {"digest"}):
        raise ValueError(f"it holds {unknown[0][:100]}, which is unknown")
    if "digest" in arrays and str(arrays["digest"]) != _digest(arrays):
        raise ValueError("it is damaged: its digest differs")
    # Every array must have the shape that the names of Runs and metrics give it.
    count, names = len(arrays["seeds"].ravel()), len(arrays["finals_names"].ravel())
    shapes = {**dict.fromkeys(_KINDS, (count,)), "finals_names": (names,), "finals": (count, names)}
    for name, kinds in _KINDS.items():
        values = arrays[name]
        if values.shape != shapes[name] or values.dtype.kind not in kinds:
            raise ValueError(
                f"{name} is of another shape or type: {values.shape} of {values.dtype}"
            )
    # Names must be unique, or a Record could be read for another one.
    for name in ("runs", "finals_names"):
        if len(np.unique(arrays[name])) < len(arrays[name]):
            raise ValueError(f"two of its {name} are the same")
    for name in curves:
        if not _is_curve(name, arrays[name], arrays[_ends_name(name)], count):
            raise ValueError(f"{name} is of another shape or type than its ends say")


def _is_curve(name: str, values: np.ndarray, ends: np.ndarray, count: int) -> bool:
    """Tell whether a row of curves fits its name and its ends."""
    kind = name.rpartition("/")[2]
    if values.ndim != 1 or values.dtype.name != kind or kind not in {"float16", "float32"}:
        return False
    if ends.shape != (count,) or ends.dtype != np.int64:
        return False
    ends = np.concatenate([[0], ends])
    return bool(ends[-1] == len(values) and (ends[1:] >= ends[:-1]).all())


def _ends_name(curve: str) -> str:
    return f"ends/{curve.removeprefix('curve/')}"


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash names, types, shapes and values of all arrays but the digest."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        if name != "digest":
            digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def with_fallback(
    source: Source, train: Callable[[list[Run]], list[Record]]
) -> Callable[[list[Run]], list[Record]]:
    """Look up what a source has, and train the rest.

    Args:
        source: An :class:`Archive`, or another source of Records.
        train: Trains Runs, such as :func:`flooding.run_all`.

    Returns:
        A function of Runs that gives their Records.
    """

    def answer(runs: list[Run]) -> list[Record]:
        is_known = [run in source for run in runs]
        # All that is missing in one call, so that it trains at once.
        missing = [run for run, known in zip(runs, is_known, strict=True) if not known]
        trained = iter(train(missing))
        records = []
        for run, known in zip(runs, is_known, strict=True):
            records.append(source([run])[0] if known else next(trained))
        return records

    return answer


def to_half(curve: np.ndarray) -> np.ndarray:
    """Round to float16, and check that no value is further off than stated above.

    Args:
        curve: Values of any shape; NaN and infinities stay.

    Returns:
        The same shape in float16.

    Raises:
        ValueError: If a value is.
    """
    # float16 has no finite number beyond 65,504.
    finite = np.isfinite(curve)
    clipped = np.where(finite, np.clip(curve.astype(np.float64), -_LARGEST, _LARGEST), curve)
    half = clipped.astype(np.float16)
    # Half a unit in the last place of float16, or half the spacing of its smallest numbers.
    error = np.abs(half[finite].astype(np.float64) - clipped[finite])
    if not (error <= 2.0**-11 * np.abs(clipped[finite]) + 2.0**-25).all():
        raise ValueError("a curve is rounded by more than this format states. Report this.")
    return half


def run_id(run: Run) -> str:
    """Hash a Run's configuration, in which the data are a function and its arguments.

    Args:
        run: The Run.

    Returns:
        20 hexadecimal digits.
    """
    return _hash(to_config(run))


def _hash(config: Config) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:20]
