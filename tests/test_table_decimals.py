"""Numbers with three decimals, numbers of typed files, and the errors of spreadsheets."""

import decimal
import importlib.util
import io
import json
import zipfile

import pandas as pd
import pytest

from flooding.tabular import formats, predict, read_table, save_model, table_problem
from flooding.tabular.columns import file_decimal
from flooding.tabular.numbers import NumberText
from flooding.tabular.reading import judge_columns, read_raw

N_ROWS = 60
# Each could group thousands, were it not a number of its file.
NUMBERS = [round(1.001 + 1.002 * i, 3) for i in range(N_ROWS)]
COMMAS = [f"{i % 9},{i % 10}7" for i in range(N_ROWS)]
LABELS = ["ab"[i % 2] for i in range(N_ROWS)]


def needs(library):
    return pytest.mark.skipif(
        importlib.util.find_spec(library) is None, reason=f"{library} is not installed"
    )


def typed_frame(numbers=NUMBERS):
    columns = {"x": numbers, "z": COMMAS, "y": LABELS}
    return pd.DataFrame({name: pd.Series(c, dtype=object) for name, c in columns.items()})


def write_json(path):
    path.write_text(json.dumps(typed_frame().to_dict("records")))
    return path


def write_lines(path):
    lines = [json.dumps(row) for row in typed_frame().to_dict("records")]
    path.write_text("\n".join(lines))
    return path


def write_xlsx(path):
    typed_frame().to_excel(path, index=False)
    return path


def write_parquet(path):
    cells = [decimal.Decimal(f"{number:.3f}") for number in NUMBERS]
    typed_frame(cells).to_parquet(path)
    return path


TYPED = [
    pytest.param("a.json", write_json),
    pytest.param("a.jsonl", write_lines),
    pytest.param("a.xlsx", write_xlsx, marks=needs("openpyxl")),
    pytest.param("a.parquet", write_parquet, marks=needs("pyarrow")),
    pytest.param("frame", lambda path: typed_frame()),
]


def judge(source, **options):
    raw = read_raw(source)
    return judge_columns(raw, raw.names, **options)


# Numbers of typed files.


@pytest.mark.parametrize(("name", "write"), TYPED)
@pytest.mark.parametrize("option", [None, ","])
def test_numbers_of_a_typed_file_have_a_point_beside_decimal_commas(tmp_path, name, write, option):
    table = judge(write(tmp_path / name), decimal=option)
    assert table.frame["x"].tolist() == NUMBERS
    assert table.frame["z"].tolist() == [float(cell.replace(",", ".")) for cell in COMMAS]
    assert not any(sentence.startswith("x:") for sentence in table.sentences)


@pytest.mark.parametrize(("name", "write"), TYPED)
def test_a_model_of_text_with_commas_predicts_a_typed_file(tmp_path, name, write):
    cells = [f"{number:.3f}".replace(".", ",") for number in NUMBERS]
    rows = [";".join(row) for row in zip(cells, COMMAS, LABELS, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["x;z;y", *rows]))
    table = table_problem(tmp_path / "a.csv", "y", width=4, depth=1)
    save_model(tmp_path / "model", table.problem.build(0).state_dict(), table)
    answers = predict(tmp_path / "model", tmp_path / "a.csv")
    pd.testing.assert_frame_equal(predict(tmp_path / "model", write(tmp_path / name)), answers)


def test_text_and_numbers_in_one_column_each_have_their_sign():
    cells = [*NUMBERS[:-2], "2,5", "1.234"]
    table = judge(typed_frame(cells))
    assert table.frame["x"].tolist() == [*NUMBERS[:-2], 2.5, 1234]
    assert "so '2,5' is 2.5" in table.sentences[0]
    assert "2 cells" in table.sentences[0]


def test_the_sentence_names_the_text_that_leaves_a_doubt():
    cells = [*NUMBERS[:-1], "1.234"]
    table = judge(typed_frame(cells))
    assert table.frame["x"].tolist() == [*NUMBERS[:-1], 1234]
    assert "'1.234' is read as 1234 with the decimal sign ','" in table.sentences[1]
    assert judge(typed_frame(cells), decimal=".").frame["x"].tolist() == [*NUMBERS[:-1], 1.234]


