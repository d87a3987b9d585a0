"""Tables in text files: encoding, comments, separators and the row of names."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flooding.data.compression import DAMAGED
from flooding.tabular.header import has_header
from flooding.tabular.libraries import import_library
from flooding.tabular.limits import (
    MAX_COLUMNS,
    TableTooLargeError,
    check_cells,
    too_many,
)
from flooding.tabular.messages import pluralize, quote, shorten
from flooding.tabular.numbers import is_plain
from flooding.tabular.raw_table import RawTable, check_names

__all__ = ["build_table", "decode", "read_delimited"]

_MAX_SEPARATORS = 10_000_000  # in a line, those within quoted fields included
_SAMPLE_LINES = 10
_MAX_TITLE_LINES = 3
_COMMENTS = ("#", "%", "//")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_field_size_lock = threading.Lock()


def read_delimited(
    data: bytes,
    source: str,
    *,
    target: str | int | None,
    header: bool | None,
    encoding: str | None,
    size_limit: int | None,
) -> RawTable:
    """Read a table of separated fields.

    Args:
        data: Content of the file.
        source: Its name, for sentences.
        target: Name of the target, which marks the row of names.
        header: Whether the first row names the columns; None finds out.
        encoding: Of the text; None finds out.
        size_limit: How many cells the file may have, where it was compressed.

    Returns:
        The table.

    Raises:
        ValueError: If the file is no text, has no rows, or its rows differ in their number of
            fields, or two columns share a name.
    """
    text, sentences = decode(data, source, encoding)
    layout = _find_layout(text, source)
    sentences = [*sentences, *layout.sentences]
    cells = _read_cells(layout, source, size_limit)
    n_short = _count_short_rows(cells, layout)
    if n_short:
        sentences.append(
            f"{pluralize(n_short, 'row')} with fewer fields than the others end in missing cells."
        )
    return build_table(
        cells,
        source,
        target=target,
        header=header,
        separator=layout.separator,
        names=layout.names,
        sentences=sentences,
    )


def build_table(
    cells: np.ndarray,
    source: str,
    *,
    target: str | int | None,
    header: bool | None,
    separator: str | None = None,
    names: Sequence[str] = (),
    sentences: Sequence[str] = (),
) -> RawTable:
    """Divide cells into the row of names and the columns.

    Args:
        cells: Strings, or None or NaN, ``[rows, columns]``.
        source: Name of the file, for sentences.
        target: Name of the target, which marks the row of names.
        header: Whether the first row names the columns; None finds out.
        separator: What separates the fields.
        names: Names from a comment, used where there is no row of names.
        sentences: What was assumed so far.

    Returns:
        The table; columns without a name are called c0, c1, ... by their position.

    Raises:
        ValueError: If there are no rows, or two columns share a name.
    """
    sentences = list(sentences)
    if header is None:
        header = has_header(cells, target)
    rows = cells[int(header) :]
    if not len(rows):
        raise ValueError(f"a table must have rows, got the header alone in {source}. Give it data.")
    if header:
        names = [str(cell).strip() if isinstance(cell, str) else "" for cell in cells[0]]
    elif len(names) != cells.shape[1]:
        names = [f"c{index}" for index in range(cells.shape[1])]
    else:
        header = None
    columns = list(rows.T)
    names, columns = _name_the_unnamed(list(names), columns, sentences)
    check_names(source, names)
    return RawTable(source, tuple(names), tuple(columns), header, separator, tuple(sentences))


def _name_the_unnamed(
    names: list[str], columns: list[np.ndarray], sentences: list[str]
) -> tuple[list[str], list[np.ndarray]]:
    """Leave out columns without a name that are empty or count the rows, and name the others."""
    pairs = []
    empty, counters = [], []
    for index, (name, cells) in enumerate(zip(names, columns, strict=True)):
        if name:
            pairs.append((name, cells))
        elif not any(isinstance(cell, str) and cell.strip() for cell in cells):
            empty.append(str(index))
        elif _counts_rows(cells):
            counters.append(str(index))
        else:
            other_name = f"c{index}"
            while other_name in names:
                other_name += "_"
            pairs.append((other_name, cells))
            sentences.append(f"Column {index} has no name and is called {other_name}.")
    rest = f"({pluralize(len(columns[0]), 'cell')} each). To use it, give it a name."
    for indices, reason in ((empty, "is empty"), (counters, "counts the rows")):
        if indices:
            sentences.append(
                f"Left out column {', '.join(indices[:10])}, which has no name and {reason} {rest}"
            )
    return [name for name, _ in pairs], [cells for _, cells in pairs]


def _counts_rows(cells: np.ndarray) -> bool:
    """Say whether cells are whole numbers that grow by 1."""
    texts = [cell.strip() if isinstance(cell, str) else "" for cell in cells]
    if not all(map(str.isdecimal, texts)):
        return False
    first = int(texts[0])
    return all(int(text) == first + row for row, text in enumerate(texts))


# Encodings.


def decode(data: bytes, source: str, encoding: str | None) -> tuple[str, list[str]]:
    """Decode text: what the user says, a byte order mark, UTF-8, UTF-16, else Latin-1.

    Args:
        data: Content of a file.
        source: Its name.
        encoding: Name of its encoding; None finds out.

    Returns:
        The text without byte order marks, and what was assumed.

    Raises:
        ValueError: If it is no text in that encoding, or in none.
    """
    sentences = []
    if encoding is not None and encoding.casefold() in {"utf-8", "utf8", "utf_8"}:
        encoding = "utf-8-sig"
    if encoding is None:
        encoding = _find_encoding(data, source)
        if encoding in {"latin-1", "cp1252"}:
            name = {"latin-1": "Latin-1", "cp1252": "Windows-1252"}[encoding]
            sentences.append(
                f"{source} is not UTF-8 and is read as {name}. To change it: --encoding NAME."
            )
    try:
        text = data.decode(encoding)
    except (UnicodeError, LookupError) as error:
        raise ValueError(
            f"a table must be text in its encoding, got {source}: {shorten(error)}. "
            "Name another one (--encoding), or save it as CSV in UTF-8."
        ) from error
    if "\0" in text:
        raise ValueError(
            f"a table must be text, got {source}: a NUL byte at position {text.index(chr(0)):,}. "
            "Save it as CSV in UTF-8."
        )
    if "\ufeff" in text:
        # Files that were joined have marks at the start of lines, too.
        text, count = re.subn(r"(^|[\r\n])\ufeff+", r"\1", text)
        if count:
            marks = pluralize(count, "byte order mark")
            sentences.append(f"Left out {marks} at the start of lines.")
    return text, sentences


def _find_encoding(data: bytes, source: str) -> str:
    """Find the encoding of some bytes."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    if b"\0" in data:
        # Every second byte of UTF-16 is 0 for Latin letters, digits and separators.
        for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            half = data[start:100_000:2]
            if half.count(0) > 0.7 * len(half) and data[1 - start : 100_000 : 2].count(0) == 0:
                return encoding
        raise ValueError(
            f"a table must be text, got {source}: a NUL byte at position {data.index(0):,}, as in "
            "archives and spreadsheets of another kind. Save it as CSV in UTF-8."
        )
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        # Text has no control characters but those of lines; anything else is no text at all.
        if re.search(rb"[\x01-\x08\x0e-\x19\x1b-\x1f]", data):
            raise ValueError(
                f"a table must be text, got {source}: {error}. Save it as CSV in UTF-8."
            ) from error
        if re.search(rb"[\x81\x8d\x8f\x90\x9d]", data) or not re.search(rb"[\x80-\x9f]", data):
            return "latin-1"
        return "cp1252"
    return "utf-8-sig"


