"""Cells as people write them: numbers, dates and times, each against its value written by hand."""

import datetime
import math

import pandas as pd
import pytest

from flooding.tabular.columns import ColumnFormat, infer_format, parse_column
from flooding.tabular.dates import date_part, find_date_format, parse_dates, parse_time
from flooding.tabular.numbers import compare_decimals, is_plain, parse_cell


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("$1,234.50", 1234.5),
        ("-$5", -5),
        ("$-5", -5),
        ("€ 12", 12),
        ("12 €", 12),
        ("USD 1,000", 1000),
        ("1,000.25 USD", 1000.25),
        ("CHF 1'234.50", 1234.5),
        ("R$ 7", 7),
        ("12.5%", 12.5),
        ("12.5 %", 12.5),
        ("0.5‰", 0.5),
        ("1,234,567", 1234567),
        ("12,34,567", 1234567),
        ("1\u00a0234\u00a0567.5", 1234567.5),
        ("1\u202f234", 1234),
        ("1 234", 1234),
        ("1’234", 1234),
        ("−3.5", -3.5),
        ("\u201312", -12),
        ("(1,234.50)", -1234.5),
        ("12-", -12),
        ("+7", 7),
        (".5", 0.5),
        ("5.", 5),
        ("1E5", 1e5),
        ("1e-3", 1e-3),
        ("inf", math.inf),
        ("007", 7),
    ],
)
def test_numbers_with_a_decimal_point(cell, number):
    assert parse_cell(cell, ".") == number


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1.234,50 €", 1234.5),
        ("1.234", 1234),
        ("0,123", 0.123),
        ("-1,5", -1.5),
        ("12,5%", 12.5),
        ("1 234,5", 1234.5),
        ("1.234.567", 1234567),
        ("(7,5)", -7.5),
        ("12", 12),
        (",5", 0.5),
    ],
)
def test_numbers_with_a_decimal_comma(cell, number):
    assert parse_cell(cell, ",") == number


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "nan",
        "1,23",
        "1,2345",
        "0,123",
        "1.2.3",
        "12:30",
        "2021-01-02",
        "1-2",
        "--1",
        "-$-5",
        "(5",
        "5)",
        "$5€",
        "1_000",
        "12a",
        "a12",
        "1 2",
        "1 23 456",
        "0x10",
        "e5",
        "$",
        "%",
        ",",
        ".",
        "٣",
        "1'23",
    ],
)
def test_what_is_no_number_with_a_decimal_point(cell):
    assert parse_cell(cell, ".") is None


def test_plain_numbers_are_what_float_reads_to_the_last_bit():
    cells = ["0.1", "1e-320", "123456789.123456789", "-0", "1e400"]
    assert [parse_cell(cell) for cell in cells] == [float(cell) for cell in cells]
    assert [is_plain(cell) for cell in ("1_0", "nan", "٣", "1,5", "1e5")] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.5", "2.25"], (2, 0, False)),
        (["1,5", "2,25"], (0, 2, False)),
        (["1,234", "5"], (0, 0, True)),
        (["1.234", "5"], (0, 0, True)),
        (["1,234.5", "1.234,5"], (1, 1, False)),
        (["1,234,567"], (1, 0, False)),
        (["0,123"], (0, 1, False)),
        (["5", "-7", "a"], (0, 0, False)),
    ],
)
def test_decimal_signs_are_judged_by_cells_that_leave_no_doubt(cells, expected):
    assert compare_decimals(cells) == expected


@pytest.mark.parametrize(
    ("cell", "hours"),
    [
        ("00:00", 0),
        ("14:30", 14.5),
        ("2:30 PM", 14.5),
        ("12:15 am", 0.25),
        ("12:15 p.m.", 12.25),
        ("14:30:36", 14.51),
        ("1:00:00.9", 1.00025),
        ("26:15", 26.25),
        ("2 days 03:00:00", 51),
        ("1 day, 0:30:00", 24.5),
    ],
)
def test_times_are_hours(cell, hours):
    assert parse_time(cell) == pytest.approx(hours, rel=1e-12)


@pytest.mark.parametrize("cell", ["14", "14:60", "13:00 PM", "0:30 AM", "a:30", "1:2", "-1:30", ""])
def test_what_is_no_time(cell):
    assert parse_time(cell) is None


DAY = datetime.datetime(2021, 3, 27, 14, 30)


