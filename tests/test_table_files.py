"""Every kind of file a table comes in, read as the same table; other kinds are named as such."""

import csv
import datetime
import gzip
import importlib.util
import io
import json
import os
import sqlite3
import sys
import threading
import zipfile

import numpy as np
import pandas as pd
import pytest

from flooding.tabular import predict, read_table, save_model, table_problem
from flooding.tabular.reading import read_raw

ROWS = [
    ["id code", "größe", "price", "when", "class"],
    *(
        [
            "0123456789"[i % 10] * 3,
            f"{i * 7 % 23}.5",
            f"${1 + i * 13 % 29},{i % 7}00.25",
            f"2021-{1 + i % 12:02d}-{1 + i * 5 % 28:02d}",
            ["007", "010", "NA,x"][i % 3],
        ]
        for i in range(60)
    ),
]
EXPECTED = {
    "id code": [row[0] for row in ROWS[1:]],
    "größe": [float(row[1]) for row in ROWS[1:]],
    "price": [float(row[2].replace("$", "").replace(",", "")) for row in ROWS[1:]],
    "when": [pd.Timestamp(row[3]) for row in ROWS[1:]],
    "class": [row[4] for row in ROWS[1:]],
}


def needs(library):
    return pytest.mark.skipif(
        importlib.util.find_spec(library) is None, reason=f"{library} is not installed"
    )


def csv_text(separator=","):
    file = io.StringIO()
    csv.writer(file, delimiter=separator, lineterminator="\n").writerows(ROWS)
    return file.getvalue()


def frame():
    return pd.DataFrame(ROWS[1:], columns=ROWS[0])


def to_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)


def to_lines(path):
    frame().to_json(path, orient="records", lines=True, force_ascii=False)


WRITERS = {
    "a.csv": lambda p: p.write_text(csv_text(), encoding="utf-8"),
    "mark.csv": lambda p: p.write_text(csv_text(), encoding="utf-8-sig"),
    "a.tsv": lambda p: p.write_text(csv_text("\t"), encoding="utf-8"),
    "semicolons.csv": lambda p: p.write_text(csv_text(";"), encoding="utf-8"),
    "bars": lambda p: p.write_text(csv_text("|"), encoding="utf-8"),
    "sep.csv": lambda p: p.write_text("sep=;\n" + csv_text(";"), encoding="utf-8"),
    "quoted_sep.csv": lambda p: p.write_text('"sep=^"\n' + csv_text("^"), encoding="utf-8"),
    "comment.csv": lambda p: p.write_text("# by hand, twice\n" + csv_text(), encoding="utf-8"),
    "comments.csv": lambda p: p.write_text("% a\n% b\n\n" + csv_text(), encoding="utf-8"),
    "title.csv": lambda p: p.write_text("Sales of 2021\n\n" + csv_text(";"), encoding="utf-8"),
    "utf16.csv": lambda p: p.write_text(csv_text(), encoding="utf-16"),
    "utf16le.csv": lambda p: p.write_text(csv_text(), encoding="utf-16-le"),
    "utf16be.csv": lambda p: p.write_text(csv_text("\t"), encoding="utf-16-be"),
    "utf32.csv": lambda p: p.write_text(csv_text(), encoding="utf-32"),
    "latin1.csv": lambda p: p.write_text(csv_text(), encoding="latin-1"),
    "a.csv.gz": lambda p: p.write_bytes(gzip.compress(csv_text().encode())),
    "packed_without_a_name": lambda p: p.write_bytes(gzip.compress(csv_text().encode())),
    "a.csv.zip": lambda p: to_zip(p, [("b.csv", csv_text()), ("__MACOSX/._b.csv", "x")]),
    "a.zip": lambda p: to_zip(p, [("folder/", ""), ("folder/b.tsv", csv_text("\t"))]),
    "json.zip": lambda p: to_zip(p, [("b.json", frame().to_json(orient="records"))]),
    "a.jsonl": to_lines,
    "lines": to_lines,
    "a.json": lambda p: frame().to_json(p, orient="records"),
    "columns.json": lambda p: frame().to_json(p),
    "lists.json": lambda p: p.write_text(json.dumps(frame().to_dict("list"))),
    "a.dta": lambda p: frame().rename(columns=str).to_stata(p, write_index=False, version=118),
}
ENGINES = {
    "a.xlsx": ("openpyxl", lambda p: frame().to_excel(p, index=False)),
    "a.parquet": ("pyarrow", lambda p: frame().to_parquet(p)),
    "a.feather": ("pyarrow", lambda p: frame().to_feather(p)),
    "parquet_without_a_name": ("pyarrow", lambda p: frame().to_parquet(p)),
}


