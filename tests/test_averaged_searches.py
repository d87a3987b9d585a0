"""What README, card and benchmarks say of searches with averages is what their lines give."""

import csv
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
    assert f"{behind:.1f} less than its average" in readme
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
        assert difference(AUTO, other, "twonorm")[0] > -0.2


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
        found = []
        for seed in range(4):
            row = {}
            for training, gain in (("plain", plain), ("auto", auto)):
                average = 0.5 + gain + 0.002 * seed
                row[training] = {"last": 0.5, "average.last": average} | dict.fromkeys(
                    ("best", "average.best"), 0.6
                )
            row["auto"]["average.last"] += 0.002 * (seed % 2)
            found.append(row)
        return found

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
    for of_problem in averages.read().values():
        for training in averages.TRAININGS:
            means = {
                network: np.mean([line[training][network] for line in of_problem])
                for network in averages.NETWORKS
            }
            # The page says so; 0.1 point is what it prints.
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
