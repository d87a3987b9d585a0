"""Tables are divided without overlap, standardised on training rows alone, and noisy only where
they should be."""

import gzip
import hashlib
import statistics
import sys

import numpy as np
import pytest
import torch

from flooding.data import downloads
from flooding.data.registry import FILES
from flooding.data.tables import digits, higgs7k, letter, spambase, split_table, twonorm


def numbered(rows=40, columns=3):
    """A table whose label is its row number, so that rows can be recognised after the division."""
    x = np.random.default_rng(0).normal(3.0, 5.0, (rows, columns))
    return x, np.arange(rows)


def test_every_row_lands_in_exactly_one_split():
    x, y = numbered()
    splits = split_table(x, y, n_train=20, n_val=12, seed=0)
    parts = [s.y.tolist() for s in (splits.train, splits.val, splits.test)]
    assert [len(p) for p in parts] == [20, 12, 8]
    assert sorted(row for part in parts for row in part) == list(range(40))


def test_inputs_are_standardised_with_training_rows_column_by_column():
    x, y = numbered()
    splits = split_table(x, y, n_train=20, n_val=12, seed=1)
    train = splits.train.y.tolist()
    for column in range(3):
        fit = [x[row, column] for row in train]
        mean, sd = statistics.fmean(fit), statistics.pstdev(fit)
        for split in (splits.train, splits.val, splits.test):
            for row, value in zip(split.y.tolist(), split.x[:, column].tolist(), strict=True):
                assert value == pytest.approx(
                    (x[row, column] - mean) / sd, rel=1e-5, abs=1e-6
                )  # float32


def test_validation_and_test_rows_do_not_leak_into_the_scaling():
    x, y = numbered()
    before = split_table(x, y, n_train=20, n_val=12, seed=2)
    x[before.val.y.numpy()] += 1e6
    x[before.test.y.numpy()] *= -1e6
    assert torch.equal(split_table(x, y, n_train=20, n_val=12, seed=2).train.x, before.train.x)


def test_a_column_constant_in_training_is_only_centred():
    x, y = numbered(columns=2)
    rows = split_table(x, y, n_train=20, n_val=12, seed=3).train.y.numpy()
    x[:, 1] = 7.5
    # The mean of 20 copies of 0.1 is not 0.1, so the standard deviation is not 0 either.
    x[rows, 1] = 0.1
    assert x[rows, 1].std() > 0
    splits = split_table(x, y, n_train=20, n_val=12, seed=3)
    assert splits.train.x[:, 1].abs().max() < 1e-6
    assert torch.allclose(splits.test.x[:, 1], torch.tensor(7.4))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_noise_replaces_exactly_its_share_in_training_and_validation_only(share):
    splits = split_table(
        *(numbered(300)[0], np.arange(300) % 7), n_train=120, n_val=90, label_noise=share, seed=4
    )
    assert [int((s.y != s.clean).sum()) for s in (splits.train, splits.val)] == [
        round(120 * share),
        round(90 * share),
    ]
    assert splits.test.clean is None
    plain = split_table(*(numbered(300)[0], np.arange(300) % 7), n_train=120, n_val=90, seed=4)
    assert plain.train.clean is plain.val.clean is None
    assert torch.equal(plain.test.y, splits.test.y)
    assert torch.equal(plain.train.y, splits.train.clean)
    assert torch.equal(plain.val.y, splits.val.clean)
    assert torch.equal(plain.train.x, splits.train.x)


def test_training_and_validation_flips_are_independent():
    x, y = numbered(300)
    splits = split_table(x, y % 7, n_train=100, n_val=100, label_noise=0.5, seed=5)
    at = [s.y != s.clean for s in (splits.train, splits.val)]
    # Two independent halves of 100 share about 25 examples, with standard deviation 2.5; the same
    # half shares 50.
    assert 10 < int((at[0] & at[1]).sum()) < 40


