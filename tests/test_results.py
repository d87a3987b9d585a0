"""docs/results holds what its archives give: a wrong figure there fails here. Nothing is
trained."""

from pathlib import Path

import pytest

from flooding.data import downloads
from flooding.entries import EXPERIMENTS, entry_names, find_entry
from flooding.level_search.driver import run_generator

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
SOURCES = {"ishida2020": ROOT / "benchmarks" / "levels"}  # the others lie beside their page
NEEDS = {"peterson2019": "cifar10h/cifar10h-probs.npy"}  # a file that a page is drawn from besides
# The page of a benchmark, which has lines of JSON for an archive.
BENCHMARK_PAGE = "tables"
NAMES = sorted(
    path.stem for path in RESULTS.glob("*.md") if path.stem not in {"README", BENCHMARK_PAGE}
)


def regenerated(name):
    experiment = find_entry("experiment", name, EXPERIMENTS).load()
    archive = experiment.load(SOURCES.get(name, RESULTS / f"{name}.npz"))
    return run_generator(experiment.start(False, archive.seeds), archive)[0]


def test_there_are_results_and_each_is_an_experiment():
    assert NAMES
    assert set(NAMES) <= set(entry_names(EXPERIMENTS))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_what_its_archive_gives(name):
    if name in NEEDS and downloads.find(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is neither in FLOODING_DATA nor in the cache")
    report = regenerated(name)
    assert (RESULTS / f"{name}.md").read_text() == report.markdown(name)
    tables = {path.name: path.read_text() for path in RESULTS.glob(f"{name}-*.csv")}
    assert tables == {f"{name}-{table.name}.csv": table.csv() for table in report.tables}
    assert {path.name for path in RESULTS.glob(f"{name}-*.png")} == {
        f"{name}-{n}.png" for n in report.figures
    }


def test_the_page_of_the_tables_is_what_its_lines_give(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import kept_network

    report = kept_network.page(ROOT / "benchmarks" / "kept_network.jsonl")
    assert (RESULTS / f"{BENCHMARK_PAGE}.md").read_text() == report.markdown(BENCHMARK_PAGE)


def test_archives_are_small():
    sizes = [
        path.stat().st_size
        for folder in (RESULTS, SOURCES["ishida2020"])
        for path in folder.glob("*.npz")
    ]
    assert sum(sizes) <= 20 << 20
