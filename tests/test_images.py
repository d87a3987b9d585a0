"""Images are read from idx files, drawn without overlap, standardised alike, and noisy only where they should be."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from flooding.data import files
from flooding.data.images import fashion_mnist, mnist, read_idx, split_images


def idx(array):
    """Write unsigned bytes as the format's description says."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def numbered(n=60, seed=0):
    """Images whose first pixel is their number; classes in turn."""
    x = np.random.default_rng(seed).integers(0, 256, (n, 4, 3), dtype=np.uint8)
    x[:, 0, 0] = np.arange(n)
    return x, (np.arange(n) % 10).astype(np.uint8)


def official(name):
    if any(files.find(known) is None for known in files.FILES if known.startswith(f"{name}/")):
        pytest.skip(f"{name} is neither in FLOODING_DATA nor in the cache")


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5), (300, 2), (0, 2)])
def test_idx_files_are_read_as_they_were_written(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = read_idx(idx(array))
    assert found.dtype == np.uint8
    assert found.shape == shape
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must begin with 00 00 08, got nothing"),
        (gzip.compress(idx(np.zeros(3, np.uint8))), "must begin with 00 00 08, got 1f 8b 08"),
        (b"\0\0\x0d\x01" + struct.pack(">If", 1, 2.0), "must begin with 00 00 08, got 00 00 0d"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"of shape \[2, 3\] must have 18 bytes, got 17"),
        (idx(np.zeros((2, 3), np.uint8)) + b"\0", r"of shape \[2, 3\] must have 18 bytes, got 19"),
        (idx(np.zeros((2, 3), np.uint8))[:9], r"must have \d+ bytes, got 9"),
    ],
    ids=["empty", "still compressed", "floats", "cut off", "too long", "header cut off"],
)
def test_other_files_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_idx(content)


def test_images_are_drawn_without_overlap_and_keep_their_labels():
    x, y = numbered()
    splits = split_images(x, y, *numbered(20, seed=1), n_train=30, n_val=20, seed=0)
    assert splits.train.x.shape == (30, 1, 4, 3)
    assert splits.train.x.dtype == torch.float32
    drawn = numbers(splits.train, splits) + numbers(splits.val, splits)
    assert len(set(drawn)) == 50
    assert torch.cat([splits.train.y, splits.val.y]).tolist() == y[drawn].tolist()


def numbers(split, splits):
    """Find each image's number again: undo the scaling with what two known test pixels became."""
    test = numbered(20, seed=1)[0][:, 0, 0].astype(float)
    became = splits.test.x[:, 0, 0, 0].double().numpy()
    slope = (test[19] - test[0]) / (became[19] - became[0])
    return [round(test[0] + (value - became[0]) * slope) for value in split.x[:, 0, 0, 0].double().tolist()]


def test_all_pixels_are_standardised_alike_with_those_of_the_training_images():
    x, y = numbered()
    splits = split_images(x, y, *numbered(20, seed=1), n_train=30, n_val=20, seed=1)
    drawn = numbers(splits.train, splits)
    fit = x[drawn].astype(float)
    for split, images in ((splits.train, x[drawn]), (splits.test, numbered(20, seed=1)[0])):
        expected = torch.from_numpy((images - fit.mean()) / fit.std())[:, None].float()
        assert torch.allclose(split.x, expected, atol=1e-6)
    other = x.copy()
    others = np.setdiff1d(np.arange(60), drawn)
    other[others, 1:] = 255 - other[others, 1:]
    assert torch.equal(split_images(other, y, *numbered(20), n_train=30, n_val=20, seed=1).train.x, splits.train.x)


def test_blank_images_are_only_centred():
    x = np.full((12, 2, 2), 7, np.uint8)
    splits = split_images(x, np.arange(12, dtype=np.uint8) % 2, x[:1], np.zeros(1, np.uint8), 6, 4, seed=0)
    assert torch.equal(splits.train.x, torch.zeros(6, 1, 2, 2))


def test_noise_replaces_exactly_its_share_in_training_and_validation_only():
    x, y = numbered()
    noisy = split_images(x, y, *numbered(20), n_train=40, n_val=20, label_noise=0.3, seed=2)
    plain = split_images(x, y, *numbered(20), n_train=40, n_val=20, seed=2)
    assert [int((s.y != s.clean).sum()) for s in (noisy.train, noisy.val)] == [12, 6]
    assert torch.equal(noisy.train.clean, plain.train.y)
    assert torch.equal(noisy.val.clean, plain.val.y)
    assert torch.equal(noisy.test.y, plain.test.y)
    assert plain.train.clean is plain.val.clean is noisy.test.clean is None
    assert torch.equal(noisy.train.x, plain.train.x)


