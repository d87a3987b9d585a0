"""A report page holds the numbers of its result, escapes every name, and asks for nothing else."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from flooding import Run
from flooding.level_search.driver import search
from flooding.level_search.finder import finder
from flooding.level_search.grid import grid
from flooding.level_search.result import LevelEstimate
from flooding.level_search.search_page import SearchAbout, search_page
from flooding.report.chart import Axis, Chart, Rule, axis_of, ticks
from flooding.report.document import Report, Table
from flooding.report.document_page import data_table, document_page
from flooding.report.page_charts import Side, reliability_chart
from flooding.testing import fake_record
from pages import check_is_alone, check_structure, elements, parse, rows_of, searched
from small import small

# Names that would be markup, end a script or a style, hide, or turn the text around.
HOSTILE = [
    "</script><script>window.hit=1</script>",
    "</style><style>body{display:none}</style>",
    "<img src=x onerror=window.hit=1>",
    "\"'><svg onload=window.hit=1>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "&lt;b&gt; &amp;amp; <!-- ",
    "javascript:window.hit=1",
    "a\u202egnp.exe\u2066",
    "bell\x07 escape\x1b[31m null\x00 line\u2028separator\ttab\r\nnew",
    "zero\u200bwidth \ufeff\U000e0041 lone \udcff",
    "日本語 عربي naïve ✓",
]


ABOUT = SearchAbout("made-up data", {"Target": "income"}, ["Rows are independent."], "a command")


@pytest.fixture(scope="module")
def result():
    return searched()


@pytest.fixture(scope="module")
def page(result):
    about = SearchAbout(
        "made-up data", {"Target": "income"}, ["Rows are independent."], "a command"
    )
    return search_page(result, about)


@pytest.fixture(scope="module")
def root(page):
    return parse(page.html)


# What it says


def test_the_answer_is_the_level_of_the_result(root, result):
    [answer] = root.find("p", **{"class": "answer"})
    level = f"{result.level:.4g}"
    assert answer.text == (
        f"Use flood level {level} nats: criterion = flooding.Flood(criterion, {level})."
    )


def test_no_flooding_is_an_answer(result):
    plain = replace(result, run=replace(result.run, level=None))
    [answer] = parse(search_page(plain).html).find("p", **{"class": "answer"})
    assert answer.text == "Train without flooding: no level did better on the validation split."


def test_every_training_is_in_the_table_with_its_numbers(root, result):
    expected = []
    for row in result.table:
        expected.append(["" if value is None else repr(float(value)) for value in row.values()])
    assert rows_of(root, "runs") == expected
    assert len(expected) == len(result.records) > 6


def test_the_levels_are_those_that_were_compared_best_first(root, result):
    decision = result.decision
    rows = rows_of(root, "levels")
    assert len(rows) == len(decision.candidates)
    best = decision.selected
    assert rows[0][0] == repr(best.level)
    assert rows[0][-1] == "chosen"
    by_level = {row[0]: row for row in rows}
    for candidate in decision.candidates:
        level = "" if candidate.level is None else repr(candidate.level)
        _, _, own, compared, loss, verdict = by_level[level]
        assert float(own) == 100 * candidate.score
        assert float(compared) == 100 * candidate.compared_score
        assert float(loss) == candidate.loss
        assert (verdict == "worse") == (not candidate.is_equal)
    compared = [float(row[3]) for row in rows]
    assert compared == sorted(compared, reverse=True)


def test_the_decision_is_what_the_finder_compared(result):
    """A slow twin: means of the last epochs of each level, then of each with its neighbours."""
    decision = result.decision
    groups = {}
    for record in result.records:
        groups.setdefault(record.run.level, []).append(record)
    own = []
    for candidate in decision.candidates:
        tails = []
        for record in groups[candidate.level]:
            tails.append(
                np.mean(record.curves["val_accuracy"][-decision.tail_epochs :], dtype=float)
            )
        own.append(np.mean(tails))
        assert candidate.score == pytest.approx(own[-1], rel=1e-12)
    for index, candidate in enumerate(decision.candidates):
        before, after = own[max(index - 1, 0)], own[min(index + 1, len(own) - 1)]
        mean = 0.25 * before + 0.5 * own[index] + 0.25 * after
        assert candidate.compared_score == pytest.approx(mean, rel=1e-12)
    assert decision.selected.level == result.level


def test_a_level_that_was_luckier_alone_is_explained(result):
    """0.46 is chosen where 0.36 looks better: the page says why."""
    from flooding.level_search.decision import Candidate, Decision

    numbers = [(None, 0.80, 0.81), (0.36, 0.90, 0.84), (0.46, 0.88, 0.88), (0.56, 0.87, 0.87)]
    candidates = [Candidate(level, own, 0.5, mean, 0.5, False) for level, own, mean in numbers]
    decided = replace(
        result,
        run=replace(result.run, level=0.46),
        decision=Decision(tuple(candidates), 2, 5, is_smoothed=True),
    )
    root = parse(search_page(decided).html)
    text = root.text
    assert "Level 0.46 was best: 88 %." in text
    assert "On its own, level 0.36 did better: 90 % against 88 %." in text
    [details] = [json.loads(node.text) for node in root.find("script", id="groups")]
    assert details[0]["name"] == "no flooding"


def test_the_marks_stand_where_the_numbers_are(root, result):
    """Positions are read back from the picture, by the ends of its axes."""
    figures = {
        node.attributes["data-labels"]: node
        for node in root.find("figure")
        if "data-x" in node.attributes
    }
    [figure] = [f for f in figures.values() if "Validation accuracy of each level" in f.text]
    ends = {}
    for axis in "xy":
        low, high, log, start, stop = map(float, figure.attributes[f"data-{axis}"].split())
        assert not log
        ends[axis] = (low, high, start, stop)

    def value(axis, place):
        low, high, start, stop = ends[axis]
        return low + (place - start) / (stop - start) * (high - low)

    diamonds = [n for n in figure.find("g") if "diamond" in n.attributes.get("class", "").split()]
    read = []
    for node in diamonds:
        x, y = map(float, re.findall(r"[-\d.]+", node.attributes["transform"]))
        read.append((value("x", x), value("y", y)))
    expected = [(c.level or 0.0, 100 * c.compared_score) for c in result.decision.candidates]
    assert np.allclose(read, expected, atol=0.02)


def test_curves_are_those_of_the_records(root, result):
    [figure] = [f for f in root.find("figure") if f.text.startswith("Validation loss by epoch")]
    lines = [
        n
        for n in figure.find("path")
        if "line" in n.attributes["class"].split() and "data-label" in n.attributes
    ]
    assert len(lines) == len(result.records)
    low, high, _, start, stop = map(float, figure.attributes["data-y"].split())
    expected = sorted(float(record.curves["val_loss"][-1]) for record in result.records)
    last = []
    for line in lines:
        place = float(line.attributes["d"].split()[-1])
        last.append(low + (place - start) / (stop - start) * (high - low))
    assert np.allclose(sorted(last), expected, atol=0.005)


def test_reliability_is_that_of_the_records(root):
    [figure] = [f for f in root.find("figure") if f.text.startswith("Reliability")]
    marks = [
        node.attributes["data-label"]
        for node in figure.find("circle")
        if "data-label" in node.attributes
    ]
    assert len(marks) == 2  # no flooding, and the choice
    assert all("confidence 0.9, accuracy 0.8, 200 examples" in label for label in marks)
    assert "calibration error 0.100 ± 0.000 over 2 seeds" in figure.text


def test_cost_versions_assumptions_and_commands_are_on_it(root, result):
    text = root.text
    assert f"The search cost {result.cost.steps:.2f} full trainings" in text
    assert f"{result.cost.epochs} epochs in {len(result.records)} runs" in text
    assert "Rows are independent." in text
    assert "torch 2." in text
    assert "a machine" in text
    codes = [node.text for node in root.find("code")]
    assert codes == [
        "a command",
        f"import flooding criterion = flooding.Flood(criterion, {result.level:.4g})",
    ]


def test_warnings_come_before_everything_else(result):
    warned = search_page(replace(result, warnings=("too few <seeds>",))).html
    assert warned.index("too few &lt;seeds&gt;") < warned.index("<main")


@pytest.mark.parametrize(
    "changes",
    [
        {"records": (), "decision": None, "estimates": ()},
        {"decision": None},
        {"estimates": (LevelEstimate("odd", None, -math.inf, math.inf),)},
    ],
    ids=["nothing was trained", "no comparison", "no number"],
)
def test_a_result_without_something_has_a_page(result, changes):
    parse(search_page(replace(result, **changes)).html)


def test_other_results_have_a_page():
    """A grid with plain training alone, a loss that decides, and a Run that diverged."""
    problem = small(max_epochs=10)
    for levels in ([None], [0.0, 0.1], [-0.5, 0.3]):
        parse(
            search_page(
                search(grid(problem, levels), lambda runs: list(map(fake_record, runs)))
            ).html
        )
    regress = search(
        grid(problem, [None, 0.1, 0.2]),
        lambda runs: [fake_record(run, accuracy=False) for run in runs],
    )
    text = parse(search_page(regress).html).text
    assert "judged by its validation loss" in text
    diverged = search(
        grid(problem, [None, 0.1, 0.2]),
        lambda runs: [fake_record(run, diverges=run.level == 0.1) for run in runs],
    )
    parse(search_page(diverged).html)


# What it is made of


def test_its_structure(root):
    check_structure(root)


def test_it_asks_for_nothing_and_is_small(page):
    check_is_alone(page.html)
    assert len(page.html.encode()) < 300_000


def test_the_same_result_gives_the_same_bytes(result, page):
    about = SearchAbout(
        "made-up data", {"Target": "income"}, ["Rows are independent."], "a command"
    )
    assert search_page(result, about).html == page.html


def test_a_large_search_stays_below_3_mb():
    """51 levels and 10 seeds of 500 epochs."""
    problem = small(max_epochs=500)
    records = {}

    def train(runs):
        for run in runs:
            if run.level not in records:
                records[run.level] = fake_record(run)
        return [replace(records[run.level], run=run) for run in runs]

    levels = [None, *(n / 100 for n in range(1, 51))]
    page = search_page(search(grid(problem, levels, seeds=range(10)), train))
    assert len(page.html.encode()) < 3_000_000
    check_is_alone(page.html)


# Names of the user's


def visible(text):
    """How a name must stand in the page."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@pytest.mark.parametrize("name", HOSTILE)
