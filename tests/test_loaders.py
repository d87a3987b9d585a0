"""Datasets and loaders of any batch shape become splits, in order, without touching a generator."""

import collections
import itertools
import logging
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from flooding import Problem, Run, train
from flooding.data import loaders
from flooding.data.loaders import load_split, splits
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
    split = load_split(source)
    assert torch.equal(split.x, X)
    assert torch.equal(split.y, Y)


def test_mappings_and_nested_inputs():
    split = load_split(Mapped())
    assert sorted(split.x) == ["mask", "x"]
    assert torch.equal(split.x["mask"][1], X + 1)
    assert split.x["mask"][0].dtype == torch.bool
    assert torch.equal(split.y, Y)


def test_several_inputs():
    split = load_split(TensorDataset(X, 2 * X, Y))
    assert torch.equal(split.x[1], 2 * X)


def test_a_shuffling_loader_leaves_the_generator_as_it_was():
    before = torch.get_rng_state()
    split = load_split(DataLoader(TensorDataset(X, Y), shuffle=True))
    assert torch.equal(before, torch.get_rng_state())
    assert sorted(split.x[:, 0].tolist()) == X[:, 0].tolist()
    assert torch.equal(split.y, (split.x[:, 0] / 3).long() % 2)  # pairs stay together


def test_gathered_data_trains():
    data = splits(Mapped(), DataLoader(Mapped(), batch_size=5))
    problem = small(
        data=data,
        model=lambda: torch.nn.Sequential(FromDict(), torch.nn.Linear(1, 2)),
        max_epochs=2,
    )
    *_, row = train(Run(problem, 0.3))
    assert row.record.metrics["last.val_accuracy"] >= 0
    assert data.test is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "gave no batch"),
        ([{"x": X}], "must have targets under one of"),
        ([X], "must be \\(inputs, targets\\) or a mapping"),
        (
            [(X, Y), (X[:, :2], Y)],
            r"inputs of all batches must fit together, got examples of \[2\] and \[3\]\. Pad them",
        ),
        (
            [({"a": X}, Y), ({"a": X, "b": X}, Y)],
            r"fit together, got a mapping of a and a mapping of a, b\.",
        ),
        ([({"a": X}, Y), ({"b": X}, Y)], r"fit together, got a mapping of a and a mapping of b\."),
        ([((X, X), Y), ((X, X, X), Y)], r"fit together, got a tuple of 2 and a tuple of 3\."),
        ([(X, Y), ((X, X), Y)], "fit together"),
        (3, "must be a dataset, a loader or an iterable"),
    ],
)
def test_bad_data_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        load_split(source)


# Batches and examples of every kind


class Batch(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


KINDS = {
    "examples": [(X[i], Y[i]) for i in range(14)],
    "examples with plain labels": [[X[i], int(Y[i])] for i in range(14)],
    "examples of arrays": [(X[i].numpy(), np.int64(Y[i])) for i in range(14)],
    "named examples": [Batch(X[i], Y[i]) for i in range(14)],
    "batches of arrays": [(X[:5].numpy(), Y[:5].numpy()), (X[5:].numpy(), Y[5:].numpy())],
    "arrays back to front": [(X.numpy()[::-1].copy()[::-1], Y.numpy()[::-1].copy()[::-1])],
    "arrays of the other byte order": [(X.numpy().astype(">f4"), Y.numpy().astype(">i2"))],
    "labels in a list": [(X[:5], Y[:5].tolist()), (X[5:], list(Y[5:]))],
    "labels in int32": [(X, Y.int())],
    "labels in uint8": [(X, Y.numpy().astype(np.uint8))],
    "labels in bool": TensorDataset(X, Y.bool()),
    "a generator": ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 14, 4)),
    "a subset": Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(14)),
    "a loader of examples": DataLoader(TensorDataset(X, Y), batch_size=None),
}


@pytest.mark.parametrize("source", KINDS.values(), ids=KINDS)
def test_examples_and_batches_of_tensors_and_arrays(source):
    split = load_split(source)
    assert torch.equal(split.x, X)
    assert torch.equal(split.y, Y)
    assert split.y.dtype == torch.int64


