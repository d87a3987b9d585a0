"""Images are read from idx files, drawn without overlap, standardised alike, and noisy only where
they should be."""

import gzip
import hashlib
import io
import logging
import os
import pickle
import struct
import tarfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from flooding.data import downloads
from flooding.data.image_formats import read_batch, read_idx, read_mat
from flooding.data.images import (
    SETS,
    cifar10,
    cifar10h,
    cifar100,
    fashion_mnist,
    kuzushiji_mnist,
    load,
    mnist,
    split_images,
    svhn,
)
from flooding.data.registry import ARCHIVES, FILES
from flooding.data.tables import split_indices
from flooding.models import Standardise
from local_server import serve_folder


def idx(array):
    """Write unsigned bytes as the format's description says."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def numbered(n=60, seed=0):
    """Images whose first pixel is their number; classes in turn."""
    x = np.random.default_rng(seed).integers(0, 256, (n, 4, 3), dtype=np.uint8)
    x[:, 0, 0] = np.arange(n)
    return x, (np.arange(n) % 10).astype(np.uint8)


@pytest.fixture
def server(monkeypatch):
    """Serve folders on this machine; a download is tried once."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "_RETRIES", 0)
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(serve_folder(folder))


def official(name):
    if any(downloads.find(known) is None for known in FILES if known.startswith(f"{name}/")):
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
    return [
        round(test[0] + (value - became[0]) * slope)
        for value in split.x[:, 0, 0, 0].double().tolist()
    ]


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
    assert torch.equal(
        split_images(other, y, *numbered(20), n_train=30, n_val=20, seed=1).train.x, splits.train.x
    )


def test_blank_images_are_only_centred():
    x = np.full((12, 2, 2), 7, np.uint8)
    splits = split_images(
        x, np.arange(12, dtype=np.uint8) % 2, x[:1], np.zeros(1, np.uint8), 6, 4, seed=0
    )
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
    splits = split_images(
        *numbered(200), *numbered(20), n_train=100, n_val=100, label_noise=0.5, seed=5
    )
    at = [s.y != s.clean for s in (splits.train, splits.val)]
    # Two independent halves of 100 share about 25 examples, with standard deviation 2.5; the same
    # half shares 50.
    assert 10 < int((at[0] & at[1]).sum()) < 40


def test_the_seed_decides_the_draw_but_never_the_test_images():
    x, y = numbered()
    first, again, other = (
        split_images(x, y, *numbered(20), 30, 20, 0.2, seed=s) for s in (0, 0, 1)
    )
    assert first.sha256 == again.sha256 != other.sha256
    assert first.test.y.tolist() == other.test.y.tolist() == numbered(20)[1].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": np.zeros((60, 4, 3))},
            r"images must be uint8 \[n, height, width\] .* got float64 \(60, 4, 3\)",
        ),
        ({"y": np.zeros(60, np.int64)}, "labels uint8"),
        ({"y": np.zeros(59, np.uint8)}, r"uint8 \(59,\)"),
        ({"test_x": np.zeros((20, 12), np.uint8)}, r"got uint8 \(20, 12\)"),
        (
            {"test_x": np.zeros((20, 3, 3), np.uint8)},
            r"test images must be of the size .* got \(3, 3\) and \(4, 3\)",
        ),
        ({"n_val": 31}, "n_train and n_val must be at least 2, got 30 and 31 of 60"),
        ({"n_train": 1}, "at least 2, got 1 and 30 of 60"),
        ({"label_noise": 1}, r"\[0, 1\), got 1"),
    ],
)
def test_wrong_images_are_refused(change, message):
    x, y = numbered()
    test_x, test_y = numbered(20)
    good = {
        "x": x,
        "y": y,
        "test_x": test_x,
        "test_y": test_y,
        "n_train": 30,
        "n_val": 30,
        "seed": 0,
    }
    split_images(**good)
    with pytest.raises(ValueError, match=message):
        split_images(**(good | change))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Set FLOODING_DATA to an empty folder, beside an empty cache, and give it."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("FLOODING_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