def test_every_name_is_shown_and_never_obeyed(result, name):
    estimates = (LevelEstimate(name, 0.1, 0.0, 0.2, name), *result.estimates)
    hostile = replace(result, strategy=name, warnings=(name,), estimates=estimates)
    about = SearchAbout(name, {name: name}, [name], name)
    html = search_page(hostile, about).html
    html.encode()
    tame = search_page(
        replace(
            result,
            warnings=("w",),
            estimates=(LevelEstimate("race2", 0.1, 0.0, 0.2, "n"), *result.estimates),
        ),
        SearchAbout("w", {"k": "v"}, ["a"], "c"),
    ).html
    tags = [(n.tag, sorted(n.attributes)) for n in elements(parse(html))]
    assert tags == [(n.tag, sorted(n.attributes)) for n in elements(parse(tame))]
    texts = [" ".join(visible(part).split()) for part in name.splitlines()]
    everything = parse(html).text
    for text in texts if "\n" in name else [" ".join(visible(name).split())]:
        assert text in everything
    hidden = [c for c in html if not c.isprintable() and c != "\n"]
    assert hidden == []
    check_is_alone(html)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_a_report_are_escaped_too(name):
    table = Table("t", name, ["row", name], [[name, name]], name)
    report = Report(name, name, [name], [name], [table], {}, name)
    html = document_page(report, {}, {name: name}, name).html
    kinds = [n.tag for n in elements(parse(html))]
    tame = Report(
        "t", "a", ["f"], ["g"], [Table("t", "t", ["row", "c"], [["r", "c"]], "n")], {}, "p"
    )
    assert kinds == [n.tag for n in elements(parse(document_page(tame, {}, {"k": "v"}, "c").html))]