class Wrapped(collections.UserDict):
    """A mapping that is no dict, as Hugging Face's BatchEncoding."""


IDS = torch.arange(28).reshape(14, 2)
MAPPINGS = {
    "dicts of lists, an example each": [
        {"ids": IDS[i].tolist(), "x": X[i].tolist(), "label": int(Y[i])} for i in range(14)
    ],
    "dicts of lists, batches": [
        {"ids": IDS[p].tolist(), "x": X[p].tolist(), "label": Y[p].tolist()}
        for p in (slice(0, 6), slice(6, 14))
    ],
    "dicts of arrays": [{"ids": IDS.numpy(), "x": X.numpy(), "labels": Y.numpy()}],
    "dicts in another order": [
        {"ids": IDS[:3], "x": X[:3], "y": Y[:3]},
        {"y": Y[3:], "x": X[3:], "ids": IDS[3:]},
    ],
    "no dicts": [Wrapped(ids=IDS[:3], x=X[:3], y=Y[:3]), Wrapped(x=X[3:], ids=IDS[3:], y=Y[3:])],
}


@pytest.mark.parametrize("source", MAPPINGS.values(), ids=MAPPINGS)
def test_mappings_of_lists_arrays_and_tensors(source):
    split = load_split(source)
    assert type(split.x) is dict
    assert torch.equal(split.x["x"], X)
    assert torch.equal(split.x["ids"], IDS)
    assert torch.equal(split.y, Y)


def test_many_examples_come_in_order():
    split = load_split((torch.tensor([float(i)]), i % 3) for i in range(2500))
    assert split.x[:, 0].tolist() == list(range(2500))
    assert split.y.tolist() == [i % 3 for i in range(2500)]


def test_targets_that_are_no_classes_keep_their_type():
    assert load_split([(X, X[:, :1].double())]).y.dtype == torch.float64
    assert load_split([(X[i], 0.5 * i) for i in range(14)]).y.tolist() == [
        0.5 * i for i in range(14)
    ]
    assert load_split(TensorDataset(X, X)).y.shape == (14, 3)


class Words(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"x": X[i], "text": "words", "labels": i % 2}