def put(data, monkeypatch, path, stored, known=None):
    """Store a file, and make it the official one."""
    (data / path).parent.mkdir(exist_ok=True)
    (data / path).write_bytes(stored)
    known = known or "md5:" + hashlib.md5(stored, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(FILES, path.removesuffix(".gz"), ("https://example.invalid/x.gz", known))


@pytest.mark.parametrize(
    ("make", "name", "known"),
    [
        (fashion_mnist, "fashion-mnist", lambda content: hashlib.sha256(content).hexdigest()),
        (mnist, "mnist", lambda content: hashlib.sha256(content).hexdigest()),
        (kuzushiji_mnist, "kuzushiji-mnist", lambda content: None),
    ],
)
def test_the_official_training_and_test_files_are_read(make, name, known, data, monkeypatch):
    for part, (x, y) in {"train": numbered(), "t10k": numbered(20, seed=1)}.items():
        for kind, array in {"images-idx3": x, "labels-idx1": y}.items():
            content = idx(array)
            put(
                data,
                monkeypatch,
                f"{name}/{part}-{kind}-ubyte.gz",
                gzip.compress(content),
                known(content),
            )
    found = make(0.2, n_train=30, n_val=20, seed=4)
    assert (
        found.sha256 == split_images(*numbered(), *numbered(20, seed=1), 30, 20, 0.2, seed=4).sha256
    )


def coloured(n=60, seed=0):
    """Colour images of 32 x 32 and their classes."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), (np.arange(n) % 10).astype(
        np.uint8
    )


def mat(x, y):
    from scipy.io import savemat

    with io.BytesIO() as file:
        savemat(file, {"X": x.transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y).reshape(-1, 1)})
        return file.getvalue()


def test_svhn_is_read_and_its_class_10_is_the_digit_0(data, monkeypatch):
    for part, (x, y) in {"train": coloured(), "test": coloured(20, seed=1)}.items():
        put(data, monkeypatch, f"svhn/{part}_32x32.mat", mat(x, y))
    assert all(
        np.array_equal(*pair)
        for pair in zip(load("svhn"), (*coloured(), *coloured(20, seed=1)), strict=True)
    )
    assert (
        svhn(0.2, 30, 20, seed=4).sha256 == split_images(*load("svhn"), 30, 20, 0.2, seed=4).sha256
    )


class _Python2(pickle._Pickler):
    """Pickles bytes as the strings of Python 2, which wrote the official batches."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, content):
        size = len(content)
        head = (
            pickle.SHORT_BINSTRING + bytes([size])
            if size < 256
            else pickle.BINSTRING + struct.pack("<i", size)
        )
        self.write(head + content)
        self.memoize(content)

    dispatch[bytes] = save_string


def pickled(thing):
    with io.BytesIO() as file:
        _Python2(file, protocol=2).dump(thing)
        return file.getvalue()


def batch(x, y, labels=b"labels"):
    """Pickle a batch: bytes for names, a list of classes, the colours of an image one after
    another."""
    flat = x.reshape(len(x), -1)
    return pickled({
        b"batch_label": b"part",
        labels: y.tolist(),
        b"data": flat,
        b"filenames": [b"a.png"] * len(x),
    })


def tar(contents, mode):
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for name, content in contents.items():
                entry = tarfile.TarInfo(f"inner/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return file.getvalue()


def cifar(monkeypatch, name):
    """Make small official batches; give their contents and the images in them."""
    x, y = coloured()
    test = coloured(20, seed=1)
    if name == "cifar10":
        parts = {
            f"data_batch_{n + 1}": batch(x[12 * n : 12 * n + 12], y[12 * n : 12 * n + 12])
            for n in range(5)
        }
        parts["test_batch"] = batch(*test)
    else:
        parts = {"train": batch(x, y, b"fine_labels"), "test": batch(*test, b"fine_labels")}
    known = {
        part: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for part, content in parts.items()
    }
    monkeypatch.setitem(ARCHIVES, name, (f"file:///nowhere/{name}.tar.gz", known))
    return parts, (x, y, *test)


@pytest.mark.parametrize("stored", ["unpacked", "below", "tar", "tar.gz", "tar.xz", "fetched"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_however_it_is_stored(name, stored, data, monkeypatch, tmp_path, server):
    parts, images = cifar(monkeypatch, name)
    folder = data / name / ("inner" if stored == "below" else "")
    folder.mkdir(parents=True)
    if stored in {"unpacked", "below"}:
        for part, content in parts.items():
            (folder / part).write_bytes(content)
    elif stored == "fetched":
        served = tmp_path / "official.tar.gz"
        served.write_bytes(tar(parts, "w:gz"))
        address = server(served.parent)
        monkeypatch.setitem(ARCHIVES, name, (f"{address}/official.tar.gz", ARCHIVES[name][1]))
    else:
        (folder / f"anything.{stored}").write_bytes(tar(parts, f"w:{stored.partition('.')[2]}"))
    found = load(name)
    assert all(
        a.dtype == np.uint8 and np.array_equal(a, b) for a, b in zip(found, images, strict=True)
    )
    if stored == "fetched":
        assert (downloads.cache() / name / "official.tar.gz").read_bytes() == served.read_bytes()


@pytest.mark.parametrize("make", [cifar10, cifar100])
def test_colours_are_standardised_channel_by_channel_or_left_as_bytes(make, data, monkeypatch):
    name = make.__name__
    parts, (_, _, test_x, _) = cifar(monkeypatch, name)
    (data / name).mkdir()
    (data / name / "a.tar").write_bytes(tar(parts, "w"))
    splits = make(n_train=40, n_val=20, seed=1)
    assert splits.train.x.shape == (40, 3, 32, 32)
    channels = splits.train.x.double().transpose(0, 1).flatten(1)
    assert torch.allclose(channels.mean(1), torch.zeros_like(channels[:, 0]), atol=1e-6)
    assert torch.allclose(channels.std(1, correction=0), torch.ones_like(channels[:, 0]), atol=1e-6)
    raw = make(n_train=40, n_val=20, label_noise=0.5, standardise=False, seed=1)
    assert torch.equal(raw.test.x, torch.from_numpy(test_x)), "they stay bytes"
    noisy = make(n_train=40, n_val=20, label_noise=0.5, seed=1)
    pixels = raw.train.x.double().transpose(0, 1).flatten(1)
    mean, sd = (tuple((a / 255).tolist()) for a in (pixels.mean(1), pixels.std(1, correction=0)))
    for split, other in ((raw.train, noisy.train), (raw.val, noisy.val)):
        assert torch.equal(split.y, other.y)
        assert split.x.dtype == torch.uint8
        assert torch.allclose(Standardise(mean, sd)(split.x), other.x, atol=1e-4)


def test_people_label_the_test_images_of_cifar_10(data, monkeypatch):
    parts, (*_, x, y) = cifar(monkeypatch, "cifar10")
    (data / "cifar10").mkdir()
    (data / "cifar10" / "a.tar").write_bytes(tar(parts, "w"))
    shares = np.random.default_rng(0).dirichlet(np.full(10, 0.3), len(y))
    with io.BytesIO() as file:
        np.save(file, shares)
        put(data, monkeypatch, "cifar10h/cifar10h-probs.npy", file.getvalue())
    n = len(y) // 3
    drawn = np.zeros((len(y), 10))
    for seed in range(400):
        splits = cifar10h(n, n, seed=seed)
        train, val, test = split_indices(len(y), n, n, seed=seed)
        for rows, split in ((train, splits.train), (val, splits.val), (test, splits.test)):
            assert split.clean.tolist() == y[rows].tolist()
            drawn[rows, split.y.numpy()] += 1
    assert torch.equal(splits.posterior, torch.from_numpy(shares[test]).float())
    assert abs(float(splits.train.x.double().mean())) < 1e-6
    first = torch.from_numpy(x[test].astype(np.float64))
    for channel in range(3):  # images in the order of their labels
        assert (
            np.corrcoef(splits.test.x[:, channel].ravel(), first[:, channel].ravel())[0, 1]
            > 1 - 1e-9
        )
    assert drawn.sum() == 400 * len(y)
    expected = 400 * shares
    assert (np.abs(drawn - expected) < 5 * np.sqrt(400 * shares * (1 - shares)) + 1).all()
    assert torch.equal(cifar10h(n, n, seed=3).train.y, cifar10h(n, n, seed=3).train.y)


class Evil:
    """Would call something if it were unpickled."""

    def __reduce__(self):
        return (print, ("called",))


class Reader(Evil):
    """Would read a file by a function of NumPy."""

    def __reduce__(self):
        return (np.fromfile, ("a file",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled({b"data": Evil()}), "builtin.*print, which is not an array of numbers"),
        (pickled({b"data": Reader()}), "numpy.*fromfile, which is not an array of numbers"),
        (batch(*coloured(4))[:-20], "a batch must hold images and labels of CIFAR"),
        (pickled({b"data": np.zeros((2, 3072), np.uint8)}), "b'labels'"),
        (
            batch(coloured(4)[0], np.zeros(3, np.uint8)),
            r"images uint8 \(4, 3072\) and labels \(3,\)",
        ),
        (b"", "Fetch it anew"),
    ],
)
def test_a_batch_that_is_none_is_refused_and_nothing_is_called(content, message, capsys):
    with pytest.raises(ValueError, match=message):
        read_batch(content)
    assert "called" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold X and y"),
        (mat(*coloured(4))[:-50], "must hold X and y"),
        (mat(coloured(4)[0], np.full(4, 12)), "with digits y"),
        (mat(coloured(4)[0], np.zeros(3)), r"and \(3,\)"),
    ],
)
def test_a_matlab_file_of_another_kind_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_mat(content)


@pytest.mark.parametrize("name", sorted(SETS))
@pytest.mark.parametrize("damage", ["cut off", "another file", "missing"])
def test_a_damaged_file_is_refused_and_nothing_is_cached(name, damage, data, monkeypatch):
    if name.startswith("cifar"):
        parts, _ = cifar(monkeypatch, name)
        first = next(iter(parts))
        parts[first] = parts[first][:-9] if damage == "cut off" else b"nothing"
        if damage == "missing":
            del parts[first]
        (data / name).mkdir()
        (data / name / "a.tar.gz").write_bytes(tar(parts, "w:gz"))
    else:
        for part, test in (("train", "train"), ("t10k", "test")):
            x, y = coloured() if name == "svhn" else numbered()
            held = {
                f"{part}-images-idx3-ubyte.gz": gzip.compress(idx(x)),
                f"{part}-labels-idx1-ubyte.gz": idx(y),
            }
            for file, content in (
                {f"{test}_32x32.mat": mat(x, y)} if name == "svhn" else held
            ).items():
                put(data, monkeypatch, f"{name}/{file}", content)
        path = sorted((data / name).iterdir())[0]
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-9] if damage == "cut off" else b"nothing")
    told = (
        "is missing"
        if damage == "missing" and name.startswith("cifar")
        else "must be in the folder|must have md5"
    )
    with pytest.raises(ValueError, match=told):
        load(name)
    assert not (downloads.cache() / "decoded").exists()