def check(table, names=None):
    assert list(table) == (names or ROWS[0])
    for column, expected in zip(table, EXPECTED.values(), strict=True):
        assert table[column].tolist() == expected, column


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "a.dta"])
def test_kinds_of_files_hold_the_same_table(tmp_path, name):
    WRITERS[name](tmp_path / name)
    check(read_table(tmp_path / name))


def test_a_stata_file(tmp_path):
    with pytest.warns(pd.errors.InvalidColumnName):
        WRITERS["a.dta"](tmp_path / "a.dta")
    table = read_table(tmp_path / "a.dta")
    check(table, list(table))


@pytest.mark.parametrize("name", ENGINES)
def test_kinds_of_files_that_need_a_library(tmp_path, name):
    library, write = ENGINES[name]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    write(tmp_path / name)
    check(read_table(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "library"), [("a.parquet", "pyarrow"), ("a.xls", "xlrd"), ("a.xlsx", "openpyxl")]
)
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, name, library):
    start = {"a.parquet": b"PAR1", "a.xls": b"\xd0\xcf\x11\xe0", "a.xlsx": b"PK"}[name]
    (tmp_path / name).write_bytes(start + bytes(100))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"need {library}\. Install it: pip install {library}"):
        read_table(tmp_path / name)


def test_a_frame_is_a_table():
    check(read_table(frame()))
    typed = frame().astype({"größe": float})
    typed["when"] = pd.to_datetime(typed["when"])
    typed["price"] = EXPECTED["price"]
    check(read_table(typed))
    assert table_problem(typed, "class").target.classes == ("007", "010", "NA,x")


def test_columns_of_a_frame_of_many_types():
    table = pd.DataFrame({
        "bool": [True, False] * 10,
        "int": np.arange(20, dtype=np.int8) % 7,
        "uint": np.arange(20, dtype=np.uint64) % 3,
        "nullable": pd.array([1, None] * 10, dtype="Int64"),
        "category": pd.Categorical(["a", None] * 10),
        "zoned": pd.date_range("2021-01-01", periods=20, tz="Europe/Berlin"),
        "delta": pd.to_timedelta(range(20), unit="h"),
        "object": [1, "x"] * 10,
        "long": np.arange(20) + 2**60,
        7: [1.5, np.nan] * 10,
    })
    read = read_table(table)
    assert read["bool"].tolist() == ["True", "False"] * 10
    assert read["int"].tolist() == (np.arange(20) % 7).tolist()
    assert read["uint"].tolist() == (np.arange(20) % 3).tolist()
    assert read["nullable"].tolist()[0] == 1
    assert read["nullable"].isna().sum() == read["category"].isna().sum() == 10
    assert read["zoned"][0] == pd.Timestamp("2021-01-01")
    assert read["delta"].tolist()[:2] == [0, 3600]
    assert read["object"].tolist()[:2] == ["1", "x"]
    assert read["long"].tolist()[0] == str(2**60)
    assert read["7"].tolist()[0] == 1.5
    with pytest.raises(ValueError, match="must have rows and columns"):
        read_table(pd.DataFrame())
    with pytest.raises(ValueError, match="column names must differ, got '1' 2 times"):
        read_table(pd.DataFrame([[1, 2]], columns=[1, "1"]))


def test_a_model_of_a_file_predicts_a_frame(tmp_path):
    WRITERS["a.csv"](tmp_path / "a.csv")
    table = table_problem(tmp_path / "a.csv", "class", width=4, depth=1)
    save_model(tmp_path / "model", table.problem.build(0).state_dict(), table)
    answers = predict(tmp_path / "model", tmp_path / "a.csv")
    pd.testing.assert_frame_equal(predict(tmp_path / "model", frame()), answers)


