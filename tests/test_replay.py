"""The level benchmark replays a search: same choice as by hand from its arrays, cost as the engine
would count it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from flooding import Run
from flooding.experiments.synthetic_cells import LEVELS
from flooding.level_search.driver import search
from flooding.level_search.grid import grid
from flooding.level_search.halving import halving

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def cells():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from replay import Table
    finally:
        sys.path.remove(str(BENCHMARKS))
    return list(Table([3]).cells())


def test_there_are_nine_cells_and_their_files_are_whole(cells):
    assert len({(cell.task, cell.noise) for cell in cells}) == 9
    files = sorted((BENCHMARKS / "levels").glob("seed*.npz"))
    assert sum(path.stat().st_size for path in files) <= 15 << 20
    for path in files:
        with np.load(path) as file:
            assert (
                file["train_loss"].shape
                == file["val_loss"].shape
                == file["val_right"].shape
                == (3, 3, 51, 501)
            )
            assert file["val_right"].max() <= 100
            assert (np.diff(file["levels"]) > 0).all()
            for name in (
                "test_accuracy",
                "test_accuracy_clean",
                "test_nll",
                "test_nll_clean",
                "test_ece",
            ):
                assert np.isfinite(file[f"last_{name}"]).all()
                assert np.isfinite(file[f"best_{name}"]).all()


def test_a_grid_chooses_as_by_hand(cells):
    for cell in cells:
        arrays, index = cell.arrays, cell.index
        result = search(grid(cell.problem, LEVELS, seeds=[cell.seed]), cell.run_all())
        right, loss = (
            arrays[name][*index, :, -1].astype(float) for name in ("val_right", "val_loss")
        )
        by_hand = max(range(51), key=lambda i, right=right, loss=loss: (right[i], -loss[i], -i))
        assert (result.level or 0.0) == LEVELS[by_hand]
        assert (
            cell.final(result.level, "last_test_accuracy_clean")
            == arrays["last_test_accuracy_clean"][*index, by_hand]
        )
        assert result.cost.trainings == 51
        assert 30 < result.cost.steps < 51, "beginnings are shared"


def test_halving_pays_for_no_epoch_twice(cells):
    result = search(halving(cells[2].problem, LEVELS[::5], seeds=[3]), cells[2].run_all())
    longest = {}
    for record in result.records:
        longest[record.run.level] = max(longest.get(record.run.level, 0), record.run.epochs)
    assert result.cost.epochs <= sum(longest.values())


@pytest.mark.parametrize(
    ("level", "seed", "message"), [(0.505, 3, "0, 0.01 ... 0.50"), (0.1, 4, "has seed 3, got 4")]
)
def test_what_the_benchmark_lacks_is_refused(cells, level, seed, message):
    with pytest.raises(ValueError, match=message):
        cells[0].run_all()([Run(cells[0].problem, level, seed=seed)])
