"""Made-up tables: no column is lost without a sentence, labels come back letter by letter.

    python benchmarks/tables_fuzz.py [--count 1000] [--seed 0]

Each table draws columns from every kind below, with missing and stray cells among them, a target
and a kind of file. It is read, made into a Problem, saved as a model and predicted. Checked are

    columns   every column is an input, or a sentence names it; and where cells were rewritten,
              missing by a marker or stray, a sentence names the column and counts the cells
    values    numbers, dates and times are those that were written; where nothing but the decimal
              sign of other columns decides, 1.234 may be 1234 with a sentence, and the option that
              the sentence names gives 1.234
    labels    the classes, and those predicted, are the strings of the file
    tracebacks  nothing is raised but a ValueError of one line, where too many cells are stray

The columns and the files are those of ``made_up_tables.py``.
"""

from __future__ import annotations

import argparse
import collections
import logging
import random
import re
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from flooding.tabular import predict, save_model, table_problem
from flooding.tabular.raw_table import RawTable
from flooding.tabular.reading import judge_columns, read_raw
from made_up_tables import (
    FILES,
    MARKERS,
    STRAYS,
    TEXT,
    TYPED,
    WITH_COMMA,
    Column,
    Table,
    has_types,
    make_table,
)

# Three decimals without a leading zero may be thousands as well.
_IS_GROUP = re.compile(r"-?[1-9][0-9]{0,2}\.[0-9]{3}").fullmatch

# Checks.


def check_table(table: Table, folder: Path) -> None:
    """Read, save and predict a table, and note what is wrong."""
    path = FILES[table.file](table, folder)
    try:
        result = table_problem(path, table.target.name, width=4, depth=1)
    except ValueError as error:
        table.problems.append(f"refused: {error}")
        return
    _check_columns(table, result)
    _check_values(table, path)
    if table.is_regression:
        if result.target.classes is not None:
            table.problems.append(f"classes of {table.target.kind}: {result.target.classes}")
        return
    labels = set(table.target.cells)
    if set(result.target.classes or ()) != labels:
        table.problems.append(f"classes are {result.target.classes}, not {sorted(labels)}")
        return
    _check_predictions(table, result, path, folder)


def _check_columns(table: Table, result) -> None:
    sentences = result.assumptions
    for column in table.columns:
        about = [s for s in sentences if column.name in s]
        is_input = column.name in result.preprocessing.sources
        lost = [s for s in about if "Left out" in s or "eft out" in s]
        if not is_input and (column.role == "input" or not lost):
            table.problems.append(f"{column.name} is lost: {about}")
        counts = (("missing", column.missing), ("stray", column.strays))
        for word, count in counts:
            if count and not any(word in s and f"{count} " in s for s in about):
                table.problems.append(f"{column.name}: {count} {word} cells are not counted")
        is_rewritten = column.is_rewritten and column.kind not in TEXT
        if is_rewritten and not any("--text" in s for s in about):
            table.problems.append(f"{column.name}: nothing says that it was rewritten")


def _check_values(table: Table, path) -> None:
    raw = read_raw(path, table.target.name)
    frame = judge_columns(raw, raw.names).frame
    for column in table.columns:
        if column.values is None:
            continue
        values = frame[column.name]
        if column.kind in {"dates", "timestamps"}:
            values = (values - pd.Timestamp(1970, 1, 1)).dt.total_seconds()
        if column.kind == "booleans" and values.dtype != np.float64:
            values = (values.str.casefold() == "true").astype(float)
        if isinstance(column.values[0], str):
            is_same = values.fillna("").tolist() == column.cells
        else:
            is_same = _are_close(values, column.values) or _is_decided(table, column, raw)
        if not is_same:
            table.problems.append(f"{column.name} holds {values.tolist()[:5]}")


def _are_close(values: pd.Series, expected: list) -> bool:
    return values.dtype == np.float64 and np.allclose(values, expected, rtol=1e-12, equal_nan=True)


def _is_decided(table: Table, column: Column, raw: RawTable) -> bool:
    """Say whether cells that could group thousands were read so, and said how to change that."""
    cells = [cell for cell in column.cells if cell not in {*MARKERS, *STRAYS}]
    has_comma = raw.separator == ";" or any(c.kind in WITH_COMMA for c in table.columns)
    is_typed = table.file in TYPED and has_types(table)
    if column.kind != "plain" or is_typed or not has_comma or not all(map(_IS_GROUP, cells)):
        return False
    expected = [value * 1000 for value in column.values or ()]
    judged = judge_columns(raw, [column.name])
    fix = "--decimal '.'"
    is_said = any(column.name in s and fix in s for s in judged.sentences)
    other = judge_columns(raw, [column.name], decimal=".").frame[column.name]
    table.doubts += 1
    is_read = _are_close(judged.frame[column.name], expected)
    return is_read and is_said and _are_close(other, column.values or [])


def _check_predictions(table: Table, result, path, folder: Path) -> None:
    # A network that names one class whatever its inputs are.
    weights = result.problem.build(0).state_dict()
    *_, last = weights
    label = len(result.target.classes) - 1
    weights = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    weights[last][label] = 9.0
    save_model(folder / "model", weights, result)
    answers = predict(folder / "model", path).iloc[:, 0]
    if set(answers) != {result.target.classes[label]} or len(answers) != len(table.target.cells):
        table.problems.append(f"predictions are {set(answers)}")


def main() -> None:
    """Draw tables, check them, and print what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flooding").setLevel(logging.ERROR)
    start, kinds, files = time.perf_counter(), collections.Counter(), collections.Counter()
    bad = tracebacks = doubts = 0
    for index in range(arguments.count):
        table = make_table(random.Random(f"{arguments.seed} {index}"))
        kinds.update(column.kind for column in table.columns)
        files[table.file] += 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                check_table(table, Path(folder))
            except Exception:  # noqa: BLE001 -- what must not happen is counted
                tracebacks += 1
                table.problems.append(traceback.format_exc())
        doubts += table.doubts
        if table.problems:
            bad += 1
            print(f"table {index} ({table.file}):")
            for problem in table.problems:
                print(f"    {problem}", flush=True)
        if (index + 1) % 100 == 0:
            print(f"{index + 1} tables, {bad} with a fault so far", flush=True)
    seconds = time.perf_counter() - start
    print(
        f"{arguments.count} tables, {kinds.total()} columns of {len(kinds)} kinds, {seconds:.0f} s"
    )
    print(", ".join(f"{name} {count}" for name, count in sorted(files.items())))
    print(f"{doubts} columns that the decimal sign of other columns decided, with a sentence")
    print(f"{bad} tables with a fault, {tracebacks} of them with a traceback")


if __name__ == "__main__":
    main()