def test_the_seed_decides_the_division():
    x, y = numbered()
    first, again, other = (split_table(x, y, 20, 12, 0.2, seed=s) for s in (0, 0, 1))
    assert first.sha256 == again.sha256
    assert set(first.test.y.tolist()) != set(other.test.y.tolist())


def test_rows_of_a_test_set_elsewhere_are_in_every_test_split_and_scale_nothing():
    x, y = numbered()
    more = np.full((5, 3), 1e6), np.arange(5) + 100
    for seed in (0, 1):
        plain = split_table(x, y, 20, 12, seed=seed)
        splits = split_table(x, y, 20, 12, more_test=more, seed=seed)
        assert splits.test.y.tolist() == [*plain.test.y.tolist(), 100, 101, 102, 103, 104]
        assert torch.equal(splits.train.x, plain.train.x)
        assert torch.equal(splits.val.x, plain.val.x)
        assert torch.equal(splits.test.x[:8], plain.test.x)
        expected = (1e6 - x[plain.train.y].mean(0)) / x[plain.train.y].std(0)
        assert torch.allclose(splits.test.x[8:].double(), torch.from_numpy(expected), rtol=1e-6)
    assert (
        len(split_table(x, y, 20, 20, more_test=more, seed=0).test) == 5
    )  # then no row need be left


def test_tensors_and_arrays_give_the_same_splits():
    x, y = numbered()
    from_arrays = split_table(x, y, 20, 12, seed=0)
    assert (
        split_table(torch.from_numpy(x), torch.from_numpy(y), 20, 12, seed=0).sha256
        == from_arrays.sha256
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((10, 2, 2))}, r"x must be \[rows, columns\]"),
        ({"y": np.zeros(9)}, r"got \(10, 2\) and \(9,\)"),
        ({"x": np.full((10, 2), np.nan)}, "inputs must be finite"),
        ({"n_train": 1}, "at least 2 and leave a test row, got 1 and 3 of 10"),
        ({"n_val": 1}, "at least 2 and leave a test row, got 6 and 1 of 10"),
        ({"n_val": 4}, "leave a test row, got 6 and 4 of 10"),
        (
            {"n_val": 5, "more_test": (np.zeros((1, 2)), np.zeros(1, int))},
            "at least 2, got 6 and 5 of 10",
        ),
        (
            {"more_test": (np.zeros((1, 3)), np.zeros(1, int))},
            "more_test must have the 2 columns of x, got 3",
        ),
        ({"more_test": (np.full((1, 2), np.inf), np.zeros(1, int))}, "inputs must be finite"),
        ({"label_noise": 1.0}, r"\[0, 1\), got 1.0"),
        ({"y": np.arange(10) / 2}, "y must be classes"),
        ({"y": np.arange(10) - 1}, "y must be classes"),
        ({"seed": None}, "seed must be a non-negative integer"),
    ],
)
def test_wrong_tables_are_refused(change, message):
    good = {
        "x": np.zeros((10, 2)),
        "y": np.arange(10) % 2,
        "n_train": 6,
        "n_val": 3,
        "label_noise": 0.1,
        "seed": 0,
    }
    split_table(**good)
    with pytest.raises(ValueError, match=message):
        split_table(**(good | change))