class Lengths(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return X[0, : i % 2 + 1], i % 2


class Lists(Lengths):
    def __getitem__(self, i):
        return [0] * (i % 2 + 1), i % 2


class Pictures(Lengths):
    def __getitem__(self, i):
        return object(), i


class Unending(Dataset):
    def __getitem__(self, i):
        return X[0], 0


class Failing(Lengths):
    def __getitem__(self, i):
        raise RuntimeError("my own error")


UNEQUAL = r"examples must have one size, .*Pad them, in the dataset or in a collate_fn"
BAD = {
    "words": (
        Words(),
        r"must be tensors or arrays of numbers, got 'words' in text\. "
        r"Convert it in the dataset, or leave",
    ),
    "words in examples": ([{"x": X[0], "text": "words", "y": 1}], r"got 'words' in text"),
    "nothing": ([{"x": X, "mask": None, "y": Y}], r"got None in mask"),
    "objects": ([(np.array([{}, {}]), [0, 1])], r"got ndarray in inputs"),
    "classes by name": (
        [(X[:2], ["cat", "dog"])],
        r"targets of a batch must be one tensor, got list\. Number the classes",
    ),
    "a class by name": ([(X[0], "cat")], r"got 'cat' in targets\. Number the classes from 0"),
    "two targets": ([(X, (Y, Y))], r"targets of a batch must be one tensor, got tuple"),
    "unequal lengths": (Lengths(), UNEQUAL),
    "unequal lengths in a loader": (DataLoader(Lengths(), 2), UNEQUAL),
    "unequal lists": (Lists(), UNEQUAL),
    "unequal lists in mappings": (
        [{"ids": [[1], [1, 2]], "y": [0, 1]}],
        r"rows of ids must be numbers of one length, got lengths \[1, 2\]\. Pad them",
    ),
    "unequal examples": ([(X[0], 0), (X[0, :2], 1)], r"got examples of \[2\] and \[3\]\. Pad them"),
    "pictures": (Pictures(), r"examples must be tensors, arrays or numbers, got <class 'object'>"),
    "targets of several numbers": (
        [(X[0], Y[:2])],
        r"equally many examples, got 3 and 2\. Examples one by one",
    ),
    "a batch of a number": ([(torch.tensor(1.0), Y)], r"got a single number and 14"),
    "no inputs": ([{"y": Y}], r"got no input and 14"),
    "whole tensors": (
        (X, Y),
        r"must be \(inputs, targets\) or a mapping, got Tensor\. Whole tensors make a split",
    ),
    "a whole mapping": ({"x": X, "y": Y}, r"got dict\. Tensors make a split"),
    "an array": (X.numpy(), r"got ndarray\."),
    "a dataset without length": (
        Unending(),
        r"a dataset must have a length, got Unending without __len__",
    ),
}


@pytest.mark.parametrize(("source", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_named_with_its_fix(source, message):
    with pytest.raises(ValueError, match=message) as error:
        load_split(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", [Failing(), DataLoader(Failing())], ids=["dataset", "loader"])
def test_an_error_of_the_datasets_own_code_stays_as_it_is(source):
    with pytest.raises(RuntimeError, match="my own error") as error:
        load_split(source)
    assert error.traceback[-1].name == "__getitem__"


# What a loader says beside its data


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_batch_size_of_a_training_loader_is_told_to_be_unused(caplog):
    data = splits(DataLoader(TensorDataset(X, Y), 7), DataLoader(TensorDataset(X, Y), 5))
    assert warned(caplog) == [
        "a Problem makes its own batches: batch_size 7 of the loader is not used. "
        "Give Problem(batch_size=7)."
    ]
    assert Problem(data, torch.nn.Linear(3, 2)).batch_size == 100
    caplog.clear()
    load_split(
        DataLoader(
            TensorDataset(X, Y), batch_sampler=BatchSampler(RandomSampler(X), 3, drop_last=False)
        )
    )
    assert "batch_size 3" in warned(caplog)[0]
    caplog.clear()
    load_split(TensorDataset(X, Y))
    load_split(DataLoader(TensorDataset(X, Y), batch_size=None))
    assert warned(caplog) == []


WEIGHTED = WeightedRandomSampler([1.0] * 7 + [9.0] * 7, 14)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": WEIGHTED, "batch_size": 7},
        {"sampler": WeightedRandomSampler([1.0] * 14, 7, replacement=False)},
        {"sampler": RandomSampler(X, replacement=True)},
        {"batch_sampler": BatchSampler(WEIGHTED, 4, drop_last=False)},
        {"sampler": WEIGHTED, "batch_size": None},
    ],
    ids=[
        "weighted",
        "weighted, without replacement",
        "with replacement",
        "in a batch sampler",
        "without batches",
    ],
)
def test_a_sampler_that_repeats_or_weighs_examples_is_refused(options):
    loader = DataLoader(TensorDataset(X, Y), **options)
    for call in (
        load_split,
        lambda source: splits(TensorDataset(X, Y), source),
        lambda source: splits(source, source),
    ):
        with pytest.raises(
            ValueError,
            match=r"must give each example once, got (Weighted)?RandomSampler.*the dataset itself",
        ):
            call(loader)


def test_a_sampler_that_takes_a_subset_keeps_it(caplog):
    places = [3, 1, 12]
    split = load_split(DataLoader(TensorDataset(X, Y), 2, sampler=SubsetRandomSampler(places)))
    assert sorted(split.x[:, 0].tolist()) == sorted(X[places, 0].tolist())
    assert [text for text in warned(caplog) if "batch_size" not in text] == []


class Backwards(Sampler):
    def __iter__(self):
        return iter(range(13, -1, -1))

    def __len__(self):
        return 14


class Pairs(Backwards):
    def __iter__(self):
        return iter([[0, 13], [1, 12]])

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({"sampler": Backwards(), "batch_size": 3}, range(13, -1, -1)),
        ({"batch_sampler": Pairs()}, [0, 13, 1, 12]),
    ],
    ids=["of examples", "of batches"],
)
def test_a_sampler_of_ones_own_is_asked_once_and_that_is_told(options, places, caplog):
    split = load_split(DataLoader(TensorDataset(X, Y), **options))
    assert torch.equal(split.x, X[list(places)])
    name = "Backwards" if "sampler" in options else "Pairs"
    assert f"the loader's {name} is asked once" in warned(caplog)[0]


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_drop_last_leaves_out_is_told(shuffle, caplog):
    split = load_split(DataLoader(TensorDataset(X, Y), 4, drop_last=True, shuffle=shuffle))
    assert len(split) == 12
    assert any(
        "drop_last of the loader left 2 of 14 examples out" in text for text in warned(caplog)
    )
    caplog.clear()
    assert len(load_split(DataLoader(TensorDataset(X, Y), 7, drop_last=True))) == 14
    assert not any("drop_last" in text for text in warned(caplog))


