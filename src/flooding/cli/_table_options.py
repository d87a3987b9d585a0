"""The options of a table, which every command that reads one has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from flooding.cli._options import drop_none, option

__all__ = [
    "DecimalSign",
    "Drop",
    "Encoding",
    "Header",
    "Kind",
    "Na",
    "TableOptions",
    "Target",
    "Text",
    "Use",
]

_PANEL = "Table"

Target = Annotated[
    str | None, option("The column to predict: its name or position; -1 is the last.", _PANEL)
]
Kind = Annotated[
    Literal["classification", "regression"] | None,
    option("What the target is [judged by its values].", _PANEL),
]
Drop = Annotated[list[str] | None, option("Columns to leave out, with commas; repeatable.", _PANEL)]
Use = Annotated[
    list[str] | None,
    option("Columns to use even though they number the rows; repeatable.", _PANEL),
]
Text = Annotated[
    list[str] | None, option("Columns to take as text, whatever they hold; repeatable.", _PANEL)
]
Na = Annotated[
    str | None,
    option("What is missing beside the empty cell, with commas [NA, NaN, NULL, ? ...].", _PANEL),
]
Encoding = Annotated[str | None, option("Encoding of a text file [judged by its bytes].", _PANEL)]
Header = Annotated[
    bool | None,
    option(
        "Whether the first row names the columns [judged by the rows].",
        _PANEL,
        "--header/--no-header",
    ),
]
DecimalSign = Annotated[
    Literal[".", ","] | None,
    option("The decimal sign where a column leaves a doubt [judged by the file].", _PANEL),
]

_Names: TypeAlias = Sequence[str]


@dataclass(frozen=True)
class TableOptions:
    """What a user says of a table.

    Args:
        target: The column to predict.
        kind: What it is: classification or regression.
        drop: Columns to leave out; several may be divided by commas.
        use: Columns to use even though they number the rows.
        text: Columns to take as text.
        na: What is missing beside the empty cell, divided by commas; None for the usual texts.
        encoding: Encoding of a text file.
        header: Whether the first row names the columns.
        decimal: The decimal sign where a column leaves a doubt.

    Example:
        >>> TableOptions(target="income", na="-,unknown").keywords()
        {'na': ('-', 'unknown')}
    """

    target: str | None = None
    kind: str | None = None
    drop: _Names | None = None
    use: _Names | None = None
    text: _Names | None = None
    na: str | None = None
    encoding: str | None = None
    header: bool | None = None
    decimal: str | None = None

    def keywords(self) -> dict[str, Any]:
        """Give the arguments of :func:`flooding.tabular.table_problem`, but for the target.

        Returns:
            Those that the user set.
        """
        na = None if self.na is None else tuple(part.strip() for part in self.na.split(","))
        return drop_none(
            kind=self.kind,
            drop=self.drop or None,
            use=self.use or None,
            text=self.text or None,
            na=na,
            encoding=self.encoding,
            header=self.header,
            decimal=self.decimal,
        )

    def names(self) -> tuple[str, ...]:
        """Give the options that the user set, as the command line names them.

        Returns:
            Such as ``("--target", "--na")``.
        """
        set_options = drop_none(target=self.target, **self.keywords())
        return tuple(f"--{name}" for name in set_options)
