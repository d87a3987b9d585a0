"""Tables as they should not be: damaged, huge, extreme or malicious ones end in one sentence or are
read rightly."""

import bz2
import csv
import gzip
import io
import logging
import lzma
import math
import random
import struct
import time
import zipfile

import numpy as np
import pytest
import torch

from flooding.tabular import load_model, predict, read_table, save_model, table_problem
from flooding.tabular.model import _warn_of_formulas

FRUIT = "kind,grams,colour\n" + "apple,150,red\nfig,40,green\napple,170,green\nfig,50,brown\n" * 10


def written(folder, content, name="table.csv"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def npy(shape, dtype="'|u1'", data=b"", version=(1, 0)):
    """Write an array's header by hand."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + data


def npz(folder, members, method=zipfile.ZIP_DEFLATED, name="a.npz"):
    with zipfile.ZipFile(folder / name, "w", method) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return folder / name


# Limits.


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.csv.gz", gzip.compress), ("a.csv.bz2", bz2.compress), ("a.csv.xz", lzma.compress)],
    ids=["gzip", "bzip2", "xz"],
)
def test_what_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch, name, pack):
    content = FRUIT.replace("apple", "apple " * 40).encode()
    bomb = written(tmp_path, pack(content + b"apple,150,red\n" * 100_000), name)
    assert bomb.stat().st_size < 10_000
    monkeypatch.setenv("FLOODING_MAX_BYTES", "1000000")
    with pytest.raises(
        ValueError,
        match=r"can be read and unpacked, got .*more than 1,000,000 bytes.*FLOODING_MAX_BYTES",
    ):
        read_table(bomb)
    monkeypatch.setenv("FLOODING_MAX_BYTES", str(len(content)))
    assert (
        len(read_table(written(tmp_path, pack(content), name))) == 40
    )  # the limit itself is allowed
    monkeypatch.setenv("FLOODING_MAX_BYTES", str(len(content) - 1))
    with pytest.raises(ValueError, match=f"more than {len(content) - 1:,} bytes"):
        read_table(tmp_path / name)
    assert (
        len(read_table(written(tmp_path, content, "plain.csv"))) == 40
    )  # what is not packed has the size it shows


def test_a_bomb_ends_before_it_is_unpacked_whole(tmp_path, monkeypatch):
    bomb = written(tmp_path, gzip.compress(bytes(1 << 20)) * 4096, "bomb.csv.gz")  # 4 GiB of zeros
    assert bomb.stat().st_size < 5 << 20
    monkeypatch.setenv("FLOODING_MAX_BYTES", "50000000")
    start = time.process_time()
    with pytest.raises(ValueError, match="more than 50,000,000 bytes"):
        read_table(bomb)
    assert time.process_time() - start < 5  # 0.3 s; the whole takes 10 s


@pytest.mark.parametrize(
    "text", ["a,b\n" + "1,2\n" * 20_000, "x\n" + "1\n" * 40_000, ",".join("x" * 40_000) + "\n" * 2]
)
def test_a_packed_table_of_too_many_cells_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setenv("FLOODING_MAX_BYTES", "400000")
    with pytest.raises(
        ValueError, match=r"at most 25,000 cells, got [3-9][90],\d+ in .*FLOODING_MAX_BYTES"
    ):
        read_table(written(tmp_path, gzip.compress(text.encode()), "a.csv.gz"))


@pytest.mark.parametrize("value", ["many", "-1", "0", "1e9", "9" * 30, "1 GiB"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv("FLOODING_MAX_BYTES", value)
    with pytest.raises(
        ValueError, match="FLOODING_MAX_BYTES must be a whole number of bytes above 0, got"
    ):
        read_table(written(tmp_path, gzip.compress(FRUIT.encode()), "a.csv.gz"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.npy", npy((10**12,)))], r"of shape \(10+,\) and uint8 cannot have 0 bytes"),
        ([("x.npy", npy((10**12, 10**12), "'<f8'"))], "cannot have 0 bytes"),
        ([("x.npy", npy((10**12,), "'<U0'"))], "cannot have 0 bytes"),
        ([("x.npy", npy((3,), data=bytes(2)))], "cannot have 2 bytes"),
        ([("x.npy", npy((3,), data=bytes(4)))], "cannot have 4 bytes"),
        ([("x.npy", npy((-3, -1), data=bytes(3)))], "cannot have 3 bytes"),
        (
            [("x.npy", npy((2,), "'|O'", b"\x80\x02]q\x00(NNe."))],
            "holds objects, which would have to be unpickled",
        ),
        ([("x.npy", npy((2,), "[('a', '|O')]", bytes(16)))], "holds objects"),
        ([("x.npy", npy((2,), data=bytes(2), version=(9, 9)))], "format"),
        ([("x.npy", npy("__import__('os')"))], "got"),
        ([("x.npy", npy((1,), "'" + "(" * 5000 + "'"))], "got"),
        ([("x.npy", b"")], "EOF|magic"),
        ([("x.npy", bytes(2_000_000))], "more than 1,000,000 bytes"),
        ([(f"x{i}.npy", bytes(300_000)) for i in range(4)], "more than 1,000,000 bytes"),
        (
            [("x.npy", npy((900_000, 1), data=bytes(900_000)))],
            "at most 62,500 cells, got 900,000 in",
        ),
        (
            [("x.npy", npy((2,), data=bytes(2))), ("x.npy", npy((2,), data=bytes(2)))],
            "'x.npy' 2 times",
        ),
        ([("y.npy", npy((2,), data=bytes(2)))], "an .npz file must hold inputs x with rows, got y"),
        ([("x.npy", npy((), data=bytes(1)))], "an .npz file must hold inputs x with rows"),
        ([("x.npy", npy((3, 0)))], "an .npz file must hold inputs x with rows"),
        ([("x.npy", npy((2,), "'<c8'", bytes(16)))], "must hold numbers or text, got complex64"),
        (
            [("x.npy", npy((2,), "'<M8[s]'", bytes(16)))],
            "must hold numbers or text, got datetime64",
        ),
        ([], "an .npz file must hold inputs x with rows, got nothing"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_malicious_archives_are_refused_before_anything_is_allocated(
    tmp_path, monkeypatch, members, message
):
    monkeypatch.setenv("FLOODING_MAX_BYTES", "1000000")
    with pytest.raises(ValueError, match=message):
        read_table(npz(tmp_path, members))


def test_archives_of_their_own_size_and_of_both_formats_are_read(tmp_path, monkeypatch):
    x = np.asfortranarray(np.arange(600, dtype=np.int16).reshape(100, 6))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(100) % 2)
    monkeypatch.setenv("FLOODING_MAX_BYTES", "100")  # not packed, so not a bomb
    assert np.array_equal(read_table(tmp_path / "a.npz").to_numpy()[:, :6], x)
    monkeypatch.delenv("FLOODING_MAX_BYTES")
    data = x.astype("<i2").tobytes("F")
    header = npy((100, 6), "'<i2'", data, (2, 0)).replace(
        b"'fortran_order': False", b"'fortran_order': True "
    )
    assert np.array_equal(read_table(npz(tmp_path, [("X.npy", header)])).to_numpy(), x)
    np.savez_compressed(tmp_path / "wide.npz", x=np.zeros((1, 300_001), np.uint8))
    with pytest.raises(ValueError, match="at most 300,000 columns, got 300,001 in"):
        read_table(tmp_path / "wide.npz")


# Wide ones.


def test_four_thousand_columns_are_read_and_learned(tmp_path):
    n = 4_000
    names = [f"column with a long name {i:012}" for i in range(n)]
    x = np.random.default_rng(0).normal(size=(30, n)).round(6)
    rows = [",".join(map(str, row)) + f",{'ab'[i % 2]}" for i, row in enumerate(x.tolist())]
    path = written(tmp_path, ",".join(names) + ",y\n" + "\n".join(rows))
    limit = csv.field_size_limit()
    assert len(",".join(names)) > limit
    start = time.process_time()
    table = table_problem(path, "y", max_epochs=1, width=2, depth=1)
    assert time.process_time() - start < 10  # 1 s; slower where it is done column by column
    assert csv.field_size_limit() == limit
    splits = table.problem.data
    assert table.preprocessing.columns == tuple(names)
    inputs = torch.cat([splits.train.x, splits.val.x, splits.test.x]).double().numpy()
    scaler = table.preprocessing.transformer.named_transformers_["numbers"]["scaler"]
    restored = inputs * scaler.scale_ + scaler.mean_
    np.testing.assert_allclose(np.sort(restored, axis=0), np.sort(x, axis=0), atol=1e-5)
    save_model(tmp_path / "model", table.problem.build(0).state_dict(), table)
    assert len(predict(tmp_path / "model", path)) == 30


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", " "])
def test_lines_above_the_limit_of_the_csv_module_are_read(tmp_path, separator):
    n = 2_000
    lines = [separator.join(f"{start}.{i:080d}" for i in range(1, n + 1)) for start in (1, 2)]
    assert len(lines[0]) > 131_072
    table = read_table(written(tmp_path, "\n".join(lines)), header=False)
    assert table.shape == (2, n)
    assert set(table.iloc[1]) == {2.0}


@pytest.mark.parametrize(
    "cell", ["x" * 200_000, '"' + "x, " * 70_000 + '"', '"' + "x\n" * 100_000 + '"']
)
def test_a_cell_of_200_000_characters_is_text(tmp_path, cell):
    table = read_table(written(tmp_path, f"a,b\n1,{cell}\n2,y\n"), "b")
    assert table["a"].tolist() == [1, 2]
    assert table["b"].tolist() == [cell.strip('"').strip(), "y"]


def test_too_many_columns_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="at most 300,000 columns, got 300,001 in"):
        read_table(written(tmp_path, "1," * 300_000 + "1\n" + "1," * 300_000 + "1\n"))
    with pytest.raises(
        ValueError, match="at most 10,000,000 separators in a line, got 10,000,001 in"
    ):
        read_table(written(tmp_path, "," * 10_000_001 + "\n1\n"))


# Extremes.


@pytest.mark.parametrize("number", ["1e400", "-1e5000", "9" * 400, "inf", "1e31", "-Infinity"])
def test_numbers_beyond_the_range_are_refused(tmp_path, number):
    rows = "".join(f"{i},{i % 2}\n" for i in range(30))
    with pytest.raises(
        ValueError, match=r"column 'a' must hold finite numbers within 1e\+30, got -?(inf|1e\+31)"
    ):
        table_problem(written(tmp_path, f"a,y\n{rows}{number},1\n"), "y")
    with pytest.raises(
        ValueError, match=r"column 'y' must hold finite numbers within 1e\+30, got -?(inf|1e\+31)"
    ):
        table_problem(written(tmp_path, f"y,a\n{rows}{number},1\n"), "y", kind="regression")


@pytest.mark.parametrize(
    ("unit", "digits"), [("1e-320", 1e-3), ("1e-200", 1e-5), ("1e-160", 1e-5), ("1e29", 1e-5)]
)
def test_numbers_near_the_ends_of_the_range_are_standardised(tmp_path, unit, digits):
    rows = "".join(f"{unit if i % 2 else 0},{i % 2},{unit if i % 3 else 0}\n" for i in range(60))
    table = table_problem(written(tmp_path, f"a,y,z\n{rows}"), "y")
    x = table.problem.data.train.x
    assert torch.allclose(x.mean(0), torch.zeros(2), atol=digits)
    assert torch.allclose(x.std(0, correction=0), torch.ones(2), atol=digits)
    y = table_problem(tmp_path / "table.csv", "z", kind="regression").problem.data.train.y
    assert torch.allclose(y.std(correction=0), torch.ones(()), atol=digits)


def test_the_smallest_number_is_still_another_than_0(tmp_path):
    rows = "".join(f"{'5e-324' if i % 2 else 0},{i % 2}\n" for i in range(60))
    x = table_problem(written(tmp_path, f"a,y\n{rows}"), "y").problem.data.train.x
    assert len(set(x.ravel().tolist())) == 2
    assert x.isfinite().all()


def test_numbers_that_are_far_from_those_of_training_are_refused(tmp_path):
    rows = "".join(f"{i % 3}e-20,{i % 2}\n" for i in range(60))
    table = table_problem(written(tmp_path, f"a,y\n{rows}"), "y", width=4, depth=1)
    save_model(tmp_path / "model", table.problem.build(0).state_dict(), table)
    with pytest.raises(ValueError, match="column 'a' must hold numbers near those of training"):
        predict(tmp_path / "model", written(tmp_path, "a\n1e-20\n1e25\n", "new.csv"))
    weights = {name: tensor * 1e10 for name, tensor in table.problem.build(0).state_dict().items()}
    save_model(tmp_path / "model", weights, table)
    path = written(tmp_path, "a\n1e-20\n1e17\n", "new.csv")
    with pytest.raises(ValueError, match="must have a finite prediction, got none for row 2 of"):
        predict(tmp_path / "model", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,y\n1,x\x00\n", "NUL byte at position 7"),
        ("a,y\n1,x\n".encode("utf-16-le") + b"\0", "got .*: a NUL byte at position 1, as in"),
        (b"a,y\n1,x\n\0\0", "got .*: a NUL byte at position 8, as in archives .* Save it as CSV"),
        (b"a,y\n" + b"\x00" * 100, "NUL byte at position 4"),
        (b"a,y\n", "the header alone"),
        (b"a,y", "the header alone"),
        (b"y\n", "the header alone"),
        (b'a,y\n"1,2\n3,4\n5,6\n', "rows of fields"),
        (b'a,y\n1,2\n3,"4\n5,6\n', "rows of fields"),
        (b"a,a\n1,2\n", "column names must differ, got 'a' 2 times"),
        (b"\n\n\n", "empty file"),
        (b"", "empty file"),
        (b"\xef\xbb\xbf", "rows"),
        (b"a,y\n1,2\n1,2,3,4\n", "rows of fields"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        table_problem(written(tmp_path, content), "y")


def test_marks_and_line_ends_of_joined_files_are_read(tmp_path, caplog):
    expected = read_table(written(tmp_path, FRUIT)).to_dict("list")
    lines = FRUIT.splitlines()
    mixed = "".join(line + end for line, end in zip(lines, ["\n", "\r\n", "\r"] * 20, strict=False))
    assert read_table(written(tmp_path, mixed)).to_dict("list") == expected
    assert read_table(written(tmp_path, FRUIT.replace("\n", "\r"))).to_dict("list") == expected
    assert caplog.text == ""
    joined = FRUIT.replace("fig,40", "\ufefffig,40", 3)
    assert read_table(written(tmp_path, "\ufeff" + joined)).to_dict("list") == expected
    assert "Left out 3 byte order marks at the start of lines." in caplog.text
    assert read_table(written(tmp_path, "a,b\n1,x\ufeffy\n"))["b"].tolist() == [
        "x\ufeffy"
    ]  # not at the start


def test_names_of_any_length_and_of_none(tmp_path):
    rows = "".join(f"{i % 19},{i * i % 7},{i % 2}\n" for i in range(40))
    long = "n" * 10_000
    table = table_problem(written(tmp_path, f"{long},b,y\n{rows}"), "y", width=2, depth=1)
    assert table.preprocessing.columns[0] == long
    assert max(map(len, table.assumptions)) < 500
    save_model(tmp_path / "model", table.problem.build(0).state_dict(), table)
    assert load_model(tmp_path / "model").preprocessing.columns[0] == long
    with pytest.raises(ValueError, match="got no 'nnn") as error:
        predict(tmp_path / "model", written(tmp_path, "b\n1\n", "new.csv"))
    assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match=r"must be a column of table\.csv") as error:
        table_problem(tmp_path / "table.csv", "m" * 10_000)
    assert len(str(error.value)) < 1000


# Names that do something.


def test_control_characters_in_names_are_not_printed(tmp_path, caplog):
    red, clear, bell = "\x1b[31m", "\x1b[2J", "\x07"
    rows = "".join(
        f"{i % 29},{'pq'[i % 2]}{clear},{'' if i % 5 else 'z'},{i % 7},{'uv'[i % 2]}{bell}\n"
        for i in range(60)
    )
    path = written(tmp_path, f"a{red},b{red},gap{red},d\u202e,y{red}\n{rows}", f"t{bell}.csv")
    table = table_problem(path, f"y{red}", width=2, depth=1)
    assert table.target.classes == (f"u{bell}", f"v{bell}")  # as they are
    save_model(tmp_path / "model", table.problem.build(0).state_dict(), table)
    new = f"a{red},b{red},gap{red},d\u202e,more{red}\n1,new{clear},z,3,4\n"
    predict(tmp_path / "model", written(tmp_path, new, f"n{bell}.csv"))
    errors = []
    for bad in (
        "a\n1\n",
        f"a{red},b{red},gap{red},d\u202e\nx{bell},p,z,3\n",
        f"q{red},q{red}\n1,2\n",
        f"q{red}\n",
    ):
        with pytest.raises(ValueError, match=r"got") as error:
            predict(tmp_path / "model", written(tmp_path, bad, f"n{bell}.csv"))
        errors.append(str(error.value))
    with pytest.raises(ValueError, match="target must be a column") as error:
        table_problem(path, f"z{red}")
    said = [*table.assumptions, *caplog.messages, *errors, str(error.value)]
    assert len(caplog.messages) == 2
    assert all(line.isprintable() for line in said), said
    assert r"a\x1b[31m" in said[2] + said[1]


@pytest.mark.parametrize("name", ["=1+1", "+SUM(A1)", "-cmd|' /C calc'!A0", "@now", "\uff1dcmd"])
def test_class_names_that_are_formulas_are_warned_about_and_kept(tmp_path, caplog, name):
    rows = "".join(f'{i % 2},"{name if i % 2 else "plain"}"\n' for i in range(40))
    table = table_problem(written(tmp_path, f"a,y\n{rows}"), "y", max_epochs=1, width=2, depth=1)
    weights = table.problem.build(0).state_dict()
    biased = weights | {"3.weight": weights["3.weight"] * 0}
    for bias, expected in (
        ([9.0, 0.0], table.target.classes[0]),
        ([0.0, 9.0], table.target.classes[1]),
    ):
        save_model(tmp_path / "model", biased | {"3.bias": torch.tensor(bias)}, table)
        caplog.clear()
        assert predict(tmp_path / "model", tmp_path / "table.csv")["y"].tolist() == [expected] * 40
        assert bool(caplog.messages) == (expected == name)
    save_model(tmp_path / "model", biased | {"3.bias": torch.tensor([9.0, 0.0])}, table)


def test_negative_numbers_are_no_formulas(caplog):
    _warn_of_formulas(["-1", "+2.5", "-1e5", "-1,5", "a=b", "x@y", "plain", ""])
    assert caplog.messages == []
    _warn_of_formulas(["=a", "=a", "\tb", "-1"])
    assert (
        "3 rows have a class whose name a spreadsheet would run as a formula: =a, \\tb. Import"
        in caplog.text
    )


# At random.


def mutated(content, generator):
    content = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 5])):
        at = generator.randrange(len(content)) if content else 0
        match generator.randrange(6):
            case 0 if content:
                content[at] ^= 1 << generator.randrange(8)
            case 1:
                del content[at:]
            case 2:
                content[at:at] = generator.choice([
                    b"\0",
                    b'"',
                    b"\xef\xbb\xbf",
                    b"\r",
                    b"1e400",
                    b"\xff",
                    b",",
                    b"\n",
                    b"-",
                    b"'",
                ])
            case 3:
                lines = bytes(content).splitlines(keepends=True)
                generator.shuffle(lines)
                content = bytearray(b"".join(lines[: generator.randrange(len(lines) + 1)]))
            case 4:
                content[at : at + generator.randrange(30)] = b""
            case _:
                content[at:at] = bytes(content[:at])
    return bytes(content)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["text", "gzip", "arrays", "semicolons"])
def test_mutated_tables_are_refused_or_read(tmp_path, kind, seed, caplog):
    generator = random.Random(f"{kind} {seed}")
    if kind == "arrays":
        np.savez(tmp_path / "a.npz", x=np.arange(60.0).reshape(20, 3), y=np.arange(20) % 2)
        content, name, target = (tmp_path / "a.npz").read_bytes(), "a.npz", "y"
    else:
        text = FRUIT.replace(",", ";").replace("150", "1,5") if kind == "semicolons" else FRUIT
        content, name, target = text.encode(), "a.csv", "kind"
    if kind == "gzip":
        content, name = gzip.compress(content), "a.csv.gz"
    caplog.set_level(logging.ERROR)
    errors, tables = [], []
    for _ in range(10):
        path = written(tmp_path, mutated(content, generator), name)
        try:
            tables.append(table_problem(path, target))
        except ValueError as error:
            errors.append(str(error))
    assert all(error.isprintable() for error in errors)
    for table in tables:
        splits = table.problem.data
        for part in (splits.train, splits.val, splits.test):
            assert math.isfinite(part.x.sum())
            assert math.isfinite(part.y.sum())
    assert errors


def test_arrays_from_a_stream(tmp_path):
    with io.BytesIO() as file:
        np.savez(file, x=np.zeros((2, 2), "U3"))
        content = file.getvalue()
    assert read_table(written(tmp_path, content, "a.npz")).isna().all(axis=None)
