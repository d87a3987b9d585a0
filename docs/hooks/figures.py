"""What the build changes in a finished page: figures lead to their full size, search has a name."""

from __future__ import annotations

import re

__all__ = ["on_page_content", "on_post_page", "on_post_template"]

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


def _name_the_search(html: str) -> str:
    """Name the search dialog for screen readers; the theme leaves it without a name."""
    dialog = 'data-md-component="search" role="dialog"'
    return html.replace(dialog, f'{dialog} aria-label="Search"')


def on_post_page(output: str, **_: object) -> str:
    """Change a page."""
    return _name_the_search(output)


def on_post_template(output_content: str, **_: object) -> str:
    """Change a page of the theme, such as that of a wrong address."""
    return _name_the_search(output_content)
