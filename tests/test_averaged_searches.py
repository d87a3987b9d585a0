"""What README, card and benchmarks say of searches with averages is what their lines give."""

import csv
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def averaged():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(ROOT / "benchmarks")
    import averaged_searches

    yield averaged_searches
    patch.undo()


@pytest.fixture
def difference(averaged):
    """Mean, ends of the 95 % interval and n of a difference in points, on real problems or one."""
    rows = averaged.results(averaged.NAME)

    def of(one, other, problem=None):
        chosen = [row for row in rows if row["problem"] == (problem or row["problem"])]
        if problem is None:  # Twonorm has almost no noise, so it is apart
            chosen = [row for row in chosen if row["problem"] != "twonorm"]
        values = [100 * (row[one[0]][one[1]] - row[other[0]][other[1]]) for row in chosen]
        return (*averaged.interval(values), len(values))

    return of


AUTO, GRID = ("auto", "average.last"), ("grid", "last")


def test_one_training_with_an_average_is_as_good_as_eleven(difference, averaged):
    mean, low, _, n = difference(AUTO, GRID)
    assert n >= 50
    assert low > -0.5
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"was {mean:.1f} points more accurate" in readme
    # The README says so, too: the grid's average, early stopping, and clean labels.
    behind = -difference(AUTO, ("grid+", "average.last"))[0]
    assert f"{behind:.1f} below the best of their averages" in readme
    with (ROOT / "docs/results/ishida2020_images-auto.csv").open() as file:
        [mnist] = [row for row in csv.DictReader(file) if row["data"] == "MNIST"]
    cost = mnist["difference"].removeprefix("-").split()[0]
    assert f"on MNIST, with clean labels, it cost {cost}:" in readme
    for other in (AUTO, GRID):
        assert difference(("plain", "best"), other)[1] > 0
    # Not below plain training on any problem, by more than chance.
    for problem in averaged.REAL:
        _, _, high, _ = difference(AUTO, ("plain", "last"), problem)
        assert high > 0, problem
    for other in (GRID, ("plain", "last")):
        mean, *_, n = difference(AUTO, other, "twonorm")
        assert n >= 10
        assert mean > -0.2


def test_plain_training_gains_less_by_an_average(averaged):
    rows = [row for row in averaged.results(averaged.NAME) if row["problem"] != "twonorm"]
    gains = {}
    for name in ("auto", "plain"):
        gains[name] = np.array([row[name]["average.last"] - row[name]["last"] for row in rows])
    _, low, _ = averaged.interval(list(100 * (gains["auto"] - gains["plain"])))
    assert low > 0


def test_the_words_on_each_problem_follow_its_interval(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "parts")
    import averages

    def lines(plain, auto):
        rows = []
        for seed in range(4):
            row = {}
            for training, gain in (("plain", plain), ("auto", auto)):
                average = 0.5 + gain + 0.002 * seed
                row[training] = {"last": 0.5, "average.last": average} | dict.fromkeys(
                    ("best", "average.best"), 0.6
                )
            row["auto"]["average.last"] += 0.002 * (seed % 2)
            rows.append(row)
        return rows

    page = averages.table({
        "digits": lines(0, 0.1),
        "spambase": lines(0.1, 0),
        "letter": lines(0.1, 0.1),
    })
    assert "gains more with flooding than without on digits." in page
    assert "gains less with flooding on spambase." in page
    assert "not shown to gain more or less with flooding on letter." in page
    assert "| digits, 20 % label noise | plain | 4 | 50.0 | 50.3 | +0.3 [-0.1, +0.7] |" in page
    assert "| auto level | 4 | 50.0 | 60.4 | +10.4 [+9.9, +10.9] | +10.1 [+9.9, +10.3] |" in page


def test_what_the_average_gains_on_single_problems_is_as_the_pages_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "parts")
    import averages

    by_problem = averages.read()
    assert {row["auto"]["level"] for row in by_problem["higgs7k"]} == {None}

    def gain(name, training):
        return f"{np.mean(averages.gains(by_problem[name], training)):.1f}"

    card = " ".join((ROOT / "docs/methods/averaging.md").read_text().split())
    [digits] = re.findall(r"does not: (\d\.\d) points on digits", card)
    assert digits == gain("digits", "auto")
    [both] = re.findall(r"On Fashion-MNIST 5k both gain (\d\.\d) to (\d\.\d)", card)
    assert list(both) == sorted(gain("fashion-mnist-5k", name) for name in ("plain", "auto"))


