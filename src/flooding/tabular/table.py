"""Tables: from somebody's file of rows and columns to a Problem, a saved model, and predictions.

The rows are divided once, and everything that is fitted to columns (medians, means, categories) is
fitted to the training rows alone, so that a saved model has one preprocessing.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import bz2
import csv
import dataclasses
import difflib
import glob
import gzip
import inspect
import io
import itertools
import logging
import lzma
import math
import pickle
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flooding import npz
from flooding.data import Split, Splits, make_rng
from flooding.data.compression import DAMAGED, LimitedReader, max_bytes
from flooding.model_files import is_free, read_model, write_model
from flooding.models import mlp
from flooding.text import printable
from flooding.training.problem import Problem

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Column",
    "Preprocessing",
    "TableModel",
    "TableProblem",
    "Target",
    "check_folder",
    "load_model",
    "predict",
    "read_table",
    "save_model",
    "table_problem",
]

log = logging.getLogger("flooding")
_MISSING = frozenset({"", "?", "NA", "N/A", "NaN", "nan", "NULL", "null"})
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_LARGEST = 1e30  # standardised values must still fit into float32
_MOST_CATEGORIES = 30
_MOST_CLASSES = 20
_MOST_COLUMNS = 300_000
_MOST_SEPARATORS = 10_000_000  # in a line, those within quoted fields included
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_field_size_lock = threading.Lock()
_OLD_FORMAT = "flooding table model 1"  # of flooding 0.1.0, without digests
_FORMAT = "flooding table model 2"


@dataclass(frozen=True)
class Column:
    """How one column becomes features.

    Numbers: missing ones become the median, then ``(value - mean) / sd``. Categories: one feature
    each, 1 where the value is this category; rare, unseen and missing values are 0 in all of them.

    Args:
        name: Name of the column.
        categories: Values with a feature of their own; None where the column holds numbers.
        median: Number that stands in for missing ones.
        mean: Number subtracted.
        sd: Number divided by, above 0.
        missing: Whether one more feature is 1 where the value is missing.
    """

    name: str
    categories: tuple[str, ...] | None = None
    median: float = 0.0
    mean: float = 0.0
    sd: float = 1.0
    missing: bool = False

    @property
    def size(self) -> int:
        """Number of features."""
        return (1 if self.categories is None else len(self.categories)) + self.missing

    @staticmethod
    def fit(values: pd.Series) -> Column:
        """Fit a column: up to 30 categories that occur at least twice, or median, mean and standard
        deviation.

        Args:
            values: Numbers, or text, of the training rows; missing ones are NaN.

        Returns:
            The fitted column.
        """
        name, missing = str(values.name), bool(values.isna().any())
        if not _is_numeric(values):
            counts = sorted(Counter(values.dropna()).items(), key=lambda item: (-item[1], item[0]))
            return Column(
                name, tuple(v for v, n in counts if n > 1)[:_MOST_CATEGORIES], missing=missing
            )
        numbers = _numbers_of(values)
        is_missing = np.isnan(numbers)
        median = 0.0 if is_missing.all() else float(np.median(numbers[~is_missing]))
        filled = np.where(is_missing, median, numbers)
        # Rounding of the mean can leave a constant column a tiny positive deviation.
        sd = 1.0 if filled.min() == filled.max() else _deviation(filled)
        return Column(name, None, median, float(filled.mean()), sd, missing)

    def features(self, values: pd.Series) -> np.ndarray:
        """Turn values into features.

        Args:
            values: Numbers where numbers were fitted, else text; missing ones are NaN.

        Returns:
            Features, float64 ``[rows, features]``.

        Raises:
            ValueError: If text stands where numbers were fitted or the other way round, or a number
                is infinite.
        """
        if _is_numeric(values) and self.categories is not None:
            raise ValueError(
                f"column {_quoted(self.name)} must hold text as in training, got numbers. Give them as text."
            )
        if self.categories is not None:
            parts = [(values == category).to_numpy(np.float64) for category in self.categories]
        else:
            numbers = _numbers_of(values)
            parts = [(np.where(np.isnan(numbers), self.median, numbers) - self.mean) / self.sd]
        if self.missing:
            parts.append(values.isna().to_numpy(np.float64))
        return np.stack(parts, axis=1) if parts else np.empty((len(values), 0))


@dataclass(frozen=True)
class Preprocessing:
    """How the columns of a table become the inputs of a network, fitted on training rows.

    Args:
        columns: The columns that are used, in the order of their features.
        dropped: Names of columns that tell nothing: constant, or text that never repeats, on the
            training rows.

    Example:
        >>> import pandas
        >>> table = pandas.DataFrame({"size": [1.0, 3.0, 3.0, 1.0], "colour": ["red", "blue", "red", "blue"]})
        >>> Preprocessing.fit(table).transform(table)
        tensor([[-1.,  0.,  1.],
                [ 1.,  1.,  0.],
                [ 1.,  0.,  1.],
                [-1.,  1.,  0.]])
    """

    columns: tuple[Column, ...]
    dropped: tuple[str, ...] = ()

    @staticmethod
    def fit(table: pd.DataFrame) -> Preprocessing:
        """Fit to training rows.

        Args:
            table: Training rows as :func:`read_table` gives them, without the target.

        Returns:
            The fitted preprocessing.

        Raises:
            ValueError: If no column tells anything, or a number is infinite.
        """
        columns, dropped = [], []
        for _, values in table.items():
            column = Column.fit(values)
            features = column.features(values)
            (columns if (features != features[:1]).any() else dropped).append(column)
        if not columns:
            raise ValueError(
                f"at least one column must vary on the training rows, got {_some(table) or 'none'}. "
                "Give columns that differ from row to row."
            )
        return Preprocessing(tuple(columns), tuple(column.name for column in dropped))

    def transform(self, table: pd.DataFrame) -> Tensor:
        """Turn rows into inputs.

        Args:
            table: Rows with at least the fitted columns, in any order.

        Returns:
            Inputs, float32 ``[rows, features]``.

        Raises:
            ValueError: If a column is missing, holds something else than in training, or a number
                is infinite.
        """
        there = {str(name): values for name, values in table.items()}
        for name in (column.name for column in self.columns):
            if name not in there:
                raise ValueError(
                    f"the table must have every column of the training table, got no {_near(name, there)}"
                )
        parts = [column.features(there[column.name]) for column in self.columns]
        with np.errstate(over="ignore"):
            x = np.concatenate(parts, axis=1).astype(np.float32)
        if not np.isfinite(x).all():
            is_large = (np.abs(part).max(initial=0.0) > np.finfo(np.float32).max for part in parts)
            name = next(itertools.compress([column.name for column in self.columns], is_large))
            raise ValueError(
                f"column {_quoted(name)} must hold numbers near those of training, got one that is too large for "
                "float32 in units of their standard deviation. Correct that cell."
            )
        return torch.from_numpy(x)


@dataclass(frozen=True)
class Target:
    """What is predicted.

    Args:
        name: Name of the column.
        classes: Names of the classes in the order of the logits, or None for a number.
        mean: Mean of the number on the training rows, in the target's unit.
        sd: Standard deviation of the number on the training rows, in the target's unit.
    """

    name: str
    classes: tuple[str, ...] | None = None
    mean: float = 0.0
    sd: float = 1.0


@dataclass(frozen=True, eq=False)
class TableProblem:
    """A Problem made from a table, and what belongs to it.

    Args:
        problem: What is trained; replace parts of it with ``dataclasses.replace``.
        preprocessing: How columns became inputs.
        target: What is predicted.
        header: Whether the file began with the names of its columns; None where its kind leaves no
            doubt.
        assumptions: Sentences that say what was assumed.
    """

    problem: Problem
    preprocessing: Preprocessing
    target: Target
    header: bool | None
    assumptions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TableModel:
    """A saved model, loaded.

    Args:
        network: The network with its weights, in evaluation mode.
        preprocessing: How columns become inputs.
        target: What is predicted.
        header: Whether files begin with the names of their columns; None to find out.
    """

    network: nn.Module
    preprocessing: Preprocessing
    target: Target
    header: bool | None


def read_table(
    path: str | Path,
    target: str | int | None = None,
    *,
    header: bool | None = None,
    text: Collection[str] = (),
) -> pd.DataFrame:
    r"""Read a table from a text file (CSV, TSV, semicolons, blanks) or a NumPy archive, packed (gz,
    bz2, xz) or not.

    A column is numeric where every value is a number, else text. Empty cells, ``?``, ``NA``,
    ``N/A``, ``NaN`` and ``NULL`` are missing. Where semicolons separate, numbers may have a decimal
    comma. Columns without a name, such as the row numbers that pandas writes, are left out with a
    notice.

    An archive (``.npz``) holds inputs ``x`` or ``X``, ``[rows, ...]``, whose columns are named c0,
    c1, ..., and the target ``y``, ``[rows]``, or an array of the name in ``target``.

    Args:
        path: The file; text must be UTF-8.
        target: Name or position of the target, if one is wanted.
        header: Whether the first row names the columns; None finds out. Without a header they are
            c0, c1, ...
        text: Names of columns to leave as text even where they hold numbers.

    Returns:
        A pandas DataFrame: numbers as float64, text as strings, NaN where a value is missing.

    Raises:
        ImportError: If pandas is not installed.
        ValueError: If the file cannot be read as a table with at least one row, or two columns
            share a name.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "fruit.csv")
        >>> _ = path.write_text("kind,grams\napple,150\nfig,?\n")
        >>> read_table(path).to_dict("list")
        {'kind': ['apple', 'fig'], 'grams': [150.0, nan]}
    """
    return _read(Path(path), target, header, text)[0]


def table_problem(
    path: str | Path,
    target: str | int,
    *,
    kind: Literal["classification", "regression"] | None = None,
    val_share: float = 0.2,
    test_share: float = 0.2,
    split_seed: int = 0,
    max_epochs: int = 100,
    batch_size: int | None = None,
    width: int = 256,
    depth: int = 3,
    header: bool | None = None,
) -> TableProblem:
    r"""Make a Problem from a table: a ReLU network, Adam at 0.001, and the rows divided once for
    all seeds of Runs.

    A target of text means classification, and so do whole numbers with at most 20 distinct values
    that have 5 rows each on average; anything else means regression. Classes are divided
    separately: each gives ``round(rows * share)`` rows, but at least one, to validation and to
    test. Rows without a target are dropped.

    Classification uses the cross-entropy; regression the squared error of the target standardised
    on the training rows, so that predicting their mean has a training loss of 1.

    Args:
        path: The file, see :func:`read_table`.
        target: Name of the target's column, or its position; -1 is the last.
        kind: What to do instead of what the rule says.
        val_share: Share of rows to choose on, in (0, 1).
        test_share: Share of rows to report on, in [0, 1); 0 is no test split.
        split_seed: Seed of the division.
        max_epochs: Epochs.
        batch_size: Rows in a batch; None: 100, or a fifth of the training rows where that is less.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        header: Whether the first row names the columns; None finds out.

    Returns:
        The Problem with its preprocessing and the sentences that say what was assumed.

    Raises:
        ValueError: If the file is no such table, the target is not in it, is all missing or does
            not vary, a class has too few rows to divide, no other column varies, or an argument is
            out of range.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "fruit.csv")
        >>> _ = path.write_text("kind,grams\n" + "apple,150\nfig,40\n" * 10)
        >>> table = table_problem(path, "kind")
        >>> table.target.classes, table.problem.splits(seed=0).train.x.shape
        (('apple', 'fig'), torch.Size([12, 1]))
    """
    if not (0 < val_share < 1 and 0 <= test_share < 1 and val_share + test_share < 1):
        raise ValueError(
            f"val_share must lie in (0, 1), test_share in [0, 1), and both together below 1, got {val_share} and "
            f"{test_share}. Give shares of the rows, not percent."
        )
    if kind not in {None, "classification", "regression"}:
        raise ValueError(f"kind must be classification, regression or None, got {kind!r}.")
    path = Path(path)
    table, header = _read(path, target, header, ())
    name = _column(table, target, path)
    inputs = table.dropna(subset=[name])
    values: Any = inputs.pop(name)
    if values.empty:
        raise ValueError(
            f"target must have values, got {_quoted(name)} with none in {len(table)} rows. Choose another column."
        )

    y, classes, why = _labels(values, kind)
    parts = _divide(y, classes, val_share, test_share, split_seed, numeric=_is_numeric(values))
    preprocessing = Preprocessing.fit(inputs.iloc[parts[0]])
    x = preprocessing.transform(inputs)
    found, outputs = _target(name, classes, y[parts[0]]), len(classes) if classes else 1
    labels = (
        torch.from_numpy(y)
        if classes
        else torch.from_numpy((y - found.mean) / found.sd).float()[:, None]
    )
    train, val, *test = [Split(x[part], labels[part]) for part in map(torch.from_numpy, parts)]
    problem = Problem(
        data=Splits(train, val, test[0] if test else None),
        model=partial(mlp, x.shape[1], outputs, width=width, depth=depth),
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
        loss=nn.functional.cross_entropy if classes else nn.functional.mse_loss,
        batch_size=min(100, max(1, len(train) // 5)) if batch_size is None else batch_size,
        max_epochs=max_epochs,
    )
    rows = f"{_printable(path.name)}: {len(table):,} rows, {table.shape[1]:,} columns"
    rows += ", named c0, c1 and so on since there is no header" if header is False else ""
    missing = (
        f"Dropped {len(table) - len(y):,} rows without a target." if len(y) < len(table) else ""
    )
    sizes = ", ".join(
        f"{len(p):,} {n}" for p, n in zip(parts, ("training", "validation", "test"), strict=False)
    )
    told = [
        f"{rows}.",
        missing,
        f"Target {_quoted(name)}: {why}.",
        *_told(preprocessing),
        f"Split by seed {split_seed}{', each class alike' if classes else ''}: {sizes} rows.",
        f"Network: {x.shape[1]:,} inputs, {depth} x {width} ReLU units, {outputs} output{'s' * (outputs > 1)}; "
        f"Adam at 0.001, batches of {problem.batch_size}, {max_epochs} epochs.",
        ""
        if classes
        else f"Loss: squared error of the target in units of {found.sd:.6g} (its training deviation).",
    ]
    return TableProblem(
        problem, preprocessing, found, header, tuple(sentence for sentence in told if sentence)
    )


def check_folder(folder: str | Path) -> None:
    """Refuse a folder that :func:`save_model` would refuse.

    Args:
        folder: Where to save.

    Raises:
        ValueError: If it holds anything but a saved model.
    """
    folder = Path(folder).absolute()
    if not is_free(folder):
        raise ValueError(
            f"folder must be new or hold a saved model alone, got {_printable(folder)}. Choose another place."
        )


def save_model(folder: str | Path, weights: dict[str, Tensor], table: TableProblem) -> None:
    """Save weights with all that predictions need: a reader sees the old model or the new one, at
    any moment.

    ``model.json`` names the file of the weights by its sha256 and carries one of its own, so that
    :func:`load_model` notices damage.

    Args:
        folder: Where to save; a model saved there before is replaced.
        weights: A state dict of the problem's network, such as ``row.weights["best"]``.
        table: The problem they were trained on.

    Raises:
        ValueError: If the folder holds anything but a saved model, the problem's network is not
            :func:`flooding.models.mlp`, or the weights do not fit it or are not finite.
    """
    folder, build = Path(folder).absolute(), table.problem.model
    check_folder(folder)
    if not isinstance(build, partial) or build.func is not mlp:
        raise ValueError(
            f"only networks made by partial(flooding.models.mlp, ...) can be saved, got {build}."
        )
    network = inspect.signature(mlp).bind(*build.args, **build.keywords).arguments
    _fitted(network, weights)
    config = {
        "format": _FORMAT,
        "network": network,
        "target": dataclasses.asdict(table.target),
        "preprocessing": dataclasses.asdict(table.preprocessing),
        "header": table.header,
    }
    write_model(folder, config, weights)
    # What a save of flooding 0.1.0 left when it was killed.
    for path in folder.parent.glob(f".{glob.escape(folder.name)}-*"):
        is_copy = re.fullmatch(r"[0-9a-f]{32}", path.name.rpartition("-")[2]) and path.is_dir()
        if is_copy and {file.name for file in path.iterdir()} <= {"model.json", "weights.pt"}:
            shutil.rmtree(path, ignore_errors=True)


def load_model(folder: str | Path) -> TableModel:
    """Load what :func:`save_model` saved; nothing in the folder is run.

    Both files are verified by their sha256. Models of flooding 0.1.0 have none: what can be checked
    of them is checked, and the log says what cannot.

    Args:
        folder: Where it was saved.

    Returns:
        The model.

    Raises:
        ValueError: If the folder does not hold a whole saved model, or its files are damaged or do
            not belong together.
    """
    folder = Path(folder)
    try:
        config, weights = read_model(folder, old_format=_OLD_FORMAT)
        if config.get("format") not in {_FORMAT, _OLD_FORMAT}:
            raise ValueError(f"its format is {_quoted(config.get('format'))}, not {_FORMAT!r}")
        return _restored(config, weights)
    except (*DAMAGED, pickle.UnpicklingError) as error:
        what = _printable(str(error).split("\n")[0][:500].rstrip("."))
        fix = "Give the folder that flooding find --save wrote"
        raise ValueError(
            f"folder must hold a saved model, got {_printable(folder)}: {what}. {fix}."
        ) from error


def _restored(config: dict[str, Any], weights: dict[str, Tensor]) -> TableModel:
    """Rebuild a model from its configuration, every value of which may be wrong."""
    stored = config["preprocessing"]
    columns = [_restored_column(column) for column in stored["columns"]]
    dropped = _names(stored["dropped"], "dropped")
    _names([*(column.name for column in columns), *dropped], "columns")
    target = config["target"]
    classes = None if target["classes"] is None else _names(target["classes"], "classes")
    target = Target(
        _checked(target, "name", str), classes, _number_in(target, "mean"), _number_in(target, "sd")
    )
    network, header = _checked(config, "network", dict), config["header"]
    model = _fitted(network, weights)
    sizes = {
        "inputs": sum(column.size for column in columns),
        "outputs": 1 if classes is None else len(classes),
    }
    for name, size in sizes.items():
        if network[name] != size:
            raise ValueError(
                f"the network has {network[name]} {name}, but its columns and classes need {size}"
            )
    if header not in {None, True, False} or isinstance(header, (int, float)) is not isinstance(
        header, bool
    ):
        raise ValueError(f"header must be true, false or null, got {str(header)[:80]}")
    return TableModel(model, Preprocessing(tuple(columns), dropped), target, header)


def _restored_column(stored: dict[str, Any]) -> Column:
    categories = stored["categories"]
    return Column(
        name=_checked(stored, "name", str),
        categories=None if categories is None else _names(categories, "categories"),
        median=_number_in(stored, "median"),
        mean=_number_in(stored, "mean"),
        sd=_number_in(stored, "sd"),
        missing=_checked(stored, "missing", bool),
    )


def _checked(stored: dict[str, Any], key: str, kind: type) -> Any:
    if type(stored[key]) is not kind:  # a bool is an int to isinstance
        raise ValueError(f"{key} must be a {kind.__name__}, got {_quoted(stored[key])}")
    return stored[key]


def _number_in(stored: dict[str, Any], key: str) -> float:
    value = stored[key]
    if type(value) not in {int, float} or not abs(value) < math.inf or (key == "sd" and value <= 0):
        raise ValueError(
            f"{key} must be a finite number{' above 0' * (key == 'sd')}, got {_quoted(value)}"
        )
    return float(value)


def _names(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{what} must be a list of names, got {_quoted(values)}")
    if len(set(values)) < len(values):
        raise ValueError(f"{what} must differ, got one of them twice")
    return tuple(values)


def predict(folder: str | Path, path: str | Path) -> pd.DataFrame:
    """Predict the target for every row of a table with a saved model.

    Columns are matched by name. Further columns are ignored with a notice, the target's own without
    one. Categories that training had not seen count as rare ones.

    Args:
        folder: A saved model.
        path: A table with the columns of the training table, see :func:`read_table`.

    Returns:
        A pandas DataFrame with a row per row of the table, in its order. For classes: ``class``
        (its name, a string), then ``probability of NAME`` for each class. For a number: ``value``
        in the target's unit.

    Raises:
        ImportError: If pandas is not installed.
        ValueError: If the model or the table cannot be read, or a column is missing or holds
            something else than in training.
    """
    pandas, model = _pandas(), load_model(folder)
    columns, target = model.preprocessing.columns, model.target
    text = {column.name for column in columns if column.categories is not None}
    table = _read(Path(path), None, model.header, text)[0]
    x = model.preprocessing.transform(table)
    known = {target.name, *model.preprocessing.dropped, *(column.name for column in columns)}
    if new := [str(name) for name in table if name not in known]:
        log.warning("%d columns that training had not seen are ignored: %s", len(new), _some(new))
    for column in columns:
        if column.categories is not None:
            other = set(table[column.name].dropna()) - set(column.categories)
            if other:
                what = f"values of {_quoted(column.name)} were rare or absent in training"
                log.warning(
                    "%d %s and count as none of its categories: %s",
                    len(other),
                    what,
                    _some(sorted(other)),
                )
    with torch.inference_mode():
        output = torch.cat([model.network(part) for part in x.split(10_000)]).double()
    if not (is_finite := output.isfinite().all(1)).all():
        raise ValueError(
            f"every row must have a finite prediction, got none for row {int(is_finite.int().argmin()) + 1} of "
            f"{_printable(path)}. Its numbers are too far from those of training; correct or drop it."
        )
    if target.classes is None:
        return pandas.DataFrame({"value": output[:, 0].numpy() * target.sd + target.mean})
    found = {"class": [target.classes[index] for index in output.argmax(1).tolist()]}
    _warn_of_formulas(found["class"])
    probabilities = output.softmax(1).numpy().T
    named = {f"probability of {c}": p for c, p in zip(target.classes, probabilities, strict=True)}
    return pandas.DataFrame(found | named)


def _warn_of_formulas(classes: list[str]) -> None:
    """Warn of names that a spreadsheet would run; they stay as they are, since labels come back
    letter by letter.
    """
    formulas = Counter(
        name for name in classes if name.startswith(_FORMULA_STARTS) and not _is_float(name)
    )
    if formulas:
        log.warning(
            "%d rows have a class whose name a spreadsheet would run as a formula: %s. Import that column as text.",
            formulas.total(),
            _some(formulas),
        )


def _is_float(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "tables need pandas. Install it: pip install 'flooding[tables]'"
        ) from error
    return pandas


def _read(
    path: Path, target: str | int | None, header: bool | None, text: Collection[str]
) -> tuple[pd.DataFrame, bool | None]:
    """Read a table, and tell whether it had a header."""
    pandas = _pandas()
    data = _bytes(path)
    if (path.with_suffix("") if path.suffix in _OPEN else path).suffix == ".npz":
        return _arrays(path, data, target, text), None
    cells, comma = _cells(path, data)
    if header is None:
        header = _has_header(cells, target, comma)
    names = (
        [str(cell).strip() for cell in cells[0]]
        if header
        else [f"c{i}" for i in range(cells.shape[1])]
    )
    rows = cells[int(header) :]
    if not len(rows):
        raise ValueError(
            f"a table must have rows, got the header alone in {_printable(path)}. Give it data."
        )
    _check_names(path, names)
    if "" in names:
        log.warning(
            "%d columns without a name are left out: %s", names.count(""), _printable(path.name)
        )
    columns = [
        (n, _typed(column, n in text, comma)) for column, n in zip(rows.T, names, strict=True) if n
    ]
    return pandas.DataFrame(dict(columns)), header


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        got = "a folder" if path.is_dir() else "which does not exist"
        raise ValueError(f"a table must be a file, got {_printable(path)}, {got}. Check the path.")
    try:
        if path.suffix in _OPEN:
            with _OPEN[path.suffix](path, "rb") as file:
                data = LimitedReader(file, max_bytes()).read()
        else:
            data = path.read_bytes()
    except DAMAGED as error:
        rule = "a table must be a file that can be read and unpacked"
        raise ValueError(f"{rule}, got {_printable(path)}: {_printable(error)}.") from error
    if not data or data.isspace():
        raise ValueError(
            f"a table must hold rows, got the empty file {_printable(path)}. Give it data."
        )
    return data


def _cells(path: Path, data: bytes) -> tuple[np.ndarray, bool]:
    """Read every cell of a text table, the first row included.

    Args:
        path: The file, to name it.
        data: Its content.

    Returns:
        Strings, or NaN where a row is shorter than the longest; and whether a comma may be a
        decimal one.

    Raises:
        ValueError: If the file is no text, or its rows differ in their number of fields.
        _TooLarge: If it has too many columns or cells.
    """
    text = _decoded(path, data)
    try:
        separator = _separator(text, path)
        if path.suffix in _OPEN:
            _check_cells(
                text.count(separator if len(separator) == 1 else " ") + text.count("\n"), path
            )
        # Bytes: a StringIO takes four of them for every character.
        cells = _pandas().read_csv(
            io.BytesIO(text.encode()),
            sep=separator,
            header=None,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
        )
    except _TooLarge:
        raise
    except (csv.Error, *DAMAGED) as error:
        fix = "Give every row as many fields as the first."
        got = f"{_printable(path)}: {_printable(str(error).strip())}"
        raise ValueError(f"a table must be rows of fields, got {got}. {fix}") from error
    return cells.to_numpy(dtype=object), separator == ";"


class _TooLarge(ValueError):
    """A table with more columns or cells than can be read."""


def _decoded(path: Path, data: bytes) -> str:
    fix = "Save it as CSV in UTF-8."
    if b"\0" in data:
        what = f"a NUL byte at position {data.index(0):,}, as in UTF-16, spreadsheets and archives"
        raise ValueError(f"a table must be UTF-8 text, got {_printable(path)}: {what}. {fix}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a table must be UTF-8 text, got {_printable(path)}: {error}. {fix}"
        ) from error
    if "\ufeff" in text:
        text, count = re.subn(r"(^|[\r\n])\ufeff+", r"\1", text)
        if count:  # files that were joined
            log.warning(
                "%d byte order marks at the start of lines are left out: %s",
                count,
                _printable(path.name),
            )
    return text


def _separator(text: str, path: Path) -> str:
    """The first separator that divides every one of the first lines into equally many fields."""
    first = itertools.islice(re.finditer(r"[^\r\n]*(?:\r\n|\r|\n|$)", text), 10)
    lines = [match[0] for match in first if match[0].strip()]
    most = max((line.count(c) for line in lines for c in "\t;|, "), default=0)
    if most > _MOST_SEPARATORS:
        raise _TooLarge(_too_many(f"{_MOST_SEPARATORS:,} separators in a line", f"{most:,}", path))
    chosen, columns = None, 1
    for separator in "\t;|,":  # the comma last: it may be a decimal one
        counts = {len(row) for row in _rows(lines, separator)}
        if len(counts) == 1 and counts != {1}:
            chosen, columns = separator, counts.pop()
            break
    if chosen is None:
        frequent = max("\t;|,", key=lines[0].count) if lines else ","
        chosen = frequent if not lines or frequent in lines[0] else r"\s+"
        columns = 1 + lines[0].count(frequent if chosen == frequent else " ") if lines else 1
    if columns > _MOST_COLUMNS:
        raise _TooLarge(_too_many(f"{_MOST_COLUMNS:,} columns", f"{columns:,}", path))
    return chosen


def _too_many(most: str, got: str, path: Path) -> str:
    return f"a table must have at most {most}, got {got} in {_printable(path)}. Leave columns out."


def _check_cells(count: int, path: Path) -> None:
    """Refuse a compressed table that needs more memory than its bytes: a cell takes 16 to 64 times
    as much as one.
    """
    most = max(max_bytes() // 16, path.stat().st_size)
    if count > most:
        raise _TooLarge(
            f"a packed table must hold at most {most:,} cells, got {count:,} in {_printable(path)}. If it is what you "
            "expect, set the environment variable FLOODING_MAX_BYTES to a larger number."
        )


def _rows(lines: list[str], separator: str) -> list[list[str]]:
    with _field_size_lock:  # the limit belongs to the whole process
        limit = csv.field_size_limit(max([csv.field_size_limit(), *map(len, lines)]))
        try:
            return list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
        finally:
            csv.field_size_limit(limit)


def _has_header(cells: np.ndarray, target: str | int | None, comma: bool) -> bool:
    """Tell a row of names from a row of values: by the target's name, by text above numbers, by
    what recurs.
    """
    first = [str(cell).strip() for cell in cells[0]]
    if isinstance(target, str) and target in first and _number(target, comma) is None:
        return True
    below = [_typed(column, False, comma) for column in cells[1:1001].T]
    over = [
        name
        for name, column in zip(first, below, strict=True)
        if _is_numeric(column) and column.notna().any()
    ]
    if any(_number(name, comma) is None and name not in _MISSING for name in over):
        return True
    if any(_number(name, comma) is not None for name in over):
        return False
    return len(set(first)) == len(first) and not any(
        (c == n).any() for n, c in zip(first, below, strict=True)
    )


def _number(cell: str, comma: bool) -> float | None:
    column = _typed([cell], False, comma)
    return float(column.iloc[0]) if _is_numeric(column) and column.notna().all() else None


def _typed(cells: Iterable[Any], text: bool, comma: bool) -> pd.Series:
    """Numbers where every cell is one, else text; NaN where a cell is missing."""
    pandas = _pandas()
    # Lists of strings: as fast as pandas on a long column, and 30 times as fast on a short one.
    values = [cell.strip() if isinstance(cell, str) else "" for cell in cells]
    is_missing = np.array([value in _MISSING for value in values], dtype=bool)
    present = [value for value in values if value not in _MISSING]
    readings = (
        [] if text else [present, [v.replace(",", ".") for v in present]] if comma else [present]
    )
    for reading in readings:
        numbers = pandas.to_numeric(np.array(reading, dtype=object), errors="coerce").astype(
            np.float64
        )
        if not np.isnan(numbers).any():
            column = np.full(len(values), math.nan)
            column[~is_missing] = numbers
            return pandas.Series(column)
    column = np.array(values, dtype=object)
    column[is_missing] = math.nan
    return pandas.Series(column, dtype=str)


def _arrays(
    path: Path, data: bytes, target: str | int | None, text: Collection[str]
) -> pd.DataFrame:
    """Read inputs and target from a NumPy archive."""
    pandas = _pandas()
    try:
        arrays = npz.read(data, limit=max(max_bytes(), len(data)))  # its own size is no bomb
    except DAMAGED as error:
        got = f"{_printable(path)}: {_printable(error)}"
        raise ValueError(f"an .npz file must hold arrays of numbers or text, got {got}.") from error
    _check_cells(sum(array.size for array in arrays.values()), path)
    x = arrays.get("x", arrays.get("X"))
    if x is None or x.size == 0 or x.ndim == 0:
        got = f"{_some(arrays) or 'nothing'} in {_printable(path)}"
        raise ValueError(f"an .npz file must hold inputs x with rows, got {got}.")
    x = x.reshape(len(x), -1)
    if x.shape[1] > _MOST_COLUMNS:
        raise ValueError(_too_many(f"{_MOST_COLUMNS:,} columns", f"{x.shape[1]:,}", path))
    columns = {f"c{i}": column for i, column in enumerate(x.T)}
    named = target if isinstance(target, str) and not _is_position(target) else None
    if named is not None and named not in {*arrays, *columns}:
        raise ValueError(
            f"target must be an array of {_printable(path.name)}, got {_near(named, arrays)}"
        )
    for name in {named or "y"} & arrays.keys():
        if arrays[name].size != len(x):
            raise ValueError(
                f"target {_printable(name)} must have {len(x)} rows as x has, got shape {arrays[name].shape}."
            )
        columns[name] = arrays[name].reshape(-1)
    for name, column in columns.items():
        if column.dtype.kind not in "biufU":
            got = f"{column.dtype} in {_printable(name)} of {_printable(path)}"
            raise ValueError(f"arrays must hold numbers or text, got {got}.")
    typed = {
        name: _typed(column.tolist(), name in text, False)
        if column.dtype.kind == "U"
        else pandas.Series(column.astype(np.float64))
        for name, column in columns.items()
    }
    return pandas.DataFrame(typed)


def _check_names(path: Path, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise ValueError(
            f"column names must differ, got {_quoted(twice[0])} {names.count(twice[0])} times in {_printable(path)}. "
            "Rename them."
        )


def _is_position(target: str | int) -> bool:
    return isinstance(target, int) or re.fullmatch(r"-?[0-9]{1,9}", target) is not None


def _column(table: pd.DataFrame, target: str | int, path: Path) -> str:
    """Find the target by its name, else by its position."""
    names = [str(name) for name in table]
    if isinstance(target, str) and target in names:
        return target
    if not _is_position(target):
        raise ValueError(
            f"target must be a column of {_printable(path.name)}, got {_near(str(target), names)}"
        )
    if not -len(names) <= int(target) < len(names):
        raise ValueError(
            f"target must be one of {len(names)} columns of {_printable(path.name)}, got {target}. -1 is the last."
        )
    return names[int(target)]


def _near(name: str, names: Iterable[Any]) -> str:
    """End a sentence about a name that is not there: with the nearest, or with some of those that
    are.
    """
    names = [str(n) for n in names]
    by_case = {n.casefold(): n for n in names}
    near = difflib.get_close_matches(name.casefold(), by_case, 1)
    return (
        f"{_quoted(name)}. Did you mean {_quoted(by_case[near[0]])}?"
        if near
        else f"{_quoted(name)}. There are {_some(names)}."
    )


def _labels(values: Any, kind: str | None) -> tuple[np.ndarray, tuple[str, ...] | None, str]:
    """Class numbers and names, or float targets and None; and a sentence about them."""
    numeric = _is_numeric(values)
    if kind == "regression" and not numeric:
        wrong = next(v for v in values if _number(str(v), False) is None)
        raise ValueError(
            f"regression needs a target of numbers, got {_quoted(wrong)} in {_quoted(values.name)}. Remove such rows."
        )
    distinct = sorted(set(_numbers_of(values).tolist() if numeric else values))
    few = (
        numeric
        and all(v == int(v) for v in distinct)
        and len(distinct) <= min(_MOST_CLASSES, len(values) / 5)
    )
    if kind == "regression" or (kind is None and numeric and not few):
        why = "you said so" if kind else f"it has {len(distinct):,} different numbers"
        return values.to_numpy(np.float64), None, f"regression, since {why}"
    why = "you said so" if kind else "it is a few whole numbers" if numeric else "it is text"
    counts = Counter(values)
    names = tuple(str(v) if not numeric or v != int(v) else str(int(v)) for v in distinct)
    told = _some(
        f"{_printable(name)} ({counts[v]:,} rows)" for name, v in zip(names, distinct, strict=True)
    )
    number = {v: index for index, v in enumerate(distinct)}
    return (
        np.array([number[v] for v in values]),
        names,
        f"classification into {len(names)} classes, since {why}: {told}",
    )


def _target(name: str, classes: tuple[str, ...] | None, y: np.ndarray) -> Target:
    """Fit the target to its training rows."""
    if classes:
        return Target(name, classes)
    if y.min() == y.max():
        raise ValueError(
            f"target must vary on the training rows, got {_quoted(name)} = {y[0]:g} in all. Choose another one."
        )
    return Target(name, None, float(y.mean()), _deviation(y))


def _deviation(values: np.ndarray) -> float:
    """Standard deviation of numbers that differ, above 0 also where their squares are 0 in
    float64.
    """
    sd = float(values.std())
    scale = float(np.abs(values).max())
    return sd if sd > 1e-150 else max(scale * float((values / scale).std()), math.ulp(0.0))


def _divide(
    y: np.ndarray,
    classes: tuple[str, ...] | None,
    val_share: float,
    test_share: float,
    seed: int,
    *,
    numeric: bool,
) -> list[np.ndarray]:
    """Divide rows at random into training, validation and, where it has a share, test: each class
    alike.
    """
    if classes and len(classes) == 1:
        raise ValueError(
            f"target must have at least 2 classes, got {_quoted(classes[0])} in every row. Choose another column."
        )
    shares, generator = [share for share in (val_share, test_share) if share], make_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(1 + len(shares))]
    for number, name in enumerate(classes or [""]):
        rows = generator.permutation(np.flatnonzero(y == number) if classes else len(y))
        sizes = [max(1, round(len(rows) * share)) for share in shares]
        if len(rows) - sum(sizes) < 2:
            what = f"of class {_quoted(name)}" if classes else "with a target"
            fix = "Drop those rows or merge the class with another" if classes else "Give more rows"
            fix += (
                ", or predict it as a number: kind='regression' (--kind regression)"
                if classes and numeric
                else ""
            )
            raise ValueError(
                f"2 training rows and 1 for every other split are needed at least, got {len(rows)} {what}, of which "
                f"{' and '.join(map(str, sizes))} would not be trained on. {fix}."
            )
        for part, some in zip(
            parts, np.split(rows, np.cumsum([len(rows) - sum(sizes), *sizes[:-1]])), strict=True
        ):
            part.append(some)
    return [generator.permutation(np.concatenate(part)) for part in parts]


def _told(preprocessing: Preprocessing) -> Iterable[str]:
    """Sentences about the columns."""
    numbers = [c.name for c in preprocessing.columns if c.categories is None]
    texts = [
        f"{_printable(c.name)} ({len(c.categories)})"
        for c in preprocessing.columns
        if c.categories is not None
    ]
    gaps, blanks = (
        [c.name for c in preprocessing.columns if c.missing and (c.categories is not None) == text]
        for text in (False, True)
    )
    if numbers:
        yield f"{len(numbers)} numeric columns, standardised on the training rows: {_some(numbers)}."
    if texts:
        yield f"{len(texts)} columns of categories, with how many are told apart: {_some(texts)}."
    mute = [c.name for c in preprocessing.columns if c.categories == ()]
    if mute:
        yield f"{len(mute)} of them tell nothing, since no value occurs twice; numbers written oddly? {_some(mute)}."
    if gaps:
        yield f"{len(gaps)} columns have missing values; the training median stands in for numbers: {_some(gaps)}."
    if blanks:
        yield f"{len(blanks)} columns of categories have missing values, which belong to none: {_some(blanks)}."
    if preprocessing.dropped:
        dropped = preprocessing.dropped
        yield f"Dropped {len(dropped)} columns that are constant, or text that never repeats: {_some(dropped)}."


def _some(names: Iterable[Any], most: int = 10) -> str:
    names = list(names)
    more = len(names) - most
    return ", ".join(map(_printable, names[:most])) + (f" and {more:,} more" if more > 0 else "")


def _is_numeric(values: pd.Series) -> bool:
    return values.dtype == np.float64


def _numbers_of(values: pd.Series) -> np.ndarray:
    """Check that a column holds numbers that can be standardised."""
    if not _is_numeric(values):
        wrong = next(v for v in values.dropna() if _number(v, False) is None)
        raise ValueError(
            f"column {_quoted(values.name)} must hold numbers as in training, got {_quoted(wrong)}. Correct that cell."
        )
    numbers = values.to_numpy()
    large = numbers[np.abs(numbers) > _LARGEST]
    if large.size:
        raise ValueError(
            f"column {_quoted(values.name)} must hold finite numbers within {_LARGEST:g}, got {large[0]:g}. "
            "Leave the cell empty if it is missing, or choose another unit."
        )
    return numbers


def _fitted(network: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """Rebuild a network from its numbers and give it its weights; nothing is allocated beyond
    these.
    """
    kinds = {"dropout": {float, int}, "batch_norm": {bool}, "bias": {bool, type(None)}}
    if wrong := [
        name for name, value in network.items() if type(value) not in kinds.get(name, {int})
    ]:
        raise ValueError(
            f"{wrong[0]} of the network must be another kind of value, got {network[wrong[0]]!r:.80}"
        )
    if network.get("depth", 0) > len(weights):
        raise ValueError(
            f"the weights must fit the network, got {len(weights)} tensors for {network['depth']} layers"
        )
    with torch.device("meta"):
        model = mlp(**network).eval()
    expected = model.state_dict()
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"the weights must be finite, got NaN or infinity in {name}. Did the training diverge?"
            )
        if (
            name in expected
            and tensor.is_floating_point() is not expected[name].is_floating_point()
        ):
            raise ValueError(f"the weights must fit the network, got {tensor.dtype} in {name}")
    try:
        # Assigned, not copied: the network on the meta device has no memory to copy to.
        cast = {n: t.to(expected[n].dtype) if n in expected else t for n, t in weights.items()}
        model.load_state_dict(cast, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights must fit the network {network}: {error}") from error
    return model


def _printable(name: Any, most: int = 200) -> str:
    """Write a name in a sentence: no control characters, and not much longer than ``most``
    characters.
    """
    text = str(name)
    return printable(text if len(text) <= most or isinstance(name, Path) else f"{text[:most]}…")


def _quoted(name: Any) -> str:
    text = str(name)
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
