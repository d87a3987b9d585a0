"""Open every page of the built site in a real browser: ``python docs/check_site.py [FOLDER]``.

Each page must load without an error in the console and without a request elsewhere, fit a window
of 360 pixels, and have no serious fault by axe-core. Its first screen has no long paragraph and no
p value. Search must find ``FloodStep``. Screenshots go to FOLDER-screenshots.

``python docs/check_site.py FOLDER results/`` checks the pages below an address alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import launch, missing, overflow, serious_faults, serve, visit
from test_readability import MAX_WORDS_OF_A_PARAGRAPH, P_VALUE

NARROW = 360
# Source code in the reference is folded. axe leaves it out, but walks through it.
REMOVE_SOURCES = """
document.querySelectorAll("details.mkdocstrings-source:not([open])").forEach(item => item.remove())
"""
# Texts of the page itself that begin above the lower edge of the window.
FIRST_SCREEN = """
() => [...document.querySelectorAll("article :is(h1, h2, p, li, td, figcaption)")]
    .filter(item => item.checkVisibility() && !item.closest("td p, li p, nav"))
    .filter(item => item.getBoundingClientRect().top < window.innerHeight)
    .map(item => item.innerText)
"""


def pages(site: Path) -> list[str]:
    """List the pages by their addresses in the site."""
    files = sorted(site.rglob("*.html"))
    return [file.relative_to(site).as_posix().removesuffix("index.html") for file in files]


@contextmanager
def dark_colours(page) -> Generator[None]:
    """Choose dark colours as a reader does, and light ones afterwards; the theme remembers them."""
    page.click("label[title='Dark colours']")
    page.wait_for_selector("body[data-md-color-scheme=slate]")
    try:
        yield
    finally:
        page.click("label[title='Light colours']")
        page.wait_for_selector("body[data-md-color-scheme=default]")


def faults(browser, address: str, picture: Path | None = None) -> list[str]:
    """List what is wrong with a page.

    Args:
        browser: A started browser.
        address: Of the page.
        picture: Where to save a screenshot.

    Returns:
        A line for each fault.
    """
    found = []
    with visit(browser, address) as seen:
        if picture:
            seen.page.screenshot(path=picture)
        found += first_screen_faults(seen.page)
        seen.page.evaluate(REMOVE_SOURCES)
        found += serious_faults(seen.page)
        with dark_colours(seen.page):
            found += [f"dark: {fault}" for fault in serious_faults(seen.page, contrast_only=True)]
        seen.page.set_viewport_size({"width": NARROW, "height": 800})
        wider = overflow(seen.page)
        if wider:
            found.append(f"{wider} pixels wider than {NARROW}")
        found += seen.errors
        found += [f"requests {url}" for url in seen.outside]
    return found


def first_screen_faults(page) -> list[str]:
    """List long paragraphs and p values of the first screen."""
    found = []
    for text in page.evaluate(FIRST_SCREEN):
        words = len(text.split())
        if words >= MAX_WORDS_OF_A_PARAGRAPH:
            found.append(f"first screen: a paragraph of {words} words: {text}")
        if P_VALUE.search(text):
            found.append(f"first screen: a p value: {text}")
    return found


def search_faults(browser, address: str) -> list[str]:
    """Search for ``FloodStep`` as a reader does, by the keyboard."""
    with visit(browser, address) as seen:
        seen.page.keyboard.press("/")
        seen.page.keyboard.type("FloodStep")
        results = seen.page.locator(".md-search-result__link")
        results.first.wait_for(timeout=60_000)
        links = [link.get_attribute("href") or "" for link in results.all()]
        found = [*seen.errors, *(f"requests {url}" for url in seen.outside)]
        if not any("flooding.FloodStep" in link for link in links):
            found.append(f"search for FloodStep finds only {links}")
    return found


def main() -> int:
    """Check every page; returns 1 if one has a fault."""
    reason = missing()
    if reason:
        print(reason)
        return 1
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site")
    below = sys.argv[2] if len(sys.argv) > 2 else ""
    pictures = site.with_name(f"{site.name}-screenshots")
    pictures.mkdir(exist_ok=True)
    checked = [page for page in pages(site) if page.startswith(below)]
    count = 0
    start = time.monotonic()
    with launch() as browser, serve(site) as address:
        found_by_page = [("search", search_faults(browser, f"{address}/"))]
        for page in checked:
            name = page.strip("/").replace("/", "-") or "home"
            picture = pictures / f"{name}.png"
            found_by_page.append((page or "/", faults(browser, f"{address}/{page}", picture)))
            # As soon as it is known: all pages take minutes.
            for where, found in found_by_page:
                count += len(found)
                for fault in found:
                    print(f"{where}: {fault[:300]}", flush=True)
            found_by_page.clear()
    seconds = time.monotonic() - start
    print(f"{len(checked)} pages, {count} faults, {seconds:.0f} seconds")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
