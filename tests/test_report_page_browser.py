"""A report page in a real browser: pointing, selecting, sorting, dark colours, a phone."""

from dataclasses import replace

import pytest

from browser import overflow, serious_faults, visit
from flooding.level_search.result import LevelEstimate
from flooding.level_search.search_page import SearchAbout, search_page
from pages import searched
from test_report_page import HOSTILE

CHART = "figure.chart:has-text('Validation accuracy of each level')"
CURVES = "figure.chart:has-text('Training loss by epoch')"


@pytest.fixture(scope="module")
def result():
    return searched()


@pytest.fixture(scope="module")
def address(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    result.report(path, SearchAbout("made-up data", command="flooding find somewhere/" + "x" * 90))
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    """The page in a wide window; whatever a test does, nothing fails and nothing is asked for."""
    with visit(browser, address) as seen:
        yield seen.page
        assert seen.errors == []
        assert seen.outside == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_it_loads_fits_and_has_no_serious_fault(browser, address, width, dark):
    with visit(browser, address, width=width, dark=dark) as seen:
        assert overflow(seen.page) == 0
        # What fades while something is selected must be readable as well.
        if width == 360:
            seen.page.locator(".chip").nth(2).click()
        assert serious_faults(seen.page) == []
        assert seen.errors == []
        assert seen.outside == []


def test_pointing_at_a_mark_names_it(page, result):
    tip = page.locator(f"{CHART} >> .tip")
    assert tip.is_hidden()
    page.locator(f"{CHART} >> .diamond").first.hover()
    first = result.decision.candidates[0]
    assert tip.inner_text() == (
        f"No flooding: validation accuracy with its neighbours {100 * first.compared_score:.4g} %, "
        f"{100 * first.score:.4g} alone"
    )
    page.locator("h1").hover()
    assert tip.is_hidden()


def test_pointing_at_a_curve_names_training_epoch_and_value(page, result):
    chart = page.locator(f"{CURVES} >> svg[role=group]")
    chart.scroll_into_view_if_needed()
    plain = result.records[0]
    line = page.locator(f"{CURVES} >> path[data-label='No flooding, seed 0']")
    point = line.get_attribute("d")[1:].split("L")[20]
    box = chart.bounding_box()
    x, y = (float(number) * box["width"] / 360 for number in point.split())
    page.mouse.move(box["x"] + x, box["y"] + y)
    name, _, rest = page.locator(f"{CURVES} >> .tip").inner_text().partition(". Epoch ")
    epoch, _, value = rest.partition(": ")
    assert name in {"No flooding, seed 0", "No flooding, seed 1"}  # made up, they are the same
    assert epoch == "20"
    assert float(value) == pytest.approx(float(plain.curves["train_loss"][20]), rel=0.01)


def test_a_level_is_selected_on_the_whole_page(page, result):
    level = f"level {result.decision.candidates[1].level:.4g}"
    detail = page.locator(".detail")
    page.locator(f"{CHART} >> .diamond").nth(1).click()
    assert detail.inner_text().startswith(f"Level {level[6:]}.")
    assert page.locator(f".chip:has-text('{level}')").get_attribute("aria-pressed") == "true"
    # Its curves stand out, the others fade; its rows are marked.
    labels = page.locator(f"{CURVES} >> .line.is-picked").evaluate_all(
        "lines => lines.map((line) => line.dataset.label)"
    )
    assert labels == [f"{level.capitalize()}, seed {seed}" for seed in (0, 1)]
    faded = page.locator(f"{CURVES} >> .line:not(.is-picked)").first
    assert float(faded.evaluate("line => getComputedStyle(line).opacity")) < 0.5
    assert page.locator("#runs tr.is-picked").count() == 2
    page.keyboard.press("Escape")
    assert page.locator(".is-picked").count() == 0
    assert detail.inner_text().startswith("Select a level")
    # A curve and a row select as well.
    page.locator("#levels tbody button").nth(1).click()
    assert page.locator("#levels tr.is-picked").count() == 1
    chip = page.locator(".chip[aria-pressed=true]")
    assert chip.count() == 1
    chip.click()
    assert page.locator(".is-picked").count() == 0


def test_marks_are_reached_and_selected_by_the_keyboard(page):
    # One stop for all marks; arrow keys go from one to the next.
    assert page.locator(f"{CHART} >> .diamond[tabindex='0']").count() == 1
    page.locator(f"{CHART} >> .diamond[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    focused = page.locator(":focus")
    assert "diamond" in focused.get_attribute("class")
    assert page.locator(f"{CHART} >> .tip").inner_text() == focused.get_attribute("aria-label")
    page.keyboard.press("Enter")
    assert focused.get_attribute("aria-pressed") == "true"
    assert page.locator(".detail").inner_text().startswith("Level ")
    page.keyboard.press("Space")
    assert focused.get_attribute("aria-pressed") == "false"


def test_a_table_is_sorted_by_the_keyboard(page, result):
    column = list(result.table[0]).index("val_loss")

    def values():
        return page.locator(f"#runs tbody tr td:nth-child({column + 1})").evaluate_all(
            "cells => cells.map((cell) => Number(cell.dataset.key))"
        )

    expected = sorted(row["val_loss"] for row in result.table)
    assert values() != expected
    head = page.locator("#runs thead th").nth(column)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert values() == expected
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert values() == expected[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("#runs th[aria-sort=none]").count() == len(result.table[0]) - 1
    # No flooding has no number: it comes last, both ways.
    level = page.locator("#runs thead th").first.locator("button")
    for _ in range(2):
        level.click()
        assert page.locator("#runs tbody th").last.inner_text() == "no flooding"


def colour(page):
    script = "() => getComputedStyle(document.body).backgroundColor"
    return sum(map(int, page.evaluate(script)[4:-1].split(",")))


def test_colours_follow_the_system_and_the_button(browser, address):
    with visit(browser, address, dark=True) as seen:
        assert colour(seen.page) < 100
        line = seen.page.locator(f"{CURVES} >> .line").first
        script = "line => getComputedStyle(line).stroke"
        dark = line.evaluate(script)
        seen.page.locator("#theme").click()
        assert colour(seen.page) == 3 * 255
        assert line.evaluate(script) != dark
        assert seen.page.locator("#theme").inner_text() == "Dark colours"
    with visit(browser, address) as seen:
        assert colour(seen.page) == 3 * 255
        seen.page.locator("#theme").click()
        assert colour(seen.page) < 100


def test_hostile_names_do_nothing(browser, result, tmp_path):
    estimates = [LevelEstimate(name, 0.1, 0.0, 0.2, name) for name in HOSTILE]
    hostile = replace(result, strategy=HOSTILE[0], warnings=HOSTILE, estimates=tuple(estimates))
    about = SearchAbout(HOSTILE[2], {name: name for name in HOSTILE}, HOSTILE, HOSTILE[3])
    path = search_page(hostile, about).save(tmp_path / "page.html")
    with visit(browser, path.as_uri(), width=360) as seen:
        assert seen.page.evaluate("window.hit") is None
        seen.page.locator(".chip").first.click()
        assert seen.page.evaluate("window.hit") is None
        assert overflow(seen.page) == 0
        assert seen.errors == []
        assert seen.outside == []
        assert HOSTILE[2] in seen.page.locator("h1").inner_text()


def test_it_works_inside_a_notebook(browser, result, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><title>Notebook</title>{result.report()._repr_html_()}")
    with visit(browser, path.as_uri()) as seen:
        frame = seen.page.frame_locator("iframe")
        frame.locator(".chip").nth(1).click()
        assert frame.locator(".chip[aria-pressed=true]").count() == 1
        # Its styles are its own.
        assert seen.page.evaluate("getComputedStyle(document.body).maxWidth") == "none"
        assert seen.errors == []
        assert seen.outside == []
