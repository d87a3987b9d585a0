"""The benchmark of twelve tables: its tables are those it names, its page says what they say."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "kept_network.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("kept_network", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_lines(benchmark, path, gain):
    """Made-up results: the kept network is better than each rival by some points."""
    with path.open("w") as file:
        for number, name in enumerate(benchmark.tables()):
            for seed in range(2):
                is_number = benchmark.tables()[name][0] == "regression"
                methods = {}
                for method in (benchmark.KEPT, *benchmark.RIVALS):
                    share = 0.8 + 0.001 * number + gain / 100 * (method == benchmark.KEPT)
                    methods[method] = {"test_accuracy": share, "test_loss": 1 - share, "seconds": 2}
                methods[benchmark.KEPT]["kept"] = "flooded, level 0.1" if seed else "plain training"
                methods["flooded, level 0.1"] = {}
                line = {"table": name, "seed": seed, "variance": 1.0 if is_number else None}
                line["machine"] = "a machine"
                file.write(json.dumps({**line, "methods": methods}) + "\n")


@pytest.mark.parametrize(
    ("gain", "verdict"), [(1.0, "is"), (-0.29, "is"), (-0.31, "is not shown to be")]
)
def test_the_page_says_whether_the_network_keeps_up(benchmark, tmp_path, gain, verdict):
    write_lines(benchmark, tmp_path / "a.jsonl", gain)
    report = benchmark.page(tmp_path / "a.jsonl")
    expected = f"The network that is kept {verdict} at most 0.3 point behind plain training"
    assert report.findings[0].startswith(expected)
    assert f"{gain:+.2f} [" in report.findings[0]
    page = report.markdown("tables")
    assert all(name in page for name in benchmark.tables())
    choices = report.tables[-1]
    assert list(choices.rows[0])[1:] == ["2 of 2", "1 of 2"]


def test_there_are_twelve_tables_and_results_are_read_once(benchmark, tmp_path):
    assert len(benchmark.tables()) == 12
    assert benchmark.read(tmp_path / "missing.jsonl") == {}
    write_lines(benchmark, tmp_path / "a.jsonl", 0.0)
    assert len(benchmark.read(tmp_path / "a.jsonl")) == 24


def test_made_up_tables_have_the_noise_that_they_name(benchmark):
    rows = benchmark.made_up_moons()
    assert len(rows) == 800
    assert {row[-1] for row in rows} == {0, 1}
    assert len(benchmark.made_up_numbers()[0]) == 11
