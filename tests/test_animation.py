"""The animation shows a real run, in little room, and rests for readers who ask for it."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from browser import visit
from flooding import Run
from flooding.testing import fake_record
from small import small

DOCS = Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def animation():
    spec = importlib.util.spec_from_file_location("animation", DOCS / "animation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paths(text):
    """The points of each curve, by its classes."""
    curves = {}
    for path in ElementTree.fromstring(text).iter(f"{SVG}path"):
        kind = path.get("class", "")
        if kind.startswith("line"):
            numbers = re.findall(r"[-\d.]+", path.get("d"))
            curves[kind] = np.array(numbers, float).reshape(-1, 2)
    return curves


def test_curves_and_level_stand_where_they_belong(animation):
    problem = small(max_epochs=30)
    plain, flooded = fake_record(Run(problem)), fake_record(Run(problem, 0.1))
    for record in (plain, flooded):
        record.curves["test_loss"] = record.curves["val_loss"]
    text = animation.draw(plain, flooded, 0.1)
    curves = paths(text)
    assert len(curves) == 4
    # The scale, from the curve whose first and last values are known.
    low, high = (float(plain.curves["train_loss"][epoch]) for epoch in (30, 0))
    y = curves["line plain training"][:, 1]
    scale = (y[-1] - y[0]) / (high - low)
    expected = [
        animation.BOTTOM - scale * float(value) for value in flooded.curves["train_loss"][::2]
    ]
    assert np.allclose(curves["line flooded training"][:, 1], expected, atol=0.11)
    surface = re.search(r'class="surface" d="M\d+ ([\d.]+)', text)[1]
    assert float(surface) == pytest.approx(animation.BOTTOM - scale * 0.1, abs=0.11)


def test_the_picture_of_the_site_is_small_and_alone():
    path = DOCS / "images" / "flooding.svg"
    text = path.read_text()
    assert path.stat().st_size < 500_000
    root = ElementTree.fromstring(text)
    assert [child.tag for child in root][:2] == [f"{SVG}title", f"{SVG}desc"]
    assert root.get("role") == "img"
    assert "prefers-reduced-motion: reduce" in text
    assert not re.search(r"<script|href|@import|url\((?!#)", text)
    # Without flooding the training loss ends at the bottom, with it at the surface.
    curves = paths(text)
    surface = float(re.search(r'class="surface" d="M\d+ ([\d.]+)', text)[1])
    assert curves["line flooded training"][-20:, 1].mean() == pytest.approx(surface, abs=3)
    assert curves["line plain training"][-1, 1] > surface + 30
    assert curves["line plain test"][-1, 1] < curves["line flooded test"][-1, 1]


def test_it_moves_for_at_most_five_seconds_or_not_at_all(browser, animation):
    address = (DOCS / "images" / "flooding.svg").as_uri()
    script = "document.getAnimations().map((a) => a.effect.getComputedTiming().endTime)"
    with visit(browser, address) as seen:
        ends = seen.page.evaluate(script)
        assert len(ends) > 2
        # What moves on its own for longer needs a way to stop it (WCAG 2.2.2).
        assert max(ends) <= 5000
        seen.page.emulate_media(reduced_motion="reduce")
        assert seen.page.evaluate(script) == []
        assert seen.errors == []
