"""A trained model of a table: saved in a folder, loaded from it, and used for predictions."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import dataclasses
import inspect
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from flooding.data.compression import DAMAGED
from flooding.model_files import is_free, read_model, write_model
from flooding.models import mlp
from flooding.tabular.messages import join_names, quote, shorten
from flooding.tabular.new_rows import read_new_rows
from flooding.tabular.preprocessing import (
    Preprocessing,
    dump_preprocessing,
    load_preprocessing,
)
from flooding.tabular.problem import TableProblem, Target
from flooding.tabular.reading import Source, find_names, import_library

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TableModel", "check_folder", "load_model", "predict", "read_origin", "save_model"]

log = logging.getLogger("flooding")

_FORMAT = "flooding table model 3"
_WEIGHTS, _PREPROCESSING = "weights.safetensors", "preprocessing.skops"
_PREDICTION_ROWS = 10_000  # rows that go through the network at once
# What begins a formula in a spreadsheet; the last four are full-width forms.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_Value = TypeVar("_Value")


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
            f"folder must be new or hold a saved model alone, got {shorten(folder)}. "
            "Choose another place."
        )


def save_model(
    folder: str | Path,
    weights: Mapping[str, Tensor],
    table: TableProblem,
    *,
    about: Mapping[str, object] | None = None,
) -> None:
    """Save weights with all that predictions need.

    The folder holds ``model.json``, the weights (safetensors) and the fitted preprocessing (skops).
    ``model.json`` has a checksum of every file, so :func:`load_model` notices damage. At any moment
    a reader sees the old model or the new one.

    Args:
        folder: Where to save; a model saved there before is replaced.
        weights: A state dict of the problem's network, such as ``row.weights["best"]``.
        table: The problem they were trained on.
        about: How they came about, for a reader, as JSON can hold it; ``origin`` among it names
            what trained them, see :func:`read_origin`.

    Raises:
        ImportError: If safetensors or skops is not installed.
        ValueError: If the folder holds anything but a saved model, the problem's network is not
            :func:`flooding.models.mlp`, or the weights do not fit it or are not finite.
    """
    import_library("safetensors")
    from safetensors.torch import save

    folder, model = Path(folder).absolute(), table.problem.model
    check_folder(folder)
    if not isinstance(model, partial) or model.func is not mlp:
        raise ValueError(
            "only networks made by partial(flooding.models.mlp, ...) can be saved, "
            f"got {shorten(model)}."
        )
    network = inspect.signature(mlp).bind(*model.args, **model.keywords).arguments
    _build_network(network, weights)
    config = {
        "format": _FORMAT,
        "network": network,
        "target": dataclasses.asdict(table.target),
        "columns": {
            "numeric": table.preprocessing.numeric_columns,
            "categorical": table.preprocessing.categorical_columns,
            "dropped": table.preprocessing.dropped_columns,
        },
        "header": table.header,
        "about": dict(about or {}),
    }
    # safetensors wants tensors that share no memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    files = {_WEIGHTS: save(tensors), _PREPROCESSING: dump_preprocessing(table.preprocessing)}
    write_model(folder, config, files)


def read_origin(folder: str | Path) -> str | None:
    """Read what trained a saved model, without loading it.

    Args:
        folder: Where it was saved.

    Returns:
        The ``origin`` that :func:`save_model` was given; None where there is none, or the model is
        damaged or of another version.
    """
    try:
        config, _ = read_model(Path(folder), _FORMAT, ())
    except (*DAMAGED, ValueError):
        return None
    about = config.get("about")
    origin = about.get("origin") if isinstance(about, dict) else None
    return origin if isinstance(origin, str) else None


def load_model(folder: str | Path) -> TableModel:
    """Load what :func:`save_model` saved; nothing in the folder is run.

    Args:
        folder: Where it was saved.

    Returns:
        The model.

    Raises:
        ImportError: If safetensors or skops is not installed.
        ValueError: If the folder does not hold a whole saved model, or its files are damaged or do
            not belong together.
    """
    import_library("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    try:
        config, files = read_model(folder, _FORMAT, (_WEIGHTS, _PREPROCESSING))
        return _restore_model(config, load(files[_WEIGHTS]), files[_PREPROCESSING])
    except (*DAMAGED, SafetensorError) as error:
        reason = shorten(str(error).split("\n")[0][:500].rstrip("."))
        if isinstance(error, FileNotFoundError):
            missing = Path(error.filename).name if folder.exists() else "it"
            reason = f"{shorten(missing)} is missing"
        raise ValueError(
            f"folder must hold a saved model, got {shorten(folder)}: {reason}. "
            "Give the folder that flooding find --save wrote."
        ) from error


def _restore_model(
    config: Mapping[str, object], weights: Mapping[str, Tensor], preprocessing_data: bytes
) -> TableModel:
    """Rebuild a model from its files, every value of which may be wrong."""
    # The target.
    stored = _get(config, "target", dict)
    classes = None
    if stored["classes"] is not None:
        classes = _get_names(stored, "classes")
    mean, sd = _get_number(stored, "mean"), _get_number(stored, "sd")
    if sd <= 0:
        raise ValueError(f"sd must be above 0, got {sd}")
    target = Target(_get(stored, "name", str), classes, mean, sd)

    # The network and its weights.
    arguments = _get(config, "network", dict)
    network = _build_network(arguments, weights)
    n_outputs = len(classes) if classes is not None else 1
    if arguments["outputs"] != n_outputs:
        raise ValueError(
            f"the network has {arguments['outputs']} outputs, but its classes need {n_outputs}"
        )

    # The columns and their preprocessing.
    stored = _get(config, "columns", dict)
    numeric, categorical, dropped = (
        _get_names(stored, kind) for kind in ("numeric", "categorical", "dropped")
    )
    names = [*numeric, *categorical, *dropped]
    if len(set(names)) < len(names):
        raise ValueError("columns must differ, got one of them twice")
    preprocessing = load_preprocessing(
        preprocessing_data, numeric, categorical, dropped, arguments["inputs"]
    )
    header = config["header"]
    if header is not None:
        header = _get(config, "header", bool)
    return TableModel(network, preprocessing, target, header)


def _build_network(arguments: Mapping[str, object], weights: Mapping[str, Tensor]) -> nn.Module:
    """Rebuild a network and give it its weights; nothing is allocated beyond these."""
    types = {"dropout": {float, int}, "batch_norm": {bool}, "bias": {bool, type(None)}}
    for name, value in arguments.items():
        if type(value) not in types.get(name, {int}):
            raise ValueError(
                f"{name} of the network must be another kind of value, got {value!r:.80}"
            )
    depth = arguments.get("depth", 0)
    if isinstance(depth, int) and depth > len(weights):
        raise ValueError(
            f"the weights must fit the network, got {len(weights)} tensors for {depth} layers"
        )
    with torch.device("meta"):
        model = mlp(**arguments).eval()  # pyright: ignore[reportArgumentType] -- checked above
    expected = model.state_dict()
    tensors = {}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"the weights must be finite, got NaN or infinity in {name}. "
                "Did the training diverge?"
            )
        tensors[name] = tensor
        if name in expected:
            dtype = expected[name].dtype
            if tensor.is_floating_point() is not dtype.is_floating_point:
                raise ValueError(f"the weights must fit the network, got {tensor.dtype} in {name}")
            tensors[name] = tensor.to(dtype)
    try:
        # Assigned, not copied: the network on the meta device has no memory to copy to.
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights must fit the network {arguments}: {error}") from error
    return model


def _get(stored: Mapping[str, object], key: str, kind: type[_Value]) -> _Value:
    """Look up a value of one type; a bool is no int here."""
    value = stored[key]
    if type(value) is not kind:
        raise ValueError(f"{key} must be a {kind.__name__}, got {quote(value)}")
    return value


def _get_number(stored: Mapping[str, object], key: str) -> float:
    value = stored[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise ValueError(f"{key} must be a finite number, got {quote(value)}")
    return float(value)


def _get_names(stored: Mapping[str, object], key: str) -> tuple[str, ...]:
    names = _get(stored, key, list)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} must be a list of names, got {quote(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{key} must differ, got one of them twice")
    return tuple(names)


def predict(
    folder: str | Path,
    path: Source,
    *,
    keep: Sequence[str] = (),
    probabilities: bool = False,
) -> pd.DataFrame:
    """Predict the target for every row of a table with a saved model.

    Columns are matched by name. Further columns are ignored with a notice, the target's own without
    one. Categories that training had not seen count as rare ones.

    Args:
        folder: A saved model.
        path: A table with the columns of the training table: a file, ``-`` for standard input, or
            a DataFrame, see :func:`flooding.tabular.read_table`.
        keep: Names of columns of the table to repeat, as text and in this order, before the
            predictions.
        probabilities: Whether to add a column ``probability of NAME`` for each class.

    Returns:
        A pandas DataFrame with a row per row of the table, in its order. The predictions are in a
        column of the target's name: names of classes, or numbers in the target's unit. Where a
        column of that name is kept, it is ``predicted NAME``.

    Raises:
        ImportError: If a library of the extra ``tables`` is not installed.
        ValueError: If the model or the table cannot be read, a column is missing or holds something
            else than in training, or probabilities of a number are asked for.
    """
    pandas, model = import_library("pandas"), load_model(folder)
    target = model.target
    if probabilities and target.classes is None:
        raise ValueError(
            f"probabilities belong to classes, but {quote(target.name)} is a number. "
            "Leave them out."
        )
    table, raw = read_new_rows(path, model.preprocessing, header=model.header)
    # As the file has them, letter by letter.
    texts = {name: raw.text(name) for name in find_names("keep", keep, raw)}
    x = model.preprocessing.transform(table)
    _warn_of_columns(table, model, keep)
    _warn_of_categories(table, model.preprocessing)

    output = _apply(model.network, x, raw.source)
    name = target.name if target.name not in texts else f"predicted {target.name}"
    columns: dict[str, object] = dict(texts)
    if target.classes is None:
        columns[name] = output[:, 0].numpy() * target.sd + target.mean
    else:
        classes = [target.classes[label] for label in output.argmax(1).tolist()]
        _warn_of_formulas(classes)
        columns[name] = classes
    if probabilities and target.classes is not None:
        for class_name, column in zip(target.classes, output.softmax(1).numpy().T, strict=True):
            columns[f"probability of {class_name}"] = column
    return pandas.DataFrame(columns)


def _apply(network: nn.Module, x: Tensor, source: str) -> Tensor:
    """Give the outputs of a network, float64 ``[rows, outputs]``, all of them finite."""
    with torch.inference_mode():
        outputs = [network(rows) for rows in x.split(_PREDICTION_ROWS)]
    output = torch.cat(outputs).double()
    is_finite = output.isfinite().all(1)
    if not is_finite.all():
        row = int(is_finite.int().argmin()) + 1
        raise ValueError(
            f"every row must have a finite prediction, got none for row {row} of {source}. "
            "Its numbers are too far from those of training; correct or drop it."
        )
    return output


def _warn_of_columns(table: pd.DataFrame, model: TableModel, keep: Sequence[str]) -> None:
    """Warn of columns that training had not seen."""
    preprocessing = model.preprocessing
    seen = {model.target.name, *preprocessing.dropped_columns, *preprocessing.columns, *keep}
    seen |= set(preprocessing.sources)
    unseen = [str(name) for name in table if str(name) not in seen]
    if unseen:
        log.warning(
            "%d columns that training had not seen are ignored: %s",
            len(unseen),
            join_names(unseen),
        )


def _warn_of_categories(table: pd.DataFrame, preprocessing: Preprocessing) -> None:
    """Warn of values that training had not seen often enough."""
    for name, values in preprocessing.frequent.items():
        rare = set(table[name].dropna()) - set(values)
        if rare:
            log.warning(
                "%d values of %s were rare or absent in training and count as none of its "
                "categories: %s",
                len(rare),
                quote(name),
                join_names(sorted(rare)),
            )


def _warn_of_formulas(classes: list[str]) -> None:
    """Warn of class names that a spreadsheet would run; predictions keep the names as they are."""
    formulas = Counter(
        name for name in classes if name.startswith(_FORMULA_STARTS) and not _is_number(name)
    )
    if formulas:
        log.warning(
            "%d rows have a class whose name a spreadsheet would run as a formula: %s. "
            "Import that column as text.",
            formulas.total(),
            join_names(formulas),
        )


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