def test_labels_in_json_keep_their_digits(tmp_path):
    lines = [f'{{"x": {i % 7}.50, "y": {["1.10", "12345678901234567"][i % 2]}}}' for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    raw = read_raw(tmp_path / "a.jsonl")
    assert raw.text("y")[:2] == ["1.10", "12345678901234567"]
    classes = table_problem(tmp_path / "a.jsonl", "y", kind="classification").target.classes
    assert classes == ("1.10", "12345678901234567")


@pytest.mark.parametrize(
    ("head", "rows", "names"),
    [
        ("0,1,y", "{a}.25,{b}.5,{y}", ["0", "1", "y"]),
        ("2019,2020,y", "{a},{b},{y}", ["2019", "2020", "y"]),
        ("0,1,2", "{a}.25,{b}.5,{c}.5", ["0", "1", "2"]),
        ("1,2,3", "{a}.25,{b}.5,{c}.5", ["1", "2", "3"]),
        ("0,1,2,3", "{a},{b},{c},{a}", ["0", "1", "2", "3"]),
        ("5,7,pos", "{a},{b},{y}", ["c0", "c1", "c2"]),
        ("a,$b,y", "{a},${b}.50,{y}", ["a", "$b", "y"]),
        ("day,x,y", "2021-01-{c},{a},{y}", ["day", "x", "y"]),
        ("t,u", "1{a}:30,{y}", ["t", "u"]),
        ("x,z,y,", "{a},{b},{y},", ["x", "z", "y"]),
        ("x,z,y", "{a},{b},{y},", ["x", "z", "y"]),
        ("x,z,y", "name{c},{a},{b},{y}", ["c0", "x", "z", "y"]),
        ("#x,z,y", "{a},{b},{y}", ["#x", "z", "y"]),
        ("# x,z,y", "{a},{b},{y}", ["x", "z", "y"]),
        (" x , z,y ", "{a}, {b} ,{y}", ["x", "z", "y"]),
        ("x,,y", "{a},{b},{y}", ["x", "c1", "y"]),
    ],
)
def test_rows_of_names(tmp_path, head, rows, names):
    lines = [
        rows.format(a=i * 3 % 7, b=i * 5 % 11, c=10 + i * 7 % 13, y=["pos", "neg"][i % 2])
        for i in range(40)
    ]
    (tmp_path / "a.csv").write_text("\n".join([head, *lines]) + "\n")
    assert list(read_table(tmp_path / "a.csv")) == names
    if names[0] != "c0":
        assert len(read_table(tmp_path / "a.csv")) == 40


def test_row_names_of_r_are_left_out_where_they_count(tmp_path, caplog):
    for separator in (",", " "):
        lines = [separator.join([f'"{i + 1}"', str(i % 7), f'"{"ab"[i % 2]}"']) for i in range(40)]
        text = separator.join(['"x"', '"y"']) + "\n" + "\n".join(lines)
        (tmp_path / "a.csv").write_text(text)
        table = read_table(tmp_path / "a.csv")
        assert list(table) == ["x", "y"]
        assert table["x"].tolist() == [i % 7 for i in range(40)]
    assert "Left out column 0, which has no name and counts the rows (40 cells each)" in caplog.text


def test_rows_that_are_short_are_counted(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("a,b\n" + "1,2\n3\n" * 12)
    table = read_table(tmp_path / "a.csv")
    assert table["b"].isna().sum() == 12
    assert "12 rows with fewer fields than the others end in missing cells." in caplog.text


@pytest.mark.parametrize(
    ("encoding", "text", "name"),
    [("latin-1", "Größe", "Latin-1"), ("cp1252", "5 € “x”", "Windows-1252")],
)
def test_other_encodings_are_said(tmp_path, caplog, encoding, text, name):
    (tmp_path / "a.csv").write_bytes(f"{text},b\n1,2\n".encode(encoding))
    assert list(read_table(tmp_path / "a.csv")) == [text, "b"]
    assert f"is not UTF-8 and is read as {name}. To change it: --encoding" in caplog.text
    (tmp_path / "a.csv").write_bytes("Żółw,b\n1,2\n".encode("cp1250"))
    assert list(read_table(tmp_path / "a.csv", encoding="cp1250")) == ["Żółw", "b"]
    for bad in ("ascii", "no-such-encoding"):
        with pytest.raises(ValueError, match=r"must be text in its encoding.*--encoding"):
            read_table(tmp_path / "a.csv", encoding=bad)


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.pdf", b"%PDF-1.7\n", "a PDF document"),
        ("a.csv", b"%PDF-1.7\n", "a PDF document"),
        ("a.pkl", b"\x80\x04\x95\x00", "a Python pickle"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("a.npy", b"\x93NUMPY\x01\x00", "a single NumPy array"),
        ("a.arff", b"@relation iris\n", "an ARFF file"),
        ("a.html", b"<html><table>", "a web page"),
        ("a.sav", b"$FL2@(#) SPSS", "an SPSS file"),
        ("a.rda", b"RDX3\nX\n", "an R data file"),
        ("a.tar", bytes(257) + b"ustar" + bytes(250), "a tar archive"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    ],
)
def test_kinds_that_are_not_supported(tmp_path, name, data, kind):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"this kind of file is not supported, got .*{kind}") as e:
        read_table(tmp_path / name)
    assert "A table can be CSV, TSV" in str(e.value)


def test_a_database_and_a_document_are_not_supported(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("create table t (a)")
    database.close()
    to_zip(tmp_path / "a.docx", [("[Content_Types].xml", ""), ("word/document.xml", "")])
    for name, kind in (("a.db", "an SQLite database"), ("a.docx", "a document that is no")):
        with pytest.raises(ValueError, match=f"not supported, got .*{kind}"):
            read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.csv", "x"), ("b.csv", "x")], "it must hold one file, got a.csv, b.csv"),
        ([(".hidden", "x")], "it must hold one file, got none"),
        ([("a.csv", "")], "got the empty file"),
        ([("a.csv", b"%PDF-")], "a PDF document"),
    ],
)
def test_archives_that_are_no_table(tmp_path, members, message):
    to_zip(tmp_path / "a.zip", members)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.zip")