def test_a_broken_archive_is_refused(data, monkeypatch):
    parts, _ = cifar(monkeypatch, "cifar100")
    (data / "cifar100").mkdir()
    (data / "cifar100" / "a.tar.xz").write_bytes(tar(parts, "w:xz")[:2000])
    with pytest.raises(ValueError, match=r"got a broken archive.*Delete it"):
        load("cifar100")


@pytest.mark.parametrize("damage", ["cut off", "another file", "one is missing"])
def test_an_archive_that_is_not_the_official_one_is_refused_when_it_is_fetched(
    damage, data, monkeypatch, tmp_path, server
):
    parts, _ = cifar(monkeypatch, "cifar10")
    if damage == "another file":
        parts["data_batch_3"] = parts["data_batch_2"]
    if damage == "one is missing":
        del parts["data_batch_3"]
    served = tmp_path / "official.tar.gz"
    content = tar(parts, "w:gz")
    served.write_bytes(content[: len(content) // 2] if damage == "cut off" else content)
    address = server(served.parent)
    monkeypatch.setitem(ARCHIVES, "cifar10", (f"{address}/official.tar.gz", ARCHIVES["cifar10"][1]))
    with pytest.raises(
        ValueError, match=r"must serve the official archive.*Try again later; or download http"
    ):
        load("cifar10")
    assert [path for path in downloads.cache().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo's index 2,147,483,647|memo's index 2147483647"),
        (
            b"\x80\x02}(U\x04datacnumpy\nndarray\nJ\x00\x00\x00\x40\x85RU\x06labels]u.",
            "not callable",
        ),
        (
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nJ\x00\x00\x00\x40\x85"
            b"U\x01btRU\x06labels]u.",
            r"an array of shape \(1073741824,\) without its numbers",
        ),
        (pickled({b"data": np.zeros((1, 3072), np.uint8), b"labels": [[1]]}), "no whole numbers"),
        (pickled({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1.5]}), "no whole numbers"),
        (pickled({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10**30]}), "got "),
        (b"\x80\x02]", "got "),
    ],
    ids=[
        "memo",
        "an array by its class",
        "an array without its bytes",
        "lists",
        "fractions",
        "huge",
        "cut off",
    ],
)
def test_a_batch_allocates_nothing_on_its_own_word(content, message):
    with pytest.raises(ValueError, match=message):
        read_batch(content)