def test_digits_as_the_settings_table_says():
    splits = digits(seed=0)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [600, 300, 897]
    assert splits.train.x.shape == (600, 64)
    assert splits.classes == 10
    assert [int((s.y != s.clean).sum()) for s in (splits.train, splits.val)] == [120, 60]
    assert splits.test.clean is None
    columns = splits.train.x.double()
    varied = columns.std(0) > 0
    assert torch.allclose(columns.mean(0), torch.zeros(64, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(
        columns.std(0, correction=0)[varied], torch.ones(1, dtype=torch.float64), atol=1e-6
    )
    assert all(torch.isfinite(s.x).all() for s in (splits.train, splits.val, splits.test))


def test_digits_keep_inputs_and_labels_together():
    splits = digits(seed=1)
    centres = torch.stack([splits.train.x[splits.train.clean == c].mean(0) for c in range(10)])
    found = (torch.cdist(splits.test.x, centres).argmin(1) == splits.test.y).double().mean()
    assert found > 0.8  # the nearest class mean; chance is 0.1


def test_digits_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install .*\[experiments\]'"):
        digits(seed=0)


def serve(folder, monkeypatch, name, content):
    """Put a file into FLOODING_DATA and take it for the official one."""
    (folder / "tables").mkdir(exist_ok=True)
    (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setenv("FLOODING_DATA", str(folder))
    monkeypatch.setitem(
        FILES, name, ("https://example.invalid", hashlib.sha256(content).hexdigest())
    )


def written(x, y, label_first):
    rows = (
        [label, *row] if label_first else [*row, label]
        for row, label in zip(x.tolist(), y.tolist(), strict=True)
    )
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


@pytest.mark.parametrize("load", [spambase, letter, twonorm], ids=lambda load: load.__name__)
def test_the_tables_of_pmlb_are_read_and_their_classes_counted_from_0(load, tmp_path, monkeypatch):
    x, y = numbered()[0], np.arange(40) % 3
    content = b"one\ttwo words\tthree\ttarget\n" + written(x, y + 1, label_first=False)
    serve(tmp_path, monkeypatch, f"tables/{load.__name__}.tsv", content)
    found = load(0.2, n_train=20, n_val=12, seed=3)
    assert found.sha256 == split_table(x, y, 20, 12, 0.2, seed=3).sha256


def test_the_two_parts_of_higgs_are_read_and_its_test_rows_stay_test_rows(tmp_path, monkeypatch):
    (x, _), y = numbered(), np.arange(40) % 2
    for part, rows in {"train": slice(0, 30), "test": slice(30, 40)}.items():
        serve(
            tmp_path,
            monkeypatch,
            f"tables/higgs7k.{part}",
            written(x[rows], y[rows], label_first=True),
        )
    found = higgs7k(0.2, n_train=15, n_val=10, seed=3)
    more = x[30:], y[30:]
    assert found.sha256 == split_table(x[:30], y[:30], 15, 10, 0.2, more_test=more, seed=3).sha256


@pytest.mark.parametrize(
    ("load", "sizes", "flips", "columns", "classes", "least"),
    [
        (spambase, [1000, 500, 3101], [100, 50], 57, 2, 0.8),
        (letter, [4000, 1000, 15_000], [400, 100], 16, 26, 0.5),
        (higgs7k, [3500, 1500, 2500], [0, 0], 28, 2, 0.56),
        (twonorm, [4000, 1000, 2400], [0, 0], 20, 2, 0.96),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_official_tables_as_the_settings_table_says(
    load, sizes, flips, columns, classes, least
):
    if any(
        downloads.find(name) is None
        for name in FILES
        if name.startswith(f"tables/{load.__name__}.")
    ):
        pytest.skip(f"tables/{load.__name__} is neither in FLOODING_DATA nor in the cache")
    splits = load(seed=0)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == sizes
    assert splits.train.x.shape[1] == columns
    assert splits.classes == classes
    clean = [s.y if s.clean is None else s.clean for s in (splits.train, splits.val)]
    assert [
        int((s.y != c).sum()) for s, c in zip((splits.train, splits.val), clean, strict=True)
    ] == flips
    assert splits.test.clean is None
    fit = splits.train.x.double()
    assert torch.allclose(fit.mean(0), torch.zeros(1, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(fit.std(0, correction=0), torch.ones(1, dtype=torch.float64), atol=1e-6)
    # The nearest class mean, far above what inputs and labels out of step would give.
    centres = torch.stack([splits.train.x[clean[0] == c].mean(0) for c in range(classes)])
    found = torch.cdist(splits.test.x, centres).argmin(1) == splits.test.y
    assert float(found.double().mean()) > least