@pytest.mark.parametrize(
    "text", ["[1, 2]", '{"a": 1', '[{"a": 1}, 2]', '{"a": [1], "b": [1, 2]}', "[]"]
)
def test_json_that_is_no_table(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"\.json file must hold a table|must have rows and"):
        read_table(tmp_path / "a.json")


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOODING_MAX_BYTES", "1000000")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", "a,b\n" + "1,2\n" * 1_000_000)
    with pytest.raises(ValueError, match=r"more than 1,000,000 bytes.*FLOODING_MAX_BYTES"):
        read_table(tmp_path / "a.zip")


# Streams.


def test_standard_input_is_read(monkeypatch):
    data = io.BytesIO(csv_text().encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    check(read_table("-"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(data.getvalue()))))
    table = table_problem("-", "class")
    assert table.assumptions[0].startswith("standard input: 60 rows, 5 columns")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="there is no /dev/fd")
def test_a_pipe_of_a_shell_is_read():
    reader, writer = os.pipe()
    thread = threading.Thread(
        target=lambda: (os.write(writer, csv_text().encode()), os.close(writer))
    )
    thread.start()
    check(read_table(f"/dev/fd/{reader}"))
    thread.join()
    os.close(reader)


def test_named_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", os.devnull):
        with pytest.raises(ValueError, match="a pipe or a device"):
            read_table(path)


# Spreadsheets.


@needs("openpyxl")
def test_cells_of_a_spreadsheet_have_types(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Report", None, None, None, None])
    sheet.append(["code", "n", "when", "ok", "y"])
    for i in range(30):
        day = datetime.datetime(2021, 1, 1 + i % 28, 12)
        sheet.append(["007" if i % 2 else "010", i % 7 + 0.5, day, bool(i % 3), i % 2])
    book.create_sheet("Other").append(["x"])
    book.save(tmp_path / "a.xlsx")
    table = table_problem(tmp_path / "a.xlsx", "y")
    assert table.target.classes == ("0", "1")
    assert table.preprocessing.frequent["code"] == ("007", "010")
    assert table.preprocessing.frequent["ok"] == ("False", "True")
    assert set(table.preprocessing.dates) == {"when"}
    text = " ".join(table.assumptions)
    assert "Read the first sheet, 'Sheet', and not Other" in text
    assert "Left out 1 line above the table: 'Report'" in text


@needs("openpyxl")
def test_a_spreadsheet_that_is_damaged_or_too_large(tmp_path, monkeypatch):
    frame().to_excel(tmp_path / "a.xlsx", index=False)
    data = (tmp_path / "a.xlsx").read_bytes()
    (tmp_path / "cut.xlsx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"\.xlsx file must hold a table that can be read"):
        read_table(tmp_path / "cut.xlsx")
    monkeypatch.setenv("FLOODING_MAX_BYTES", "100")
    with pytest.raises(ValueError, match=r"FLOODING_MAX_BYTES"):
        read_table(tmp_path / "a.xlsx")


@needs("pyarrow")
def test_a_column_store_that_is_damaged_or_too_large(tmp_path, monkeypatch):
    for name, write in (("a.parquet", frame().to_parquet), ("a.feather", frame().to_feather)):
        write(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"cut.{name}").write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=r"file must hold a table that can be read"):
            read_table(tmp_path / f"cut.{name}")
    wide = pd.DataFrame({"a": np.zeros(100_000)})
    wide.to_parquet(tmp_path / "bomb.parquet")
    monkeypatch.setenv("FLOODING_MAX_BYTES", "100")
    with pytest.raises(ValueError, match=r"at most [\d,]+ cells, got 100,000"):
        read_table(tmp_path / "bomb.parquet")
