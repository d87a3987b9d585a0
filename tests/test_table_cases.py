"""Tables as they arrive: what a first user's files must become, column by column."""

import datetime
import random

import numpy as np
import pytest

from flooding.tabular import predict, read_table, save_model, table_problem


def write(path, head, row, n=600, sep=",", first="", end=""):
    """Two Gaussian columns a and b, and the class of a + b."""
    dice = random.Random(1)
    lines = [first + head]
    for i in range(n):
        a, b = dice.gauss(0, 1), dice.gauss(0, 1)
        lines.append(sep.join(row(i, a, b, a + b + 0.3 * dice.gauss(0, 1) > 0)) + end)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def name(y):
    return "pos" if y else "neg"


def money(value):
    return f'"{value:,.2f}"'


def comma(value):
    return f"{value:.3f}".replace(".", ",")


def german(value):
    return f"{value:,.2f}".replace(",", "_").replace(".", ",").replace("_", ".")


def kinds(table):
    """Which columns are numbers, and which are categories."""
    return table.preprocessing.numeric_columns, table.preprocessing.categorical_columns


def sentence(table, *parts):
    """The sentence that has all parts."""
    matches = [s for s in table.assumptions if all(part in s for part in parts)]
    assert matches, (parts, table.assumptions)
    return matches[0]


@pytest.mark.parametrize("token", ["", "None", "n/a", "<NA>", "-", "Null", "unknown", "#N/A", "."])
def test_a_column_with_markers_of_missing_values_is_numeric(tmp_path, token):
    path = write(
        tmp_path / "a.csv",
        "age,price,y",
        lambda i, a, b, y: (
            token if i % 50 == 3 else f"{40 + 10 * a:.1f}",
            f"{20000 + 5000 * b:.2f}",
            name(y),
        ),
    )
    table = table_problem(path, "y")
    assert kinds(table) == (("age", "price"), ())
    assert table.preprocessing.incomplete == ("age",)
    assert read_table(path)["age"].isna().sum() == 12
    if token:
        assert "12 cells taken as missing" in sentence(table, "age:", f"'{token}' (12)")
    sentence(table, "Missing values in the training rows", "age (")


@pytest.mark.parametrize("stray", ["oops", "~12", "see note", "1.2.3"])
def test_one_bad_cell_is_missing_and_named(tmp_path, stray):
    path = write(
        tmp_path / "a.csv",
        "x,z,y",
        lambda i, a, b, y: (stray if i == 77 else f"{a:.3f}", f"{b:.3f}", name(y)),
    )
    table = table_problem(path, "y")
    assert kinds(table) == (("x", "z"), ())
    sentence(table, "x: 1 stray cell", f"'{stray}' (1)", "--text x")
    assert np.isnan(read_table(path)["x"][77])


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_other_ends_of_lines(tmp_path, end):
    text = "x,z,y\n" + "".join(f"{i % 7}.5,{i % 5},{name(i % 2)}\n" for i in range(60))
    (tmp_path / "a.csv").write_bytes(text.replace("\n", end).encode())
    assert kinds(table_problem(tmp_path / "a.csv", "y")) == (("x", "z"), ())


@pytest.mark.parametrize("style", ["{}", "${}", "{} EUR", "({})"])
def test_thousands_are_numbers(tmp_path, style):
    values = []

    def row(i, a, b, y):
        values.append(round(20000 + 5000 * b, 2))
        price = style.format(f"{values[-1]:,.2f}")
        return f"{40 + 10 * a:.1f}", f'"{price}"', name(y)

    path = write(tmp_path / "a.csv", "age,price,y", row)
    table = table_problem(path, "y")
    assert kinds(table) == (("age", "price"), ())
    sign = -1 if "(" in style else 1
    assert read_table(path)["price"].tolist() == [sign * value for value in values]
    sentence(table, "price: 600 cells", "read as numbers", "--text price")


def test_a_target_of_thousands_is_a_number(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "x,z,price",
        lambda i, a, b, y: (f"{a:.3f}", f"{b:.3f}", money(20000 + 5000 * a)),
    )
    table = table_problem(path, "price")
    assert table.target.classes is None
    assert table.target.mean == pytest.approx(20000, rel=0.05)
    sentence(table, "price: 600 cells", "read as numbers")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_german_numbers(tmp_path, separator):
    path = write(
        tmp_path / "a.csv",
        separator.join(["alter", "preis", "menge", "y"]),
        lambda i, a, b, y: (
            comma(40 + 10 * a),
            german(2000 + 900 * b),
            f"{1000 + i % 7 * 1001:,}".replace(",", "."),
            name(y),
        ),
        sep=separator,
    )
    table = table_problem(path, "y")
    assert kinds(table) == (("alter", "preis", "menge"), ())
    frame = read_table(path)
    assert frame["alter"].mean() == pytest.approx(40, rel=0.05)
    assert frame["preis"].mean() == pytest.approx(2000, rel=0.1)
    # Nothing in this column says so, but the others have decimal commas.
    assert frame["menge"].tolist()[:3] == [1000, 2001, 3002]
    sentence(table, "menge:", "--decimal '.'")


