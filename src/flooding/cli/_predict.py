"""``flooding predict``: use the model that ``find --save`` or ``compare --save`` wrote."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flooding.cli._console import console, print_json, set_output, write_output
from flooding.cli._options import Force, Json, Quiet, check_output_folder

__all__ = ["predict"]


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that find --save wrote.")],
    table: Annotated[Path, typer.Argument(help="A table with the same columns.")],
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns of the table to repeat before the predictions, with commas; one with a "
            "comma in its name in quotation marks: --keep 'id,\"last, first\"'."
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add the probability of each class.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV file to write.", show_default="printed")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict the target of new rows with a saved model."""
    set_output(quiet=quiet, json=json)
    from flooding.atomic import write_atomic
    from flooding.cli._problem import check_file
    from flooding.tabular import predict as predict_table

    check_file(table, "a table")
    if out is not None:
        _check_predictions_file(out, table, force=force)
    predictions = predict_table(
        model, table, keep=_split_names(keep or ()), probabilities=probabilities
    )
    # All rows are predicted before anything is written or printed.
    text = predictions.to_csv(index=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text)
        console.print_line(f"{len(predictions)} rows in {out.absolute()}")
    elif not json:
        _print_csv(text)
    if json:
        file = {} if out is None else {"file": out.absolute()}
        print_json({"predictions": predictions.to_dict("records"), **file})


def _split_names(texts: Sequence[str]) -> list[str]:
    """Split lists with commas, each name once."""
    names: list[str] = []
    for row in csv.reader(texts, skipinitialspace=True):
        names += row
    return list(dict.fromkeys(names))


def _check_predictions_file(out: Path, table: Path, *, force: bool) -> None:
    """Refuse a file that is none, or that predictions would replace."""
    check_output_folder(out.parent)
    if out.is_dir():
        raise ValueError(
            f"out must be a file, got the folder {out}. Name a file: {out / 'predictions.csv'}."
        )
    if not out.exists():
        return
    # Writing replaces the file: that of the input would be lost, and a device cannot be.
    if not out.is_file() or out.samefile(table):
        got = f"the table {out}" if out.is_file() else f"the pipe or device {out}"
        raise ValueError(
            f"out must be a file of its own, got {got}. Leave --out out to print the predictions."
        )
    if not force:
        raise ValueError(
            f"out must be a new file, got {out}, which exists. "
            "Name another, or replace it: --force."
        )


def _print_csv(text: str) -> None:
    """Print a CSV file: readable on a terminal, unchanged into a pipe, as far as it is read."""
    if not sys.stdout.isatty():
        write_output(text)
        return
    for line in text.splitlines():
        console.print_result(line)
