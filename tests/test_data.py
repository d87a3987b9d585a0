"""Splits hold aligned examples, hash every bit of them, and flip exactly the labels they were told
to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flooding.data import Split, Splits, flip_labels, make_rng, map_tensors, sha256


def a_split(n=4, **changes):
    fields = {
        "x": torch.arange(2.0 * n).reshape(n, 2),
        "y": torch.arange(n) % 2,
        "clean": torch.zeros(n).long(),
    }
    return Split(**(fields | changes))


def test_map_tensors_reaches_every_leaf_and_keeps_the_structure():
    doubled = map_tensors(
        lambda t: 2 * t, {"a": torch.ones(2), "b": (torch.ones(1), [torch.full((1,), 3.0)])}
    )
    assert list(doubled) == ["a", "b"]
    assert type(doubled["b"]) is tuple
    assert type(doubled["b"][1]) is list
    assert [doubled["a"].tolist(), doubled["b"][0].tolist(), doubled["b"][1][0].tolist()] == [
        [2, 2],
        [2],
        [6],
    ]


def test_map_tensors_names_what_is_not_a_tensor():
    with pytest.raises(TypeError, match="got str"):
        map_tensors(lambda t: t, [torch.ones(1), "text"])


def test_examples_are_known_by_position_and_keep_their_identity_when_taken():
    split = a_split()
    assert split.id.tolist() == [0, 1, 2, 3]
    taken = split.take(torch.tensor([3, 1]))
    assert taken.id.tolist() == [3, 1]
    assert torch.equal(taken.x, split.x[[3, 1]])
    assert taken.y.tolist() == [1, 1]
    assert taken.clean.tolist() == [0, 0]
    assert len(taken) == 2


def test_take_and_to_leave_absent_clean_labels_absent():
    split = a_split(clean=None)
    assert split.take(slice(0, 2)).clean is None
    assert split.to("meta").clean is None
    assert a_split().to("meta").clean.device.type == "meta"
    assert {
        t.device.type for t in (split.to("meta").x, split.to("meta").y, split.to("meta").id)
    } == {"meta"}


@pytest.mark.parametrize("field", ["x", "clean", "id"])
def test_fields_of_different_length_are_refused(field):
    with pytest.raises(ValueError, match=r"equally many examples, got \[3, 4\]"):
        a_split(**{field: torch.zeros(3).long()})


def test_inputs_inside_a_structure_are_counted_too():
    with pytest.raises(ValueError, match=r"equally many"):
        a_split(x={"a": torch.zeros(4, 1), "b": torch.zeros(5, 1)})


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        Split(torch.zeros(0, 2), torch.zeros(0).long())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y": np.arange(4)},
            r"y must be a tensor \[examples, \.\.\.\], got ndarray\. Convert it: torch\.as_tensor",
        ),
        ({"y": [0, 1, 0, 1]}, r"y must be a tensor .* got list\."),
        ({"y": torch.tensor(1)}, r"y must be a tensor .* got a single number\."),
        ({"clean": np.arange(4)}, r"clean must be a tensor"),
        ({"id": range(4)}, r"id must be a tensor"),
        (
            {"x": np.zeros((4, 2))},
            r"inputs must be tensors, .* got ndarray\. Convert arrays with torch\.as_tensor",
        ),
        ({"x": {"a": torch.zeros(4), "b": "text"}}, r"inputs must be tensors, .* got str"),
        ({"x": torch.tensor(1.0)}, r"equally many examples, got \[0, 4\]"),
    ],
    ids=["array", "list", "number", "clean", "id", "inputs", "text", "an input"],
)
def test_what_is_no_tensor_of_examples_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        a_split(**changes)


def test_an_ignored_target_is_no_class():
    some = a_split(y=torch.tensor([0, 1, 255, -100]))
    splits = Splits(some, some)
    assert splits.classes == 256
    assert splits.count_classes(255) == 2
    assert splits.count_classes(7) == 256
    none = a_split(y=torch.full((4,), -100))
    assert Splits(none, none).classes == 0
    assert Splits(a_split(y=torch.zeros(4)), none).count_classes(255) is None


def test_classes_are_counted_over_all_splits():
    rare = a_split(y=torch.tensor([0, 1, 2, 6]))
    assert Splits(a_split(), rare, a_split()).classes == 7
    assert Splits(a_split(), a_split(), a_split()).classes == 2


def test_real_targets_have_no_classes():
    real = a_split(y=torch.zeros(4))
    assert Splits(real, real, real).classes is None


CHANGES = {
    "an input by one bit": lambda s: {"x": torch.nextafter(s.x, torch.tensor(9e9))},
    "the dtype of the inputs": lambda s: {"x": s.x.double()},
    "the shape of the inputs": lambda s: {"x": s.x.reshape(4, 2, 1)},
    "a label": lambda s: {"y": 1 - s.y},
    "a clean label": lambda s: {"clean": 1 - s.clean},
    "absence of clean labels": lambda s: {"clean": None},
    "an identity": lambda s: {"id": s.id + 1},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", [0, 1, 2], ids=["train", "val", "test"])
def test_the_hash_sees_every_change(change, where):
    splits = [a_split(), a_split(), a_split()]
    before = Splits(*splits).sha256
    assert Splits(*(a_split() for _ in range(3))).sha256 == before
    splits[where] = a_split(**CHANGES[change](splits[where]))
    assert Splits(*splits).sha256 != before


def test_the_hash_sees_which_split_is_which():
    a, b, c = a_split(), a_split(n=5), a_split(n=6)
    assert Splits(a, b, c).sha256 != Splits(b, a, c).sha256


def test_the_hash_ignores_memory_layout():
    x = torch.arange(6.0).reshape(2, 3)
    assert sha256(x.T.contiguous()) == sha256(x.T)
    assert sha256(x.T) != sha256(x)


def test_the_hash_sees_where_something_is_absent():
    t = torch.ones(2)
    assert len({sha256(t), sha256(t, None), sha256(None, t)}) == 3


def test_the_hash_of_known_bytes():
    # sha256 of b"torch.uint8(2,)" + bytes([1, 2]), from hashlib directly: the layout is part of
    # every stored key.
    import hashlib

    expected = hashlib.sha256(b"torch.uint8(2,)" + bytes([1, 2])).hexdigest()
    assert sha256(torch.tensor([1, 2], dtype=torch.uint8)) == expected


labels = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes), st.lists(st.integers(0, classes - 1), min_size=1, max_size=60)
    )
)


@given(labels, st.floats(0, 1, exclude_max=True), st.integers(0, 2**32))
def test_flip_labels_changes_exactly_the_rounded_share(case, share, seed):
    classes, y = case
    clean = torch.tensor(y)
    noisy = flip_labels(clean, share, classes, make_rng(seed))
    assert sum(a != b for a, b in zip(noisy.tolist(), y, strict=True)) == round(len(y) * share)
    assert all(0 <= label < classes for label in noisy.tolist())
    assert clean.tolist() == y  # the caller's labels are not touched
    assert noisy.dtype == torch.int64


@given(st.integers(0, 2**32), st.floats(0, 0.5), st.floats(0.5, 1, exclude_max=True))
def test_a_larger_share_flips_the_same_examples_and_more(seed, small, large):
    y = torch.zeros(40).long()
    few, many = (flip_labels(y, share, 3, make_rng(seed)) != y for share in (small, large))
    assert not (few & ~many).any()


def test_wrong_classes_are_drawn_uniformly_and_everywhere():
    n, classes = 40_000, 5
    y = torch.arange(n) % classes
    noisy = flip_labels(y, 0.5, classes, make_rng(7))
    steps = torch.bincount((noisy - y) % classes, minlength=classes)
    assert steps[0] == n // 2
    expected = n / 2 / (classes - 1)
    # 27.9 is the 1 - 1e-5 quantile of chi-squared with 4 degrees of freedom; here there are 3.
    assert ((steps[1:] - expected) ** 2 / expected).sum() < 27.9
    # Of the first half of the examples half are flipped: hypergeometric, standard deviation sqrt(n)
    # / 4.
    assert abs(int((noisy != y)[: n // 2].sum()) - n // 4) < 4.5 * n**0.5 / 4


@pytest.mark.parametrize(
    ("y", "share", "classes", "message"),
    [
        (torch.zeros(3).long(), 1.0, 2, r"\[0, 1\), got 1.0"),
        (torch.zeros(3).long(), -0.1, 2, r"\[0, 1\), got -0.1"),
        (torch.zeros(3).long(), float("nan"), 2, r"\[0, 1\), got nan"),
        (torch.zeros(3).long(), 0.1, 1, "at least 2 classes, got 1"),
        (torch.zeros(3), 0.1, 2, "int64"),
        (torch.zeros(3, 1).long(), 0.1, 2, r"\[3, 1\]"),
        (torch.tensor([0, 2]), 0.1, 2, r"0 ... 1, got 0 ... 2"),
        (torch.tensor([-1, 1]), 0.1, 2, r"0 ... 1, got -1 ... 1"),
    ],
)
def test_flip_labels_refuses(y, share, classes, message):
    with pytest.raises(ValueError, match=message):
        flip_labels(y, share, classes, make_rng(0))


def test_streams_differ_by_seed_and_path_and_repeat():
    firsts = {
        make_rng(seed, *path).random()
        for seed in (0, 1)
        for path in ((), (0,), (1,), (0, 0), (0, 1))
    }
    assert len(firsts) == 10
    assert make_rng(3, 1).random() == make_rng(np.int64(3), 1).random()


@pytest.mark.parametrize("seed", [-1, 0.5, None, "0"])
def test_a_seed_must_be_a_non_negative_integer(seed):
    with pytest.raises(ValueError, match="non-negative integer"):
        make_rng(seed)