@pytest.mark.parametrize(("separator", "quote"), [("\t", ""), (",", '"'), (";", ""), (" ", "")])
def test_decimal_commas_in_any_format(tmp_path, separator, quote):
    path = write(
        tmp_path / "a.csv",
        separator.join("xzy"),
        lambda i, a, b, y: (quote + comma(a) + quote, quote + comma(b) + quote, name(y)),
        n=120,
        sep=separator,
    )
    table = table_problem(path, "y")
    assert kinds(table) == (("x", "z"), ())
    assert read_table(path)["x"].abs().max() < 5


@pytest.mark.parametrize("sign", ["−", "\u2013", "-"])
def test_a_typeset_minus(tmp_path, sign):
    path = write(
        tmp_path / "a.csv",
        "x,z,y",
        lambda i, a, b, y: (f"{a:.3f}".replace("-", sign), f"{b:.3f}", name(y)),
    )
    assert kinds(table_problem(path, "y")) == (("x", "z"), ())
    assert read_table(path)["x"].min() < -2


def test_hours_are_parts_of_dates(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "when,x,y",
        lambda i, a, b, y: (f"2021-01-{1 + i // 24:02d} {i % 24:02d}:00", f"{a:.3f}", name(y)),
    )
    table = table_problem(path, "y")
    assert kinds(table) == (
        ("when: day", "when: elapsed days", "x"),
        ("when: weekday", "when: hour"),
    )
    sentence(table, "when: 600 cells of dates, read by their parts", "--text when")
    save_model(tmp_path / "model", table.problem.build(0).state_dict(), table)
    assert len(predict(tmp_path / "model", path)) == 600


@pytest.mark.parametrize(
    ("style", "parts"),
    [
        ("%Y-%m-%d", {"year", "month", "day", "weekday", "elapsed days"}),
        ("%d.%m.%Y %H:%M", {"year", "month", "day", "weekday", "hour", "elapsed days"}),
        ("%Y%m%d", {"year", "month", "day", "weekday", "elapsed days"}),
        ("%Y-%m", {"year", "month", "weekday", "elapsed days"}),
    ],
)
def test_parts_of_dates_are_those_that_vary(tmp_path, style, parts):
    start = datetime.datetime(2020, 1, 1)
    path = write(
        tmp_path / "a.csv",
        "when,x,y",
        lambda i, a, b, y: (
            (start + datetime.timedelta(hours=31 * i)).strftime(style),
            f"{a:.3f}",
            name(y),
        ),
    )
    table = table_problem(path, "y")
    assert set(table.preprocessing.dates["when"]) == parts


@pytest.mark.parametrize(
    ("cells", "value"), [(["08:30", "14:15"], 8.5), (["8:30 am", "2:15 pm"], 8.5)]
)
def test_times_of_day_are_hours(tmp_path, cells, value):
    path = write(
        tmp_path / "a.csv", "t,x,y", lambda i, a, b, y: (cells[i % 2], f"{a:.3f}", name(y)), n=60
    )
    assert read_table(path)["t"].tolist()[:2] == [value, 14.25]
    sentence(table_problem(path, "y"), "t: 60 cells of times, read as hours")


# Labels.


@pytest.mark.parametrize(
    "labels",
    [
        ("007", "010"),
        ("1E5", "2E5"),
        ("12345678901234567", "98765432109876543"),
        ("9007199254740993", "9007199254740992"),
        ("1.1", "1.10"),
        ("NA", "DE"),
        ("NA", "EU", "AS"),
        ("0x1F", "0x2F"),
        ("1,000", "2,000"),
        ("+1", "-1"),
        ("5%", "10%"),
        ("None", "some"),
        ("1.0", "2.0"),
        ("TRUE", "false"),
        ("00", "01", "10"),
        ("2021-01-01", "2021-01-02"),
    ],
    ids=" ".join,
)
def test_labels_come_back_letter_by_letter(tmp_path, labels):
    path = write(
        tmp_path / "a.csv",
        "x,z,y",
        lambda i, a, b, y: (f"{a:.3f}", f"{b:.3f}", f'"{labels[i % len(labels)]}"'),
        n=120,
    )
    table = table_problem(path, "y", max_epochs=1, width=4, depth=1)
    assert set(table.target.classes) == set(labels)
    weights = table.problem.build(0).state_dict()
    *_, last = weights
    for label, expected in enumerate(table.target.classes):
        biased = {name: tensor * 0 for name, tensor in weights.items()}
        biased[last][label] = 9.0
        save_model(tmp_path / "model", biased, table)
        assert set(predict(tmp_path / "model", path).iloc[:, 0]) == {expected}


def test_na_is_missing_where_the_others_are_no_codes(tmp_path):
    cells = ["yes", "no", "NA"]
    path = write(tmp_path / "a.csv", "x,y", lambda i, a, b, y: (f"{a:.3f}", cells[i % 3]), n=60)
    table = table_problem(path, "y")
    assert table.target.classes == ("no", "yes")
    sentence(table, "Dropped 20 rows without a target: 'NA' (20)", "--na")
    assert table_problem(path, "y", na=()).target.classes == ("NA", "no", "yes")


