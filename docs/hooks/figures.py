"""Figures and tables in a page: a figure links to its full size, a wide table scrolls by itself."""

from __future__ import annotations

import re

__all__ = ["on_page_content"]

_IMAGE = re.compile(r'(<a [^>]*>\s*)?<img ([^>]*?)src="([^"]+)"([^>]*)>')


def _link(match: re.Match[str]) -> str:
    before, attributes, source, rest = match.groups()
    image = f'<img {attributes}src="{source}"{rest} loading="lazy">'
    if before:  # it leads somewhere already
        return before + image
    return f'<a class="figure" href="{source}" title="Full size">{image}</a>'


def on_page_content(html: str, **_: object) -> str:
    """Link every figure to its file."""
    return _IMAGE.sub(_link, html)