@pytest.mark.parametrize(
    ("style", "date_format"),
    [
        ("%Y-%m-%d", "%Y-%m-%d"),
        ("%Y/%m/%d", "%Y/%m/%d"),
        ("%d.%m.%Y", "%d.%m.%Y"),
        ("%d/%m/%Y", "%d/%m/%Y"),
        ("%m/%d/%Y", "%m/%d/%Y"),
        ("%d-%m-%Y", "%d-%m-%Y"),
        ("%d.%m.%y", "%d.%m.%y"),
        ("%m/%d/%y", "%m/%d/%y"),
        ("%d %b %Y", "%d %b %Y"),
        ("%d %B %Y", "%d %B %Y"),
        ("%b %d, %Y", "%b %d, %Y"),
        ("%d-%b-%Y", "%d-%b-%Y"),
        ("%a, %d %b %Y", "%a, %d %b %Y"),
    ],
)
@pytest.mark.parametrize("clock", ["", " %H:%M", " %H:%M:%S", " %I:%M %p", "T%H:%M:%SZ"])
def test_dates_of_many_styles(style, date_format, clock):
    moments = [DAY + datetime.timedelta(days=i, minutes=i) for i in range(40)]
    cells = [moment.strftime(style + clock) for moment in moments]
    assert find_date_format(cells, 0.95) == (date_format, None)
    start = datetime.datetime(1970, 1, 1)
    whole = [m if clock else m.replace(hour=0, minute=0) for m in moments]
    expected = {c: (m - start).total_seconds() for c, m in zip(cells, whole, strict=True)}
    assert parse_dates(cells, date_format) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # In the order of time as day and month, not as month and day.
        (["01/02/2021", "02/02/2021", "01/03/2021", "05/03/2021"], ("%d/%m/%Y", None)),
        (["01/02/2021", "02/02/2021", "03/04/2021"], ("%m/%d/%Y", None)),
        (["05/02/2021", "02/07/2021", "03/04/2021"], ("%m/%d/%Y", "%d/%m/%Y")),
        (["2021-01", "2021-02"], ("%Y-%m", None)),
        (["5 May 2021", "6 May 2021"], ("%d %b %Y", None)),
        (["12-3", "13-4"], (None, None)),
        (["1.2.3", "1.10.2"], (None, None)),
        (["red", "blue"], (None, None)),
        (["2021-02-30", "2021-13-01"], (None, None)),
        (["A-1-2", "B-2-3"], (None, None)),
        (["10.0.0.1", "10.0.0.2"], (None, None)),
    ],
)
def test_formats_of_dates(cells, expected):
    assert find_date_format(cells, 0.95) == expected


def test_parts_of_dates():
    dates = pd.Series([pd.Timestamp("2021-03-27 14:30"), pd.NaT, pd.Timestamp("1970-01-02")])
    hours = date_part(dates, "hour")
    assert hours.isna().tolist() == [False, True, False]
    assert hours.dropna().tolist() == ["14", "00"]
    assert date_part(dates, "weekday").dropna().tolist() == ["Sat", "Fri"]
    assert date_part(dates, "month").dropna().tolist() == ["03", "01"]
    assert date_part(dates, "year").dropna().tolist() == [2021, 1970]
    assert date_part(dates, "day").dropna().tolist() == [27, 2]
    assert date_part(dates, "minute").dropna().tolist() == [30, 0]
    elapsed = date_part(dates, "elapsed days")
    assert elapsed[2] == 1
    assert math.isnan(elapsed[1])


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2.5", "-3"] * 4, "number"),
        (["$1", "$2", "n/a"] * 4, "number"),
        (["1", "2"] * 10 + ["oops"], "number"),
        (["1", "2"] * 2 + ["oops"], "text"),
        (["02134", "10001", "94105"] * 4, "text"),
        (["0001", "0002"] * 6, "text"),
        (["01", "12"] * 6, "number"),
        (["12345678901234567", "12345678901234568"] * 6, "text"),
        (["1", "12345678901234567"] + [str(10**i) for i in range(1, 17)], "number"),
        (["20210131", "20201231", "20191130"] * 4, "date"),
        (["20210132", "20201231", "20191130"] * 4, "number"),
        (["2021-01-31", "-", "2020-12-31"] * 4, "date"),
        (["14:30", "07:15", ""] * 4, "time"),
        (["True", "TRUE", "false"] * 4, "boolean"),
        (["True", "False"] * 6, "text"),
        (["yes", "no", "maybe"] * 4, "text"),
        (["red", "blue"] * 6, "text"),
        (["", "NA"] * 6, "number"),
        (["1", "2", "3+"] * 6, "text"),
    ],
)
def test_kinds_of_columns(cells, kind):
    column_format, _ = infer_format("a", cells, na=None, decimal=".")
    assert column_format.kind == kind


def test_columns_of_mostly_numbers_are_an_error_beyond_a_share():
    cells = [f"{i}.5" for i in range(90)] + ["broken"] * 10
    with pytest.raises(ValueError, match=r"95% of its cells or be text, got 10 of 100 cells") as e:
        infer_format("size", cells, na=None, decimal=".")
    for fix in ("'broken' (10)", "--na broken", "--text size", "--drop size"):
        assert fix in str(e.value)
    # Up to 5 % they are missing; many different texts are categories.
    assert infer_format("a", cells[:-5] + ["1"] * 5, na=None, decimal=".")[0].kind == "number"
    tickets = [f"{i}" for i in range(60)] + [f"PC {i}" for i in range(40)]
    column_format, sentences = infer_format("a", tickets, na=None, decimal=".")
    assert column_format.kind == "text"
    assert "60 of 100 cells are numbers" in sentences[0]


def test_stray_cells_are_missing_and_counted():
    cells = ["1.5"] * 40 + ["oops", "-", "", "n/a"]
    column = parse_column("size", cells, ColumnFormat("number"), None)
    assert column.values.isna().sum() == 4
    assert column.sentences == (
        "size: 2 cells taken as missing: '-' (1), 'n/a' (1). "
        "To name the missing values yourself: --na.",
        "size: 1 stray cell among numbers taken as missing: 'oops' (1). "
        "Correct them, or keep the column as text: --text size.",
    )


def test_markers_of_the_user_replace_the_usual_ones():
    cells = ["1", "2"] * 20 + ["-999", "NA"]
    column = parse_column("a", cells, ColumnFormat("number"), ("-999",))
    assert column.values.isna().sum() == 2
    assert "1 stray cell" in column.sentences[1]
    assert "'NA' (1)" in column.sentences[1]
    text = parse_column("a", ["-", "NA", "", "x"], ColumnFormat("text"), ("-",))
    assert text.values.isna().tolist() == [True, False, True, False]