def test_a_loaders_own_collate_function_is_used():
    def padded(examples):
        xs, ys = zip(*examples, strict=True)
        return torch.nn.utils.rnn.pad_sequence(xs, batch_first=True), torch.tensor(ys)

    assert load_split(DataLoader(Lengths(), 4, collate_fn=padded)).x.shape == (4, 2)


def test_a_loaders_own_generator_is_left_as_it_was():
    generator = torch.Generator().manual_seed(3)
    for options in (
        {"shuffle": True},
        {"sampler": SubsetRandomSampler(range(14), generator=generator)},
    ):
        state, before = generator.get_state(), torch.get_rng_state()
        loader = DataLoader(TensorDataset(X, Y), 4, generator=generator, **options)
        one, two = load_split(loader), load_split(loader)
        assert torch.equal(one.x, two.x)
        assert torch.equal(generator.get_state(), state)
        assert torch.equal(torch.get_rng_state(), before)


# Sources that never end


class Endless(IterableDataset):
    def __iter__(self):
        return ((X[0], 0) for _ in itertools.count())


class EndlessWithLength(Endless):
    def __len__(self):
        return 100


class EndlessSampler(Sampler):
    def __iter__(self):
        return itertools.cycle(range(14))


ENDLESS = {
    "dataset": Endless(),
    "loader": DataLoader(Endless(), 8),
    "with a length": EndlessWithLength(),
    "generator of batches": ((X, Y) for _ in itertools.count()),
    "generator of examples": ((X[0], 1) for _ in itertools.count()),
    "cycled loader": itertools.cycle(DataLoader(TensorDataset(X, Y), 4)),
    "sampler": DataLoader(TensorDataset(X, Y), 4, sampler=EndlessSampler()),
}


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_source_that_never_ends_is_refused_after_the_limit(source):
    with pytest.raises(
        ValueError,
        match=r"must end within limit=1,000 examples, got more\. Cut them, with itertools\.islice",
    ):
        load_split(source, limit=1000)
    with pytest.raises(ValueError, match="must end within limit=1,000"):
        splits([(X, Y)], source, limit=1000)


def test_a_source_with_an_end_may_be_longer_than_the_limit():
    assert len(load_split([(X, Y)] * 3, limit=20)) == 42
    assert len(load_split(TensorDataset(X, Y), limit=1)) == 14
    assert len(load_split(DataLoader(TensorDataset(X, Y), 4), limit=1)) == 14
    assert len(load_split(iter([(X, Y)] * 3), limit=42)) == 42


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1"])
def test_a_limit_is_a_number_of_examples(limit):
    with pytest.raises(ValueError, match="limit must be a whole number of examples of at least 1"):
        splits([(X, Y)], [(X, Y)], limit=limit)


def test_reading_for_long_is_told(monkeypatch, caplog):
    now = itertools.count(step=2.0)
    monkeypatch.setattr(loaders, "time", SimpleNamespace(monotonic=lambda: next(now)))
    load_split(iter([(X, Y)] * 9))
    assert warned(caplog) == [
        f"still reading: {n} examples of at most limit=1,000,000" for n in (42, 84, 126)
    ]
