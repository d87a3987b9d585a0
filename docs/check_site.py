"""Open every page of the built site in a real browser: ``python docs/check_site.py [FOLDER]``.

Each page must load without an error in the console and without a request elsewhere, fit a window
of 360 pixels, and have no serious fault by axe-core. Screenshots go to FOLDER-screenshots.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import launch, missing, overflow, serious_faults, serve, visit

NARROW = 360


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
        found += serious_faults(seen.page)
        with dark_colours(seen.page):
            found += [f"dark: {fault}" for fault in serious_faults(seen.page)]
        seen.page.set_viewport_size({"width": NARROW, "height": 800})
        wider = overflow(seen.page)
        if wider:
            found.append(f"{wider} pixels wider than {NARROW}")
        found += seen.errors
        found += [f"requests {url}" for url in seen.outside]
    return found


def main() -> int:
    """Check every page; returns 1 if one has a fault."""
    reason = missing()
    if reason:
        print(reason)
        return 1
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site")
    pictures = site.with_name(f"{site.name}-screenshots")
    pictures.mkdir(exist_ok=True)
    count = 0
    with launch() as browser, serve(site) as address:
        for page in pages(site):
            name = page.strip("/").replace("/", "-") or "home"
            found = faults(browser, f"{address}/{page}", pictures / f"{name}.png")
            count += len(found)
            for fault in found:
                print(f"{page or '/'}: {fault[:300]}")
    print(f"{len(pages(site))} pages, {count} faults")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
