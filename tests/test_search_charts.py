"""The charts of an experiment's report page: results by level and curves, for each problem."""

from dataclasses import replace

import numpy as np
import pytest

from browser import overflow, serious_faults, visit
from flooding import Run
from flooding.report.document import Report, Table
from flooding.report.document_page import document_page
from flooding.report.search_charts import shown_groups, shown_levels, study_charts
from flooding.testing import fake_record
from pages import check_is_alone, check_structure, parse
from small import small
from test_report_page import HOSTILE

LEVELS = (0.0, 0.1, 0.2)
# Validation accuracy by level and seed; the first seed is best at 0.2, the second at 0.1.
ACCURACIES = {0.0: (0.70, 0.72), 0.1: (0.74, 0.80), 0.2: (0.78, 0.76)}


def search(levels=LEVELS, accuracies=ACCURACIES):
    records = {}
    for level in levels:
        by_seed = []
        for seed in (0, 1):
            record = fake_record(Run(small(max_epochs=40), level or None, seed=seed))
            metrics = {**record.metrics, "last.val_accuracy": accuracies[level][seed]}
            by_seed.append(replace(record, metrics=metrics))
        records[level] = by_seed
    return records


def page_of(searches):
    table = Table("t", "Sizes", ["name", "size"], [["a", "9.5 ± 1"], ["b", "10.5"], ["c", "–"]])
    return document_page(
        Report("Title", "About.", ["Failed, p 0.4."], ["Found."], [table], answer="It holds.",
               searches=searches),
        {},
        {"Experiment": "x"},
        "flooding reproduce x",
    )  # fmt: skip


def test_a_chart_shows_means_and_the_best_level_of_each_seed():
    [[results, *curves]] = study_charts({"Digits": search()})
    assert results.title == "Digits: validation accuracy of each level"
    means = {mark.x: mark.y for mark in results.marks if mark.look == "diamond"}
    assert means == pytest.approx({0.0: 71.0, 0.1: 77.0, 0.2: 77.0})
    rings = [(mark.x, mark.y, mark.group) for mark in results.marks if mark.look == "ring"]
    assert rings == [(0.2, pytest.approx(78.0), 2), (0.1, pytest.approx(80.0), 1)]
    assert [chart.title for chart in curves] == [
        "Digits: training loss by epoch",
        "Digits: validation accuracy by epoch",
    ]
    record = fake_record(Run(small(max_epochs=40), 0.1))
    line = curves[0].lines[1]
    assert line.group == 1
    assert line.points[-1] == (40.0, pytest.approx(float(record.curves["train_loss"][-1])))


def test_a_page_has_few_levels_and_short_curves_whatever_was_trained():
    levels = [round(0.01 * n, 2) for n in range(51)]
    accuracies = {level: (0.5 + level, 0.5 + level) for level in levels}
    searches = {"Many": search(levels, accuracies)}
    shown = shown_levels(searches)
    assert len(shown) <= 16
    assert shown[0] == 0
    assert np.ptp(np.diff(shown)) < 1e-9
    assert [group.name for group in shown_groups(searches)][:2] == ["no flooding", "level 0.04"]
    assert "Many: validation accuracy in % 54.0 ± 0.0." in shown_groups(searches)[1].details
    [[results, training, _]] = study_charts(searches)
    assert len(results.lines[0].points) == 51, "the line has every level"
    assert {mark.x for mark in results.marks if mark.look == "ring"} == {0.5}
    assert len(training.lines) == len(shown)


def test_without_an_accuracy_the_loss_is_drawn():
    records = {}
    for level, by_seed in search().items():
        kept = []
        for record in by_seed:
            metrics = {k: v for k, v in record.metrics.items() if "accuracy" not in k}
            kept.append(replace(record, metrics={**metrics, "last.val_loss": 0.3 + level}))
        records[level] = kept
    [[results, *_]] = study_charts({"Numbers": records})
    assert results.y.label == "Validation loss (nats)"
    assert {mark.x for mark in results.marks if mark.look == "ring"} == {0.0}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_name_of_a_problem_is_text(name):
    html = page_of({name: search()}).html
    tame = page_of({"t": search()}).html
    count = [len(list(parse(text).find(tag))) for text in (html, tame) for tag in ("g", "b", "i")]
    assert count[:3] == count[3:]
    check_is_alone(html)


def test_the_answer_comes_first_and_tests_later():
    root = parse(page_of({"Digits": search()}).html)
    check_structure(root)
    [answer] = root.find("p", **{"class": "answer"})
    assert answer.text == "It holds."
    headings = [node.text for node in root.find("h2")]
    assert headings[:4] == ["What was asked", "Levels and curves", "Not reproduced", "Found"]


# In a browser

CHART = "figure.chart:has-text('Digits: validation accuracy of each level')"
CURVES = "figure.chart:has-text('Digits: training loss by epoch')"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    return page_of({"Digits": search(), "Letters": search(LEVELS[:2])}).save(path).as_uri()


def test_it_can_be_used_by_pointer_and_keyboard(browser, address):
    with visit(browser, address) as seen:
        page = seen.page
        page.locator(f"{CHART} >> .diamond").nth(1).hover()
        tip = page.locator(f"{CHART} >> .tip")
        assert tip.inner_text() == "Level 0.1: mean 77 %"
        # A level is selected in every chart of every problem.
        page.locator(f"{CHART} >> .diamond").nth(1).click()
        assert page.locator(".line.is-picked").count() == 4
        assert "Letters: validation accuracy in % 77.0" in page.locator(".detail").inner_text()
        page.keyboard.press("Escape")
        assert page.locator(".is-picked").count() == 0
        # By keyboard: along the marks, and a table.
        page.locator(f"{CHART} >> .diamond[tabindex='0']").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert page.locator(".chip[aria-pressed=true]").inner_text().strip() == "level 0.1"
        page.locator("#table-t thead th").nth(1).locator("button").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        assert page.locator("#table-t tbody th").all_inner_texts() == ["b", "a", "c"]
        assert seen.errors == []
        assert seen.outside == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_it_fits_and_has_no_serious_fault(browser, address, width, dark):
    with visit(browser, address, width=width, dark=dark) as seen:
        assert overflow(seen.page) == 0
        assert serious_faults(seen.page) == []
        script = "line => getComputedStyle(line).stroke"
        strokes = seen.page.locator(f"{CURVES} >> .line").evaluate_all(
            f"lines => lines.map({script})"
        )
        assert len(set(strokes)) == 3, "a colour for each level"
        assert seen.errors == []
        assert seen.outside == []