def long_name():
    """A tar file that says that a name of 8 GB follows."""
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 8_000_000_000
    return gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(10**6))


def sparse():
    """A tar file of 10 KB with a member of 8 GB, all of it a hole."""
    entry = tarfile.TarInfo("data_batch_1")
    entry.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o " % 8_000_000_000
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(10_240)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            tar({"other": bytes(10**6), "data_batch_1": b"x"}, "w:gz"),
            "unpacks to more than 100,000 bytes",
        ),
        (tar({"other": bytes(10), "data_batch_1": b"x"}, "w:gz"), "data_batch_1 must have md5"),
        (long_name(), "unpacks to more than 100,000 bytes"),
        (sparse(), "data_batch_1 is missing"),
        (tar({"data_batch_1": bytes(10**6)}, "w:xz"), "unpacks to more than 100,000 bytes"),
        (tar({"data_batch_1": bytes(10**6)}, "w:bz2"), "unpacks to more than 100,000 bytes"),
        (gzip.compress(b"nonsense" * 1000), "broken archive"),
        (b"", "broken archive"),
    ],
    ids=["skipped", "small", "name", "sparse", "xz", "bzip2", "no tar", "empty"],
)
def test_archives_that_unpack_to_more_than_the_limit_are_refused(
    data, monkeypatch, content, message
):
    cifar(monkeypatch, "cifar10")
    (data / "cifar10").mkdir()
    (data / "cifar10" / "a.tar.gz").write_bytes(content)
    monkeypatch.setenv("FLOODING_MAX_BYTES", "100000")
    with pytest.raises(ValueError, match=message):
        load("cifar10")


