"""Made-up tables for ``tables_fuzz.py``: kinds of columns, and kinds of files.

Another kind of column is one more function in ``COLUMNS``; another kind of file one in ``FILES``.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import importlib.util
import io
import json
import math
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

MARKERS = ("NA", "n/a", "None", "-", "?", "null", "#N/A", "<NA>", "Unknown")
STRAYS = ("oops", "see note", "12 or 13", "~5", "x", "ERROR")


@dataclass
class Column:
    """A column of a made-up table.

    Args:
        name: Its name.
        kind: A key of :data:`COLUMNS`.
        cells: Its text.
        values: What the cells are: numbers, seconds or text; None where nothing is claimed.
        role: ``input``, or ``any`` where it may be left out with a sentence.
        missing: How many cells are markers of missing values.
        strays: How many cells are of another kind.
        is_rewritten: Whether the other cells are not numbers as programs write them.
    """

    name: str
    kind: str
    cells: list[str]
    values: list | None = None
    role: str = "input"
    missing: int = 0
    strays: int = 0
    is_rewritten: bool = False


@dataclass
class Table:
    """A made-up table.

    Args:
        columns: Its inputs.
        target: Its target.
        is_regression: Whether the target is a number.
        file: A key of :data:`FILES`.
        problems: What was wrong with how it was read.
        doubts: How many columns are written as groups of thousands by chance.
    """

    columns: list[Column]
    target: Column
    is_regression: bool
    file: str
    problems: list[str] = field(default_factory=list)
    doubts: int = 0


# Numbers, written in many ways.


def _grouped(value: float, digits: int, group: str, decimal: str) -> str:
    text = f"{value:,.{digits}f}"
    return text.replace(",", "\0").replace(".", decimal).replace("\0", group)


def _plain(dice: random.Random, n: int):
    values = [round(dice.gauss(3, 20), 3) for _ in range(n)]
    return [f"{value:.3f}" for value in values], values, False


def _exponents(dice: random.Random, n: int):
    values = [float(f"{dice.gauss(0, 1) * 10 ** dice.randint(-8, 8):.4e}") for _ in range(n)]
    return [f"{value:.4e}" for value in values], values, False


def _counts(dice: random.Random, n: int):
    values = [float(dice.randint(0, 300)) for _ in range(n)]
    return [f"{value:.0f}" for value in values], values, False


def _money(dice: random.Random, n: int):
    sign = dice.choice(["${}", "€{}", "{} USD", "£ {}", "CHF {}"])
    values = [round(dice.uniform(1, 90_000), 2) for _ in range(n)]
    return [sign.format(_grouped(value, 2, ",", ".")) for value in values], values, True


def _german(dice: random.Random, n: int):
    sign = dice.choice(["{} €", "{}", "{} kr"])
    values = [round(dice.uniform(1, 90_000), 2) for _ in range(n)]
    return [sign.format(_grouped(value, 2, ".", ",")) for value in values], values, True


def _swiss(dice: random.Random, n: int):
    group = dice.choice(["'", "’", "\u00a0", "\u202f", " "])
    values = [round(dice.uniform(1000, 900_000), 1) for _ in range(n)]
    return [_grouped(value, 1, group, ".") for value in values], values, True


def _thousands(dice: random.Random, n: int):
    values = [float(dice.randint(1000, 9_000_000)) for _ in range(n)]
    return [f"{value:,.0f}" for value in values], values, True


def _decimal_comma(dice: random.Random, n: int):
    values = [round(dice.gauss(0, 5), 2) for _ in range(n)]
    return [f"{value:.2f}".replace(".", ",") for value in values], values, True


def _percent(dice: random.Random, n: int):
    blank = dice.choice(["", " "])
    values = [round(dice.uniform(0, 100), 1) for _ in range(n)]
    return [f"{value:.1f}{blank}%" for value in values], values, True


def _unicode_minus(dice: random.Random, n: int):
    values = [round(dice.gauss(0, 30), 2) for _ in range(n)]
    return [f"{value:.2f}".replace("-", "−") for value in values], values, min(values) < 0


def _accounts(dice: random.Random, n: int):
    values = [round(dice.gauss(0, 30), 2) for _ in range(n)]
    cells = [f"({-value:.2f})" if value < 0 else f"{value:.2f}" for value in values]
    return cells, values, min(values) < 0


def _large(dice: random.Random, n: int):
    values = [dice.randint(1, 10 ** dice.randint(10, 15)) for _ in range(n)]
    return [str(value) for value in values], [float(value) for value in values], False


# Dates and times.


def _dates(dice: random.Random, n: int):
    style = dice.choice(["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d %b %Y", "%Y/%m/%d"])
    start = datetime.datetime(dice.randint(1990, 2020), 1, 1)
    days = [start + datetime.timedelta(days=dice.randint(0, 2000)) for _ in range(n)]
    # One day above 12 leaves no doubt about day and month.
    days[0] = days[0].replace(day=27)
    return [day.strftime(style) for day in days], _seconds(days), True


def _timestamps(dice: random.Random, n: int):
    zone = dice.choice(["", "Z", "+02:00"])
    style = dice.choice(["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"])
    start = datetime.datetime(2021, 1, 1)
    moments = [start + datetime.timedelta(minutes=dice.randint(0, 500_000)) for _ in range(n)]
    return [moment.strftime(style) + zone for moment in moments], _seconds(moments), True


def _seconds(moments: list[datetime.datetime]) -> list[float]:
    start = datetime.datetime(1970, 1, 1)
    return [(moment - start).total_seconds() for moment in moments]


def _clock(dice: random.Random, n: int):
    minutes = [dice.randint(0, 24 * 60 - 1) for _ in range(n)]
    cells = [f"{minute // 60:02d}:{minute % 60:02d}" for minute in minutes]
    return cells, [minute / 60 for minute in minutes], True


# Text.


def _words(dice: random.Random, n: int):
    words = dice.sample(["red", "blue", "grün", "dark, light", 'a "b"', "no", "NO", "x y"], 4)
    cells = [dice.choice(words) for _ in range(n)]
    return cells, cells, False


def _booleans(dice: random.Random, n: int):
    cells = [dice.choice(dice.choice([["True", "False"], ["true", "FALSE"]])) for _ in range(n)]
    values = [float(cell.casefold() == "true") for cell in cells]
    return cells, values, True


def _zip_codes(dice: random.Random, n: int):
    codes = ["02134", "10001", "94105", "00501"]
    cells = [codes[i % 4] for i in range(n)]
    dice.shuffle(cells)
    return cells, cells, False


def _long_codes(dice: random.Random, n: int):
    codes = [str(dice.randint(10**16, 10**17 - 1)) for _ in range(3)]
    cells = [dice.choice(codes) for _ in range(n)]
    return cells, cells, False


def _countries(dice: random.Random, n: int):
    cells = [dice.choice(["NA", "DE", "FR", "US"]) for _ in range(n)]
    return cells, cells, False


# Columns that may be left out.


def _row_numbers(dice: random.Random, n: int):
    start = dice.choice([0, 1, 1000])
    return [str(start + i) for i in range(n)], None, False


def _shuffled_ids(dice: random.Random, n: int):
    cells = [str(i) for i in range(n)]
    dice.shuffle(cells)
    return cells, None, False


def _long_ids(dice: random.Random, n: int):
    return [str(dice.randint(10**16, 10**17 - 1)) for _ in range(n)], None, False


def _names(dice: random.Random, n: int):
    return [f"{dice.choice('ABC')}. Miller {i}x" for i in range(n)], None, False


def _constant(dice: random.Random, n: int):
    return [dice.choice(["7", "same", ""])] * n, None, False


Maker = Callable[[random.Random, int], tuple[list[str], "list | None", bool]]
COLUMNS: dict[str, Maker] = {
    "plain": _plain,
    "exponents": _exponents,
    "counts": _counts,
    "money": _money,
    "german": _german,
    "swiss": _swiss,
    "thousands": _thousands,
    "decimal comma": _decimal_comma,
    "percent": _percent,
    "unicode minus": _unicode_minus,
    "accounts": _accounts,
    "large": _large,
    "dates": _dates,
    "timestamps": _timestamps,
    "clock": _clock,
    "words": _words,
    "booleans": _booleans,
    "zip codes": _zip_codes,
    "long codes": _long_codes,
    "countries": _countries,
    "row numbers": _row_numbers,
    "shuffled ids": _shuffled_ids,
    "long ids": _long_ids,
    "names": _names,
    "constant": _constant,
}
TEXT = {"words", "zip codes", "long codes", "countries", "row numbers", "shuffled ids"} | {
    "long ids",
    "names",
    "constant",
    "booleans",
}
_MAY_GO = {"row numbers", "shuffled ids", "long ids", "names", "constant"}
# Which of them have a decimal comma, so that they doubt a file whose commas group thousands.
WITH_COMMA, _WITH_GROUPS = {"german", "decimal comma"}, {"thousands"}
TARGETS = (
    ("neg", "pos"),
    ("007", "010"),
    ("1E5", "2E5"),
    ("12345678901234567", "98765432109876543"),
    ("9007199254740993", "9007199254740992"),
    ("1.1", "1.10"),
    ("NA", "DE", "FR"),
    ("True", "False"),
    ("0", "1"),
    ("a,b", 'say "c"', "größe"),
    ("5%", "10%"),
)


def make_table(dice: random.Random) -> Table:
    """Draw a table."""
    n = dice.randint(60, 160)
    kinds = dice.sample(sorted(COLUMNS), dice.randint(3, 9))
    if WITH_COMMA & {*kinds}:
        kinds = [kind for kind in kinds if kind not in _WITH_GROUPS]
    if not {*kinds} - _MAY_GO - TEXT:
        kinds.append("plain")
    columns = [_make_column(dice, kind, n, i) for i, kind in enumerate(kinds)]
    is_regression = dice.random() < 0.3
    if is_regression:
        kind = dice.choice(["plain", "money", "large"])
        cells, values, _ = COLUMNS[kind](dice, n)
        target = Column("target, in units", kind, cells, values)
    else:
        labels = dice.choice(TARGETS)
        cells = [labels[i % len(labels)] for i in range(n)]
        dice.shuffle(cells)
        target = Column("target", "labels", cells)
    return Table(columns, target, is_regression, dice.choice(sorted(usable_files())))


def _make_column(dice: random.Random, kind: str, n: int, index: int) -> Column:
    cells, values, is_rewritten = COLUMNS[kind](dice, n)
    name = dice.choice(["{} {}", "{}_{}", "[{}] {}", "{}: {} €"]).format(kind, index)
    column = Column(name, kind, list(cells), values, is_rewritten=is_rewritten)
    if kind in _MAY_GO:
        column.role = "any"
    if kind in TEXT:
        return column
    rows = dice.sample(range(1, n), n - 1)
    if dice.random() < 0.4:
        marker = dice.choice(MARKERS)
        column.missing = dice.randint(1, n // 4)
        for row in (rows.pop() for _ in range(column.missing)):
            column.cells[row] = marker
    if dice.random() < 0.4:
        stray = dice.choice(STRAYS)
        column.strays = dice.randint(1, max(1, (n - column.missing) // 25))
        for row in (rows.pop() for _ in range(column.strays)):
            column.cells[row] = stray
    if column.values is not None and (column.missing or column.strays):
        other = {*MARKERS, *STRAYS}
        pairs = zip(column.cells, column.values, strict=True)
        column.values = [math.nan if cell in other else value for cell, value in pairs]
    return column


# Files.


def _rows(table: Table) -> list[list[str]]:
    columns = [*table.columns, table.target]
    return [[c.name for c in columns], *map(list, zip(*(c.cells for c in columns), strict=True))]


def _csv_text(table: Table, separator: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=separator, lineterminator="\n").writerows(_rows(table))
    return file.getvalue()


def _text_file(name: str, separator: str, encoding: str = "utf-8", start: str = ""):
    def write(table: Table, folder: Path) -> Path:
        text = start + _csv_text(table, separator)
        data = text.encode(encoding, errors="replace")
        (folder / name).write_bytes(data)
        return folder / name

    return write


def _write_latin(table: Table, folder: Path) -> Path:
    # Only characters that the encoding has, or they would be others.
    for column in (*table.columns, table.target):
        for old, new in (("−", "-"), ("\u202f", "'"), ("’", "'"), ("€", "EUR")):
            column.cells = [cell.replace(old, new) for cell in column.cells]
            column.name = column.name.replace(old, new)
        if column.kind == "unicode minus":
            column.is_rewritten = False
    return _text_file("table.csv", ";", "latin-1")(table, folder)


def _write_zip(table: Table, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "table.csv.zip", "w") as archive:
        archive.writestr("inner/table.csv", _csv_text(table, ","))
    return folder / "table.csv.zip"


def _write_gzip(table: Table, folder: Path) -> Path:
    (folder / "table.tsv.gz").write_bytes(gzip.compress(_csv_text(table, "\t").encode()))
    return folder / "table.tsv.gz"


def _write_json(table: Table, folder: Path) -> Path:
    columns = [*table.columns, table.target]
    lines = []
    for cells in zip(*(c.cells for c in columns), strict=True):
        pairs = zip(columns, cells, strict=True)
        row = {c.name: _typed(c, cell) if has_types(table) else cell for c, cell in pairs}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "table.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "table.jsonl"


def has_types(table: Table) -> bool:
    """Say whether numbers are numbers of the file, where it can hold any, and not text."""
    return len(table.columns) % 2 == 0


def _typed(column: Column, cell: str) -> str | float:
    is_number = column.kind == "plain" and cell not in {*MARKERS, *STRAYS}
    return float(cell) if is_number else cell


def _frame(table: Table) -> pd.DataFrame:
    columns = [*table.columns, table.target]
    return pd.DataFrame({c.name: pd.Series(c.cells, dtype=object) for c in columns})


def _typed_frame(table: Table) -> pd.DataFrame:
    frame = _frame(table)
    for column in table.columns if has_types(table) else ():
        frame[column.name] = pd.Series([_typed(column, c) for c in column.cells], dtype=object)
    return frame


def _write_xlsx(table: Table, folder: Path) -> Path:
    _typed_frame(table).to_excel(folder / "table.xlsx", index=False)
    return folder / "table.xlsx"


def _write_parquet(table: Table, folder: Path) -> Path:
    _frame(table).to_parquet(folder / "table.parquet")
    return folder / "table.parquet"


def _write_feather(table: Table, folder: Path) -> Path:
    _frame(table).to_feather(folder / "table.feather")
    return folder / "table.feather"


def _give_frame(table: Table, folder: Path) -> pd.DataFrame:
    del folder
    return _typed_frame(table)


FILES: dict[str, Callable[[Table, Path], Path | pd.DataFrame]] = {
    "csv": _text_file("table.csv", ","),
    "semicolons": _text_file("table.csv", ";"),
    "tsv": _text_file("table.tsv", "\t"),
    "bars": _text_file("table.txt", "|"),
    "sep line": _text_file("table.csv", ";", start="sep=;\n"),
    "comment": _text_file("table.csv", ",", start="# written by a program, on a day\n"),
    "title": _text_file("table.csv", ";", start="Report of the year\n\n"),
    "UTF-16": _text_file("table.csv", ",", "utf-16"),
    "UTF-8 with a mark": _text_file("table.csv", ",", "utf-8-sig"),
    "Latin-1": _write_latin,
    "zip": _write_zip,
    "gzip": _write_gzip,
    "JSON lines": _write_json,
    "xlsx": _write_xlsx,
    "parquet": _write_parquet,
    "feather": _write_feather,
    "DataFrame": _give_frame,
}
TYPED = {"JSON lines", "xlsx", "DataFrame"}
_ENGINES = {"xlsx": "openpyxl", "parquet": "pyarrow", "feather": "pyarrow"}


def usable_files() -> list[str]:
    """Give the kinds of files whose libraries are installed."""
    return [
        name
        for name in FILES
        if name not in _ENGINES or importlib.util.find_spec(_ENGINES[name]) is not None
    ]