# Pieces


@pytest.mark.parametrize(
    ("axis", "texts"),
    [
        (Axis("", 0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (Axis("", -0.31, 0.31), ["-0.2", "0", "0.2"]),
        (Axis("", 80.7, 84.5), ["81", "82", "83", "84"]),
        (Axis("", 0.0, 150.0), ["0", "50", "100", "150"]),
        (Axis("", 1e-6, 3.0, log=True), ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]),
        (Axis("", 0.11, 0.7, log=True), ["0.2", "0.5"]),
        (Axis("", 0.43, 0.69, log=True), ["0.45", "0.5", "0.55", "0.6", "0.65"]),
        (Axis("", 0.9, 3.1, is_whole=True), ["1", "2", "3"]),
    ],
)
def test_ticks_are_round(axis, texts):
    assert [text for _, text in ticks(axis)] == texts


def test_an_axis_holds_its_values():
    axis = axis_of("", [3.0, math.nan, 5.0])
    assert axis.low < 3 < 5 < axis.high
    assert axis_of("", [0.0, 0.1, 1.0], log=True).low > 0
    same = axis_of("", [2.0, 2.0])
    assert same.low < 2 < same.high
    assert axis_of("", []).low < axis_of("", []).high


@pytest.mark.parametrize(
    ("levels", "is_higher"),
    [
        ([0.21, 0.51], [False, True]),
        ([0.1, 0.9], [False, False]),
        ([0.45, 0.55], [False, True]),
        ([0.51, 0.52], [False, True]),
    ],
    ids=["they meet in the middle", "far apart", "towards each other", "both to the left"],
)
def test_texts_at_levels_do_not_run_into_each_other(levels, is_higher):
    x = Axis("", 0.0, 0.55 if levels[0] == 0.21 else 1.0)
    rules = [Rule(level, f"chosen: {level}") for level in levels]
    rows = Chart("a", "", "", x, Axis("", 0.0, 1.0), rules=rules).vertical_rules()
    heights = [y for _, _, _, y in rows]
    assert [y < max(heights) for y in heights] == is_higher


def test_texts_with_numbers_are_sorted_as_numbers():
    rows = [["a", "9.5 ± 1.0", "< 0.001"], ["b", "10.5", "–"], ["c", "+1,200 [+1, +2]", "0.03"]]
    table = data_table(Table("t", "t", ["x", "y", "p"], rows))
    assert [table.key_of(row, 1) for row in range(3)] == ["9.5", "10.5", "1200.0"]
    assert [table.key_of(row, 2) for row in range(3)] == ["0.001", "", "0.03"]
    assert table.text_of(0, 1) == "9.5 ± 1.0"
    assert not table.is_numeric(0)


def test_a_column_of_words_and_numbers_is_text():
    table = data_table(Table("t", "t", ["x"], [["5 %"], ["none"]]))
    assert table.key_of(0, 0) == "5 %"


def test_the_finder_has_no_decision_without_a_race():
    found = search(
        finder(small(max_epochs=1), budget=1.5), lambda runs: list(map(fake_record, runs))
    )
    assert found.decision is None
    parse(search_page(found).html)


def test_bins_are_those_of_the_epoch_that_is_judged():
    record = fake_record(Run(small(max_epochs=5)))
    arrays = {}
    for at, confidence, accuracy in (("last", 0.9, 0.5), ("best", 0.7, 0.7)):
        bins = np.zeros((3, 15), np.float32)
        bins[:, 10] = confidence, accuracy, 50
        arrays[f"{at}.reliability"] = bins
    metrics = {**record.metrics, "last.test_ece": 0.4, "best.test_ece": 0.0}
    record = replace(record, arrays=arrays, metrics=metrics)
    chart = reliability_chart("r", [Side(0, "Late", [record]), Side(1, "Early", [record], "best")])
    assert np.allclose([(mark.x, mark.y) for mark in chart.marks], [(0.9, 0.5), (0.7, 0.7)])
    assert "Late: calibration error 0.400. Early: calibration error 0.000." in chart.description
    assert reliability_chart("r", [Side(0, "Late", [fake_record(Run(small()))])]) is None
