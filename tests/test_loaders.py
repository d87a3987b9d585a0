"""Datasets and loaders of any batch shape become splits, in order, without touching a generator."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from flooding import Run, train
from flooding.data.loaders import gather, splits
from small import FromDict, small

X, Y = torch.arange(42.0).reshape(14, 3), torch.arange(14) % 2


class Mapped(Dataset):
    def __len__(self):
        return 14

    def __getitem__(self, i):
        return {"x": X[i], "mask": (X[i] > 3, X[i] + 1), "label": int(Y[i])}


class Streamed(IterableDataset):
    def __iter__(self):
        yield from ((X[i], int(Y[i])) for i in range(14))


@pytest.mark.parametrize(
    "source",
    [
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        Streamed(),
        [(X[:10], Y[:10]), (X[10:], Y[10:])],
    ],
)
def test_pairs_in_every_kind_of_source(source):
    split = gather(source)
    assert torch.equal(split.x, X)
    assert torch.equal(split.y, Y)


def test_mappings_and_nested_inputs():
    split = gather(Mapped())
    assert sorted(split.x) == ["mask", "x"]
    assert torch.equal(split.x["mask"][1], X + 1)
    assert split.x["mask"][0].dtype == torch.bool
    assert torch.equal(split.y, Y)


def test_several_inputs():
    split = gather(TensorDataset(X, 2 * X, Y))
    assert torch.equal(split.x[1], 2 * X)


def test_a_shuffling_loader_leaves_the_generator_as_it_was():
    before = torch.get_rng_state()
    split = gather(DataLoader(TensorDataset(X, Y), shuffle=True))
    assert torch.equal(before, torch.get_rng_state())
    assert sorted(split.x[:, 0].tolist()) == X[:, 0].tolist()
    assert torch.equal(split.y, (split.x[:, 0] / 3).long() % 2)  # pairs stay together


def test_gathered_data_trains():
    data = splits(Mapped(), DataLoader(Mapped(), batch_size=5))
    problem = small(data=data, model=lambda: torch.nn.Sequential(FromDict(), torch.nn.Linear(1, 2)), horizon=2)
    *_, row = train(Run(problem, 0.3))
    assert row.record.finals["last.val_accuracy"] >= 0
    assert data.test is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "gave no batch"),
        ([{"x": X}], "must have targets under one of"),
        ([X], "must be \\(inputs, targets\\) or a mapping"),
        ([(X, Y), (X[:, :2], Y)], "fit together"),
        ([({"a": X}, Y), ({"a": X, "b": X}, Y)], "fit together"),
        (3, "must be a dataset, a loader or an iterable"),
    ],
)
def test_bad_data_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        gather(source)