# Lines.


@dataclass(frozen=True)
class _Layout:
    """How a text is divided into fields, and what of it is left."""

    text: str
    separator: str
    names: tuple[str, ...]
    sentences: tuple[str, ...]


def _find_layout(text: str, source: str) -> _Layout:
    """Take off what is no row at the start, and find the separator."""
    sentences, separator = [], None
    # What spreadsheets write to name the separator.
    match = re.match(r'"?sep=(.|\\t)"?[ \t]*(?:\r\n|\r|\n)', text, re.IGNORECASE)
    if match is not None:
        separator = "\t" if match[1] == "\\t" else match[1]
        text = text[match.end() :]
        sentences.append(f"The first line names the separator: {separator!r}.")
    text, comments = _cut_comments(text)
    lines = _first_lines(text)
    _check_separators(lines, source)
    cut = 0
    if separator is None:
        separator, cut = _find_separator(lines)
    titles = lines[:cut]
    for line in titles:
        text = text[text.index(line) + len(line) :]
    lines = lines[cut:]
    skipped = [line.strip() for line in (*comments, *titles)]
    if skipped:
        sentences.append(
            f"Left out {pluralize(len(skipped), 'line')} above the table: {quote(skipped[0][:80])}."
        )
    columns = max((len(row) for row in _split_lines(lines, separator)), default=1)
    if columns > MAX_COLUMNS:
        raise too_many(f"{MAX_COLUMNS:,} columns", columns, source)
    names = _names_in_comment(comments, separator, columns)
    return _Layout(_even_header(text, lines, separator), separator, names, tuple(sentences))


