"""Draw docs/images/report-page.png: ``python docs/report_picture.py``.

The report page of a real search, in the browser of ``make browser``, at a width at which a phone
can still show its texts: all above the second chart, but for what was asked.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from flooding import Problem, find_level
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from browser import launch, visit

WIDTH, HEIGHT = 480, 2000


def main() -> None:
    """Search, write the page, and save its picture."""
    problem = Problem(
        partial(two_gaussians, label_noise=0.1, n_test=1000),
        partial(mlp, 10, 2, width=50, depth=2),
        partial(torch.optim.Adam, lr=0.003),
        max_epochs=150,
    )
    result = find_level(problem)
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder, "page.html"), Path(folder, "page.png")
        result.report(page)
        with launch() as browser, visit(browser, page.as_uri(), width=WIDTH) as seen:
            seen.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
            seen.page.locator("section[aria-labelledby=asked]").evaluate("e => e.remove()")
            box = seen.page.locator(".chart").first.bounding_box()
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"] + 16}
            seen.page.screenshot(path=picture, clip=clip)
        with Image.open(picture) as image:
            colours = image.convert("RGB").quantize(255, dither=Image.Dither.NONE)
            colours.save(HERE / "images" / "report-page.png", optimize=True)


if __name__ == "__main__":
    main()
