"""The command line: ``demo``, ``find``, ``predict``, ``compare``, ``reproduce`` and ``run``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Annotated

from flooding import __version__
from flooding.extras import install_command

try:
    # Both are an extra, and this is where anybody misses them first.
    import rich  # noqa: F401
    import typer

    from flooding.cli._compare import compare
    from flooding.cli._console import console, errors, note, set_output
    from flooding.cli._demo import demo
    from flooding.cli._errors import (
        finish_output,
        open_streams,
        report_error,
        show_warnings,
    )
    from flooding.cli._find import find
    from flooding.cli._interrupts import note_interrupts
    from flooding.cli._predict import predict
    from flooding.cli._report import mark_bare_report
    from flooding.cli._reproduce import reproduce
    from flooding.cli._run import run
    from flooding.text import one_line
except ModuleNotFoundError as error:  # pragma: no cover -- the command exists without them, too
    if error.name not in {"rich", "typer"}:
        raise
    sys.exit(
        f"the command line needs typer and rich ({error}). Install them: {install_command('cli')}"
    )
except KeyboardInterrupt:  # pragma: no cover -- before anything that could print it
    sys.stderr.write(
        "Interrupted. Finished runs are in the ledger: the same command goes on from there.\n"
    )
    sys.exit(130)

__all__ = ["app", "main"]

_TAGLINE = (
    "A loss, a level, and many runs at once: keep the training loss near a small constant and "
    "generalise better."
)
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=f"{_TAGLINE}\n\nAn error is one line; FLOODING_TRACEBACK=1 in the environment adds its "
    "traceback.",
)


def _print_version(is_wanted: bool) -> None:
    """Print the version and end, where that is asked for."""
    if is_wanted:
        console.print_line(f"flooding {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    pass


for command in (demo, find, predict, compare, reproduce, run):
    app.command()(command)


class _LineHandler(logging.Handler):
    """Prints each message of the log as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        # What --quiet leaves out is news, not warnings.
        show = errors.print_line if record.levelno >= logging.WARNING else note
        show(one_line(record.getMessage()))


def main() -> None:
    """Run the command line; every error ends with one sentence and exit code 1, 2 or 130."""
    open_streams()
    set_output()
    log = logging.getLogger("flooding")
    log.setLevel(logging.INFO)
    log.handlers = [_LineHandler()]
    with note_interrupts(), show_warnings():
        try:
            try:
                code = _execute(mark_bare_report(sys.argv[1:]))
                finish_output()
            except BaseException as error:  # noqa: BLE001 -- else the user sees a traceback
                code = report_error(error)
                with contextlib.suppress(OSError):
                    finish_output()
        except KeyboardInterrupt:  # while the error was printed
            code = 130
    sys.exit(code)


def _execute(arguments: list[str]) -> int:
    """Run a command and give its exit code."""
    # Not by typer's own main, which turns some errors into others. Only a shell that asks how a
    # word can be completed gets its answer from there.
    command = typer.main.get_command(app)
    if "_FLOODING_COMPLETE" in os.environ:
        command.main(arguments, prog_name="flooding", standalone_mode=False)
    try:
        with command.make_context("flooding", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:  # --help
        return end.exit_code
    return 0