def _first_lines(text: str) -> list[str]:
    """Give the first lines that are not blank, with their ends."""
    matches = re.finditer(r"[^\r\n]*(?:\r\n|\r|\n|$)", text)
    filled = (match[0] for match in matches if match[0].strip())
    return list(itertools.islice(filled, _SAMPLE_LINES))


def _cut_comments(text: str) -> tuple[str, list[str]]:
    """Cut the comments that precede the first row."""
    comments = []
    while (line := re.match(r"[^\r\n]*(?:\r\n|\r|\n|$)", text)) is not None:
        content = line[0].strip()
        if not line[0] or (content and not content.startswith(_COMMENTS)):
            break
        # A number sign may begin the name of a column; then no blank follows it.
        if content.startswith("#") and not comments and _is_row(content, text[line.end() :]):
            break
        if content:
            comments.append(content)
        text = text[line.end() :]
    return text, comments


def _is_row(line: str, rest: str) -> bool:
    """Say whether a line has as many fields as each of the lines below it."""
    if not re.match(r"#\w", line):
        return False
    lines = [line, *_first_lines(rest)]
    separator = _even_separator(lines) if len(lines) > 1 else None
    # Below a comment follow names, below names follow numbers.
    return separator is not None and any(map(is_plain, _split_lines(lines, separator)[1]))


def _names_in_comment(comments: list[str], separator: str, columns: int) -> tuple[str, ...]:
    """Take names from the last comment, if it has one for each column."""
    if not comments or columns < 2:
        return ()
    line = comments[-1].lstrip("#%/ \t")
    names = [name.strip() for name in _split_lines([line], separator)[0]]
    is_list = len(names) == columns and len(set(names)) == columns and all(names)
    return tuple(names) if is_list and not any(map(is_plain, names)) else ()


def _check_separators(lines: list[str], source: str) -> None:
    # Before the lines are split: millions of fields would fill the memory.
    for line in lines:
        count = max(line.count(separator) for separator in "\t;|, ")
        if count > _MAX_SEPARATORS:
            raise too_many(f"{_MAX_SEPARATORS:,} separators in a line", count, source)