def test_numbers_of_a_typed_file_say_nothing_of_its_text():
    text = ["0,37", "1,25"] * 30
    numbers = [NumberText("1.5"), NumberText("2.25")] * 30
    assert file_decimal([numbers, text], None) == ","
    assert file_decimal([list(map(str, numbers)), text], None) == "."


@pytest.mark.parametrize("values", [[1.644, 2.5], [True, False], [10**17, 10**17 + 1], [1, 2.0]])
def test_labels_of_a_typed_file_are_plain_strings(values):
    frame = typed_frame().assign(y=pd.Series(values * 30, dtype=object))
    classes = table_problem(frame, "y", kind="classification").target.classes
    assert classes == tuple(sorted(str(value).removesuffix(".0") for value in values))
    assert {type(name) for name in classes} == {str}


# Text whose sign only other columns tell.


@pytest.mark.parametrize(
    ("separator", "other", "number"),
    [
        pytest.param(";", "{},5", 1644, id="semicolons and commas"),
        pytest.param(";", "{}", 1644, id="semicolons alone"),
        pytest.param("\t", "{},5", 1644, id="a column with commas"),
        pytest.param("\t", "{}.5", 1.644, id="a column with points"),
        pytest.param(",", '"{},5"', 1644, id="commas in quotation marks"),
        pytest.param(",", "{}.5", 1.644, id="a comma for the fields"),
        pytest.param("|", "{}", 1.644, id="nothing"),
    ],
)
@pytest.mark.parametrize("cell", ["1.644", "1.644 €", "-1.644"])
def test_other_columns_decide_about_three_decimals_and_an_option_changes_it(
    tmp_path, separator, other, number, cell
):
    rows = [cell + separator + other.format(i) for i in range(N_ROWS)]
    (tmp_path / "a.csv").write_text("\n".join([f"x{separator}z", *rows]))
    sign = -1 if cell[0] == "-" else 1
    table = judge(tmp_path / "a.csv")
    assert table.frame["x"].tolist() == [sign * number] * N_ROWS
    about = [s for s in table.sentences if s.startswith("x:") and "with the decimal sign" in s]
    if number == 1644:
        assert len(about) == 1
        assert f"'{cell}' is read as {sign * 1644}" in about[0]
        assert about[0].endswith("--decimal '.'.")
    # The option changes this column, and not those that leave no doubt.
    table = judge(tmp_path / "a.csv", decimal=".")
    assert table.frame["x"].tolist() == [sign * 1.644] * N_ROWS
    if other != "{}":
        assert table.frame["z"].tolist() == [i + 0.5 for i in range(N_ROWS)]


@pytest.mark.parametrize(
    ("separator", "cell", "number"),
    [
        (";", "1,234", 1.234),
        (";", "0,234", 0.234),
        ("\t", "1,234", 1.234),
        ("|", "12,345 €", 12.345),
        (",", '"1,234"', 1.234),
    ],
)
def test_three_decimals_behind_a_comma_in_a_file_of_decimal_commas(
    tmp_path, separator, cell, number
):
    rows = [f'{cell}{separator}"{i},5"' for i in range(N_ROWS)]
    (tmp_path / "a.csv").write_text("\n".join([f"x{separator}z", *rows]))
    assert read_table(tmp_path / "a.csv")["x"].tolist() == [number] * N_ROWS


@pytest.mark.parametrize(("option", "mean"), [(None, 30_000), (".", 30)])
def test_a_target_of_three_decimals_is_said(tmp_path, option, mean):
    rows = [f"{i},5;{7 + 10 * (i % 6)}.{100 + i}" for i in range(N_ROWS)]
    (tmp_path / "a.csv").write_text("\n".join(["z;y", *rows]))
    table = table_problem(tmp_path / "a.csv", "y", kind="regression", decimal=option)
    assert table.target.mean == pytest.approx(mean, rel=0.2)
    text = " ".join(table.assumptions)
    assert ("so '7.100' is 7100" in text) == (option is None)
    assert ("--decimal '.'" in text) == (option is None)