def test_training_and_validation_flips_are_independent():
    splits = split_images(*numbered(200), *numbered(20), n_train=100, n_val=100, label_noise=0.5, seed=5)
    at = [s.y != s.clean for s in (splits.train, splits.val)]
    # Two independent halves of 100 share about 25 examples, with standard deviation 2.5; the same half shares 50.
    assert 10 < int((at[0] & at[1]).sum()) < 40


def test_the_seed_decides_the_draw_but_never_the_test_images():
    x, y = numbered()
    first, again, other = (split_images(x, y, *numbered(20), 30, 20, 0.2, seed=s) for s in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.test.y.tolist() == other.test.y.tolist() == numbered(20)[1].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((60, 4, 3))}, r"images must be uint8 \[n, height, width\] .* got float64 \(60, 4, 3\)"),
        ({"y": np.zeros(60, np.int64)}, "labels uint8"),
        ({"y": np.zeros(59, np.uint8)}, r"uint8 \(59,\)"),
        ({"test_x": np.zeros((20, 12), np.uint8)}, r"got uint8 \(20, 12\)"),
        ({"test_x": np.zeros((20, 3, 3), np.uint8)}, r"test images must be of the size .* got \(3, 3\) and \(4, 3\)"),
        ({"n_val": 31}, "n_train and n_val must be at least 2, got 30 and 31 of 60"),
        ({"n_train": 1}, "at least 2, got 1 and 30 of 60"),
        ({"label_noise": 1}, r"\[0, 1\), got 1"),
    ],
)
def test_wrong_images_are_refused(change, message):
    x, y = numbered()
    test_x, test_y = numbered(20)
    good = {"x": x, "y": y, "test_x": test_x, "test_y": test_y, "n_train": 30, "n_val": 30, "seed": 0}
    split_images(**good)
    with pytest.raises(ValueError, match=message):
        split_images(**(good | change))


@pytest.mark.parametrize(("load", "name"), [(fashion_mnist, "fashion-mnist"), (mnist, "mnist")])
def test_the_official_training_and_test_files_are_read(load, name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.setenv("FLOODING_DATA", str(tmp_path))
    for part, (x, y) in {"train": numbered(), "t10k": numbered(20, seed=1)}.items():
        for kind, array in {"images-idx3": x, "labels-idx1": y}.items():
            path, content = f"{name}/{part}-{kind}-ubyte", idx(array)
            (tmp_path / f"{path}.gz").write_bytes(gzip.compress(content))
            monkeypatch.setitem(files.FILES, path, ("https://example.invalid", hashlib.sha256(content).hexdigest()))
    found = load(0.2, n_train=30, n_val=20, seed=4)
    assert found.sha256 == split_images(*numbered(), *numbered(20, seed=1), 30, 20, 0.2, seed=4).sha256


@pytest.mark.parametrize(("load", "name", "least"), [(fashion_mnist, "fashion-mnist", 0.62), (mnist, "mnist", 0.75)])
def test_the_official_images_as_the_settings_table_says(load, name, least):
    official(name)
    splits = load(seed=0)
    assert [tuple(s.x.shape) for s in (splits.train, splits.val, splits.test)] == [
        (4000, 1, 28, 28),
        (1000, 1, 28, 28),
        (10_000, 1, 28, 28),
    ]
    assert [int((s.y != s.clean).sum()) for s in (splits.train, splits.val)] == [800, 200]
    assert splits.test.clean is None
    assert splits.classes == 10
    fit = splits.train.x.double()
    assert abs(float(fit.mean())) < 1e-6
    assert float(fit.std(correction=0)) == pytest.approx(1, abs=1e-6)
    # The nearest class mean; chance is 0.1, and so it would be with images and labels out of step.
    flat = splits.train.x.flatten(1)
    centres = torch.stack([flat[splits.train.clean == c].mean(0) for c in range(10)])
    found = torch.cdist(splits.test.x.flatten(1), centres).argmin(1)
    assert float((found == splits.test.y).double().mean()) > least