def _find_separator(lines: list[str]) -> tuple[str, int]:
    """Find the separator of the first lines, and how many of them are titles above the table."""
    separator = _even_separator(lines)
    if separator is not None:
        return separator, 0
    if len({len(line.split()) for line in lines} - {1}) == 1 and all(" " in x for x in lines):
        return r"\s+", 0
    # Names alone may be one fewer (row names follow) or one more (a separator ends each row).
    if len(lines) > 2:
        separator = _even_separator(lines[1:])
        if separator is not None:
            counts = [len(row) for row in _split_lines(lines[:2], separator)]
            if abs(counts[0] - counts[1]) == 1 and counts[0] > 1:
                return separator, 0
    # Titles have one field each.
    for cut in range(1, min(_MAX_TITLE_LINES, len(lines) - 2) + 1):
        separator = _even_separator(lines[cut:])
        if separator is not None:
            fields = _split_lines(lines[:cut], separator)
            if all(len(row) == 1 or not any(row[1:]) for row in fields):
                return separator, cut
            break
    return _frequent_separator(lines), 0


def _even_separator(lines: list[str]) -> str | None:
    """Find the separator by which all lines have equally many fields."""
    for separator in "\t;|,":  # the comma last: it may be a decimal one
        counts = {len(row) for row in _split_lines(lines, separator)}
        if len(counts) == 1 and counts != {1}:
            return separator
    return None


def _frequent_separator(lines: list[str]) -> str:
    """Find the most frequent separator of the first line, else blanks."""
    if not lines:
        return ","
    # No separator divides the lines evenly, so the reading that follows will name the bad row.
    separator = max("\t;|,", key=lines[0].count)
    return separator if separator in lines[0] else r"\s+"


def _split_lines(lines: list[str], separator: str) -> list[list[str]]:
    if len(separator) > 1:
        return [line.split() for line in lines]
    with _field_size_lock:  # the limit belongs to the whole process
        limit = csv.field_size_limit(max([csv.field_size_limit(), *map(len, lines)]))
        try:
            return list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
        finally:
            csv.field_size_limit(limit)


def _even_header(text: str, lines: list[str], separator: str) -> str:
    """Give the row of names as many fields as the rows below it have."""
    if len(lines) < 3:
        return text
    rows = _split_lines(lines, separator)
    widths = {len(row) for row in rows[1:]}
    if widths != {len(rows[0]) + 1} or len(rows[0]) < 2:
        return text
    start = text.index(lines[0])
    end = start + len(lines[0].rstrip("\r\n"))
    # A separator at the end of each row makes an empty field; else row names come first.
    if any(row[-1].strip() for row in rows[1:]):
        return text[:start] + ('"" ' if len(separator) > 1 else separator) + text[start:]
    return text[:end] + separator + text[end:]


def _read_cells(layout: _Layout, source: str, size_limit: int | None) -> np.ndarray:
    """Read every cell of a text table, the row of names included."""
    separator = layout.separator
    try:
        if size_limit is not None:
            # Count the cells before pandas makes an object of each of them.
            count = layout.text.count(separator if len(separator) == 1 else " ")
            check_cells(count + layout.text.count("\n"), source, size_limit)
        cells = import_library("pandas").read_csv(
            io.BytesIO(layout.text.encode(errors="surrogatepass")),
            sep=separator,
            header=None,
            dtype=object,
            keep_default_na=False,
            skipinitialspace=True,
        )
    # It is a ValueError too, but says already what is wrong.
    except TableTooLargeError:
        raise
    except (csv.Error, *DAMAGED) as error:
        raise ValueError(
            f"a table must be rows of fields, got {source}: {shorten(str(error).strip())}. "
            "Give every row as many fields as the first."
        ) from error
    return cells.to_numpy(dtype=object)


def _count_short_rows(cells: np.ndarray, layout: _Layout) -> int:
    """Count the rows that have fewer fields than the first one."""
    # What pandas fills up looks like an empty cell.
    if all(cells[1:, -1]):
        return 0
    # Not splitlines(), which takes further characters for ends of lines.
    lines = list(io.StringIO(layout.text, newline=""))
    rows = _split_lines(lines, layout.separator)
    return sum(0 < len(row) < cells.shape[1] for row in rows)