# Errors of spreadsheets.


def write_errors(path, errors, column="x"):
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Report"])
    sheet.append(["x", "word", "y"])
    for i in range(N_ROWS):
        row = {"x": i + 0.5, "word": ["red", "blue"][i % 2], "y": "ab"[i % 2]}
        if i < len(errors):
            row[column] = errors[i]
        sheet.append(list(row.values()))
    sheet.append([None, None, None])
    book.save(path)
    return path


@needs("openpyxl")
@pytest.mark.parametrize(
    "errors",
    [["#N/A"], ["#DIV/0!"] * 3, ["#REF!", "#VALUE!", "#NAME?", "#NUM!", "#NULL!"]],
)
def test_errors_of_a_sheet_are_missing_and_counted(tmp_path, errors):
    table = judge(write_errors(tmp_path / "a.xlsx", errors))
    assert table.frame["x"].isna().tolist() == [i < len(errors) for i in range(N_ROWS)]
    (about,) = [s for s in table.sentences if s.startswith("x:")]
    assert f"{len(errors)} cell" in about
    for error in set(errors):
        assert f"'{error}' ({errors.count(error)})" in about


@needs("openpyxl")
def test_errors_of_a_sheet_are_no_categories_and_no_classes(tmp_path):
    frame = read_table(write_errors(tmp_path / "a.xlsx", ["#DIV/0!", "#N/A"], "word"))
    assert frame["word"].isna().sum() == 2
    table = table_problem(write_errors(tmp_path / "b.xlsx", ["#REF!", "#N/A"], "y"), "y")
    assert table.target.classes == ("a", "b")
    about = "Dropped 2 rows without a target: '#N/A' (1), '#REF!' (1)."
    assert about in " ".join(table.assumptions)


@needs("openpyxl")
def test_a_user_names_the_errors_that_are_missing(tmp_path):
    path = write_errors(tmp_path / "a.xlsx", ["#N/A", "#DIV/0!"])
    table = judge(path, na=["#N/A"])
    assert "1 cell taken as missing: '#N/A' (1)" in table.sentences[0]
    assert "1 stray cell among numbers taken as missing: '#DIV/0!' (1)" in table.sentences[1]


@needs("openpyxl")
def test_errors_without_a_name_are_counted_too(tmp_path, monkeypatch):
    path = write_errors(tmp_path / "a.xlsx", ["#REF!", "#DIV/0!"])
    monkeypatch.setattr(formats, "_sheet_errors", lambda *_: [])
    assert "2 cells taken as missing: '#N/A' (2)" in judge(path).sentences[0]


@needs("openpyxl")
def test_an_error_that_only_new_programs_write(tmp_path):
    write_errors(tmp_path / "a.xlsx", ["#N/A", "#N/A"])
    data = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "a.xlsx") as old, zipfile.ZipFile(data, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"#N/A", b"#SPILL!"))
    (tmp_path / "b.xlsx").write_bytes(data.getvalue())
    table = judge(tmp_path / "b.xlsx")
    assert "2 cells taken as missing: '#SPILL!' (2)" in table.sentences[0]


@pytest.mark.parametrize("error", ["#DIV/0!", "#REF!", "#SPILL!"])
def test_errors_in_text_that_a_spreadsheet_wrote(tmp_path, error):
    rows = [f"{i}.5,{'red' if i % 2 else 'blue'}" for i in range(N_ROWS)]
    (tmp_path / "a.csv").write_text("\n".join(["x,word", *rows, f"{error},{error}"]))
    frame = read_table(tmp_path / "a.csv")
    assert frame.isna().sum().tolist() == [1, 1]


# Words that pandas takes for dates.


@pytest.mark.parametrize("word", ["now", "today", "now 12:30"])
def test_a_word_is_no_date(word):
    days = [f"{1 + i % 28:02d}.02.2021" for i in range(N_ROWS)]
    table = judge(pd.DataFrame({"day": [*days, word]}))
    assert table.frame["day"].isna().sum() == 1
    assert any(
        f"stray cell among dates taken as missing: '{word}' (1)" in s for s in table.sentences
    )
