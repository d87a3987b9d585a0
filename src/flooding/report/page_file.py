"""A report page as a file: written by a template, saved, or shown in a notebook."""

# ruff: file-ignore[docstring-extraneous-exception] -- of the check of the file
from __future__ import annotations

import functools
import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flooding.atomic import write_atomic
from flooding.extras import install_command
from flooding.text import printable

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["ReportPage", "check_page_file", "check_template_library", "render_template"]

_GENERATOR = "flooding report page"  # what the files are recognised by
_START = 1024  # bytes of a file in which its generator must be named


@dataclass(frozen=True)
class ReportPage:
    """A page as text: save it, or show it in a notebook by its name in the last line of a cell.

    Args:
        html: The page.
    """

    html: str

    def __repr__(self) -> str:
        return f"ReportPage({len(self.html.encode()) / 1024:.0f} KiB of HTML)"

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all.

        Args:
            path: A file that ends in ``.html``; its folder is made if it is missing.

        Returns:
            The path.

        Raises:
            ValueError: If the name ends otherwise, or the file is there and is no report page.
        """
        path = check_page_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, self.html)

    def _repr_html_(self) -> str:
        """Show the page in a notebook, apart from the styles and scripts of the notebook."""
        source = html.escape(self.html, quote=True)
        return (
            f'<iframe title="Report page" sandbox="allow-scripts" srcdoc="{source}" '
            'style="width:100%;height:80vh;min-height:600px;border:1px solid #8888"></iframe>'
        )


def check_page_file(path: str | Path) -> Path:
    """Refuse a file that a page must not be written to.

    Args:
        path: The file.

    Returns:
        The path.

    Raises:
        ValueError: If its name does not end in ``.html``, or it is there and is no report page.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise ValueError(f"a report page must end in .html, got {path}. Try {path.stem}.html.")
    if path.is_dir():
        raise ValueError(f"a report page must be a file, got the folder {path}. Name another.")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(_START)
        if _GENERATOR.encode() not in start:
            raise ValueError(
                f"a report page replaces an older one alone, got {path}, which is something else. "
                "Name another file."
            )
    return path


def render_template(name: str, **values: object) -> ReportPage:
    """Write a page; every value is escaped.

    Args:
        name: Name of the template.
        **values: What it shows.

    Returns:
        The page.

    Raises:
        ImportError: If Jinja2 is missing.
    """
    return ReportPage(_environment().get_template(name).render(generator=_GENERATOR, **values))


def check_template_library() -> None:
    """Refuse to go on without what writes the pages.

    Raises:
        ImportError: If Jinja2 is missing.
    """
    _environment()


@functools.cache
def _environment() -> Environment:
    """Open the templates; whatever they print is escaped."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(
            f"report pages need Jinja2, which is missing. Run: {install_command('report')}"
        ) from error
    return Environment(
        loader=PackageLoader("flooding.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_hidden_characters,
    )


def _without_hidden_characters(value: object) -> object:
    """Make a text printable before it is escaped; HTML of the templates is what it is."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value) if is_text else value
