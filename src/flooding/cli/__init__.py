"""The command line: ``flooding demo``, ``find``, ``predict``, ``compare``, ``reproduce`` and ``run``."""

from __future__ import annotations

import logging
import sys

try:
    import rich  # noqa: F401 -- both are an extra, and this is where anybody misses them first
    import typer
except ImportError as error:  # pragma: no cover -- the command is there even where its libraries are not
    sys.exit(f"the command line needs typer and rich ({error}). Install them: pip install 'flooding[cli]'")

from flooding.cli._demo import demo
from flooding.cli._find import find, predict
from flooding.cli._reproduce import compare, reproduce
from flooding.cli._run import run
from flooding.cli._shown import errors

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
for command in (demo, find, predict, compare, reproduce, run):
    app.command()(command)


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    told = logging.getLogger("flooding")
    told.setLevel(logging.INFO)
    told.handlers = [handler := logging.StreamHandler(sys.stderr)]
    handler.setFormatter(logging.Formatter("%(message)s"))
    try:
        app()
    except (ValueError, ImportError, OSError) as error:
        errors.print("[red]error:[/]", end=" ")
        errors.print(str(error), markup=False, soft_wrap=True)
        sys.exit(2)