def test_a_matlab_file_that_unpacks_to_more_than_the_limit_is_refused(monkeypatch):
    from scipy.io import savemat

    x, y = coloured(400)
    with io.BytesIO() as file:
        savemat(
            file, {"X": x.transpose(2, 3, 1, 0) * 0, "y": y.reshape(-1, 1)}, do_compression=True
        )
        content = file.getvalue()
    assert len(content) < 10_000
    assert len(read_mat(content)[1]) == 400
    monkeypatch.setenv("FLOODING_MAX_BYTES", "1000000")
    with pytest.raises(ValueError, match="unpacks to more than"):
        read_mat(content)


def test_decoded_images_of_another_set_are_not_used(data, monkeypatch, caplog):
    expected = {}
    for name in ("cifar10", "cifar100"):
        parts, _ = cifar(monkeypatch, name)
        (data / name).mkdir()
        (data / name / "a.tar").write_bytes(tar(parts, "w"))
        expected[name] = load(name)
    paths = {
        path.name.rpartition("-")[0]: path for path in (downloads.cache() / "decoded").iterdir()
    }
    with np.load(paths["cifar10"]) as held:
        changed = {**held, "y": held["y"][::-1]}
    np.savez(paths["cifar10"], **changed)
    assert np.array_equal(load("cifar10").y, changed["y"])  # it is the cache that is read
    paths["cifar100"].write_bytes(paths["cifar10"].read_bytes())
    assert caplog.messages == []
    assert np.array_equal(load("cifar100").y, expected["cifar100"].y)
    assert "it does not say that it is cifar100-" in caplog.text


