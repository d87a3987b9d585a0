"""A real browser for the tests of pages: Debian's chromium, driven by playwright.

``make browser`` installs it where you are root. A test that takes the fixture ``browser`` of
conftest.py is skipped, with the reason, where chromium or playwright is missing.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import shutil
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Visit", "launch", "missing", "overflow", "serious_faults", "serve", "visit"]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Page: playwright's; its types are not needed where it is not installed.
Page = Any
Browser = Any


@dataclass
class Visit:
    """A loaded page and what it did while it loaded.

    Args:
        page: Playwright's page.
        errors: Errors of the console, uncaught exceptions, and files of the page that failed.
        outside: Addresses that were requested elsewhere than at the page's own origin.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


def missing() -> str | None:
    """Say what is missing for a browser test, or nothing."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install -e '.[docs]'"
    if shutil.which("chromium") is None:
        return "there is no chromium: make browser"
    return None


@contextmanager
def launch() -> Generator[Browser, None, None]:
    """Start chromium with an empty user folder, and end it afterwards."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder, executable_path=shutil.which("chromium"), args=FLAGS
        )
        try:
            yield context
        finally:
            context.close()


@contextmanager
def visit(
    browser: Browser, address: str, *, width: int = 1280, dark: bool = False
) -> Generator[Visit, None, None]:
    """Load a page in a tab of its own and collect what went wrong.

    Args:
        browser: From :func:`launch`.
        address: ``http://...`` or ``file://...``.
        width: Of the window, in CSS pixels.
        dark: Whether the reader prefers dark colours.

    Yields:
        The visit; its lists grow while the page is used.
    """
    page = browser.new_page()
    seen = Visit(page)
    # The origin of a file is its scheme; data: and blob: are parts of the page itself.
    origin = "/".join(address.split("/")[:3])

    def on_request(request: Any) -> None:
        if not request.url.startswith((origin, "data:", "blob:")):
            seen.outside.append(request.url)

    def on_console(message: Any) -> None:
        if message.type == "error":
            seen.errors.append(message.text)

    page.on("request", on_request)
    page.on("console", on_console)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("requestfailed", lambda request: seen.errors.append(f"{request.url} failed"))
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme="dark" if dark else "light")
    try:
        # The longest pages take a minute where the machine does other work.
        page.goto(address, wait_until="load", timeout=120_000)
        yield seen
    finally:
        page.close()


def overflow(page: Page) -> int:
    """Pixels by which a page is wider than its window: 0 where nothing scrolls sideways."""
    script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return max(0, int(page.evaluate(script)))


# axe takes about 10 ms for the contrast of each text, and a page of the reference has thousands: it
# judges the first of those texts that have the same colours, backgrounds and size.
_MARK_ALIKE = """
() => {
    document.querySelectorAll("[data-alike]").forEach(item => item.removeAttribute("data-alike"))
    const grounds = new Map([[null, ""]]), looks = new Set(), judged = new Set()
    const groundOf = item => {
        if (!grounds.has(item)) {
            const style = getComputedStyle(item)
            const own = [style.backgroundColor, style.backgroundImage, style.opacity].join()
            const isSeen = own !== "rgba(0, 0, 0, 0),none,1"
            grounds.set(item, groundOf(item.parentElement) + (isSeen ? own : ""))
        }
        return grounds.get(item)
    }
    for (const item of document.querySelectorAll("body *")) {
        const hasText = [...item.childNodes].some(
            node => node.nodeType === Node.TEXT_NODE && node.data.trim())
        if (!hasText || !item.checkVisibility({visibilityProperty: true})) continue
        const style = getComputedStyle(item)
        const look = [groundOf(item), style.color, style.fontSize, style.fontWeight].join()
        if (looks.has(look)) continue
        looks.add(look)
        for (let part = item; part; part = part.parentElement) judged.add(part)
    }
    for (const item of judged)
        for (const child of item.children)
            if (!judged.has(child)) child.setAttribute("data-alike", "")
}
"""
_CONTRAST = "color-contrast"


def serious_faults(page: Page, *, contrast_only: bool = False) -> list[str]:
    """Run axe-core.

    Args:
        page: A loaded page.
        contrast_only: Whether to judge nothing but the contrast of texts.

    Returns:
        Its serious and critical faults, each with the first element.
    """
    page.evaluate(_MARK_ALIKE)
    violations = _axe(page, {"exclude": [["[data-alike]"]]}, {"runOnly": [_CONTRAST]})
    if not contrast_only:
        violations += _axe(page, None, {"rules": {_CONTRAST: {"enabled": False}}})
    faults = []
    for fault in violations:
        if fault["impact"] in ("serious", "critical"):
            element = json.dumps(fault["nodes"][0]["html"])
            faults.append(f"{fault['id']}: {fault['help']}: {element}")
    return faults


def _axe(page: Page, context: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    from axe_playwright_python.sync_playwright import Axe

    # Of axe's results only violations are needed; collecting the others takes most of the time.
    answer = Axe().run(page, context, options | {"resultTypes": ["violations"]})
    return answer.response["violations"]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serve(folder: Path) -> Generator[str, None, None]:
    """Serve a folder on this machine; gives its address, without a slash at the end."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