def test_the_best_average_is_the_most_accurate_of_each_row(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "parts")
    import averages

    for of_problem in averages.read().values():
        for training in averages.TRAININGS:
            means = {
                network: np.mean([line[training][network] for line in of_problem])
                for network in averages.NETWORKS
            }
            # 0.1 point is what the page prints.
            assert means["average.best"] > max(means.values()) - 0.001


def test_the_finder_with_an_average_keeps_up_with_the_grid(difference, averaged):
    mean, _, _, _ = difference(("finder", "average.last"), ("grid+", "average.last"))
    assert mean > -0.2
    rows = averaged.results(averaged.NAME)
    assert np.mean([row["finder"]["cost"] for row in rows]) <= 3


@pytest.mark.parametrize("page", ["docs/methods/auto.md", "benchmarks/README.md"])
def test_the_pages_have_these_numbers(difference, page):
    text = (ROOT / page).read_text()
    digits = 1 if page.startswith("docs") else 2
    for one, other in ((AUTO, GRID), (AUTO, ("auto", "last")), (("auto", "last"), GRID)):
        mean, low, high, n = difference(one, other)
        numbers = [f"{abs(number):.{digits}f}" for number in (mean, low, high)]
        assert all(number in text for number in numbers), numbers
        assert str(n) in text


def test_other_pages_name_the_same_gains(difference):
    gain = difference(AUTO, GRID)[0]
    behind = -difference(AUTO, ("grid+", "average.last"))[0]
    unaveraged = -difference(("auto", "last"), GRID)[0]
    searches = " ".join((ROOT / "docs/searches.md").read_text().split())
    assert f"average is {gain:.1f} points above the last epoch of the best of 11" in searches
    assert f"and {behind:.1f} below the average of the level that is best by" in searches
    choosing = " ".join((ROOT / "docs/choosing-a-level.md").read_text().split())
    assert f"it was {unaveraged:.1f} points below the best of 11 levels" in choosing
    assert f"and its average {gain:.1f} above" in choosing


@pytest.mark.parametrize(
    ("script", "name", "page"),
    [
        ("searches", "synthetic", "docs/searches.md"),
        ("searches", "real", "docs/searches.md"),
        ("auto_level", "auto-level", "docs/methods/auto.md"),
    ],
)
def test_the_tables_of_the_pages_are_those_of_their_lines(monkeypatch, capsys, script, name, page):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module(script)
    arguments = (name, range(10)) if script == "searches" else ()
    module.table(*arguments)
    part = name if script == "auto_level" else f"searches-{name}"
    expected = f"<!-- {part}:begin -->\n{capsys.readouterr().out.strip()}\n<!-- {part}:end -->"
    assert expected in (ROOT / page).read_text(), f"python benchmarks/{script}.py table --write"


def test_a_level_without_a_search_is_as_good_as_the_exhaustive_choice(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import auto_level

    own = [row for row in auto_level.results("synthetic") if auto_level.is_auto(row)]
    assert np.mean([row["cost"] for row in own]) <= 1.05
    exhaustive = auto_level.differences(range(5, 10), *auto_level.ROWS[0][1:])
    mean, low, _ = auto_level.interval([d for cell in exhaustive.values() for d in cell])
    assert mean >= -0.3
    assert low > -0.8
    best = auto_level.differences(range(10), *auto_level.ROWS[2][1:])
    mean, low, high = auto_level.interval([d for cell in best.values() for d in cell])
    card = " ".join((ROOT / "docs/methods/auto.md").read_text().split())
    assert f"its best epoch is {mean:.2f} points [{low:.2f}, {high:.2f}] above plain early" in card
    assert low < 0
    plain = auto_level.differences(range(10), *auto_level.ROWS[1][1:])
    assert len(plain) == 9
    for cell, values in plain.items():
        assert len(values) == 10
        assert auto_level.interval(values)[2] > -0.5, cell