def test_images_are_decoded_once_and_a_damaged_cache_is_replaced(data, monkeypatch, caplog):
    parts, images = cifar(monkeypatch, "cifar100")
    (data / "cifar100").mkdir()
    (data / "cifar100" / "a.tar").write_bytes(tar(parts, "w"))
    load("cifar100")
    (data / "cifar100" / "a.tar").rename(data / "away.tar")
    assert all(np.array_equal(a, b) for a, b in zip(load("cifar100"), images, strict=True))
    [kept] = (downloads.cache() / "decoded").iterdir()
    content = bytearray(kept.read_bytes())
    content[5000] ^= 1
    kept.write_bytes(content)
    (data / "away.tar").rename(data / "cifar100" / "a.tar")
    assert all(np.array_equal(a, b) for a, b in zip(load("cifar100"), images, strict=True))
    assert "cannot be read" in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", str(data / "away"))
    (data / "away").write_text("a file")
    caplog.set_level(logging.WARNING, "flooding")
    assert len(load("cifar100").y) == 60
    assert "cache must be a folder that can be written" in caplog.text


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match=r"must be one of mnist, fashion-mnist.*; got 'imagenet'"):
        load("imagenet")


@pytest.mark.parametrize(
    ("make", "name", "least"), [(fashion_mnist, "fashion-mnist", 0.62), (mnist, "mnist", 0.75)]
)
def test_the_official_images_as_the_settings_table_says(make, name, least):
    official(name)
    splits = make(seed=0)
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


# sha256 of training images, their classes, test images and theirs, one after another. The channels
# of CIFAR-10 have the means and deviations that are published everywhere: .4914, .4822, .4465 and
# .2470, .2435, .2616.
DECODED = {
    "mnist": "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",
    "fashion-mnist": "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f",
    "cifar10": "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493",
}


@pytest.mark.parametrize("name", DECODED)
def test_the_decoded_images_are_the_official_ones(name, tmp_path, monkeypatch):
    if name in ARCHIVES:
        folder = os.environ.get("FLOODING_DATA")
        if folder is None or not (Path(folder) / name).is_dir():
            pytest.skip(f"{name} is not in FLOODING_DATA")
    else:
        official(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):  # decoded, and looked up
        found = load(name)
        assert hashlib.sha256(b"".join(a.tobytes() for a in found)).hexdigest() == DECODED[name]
    if name == "cifar10":
        means = [round(float(found.x[:, c].mean()) / 255, 4) for c in range(3)]
        assert means == [0.4914, 0.4822, 0.4465]
        assert (np.bincount(found.y) == 5000).all()
