"""Links of the pages: written for the repository, translated for the site.

A link to a page that does not stand in docs/ leads to its place on the site, a link to a module to
the reference. A file that the site does not show keeps its text and loses its link.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from repository import PAGES_ELSEWHERE, ROOT, page_of

__all__ = ["on_page_markdown", "translate"]

_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
# The text may hold an image or code; the target has no spaces.
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")
_ELSEWHERE = {page: source for source, page in PAGES_ELSEWHERE.items()}


def translate(markdown: str, source: str, page: str) -> str:
    """Translate the links of a page.

    Args:
        markdown: The page.
        source: Its file in the repository.
        page: Its place on the site.

    Returns:
        The page, its links relative to its place on the site.

    Raises:
        FileNotFoundError: If a link leads to no file of the repository.
    """

    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        text = _LINK.sub(link, text)
        if re.match(r"[a-z]+:|#", target):
            return f"{mark}[{text}]({target})"
        path, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (ROOT / file).exists():
            raise FileNotFoundError(f"{source} links to {target}, which is not there.")
        place = page_of(file)
        if place is None:
            return text
        here = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{mark}[{text}]({here}{'#' if anchor else ''}{anchor})"

    parts = _FENCE.split(markdown)
    # Every second part is a fenced block.
    parts[::2] = [_LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """Translate the links of a page that is written in the repository."""
    place = page.file.src_uri
    source = f"docs/{place}"
    if not (ROOT / source).exists():
        # Pages that the build makes link within the site already.
        if place not in _ELSEWHERE:
            return markdown
        source = _ELSEWHERE[place]
    return translate(markdown, source, place)