# Columns that number the rows.


@pytest.mark.parametrize(
    ("names", "first"), [("Unnamed: 0,id", 0), ("number,count", 1), ("a,b", 1000)]
)
def test_columns_that_count_the_rows_are_left_out(tmp_path, names, first):
    path = write(
        tmp_path / "a.csv",
        f"{names},x,y",
        lambda i, a, b, y: (str(first + i), str(5 + i), f"{a:.3f}", name(i >= 300)),
    )
    table = table_problem(path, "y")
    assert kinds(table) == (("x",), ())
    for column in names.split(","):
        sentence(table, f"Left out {column}, which counts the rows (600 cells)", f"--use {column}")
    used = table_problem(path, "y", use=[names.split(",")[0]])
    assert used.preprocessing.numeric_columns == (names.split(",")[0], "x")


@pytest.mark.parametrize(
    ("column", "cell", "is_input"),
    [
        ("id", lambda i: (i * 7919) % 600, False),
        ("x", lambda i: (i * 7919) % 600, False),
        ("customerId", lambda i: 1_000_000 + (i * 7919) % 600 * 3, False),
        ("income", lambda i: 1_000_000 + (i * 7919) % 600 * 3, True),
        ("id", lambda i: i % 100, True),
        ("id", lambda i: i / 2, True),
    ],
)
def test_ids_are_left_out(tmp_path, column, cell, is_input):
    path = write(
        tmp_path / "a.csv",
        f"{column},w,y",
        lambda i, a, b, y: (str(cell(i)), f"{b:.3f}", name(y)),
    )
    table = table_problem(path, "y")
    assert (column in table.preprocessing.columns) == is_input
    if not is_input:
        sentence(table, f"Left out {column}", f"--use {column}")


def test_a_counter_alone_is_used(tmp_path):
    path = write(tmp_path / "a.csv", "t,y", lambda i, a, b, y: (str(i), f"{i * 0.7 + a:.3f}"))
    table = table_problem(path, "y")
    assert table.preprocessing.columns == ("t",)
    sentence(table, "Warning: t counts the rows (600 cells); it is used")


def test_zip_codes_are_categories(tmp_path):
    codes = ("02134", "10001", "94105")
    path = write(
        tmp_path / "a.csv", "zip,x,y", lambda i, a, b, y: (codes[i % 3], f"{a:.3f}", name(y))
    )
    table = table_problem(path, "y")
    assert table.preprocessing.frequent == {"zip": codes}
    sentence(table, "zip: 600 cells", "leading zeros")


# Rows.


@pytest.mark.parametrize("n_rare", [1, 2, 3])
def test_a_rare_class_is_left_out_with_a_warning(tmp_path, n_rare):
    path = write(
        tmp_path / "a.csv",
        "x,y",
        lambda i, a, b, y: (f"{a:.3f}", "rare" if i < n_rare else name(y)),
    )
    table = table_problem(path, "y")
    assert table.target.classes == ("neg", "pos")
    rows = "1 row" if n_rare == 1 else f"{n_rare} rows"
    sentence(table, f"Warning: left out {rows}", f"'rare' ({rows})", "Merge")
    splits = table.problem.data
    assert len(splits.train) + len(splits.val) + len(splits.test) == 600 - n_rare


@pytest.mark.parametrize(("every", "warns"), [(100, True), (20, True), (10, True), (9, False)])
def test_an_uneven_target_offers_balanced_accuracy(tmp_path, every, warns):
    path = write(
        tmp_path / "a.csv",
        "x,y",
        lambda i, a, b, y: (f"{a:.3f}", "fraud" if i % every == 0 else "fine"),
        n=900,
    )
    texts = [s for s in table_problem(path, "y").assumptions if "balanced-accuracy" in s]
    assert bool(texts) == warns
    assert all(s.startswith("Warning:") and "'fine'" in s for s in texts)


@pytest.mark.parametrize("copies", [2, 3, 5])
def test_repeated_rows_across_the_splits_are_counted(tmp_path, copies):
    dice = random.Random(0)
    lines = [f"{dice.gauss(0, 1):.6f},{name(i % 2)}\n" for i in range(100)]
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(lines * copies))
    table = table_problem(tmp_path / "a.csv", "y")
    splits = table.problem.data
    train = {(*x.tolist(), int(y)) for x, y in zip(splits.train.x, splits.train.y, strict=True)}
    count = sum(
        (*x.tolist(), int(y)) in train
        for split in (splits.val, splits.test)
        for x, y in zip(split.x, split.y, strict=True)
    )
    assert count > 0
    sentence(table, f"Warning: {count:,} of {40 * copies:,} validation and test rows")
    (tmp_path / "b.csv").write_text("x,y\n" + "".join(lines))
    assert not [s for s in table_problem(tmp_path / "b.csv", "y").assumptions if "equal a" in s]
