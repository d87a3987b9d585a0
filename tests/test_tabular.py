"""From a table file to a Problem, a saved model and predictions; everything fitted is fitted to
training rows alone."""

import bz2
import dataclasses
import gzip
import logging
import lzma
import math
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flooding import Run, tabular, train
from flooding.models import mlp
from flooding.tabular import load_model, predict, read_table, save_model, table_problem
from flooding.tabular.preprocessing import (
    dump_preprocessing,
    fit_preprocessing,
    load_preprocessing,
)
from flooding.training.runner import run_key

FRUIT = "kind,grams,colour\n" + "apple,150,red\nfig,40,green\napple,170,green\nfig,50,brown\n" * 10


def written(folder, text, name="table.csv"):
    path = folder / name
    path.write_text(text)
    return path


def numbers(rows=60):
    """A table whose column ``row`` numbers its rows, with a gap in ``gap``, and y = 1000 + 10 size
    + noise."""
    generator = np.random.default_rng(0)
    size = generator.normal(5, 3, rows)
    table = pd.DataFrame({
        "row": np.arange(rows),
        "size": size,
        "gap": generator.normal(0, 1, rows),
    })
    table.loc[::4, "gap"] = math.nan
    table["shade"] = generator.choice(["dark", "light"], rows)
    return table.assign(y=1000 + 10 * size + generator.normal(0, 1, rows))


def row_numbers(problem, table):
    """Which rows of the table each split holds, read off the column ``row``."""
    assert table.preprocessing.columns[0] == "row"
    scaler = table.preprocessing.transformer.named_transformers_["numbers"]["scaler"]
    sd, mean = scaler.scale_[0], scaler.mean_[0]
    return [
        (split.x[:, 0].double() * sd + mean).round().long().tolist()
        for split in existing_splits(problem.splits(seed=0))
    ]


def existing_splits(splits):
    return [s for s in (splits.train, splits.val, splits.test) if s is not None]


def train_weights(table, seed=0):
    *_, last = train(Run(table.problem, seed=seed))
    return last.weights["last"]


# Reading.


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "  "])
@pytest.mark.parametrize(
    ("ending", "opener"),
    [("csv", open), ("txt.gz", gzip.open), ("data.bz2", bz2.open), ("xz", lzma.open)],
)
def test_separators_and_packing_make_no_difference(tmp_path, separator, ending, opener):
    path = tmp_path / f"table.{ending}"
    with opener(path, "wb") as file:
        file.write(FRUIT.replace(",", separator).encode())
    pd.testing.assert_frame_equal(
        read_table(path), read_table(written(tmp_path, FRUIT, "plain.csv"))
    )
    assert read_table(path).head(2).to_dict("list") == {
        "kind": ["apple", "fig"],
        "grams": [150.0, 40.0],
        "colour": ["red", "green"],
    }


@pytest.mark.parametrize(
    ("text", "target", "names"),
    [
        ("a,b\n1,2\n3,4\n", None, ["a", "b"]),
        ("1,2\n3,4\n5,6\n", None, ["c0", "c1"]),
        ("0,1,target\n1.5,2,0\n3,4,1\n", None, ["0", "1", "target"]),
        ("39, State-gov, <=50K\n50, Private, <=50K\n", None, ["c0", "c1", "c2"]),
        ("39, 13, x\n50, 13, y\n", "13", ["c0", "c1", "c2"]),
        ("e,x,s\np,x,y\ne,b,s\n", None, ["c0", "c1", "c2"]),
        ("class,cap,odor\np,x,y\ne,b,s\n", None, ["class", "cap", "odor"]),
        ("2019,2020,y\n1,2,no\n3,4,yes\n", "y", ["2019", "2020", "y"]),
        ("2019,2020,y\n1,2,no\n3,4,yes\n", None, ["c0", "c1", "c2"]),
        ("?,a\n1,b\n2,a\n", None, ["c0", "c1"]),
        ("\ufeffa,b\n1,2\n", None, ["a", "b"]),
        ("a;b\n1,5;2,5\n", None, ["a", "b"]),
        ("a,b\nx;y,1\nz,2\n", None, ["a", "b"]),
    ],
    ids=[
        "text above numbers",
        "numbers alone",
        "numbers as names, but for the target",
        "numbers above numbers",
        "a position is no name",
        "texts that recur below",
        "texts that do not recur",
        "the target's name tells",
        "years without a target's name",
        "a gap is no name",
        "byte order mark",
        "decimal commas",
        "semicolons within a text",
    ],
)
def test_headers_are_told_from_rows(tmp_path, text, target, names):
    assert list(read_table(written(tmp_path, text), target)) == names


def test_a_header_can_be_claimed_or_denied(tmp_path):
    path = written(tmp_path, "a,b\n1,2\n3,4\n")
    assert read_table(path, header=False).to_dict("list") == {
        "c0": ["a", "1", "3"],
        "c1": ["b", "2", "4"],
    }
    path = written(tmp_path, "1,2\n3,4\n")
    assert read_table(path, header=True).to_dict("list") == {"1": [3.0], "2": [4.0]}


def test_missing_values_numbers_and_text(tmp_path):
    cells = ["1.5", "", " ? ", "NA", "N/A", "NaN", "nan", "NULL", "null", "-2e3", "+7"]
    table = read_table(
        written(tmp_path, "a,b,c\n" + "".join(f'{cell},x, "y, z"\n' for cell in cells))
    )
    assert table["a"].dtype == np.float64
    assert table["a"].dropna().tolist() == [1.5, -2000, 7]
    assert table["c"].tolist() == ["y, z"] * len(cells)
    mixed = read_table(written(tmp_path, "a,b\n1,True\n ?,FALSE\none ,True\n"))
    assert mixed["a"].tolist()[::2] == ["1", "one"]
    assert mixed["a"].isna().tolist() == [False, True, False]
    assert mixed["b"].tolist() == ["True", "FALSE", "True"]


def test_decimal_commas_between_semicolons(tmp_path):
    assert read_table(written(tmp_path, "a;b\n1,5;2\n-2,25;3\n"))["a"].tolist() == [1.5, -2.25]
    assert read_table(written(tmp_path, "a;b\n1.5;2\n"))["a"].tolist() == [1.5]
    assert read_table(written(tmp_path, "a\tb\n1,500\t2\n"))["a"].tolist() == [1500]


def test_columns_without_a_name_are_left_out_with_a_notice(tmp_path, caplog):
    path = tmp_path / "table.csv"
    pd.DataFrame({"a": [1, 2], "b": [3, 4]}).to_csv(path)
    with caplog.at_level(logging.WARNING, "flooding"):
        assert list(read_table(path)) == ["a", "b"]
    assert "Left out column 0, which has no name and counts the rows (2 cells each)" in caplog.text


def test_text_can_be_kept_text(tmp_path):
    path = written(tmp_path, "zip,n\n01234,5\n?,6\n")
    assert read_table(path)["zip"].tolist()[0] == 1234
    kept = read_table(path, text={"zip"})["zip"]
    assert kept.tolist()[0] == "01234"
    assert kept.isna().tolist() == [False, True]


def test_archives(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    x[1, 0, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 1, 0]), other=np.array(["u", "v", "u"]))
    table = read_table(tmp_path / "a.npz")
    assert list(table) == ["c0", "c1", "c2", "c3", "y"]
    np.testing.assert_array_equal(table["c1"], [1, np.nan, 9])
    assert table["y"].tolist() == [0, 1, 0]
    named = read_table(tmp_path / "a.npz", "other")
    assert list(named) == ["c0", "c1", "c2", "c3", "other"]
    assert named["other"].tolist() == ["u", "v", "u"]
    (tmp_path / "a.npz.gz").write_bytes(gzip.compress((tmp_path / "a.npz").read_bytes()))
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.npz.gz"), table)
    np.savez(tmp_path / "b.npz", X=np.array([["1", "p"], ["?", "q"]]))
    table = read_table(tmp_path / "b.npz")
    assert table["c0"].isna().tolist() == [False, True]
    assert table["c0"].tolist()[0] == 1
    assert table["c1"].tolist() == ["p", "q"]


# Preprocessing.


def texts(values, name="a"):
    return pd.DataFrame({name: pd.Series(values, dtype=str)})


def test_numbers_agree_with_the_slow_twin():
    values = [3.0, math.nan, 10.0, 4.0, math.nan, 1.0]
    preprocessing = fit_preprocessing(pd.DataFrame({"a": values}))
    filled = [3.5 if math.isnan(v) else v for v in values]  # the median of 1, 3, 4, 10
    mean, sd = statistics.fmean(filled), statistics.pstdev(filled)
    expected = [[(3.5 - mean) / sd, 1.0], [(100 - mean) / sd, 0.0]]
    x = preprocessing.transform(pd.DataFrame({"a": [math.nan, 100.0]}))
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_a_constant_with_gaps_is_only_centred():
    values = pd.Series([0.1] * 20 + [math.nan])
    assert values.fillna(0.1).to_numpy().std() > 0  # since the mean of copies of 0.1 is not 0.1
    x = fit_preprocessing(pd.DataFrame({"a": values})).transform(pd.DataFrame({"a": [0.1, 1.1]}))
    np.testing.assert_allclose(x[:, 0], [0, 1], atol=1e-6)


def test_a_number_never_missing_in_training_has_no_input_for_that():
    preprocessing = fit_preprocessing(pd.DataFrame({"a": [1.0, 3.0, 5.0]}))
    assert preprocessing.transform(pd.DataFrame({"a": [math.nan, 3.0]})).tolist() == [[0], [0]]
    assert preprocessing.incomplete == ()


def test_categories_are_the_most_frequent_that_repeat():
    values = [f"v{i:02d}" for i in range(40) for _ in range(2 if i < 35 else 1)] + ["v34"]
    preprocessing = fit_preprocessing(texts(values))
    assert len(preprocessing.frequent["a"]) == 30
    assert "v34" in preprocessing.frequent["a"]  # three times
    assert not set(preprocessing.frequent["a"]) & {f"v{i}" for i in range(35, 40)}  # once
    assert preprocessing.incomplete == ()
    rare = next(v for v in values if v not in preprocessing.frequent["a"])
    x = preprocessing.transform(texts(["v34", rare, "v39", "new", math.nan]))
    assert x.shape == (5, 31)
    assert x.sum(1).tolist() == [1.0] * 5
    assert x[0, 30] == 0
    assert x[1:, 30].tolist() == [1.0] * 4  # one input for all that are rare or unseen


def test_unseen_values_are_no_category_where_training_had_no_rare_ones():
    x = fit_preprocessing(texts(["p", "q"] * 5)).transform(texts(["q", "new", math.nan]))
    assert x.tolist() == [[0, 1], [0, 0], [0, 0]]


def test_a_missing_value_is_a_category():
    preprocessing = fit_preprocessing(texts(["a", math.nan, "a", "b", "b", math.nan]))
    x = preprocessing.transform(texts(["b", math.nan, "a"]))
    assert x.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert preprocessing.frequent == {"a": ("a", "b")}
    assert preprocessing.incomplete == ("a",)


def test_columns_that_carry_nothing_are_dropped():
    table = pd.DataFrame({
        "constant": [0.1] * 20,  # whose mean is not 0.1
        "empty": [math.nan] * 20,
        "same": ["x"] * 20,
        "id": [f"id{i}" for i in range(20)],
        "a": np.arange(20.0),
        "now and then": [1.0, math.nan] * 10,
    })
    preprocessing = fit_preprocessing(table)
    assert preprocessing.dropped_columns == ("constant", "empty", "same", "id")
    assert preprocessing.numeric_columns == ("a", "now and then")
    assert preprocessing.transform(table)[:, 2].tolist() == [0, 1] * 10


def test_the_stored_preprocessing_transforms_alike():
    table = numbers().drop(columns="y")
    table["shade"] = table["shade"].astype(str)
    fitted = fit_preprocessing(table)
    x = fitted.transform(table)
    names = (fitted.numeric_columns, fitted.categorical_columns, fitted.dropped_columns)
    restored = load_preprocessing(dump_preprocessing(fitted), *names, x.shape[1])
    assert torch.equal(restored.transform(table), x)
    assert restored.frequent == fitted.frequent == {"shade": ("dark", "light")}
    assert restored.incomplete == fitted.incomplete == ("gap",)


def test_validation_and_test_rows_do_not_leak_into_training(tmp_path):
    frame = numbers()
    frame.to_csv(tmp_path / "a.csv", index=False)
    before = table_problem(tmp_path / "a.csv", "y", use=["row"])
    held_out = [row for part in row_numbers(before.problem, before)[1:] for row in part]
    assert len(held_out) == 24
    frame.loc[held_out, "size"] *= 1e6
    frame.loc[held_out, "gap"] = 1e6
    frame.loc[held_out, "shade"] = "new"
    frame.loc[held_out, "y"] -= 1e6
    frame.to_csv(tmp_path / "b.csv", index=False)
    after = table_problem(tmp_path / "b.csv", "y", use=["row"])
    names = ["numeric_columns", "categorical_columns", "dropped_columns", "frequent", "incomplete"]
    for name in names:
        assert getattr(after.preprocessing, name) == getattr(before.preprocessing, name)
    rows = read_table(tmp_path / "b.csv")
    assert torch.equal(after.preprocessing.transform(rows), before.preprocessing.transform(rows))
    assert after.target == before.target
    assert torch.equal(after.problem.data.train.x, before.problem.data.train.x)
    assert torch.equal(after.problem.data.train.y, before.problem.data.train.y)
    assert not torch.equal(after.problem.data.val.x, before.problem.data.val.x)


# Problems.


def test_every_row_lands_in_one_split_with_its_own_target(tmp_path):
    frame = numbers()
    frame.to_csv(tmp_path / "a.csv", index=False)
    table = table_problem(tmp_path / "a.csv", "y", use=["row"])
    parts = row_numbers(table.problem, table)
    assert [len(part) for part in parts] == [36, 12, 12]
    assert sorted(row for part in parts for row in part) == list(range(60))
    for rows, split in zip(parts, existing_splits(table.problem.data), strict=True):
        assert split.y.shape == (len(rows), 1)
        value = split.y[:, 0].double() * table.target.sd + table.target.mean
        assert value.tolist() == pytest.approx(frame["y"][rows].tolist(), abs=1e-3)


def test_classes_are_divided_alike(tmp_path):
    y = np.random.default_rng(0).permutation(["a"] * 50 + ["b"] * 23 + ["rare"] * 4)
    frame = pd.DataFrame({"row": np.arange(77), "y": y})
    frame.to_csv(tmp_path / "a.csv", index=False)
    table = table_problem(tmp_path / "a.csv", "y", val_share=0.1, test_share=0.3)
    assert table.target.classes == ("a", "b", "rare")
    counts = [split.y.bincount().tolist() for split in existing_splits(table.problem.data)]
    assert counts == [
        [30, 14, 2],
        [5, 2, 1],
        [15, 7, 1],
    ]  # 10 % and 30 %, at least one; the rest is trained on
    assert table.problem.data.train.y.dtype == torch.int64
    parts = row_numbers(table.problem, table)
    for rows, split in zip(parts, existing_splits(table.problem.data), strict=True):
        assert [table.target.classes[c] for c in split.y.tolist()] == y[rows].tolist()
    assert parts[0] != sorted(parts[0])
    assert all(
        split.y.tolist() != sorted(split.y.tolist())
        for split in existing_splits(table.problem.data)[::2]
    )


def test_the_division_depends_on_its_own_seed_alone(tmp_path):
    numbers().to_csv(tmp_path / "a.csv", index=False)
    first, again, other = (
        table_problem(tmp_path / "a.csv", "y", split_seed=seed, use=["row"]) for seed in (0, 0, 1)
    )
    assert first.problem.splits(seed=0) is first.problem.splits(seed=1)
    assert first.problem.data.sha256 == again.problem.data.sha256
    assert set(row_numbers(first.problem, first)[2]) != set(row_numbers(other.problem, other)[2])


def test_runs_can_be_looked_up_until_the_table_changes(tmp_path):
    path = written(tmp_path, FRUIT)
    key = run_key(Run(table_problem(path, "kind").problem, 0.1))
    assert key is not None
    assert run_key(Run(table_problem(path, "kind").problem, 0.1)) == key
    assert run_key(Run(table_problem(path, "kind", width=8).problem, 0.1)) != key
    written(tmp_path, FRUIT.replace("150", "151"))
    assert run_key(Run(table_problem(path, "kind").problem, 0.1)) != key


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        (["no", "yes"] * 20, None, ("no", "yes")),
        (["True", "False"] * 20, None, ("False", "True")),
        ([10, 9, 2] * 20, None, ("2", "9", "10")),
        ([1, 2] * 4, None, None),
        (list(range(20)) * 5, None, tuple(map(str, range(20)))),
        (list(range(21)) * 5, None, None),
        (list(range(21)) * 5, "classification", tuple(map(str, range(21)))),
        ([0.5, 1.5] * 20, None, None),
        ([0.5, 1] * 20, "classification", ("0.5", "1")),
        ([0, 1] * 20, "regression", None),
        (["0", "?", "1"] * 20, None, ("0", "1")),
    ],
    ids=[
        "text",
        "bools",
        "few whole numbers",
        "fewer than 5 rows each",
        "20 whole numbers",
        "21 whole numbers",
        "21 on request",
        "fractions",
        "fractions on request",
        "regression on request",
        "with gaps",
    ],
)
def test_the_kind_of_target(tmp_path, values, kind, classes):
    rows = "".join(f"{value},{i * i}\n" for i, value in enumerate(values))
    table = table_problem(written(tmp_path, "y,a\n" + rows), "y", kind=kind)
    assert table.target.classes == classes
    loss = torch.nn.functional.mse_loss if classes is None else torch.nn.functional.cross_entropy
    assert table.problem.loss is loss
    assert table.problem.build(0)(table.problem.data.val.x).shape[1] == (
        len(classes) if classes else 1
    )


@pytest.mark.parametrize("target", ["kind", "0", 0, -3, "-3"])
def test_a_target_has_a_name_and_a_position(tmp_path, target):
    assert table_problem(written(tmp_path, FRUIT), target).target.name == "kind"


def test_a_name_goes_before_a_position(tmp_path):
    path = written(tmp_path, "1,0,y\n" + "".join(f"{i},{i % 2},{i}\n" for i in range(30)), "a.csv")
    assert table_problem(path, "0").target.name == "0"
    assert table_problem(path, 0).target.name == "1"


def test_what_was_assumed_is_said(tmp_path):
    rows = "".join(
        f"{i % 7},{'?' if i % 3 else i},5,{'rgb'[i % 3]},{'no' if i % 4 else 'yes'}\n"
        for i in range(50)
    )
    path = written(tmp_path, f"a,b,c,d,y\n{rows}1,2,5,r,?\n")
    assert table_problem(path, "y", max_epochs=7).assumptions == (
        "table.csv: 51 rows, 5 columns.",
        "Target 'y': classification into 2 classes, since it is text: no (37 rows), yes (13 rows).",
        "Dropped 1 row without a target: '?' (1). To name the missing values yourself: --na.",
        "b: 33 cells taken as missing: '?' (33). To name the missing values yourself: --na.",
        "2 numeric columns, standardised on the training rows: a, b.",
        "1 column of categories, with the number that is kept: d (3).",
        "Missing values in the training rows, replaced by the training median: b (20 cells).",
        "Left out as constant in 30 training rows: c. To use it, give rows in which it differs.",
        "Split by seed 0, each class alike: 30 training, 10 validation, 10 test rows.",
        "Warning: 5 of 20 validation and test rows equal a training row, target included, so "
        "scores on them may be too good. If they are copies, remove them from the file first, "
        "such as by drop_duplicates of pandas.",
        "Network: 6 inputs, 3 x 256 ReLU units, 2 outputs; Adam at 0.001, batches of 6, 7 epochs.",
    )
    numbers().to_csv(tmp_path / "b.csv", index=False, header=False)
    assumptions = table_problem(tmp_path / "b.csv", -1, test_share=0, batch_size=5).assumptions
    assert (
        assumptions[0]
        == "b.csv: 60 rows, 5 columns, named c0, c1 and so on since there is no header."
    )
    assert assumptions[1] == "Target 'c4': regression, since it has 60 different numbers."
    assert "48 training, 12 validation rows" in assumptions[-3]
    assert "1 output; Adam at 0.001, batches of 5," in assumptions[-2]
    assert assumptions[-1].startswith("Loss: squared error of the target in units of ")


def test_there_are_several_steps_in_an_epoch(tmp_path):
    path = written(tmp_path, FRUIT)
    assert table_problem(path, "kind").problem.batch_size == 24 // 5
    assert table_problem(path, "kind", batch_size=7).problem.batch_size == 7
    written(tmp_path, "y,a\n" + "".join(f"{i % 2},{i}\n" for i in range(2000)))
    assert table_problem(path, "y").problem.batch_size == 100


def test_a_table_without_a_test_split(tmp_path):
    table = table_problem(
        written(tmp_path, FRUIT), "kind", test_share=0, max_epochs=1, width=4, depth=1
    )
    assert table.problem.data.test is None
    assert [len(s) for s in existing_splits(table.problem.data)] == [32, 8]
    train_weights(table)


def test_regression_is_the_squared_error_of_the_standardised_target(tmp_path):
    numbers(200).to_csv(tmp_path / "a.csv", index=False)
    table = table_problem(tmp_path / "a.csv", "y", max_epochs=20, width=16, depth=2)
    problem, split = table.problem, table.problem.data.train
    assert problem.loss(torch.zeros_like(split.y), split.y).item() == pytest.approx(1, rel=1e-6)
    problem = dataclasses.replace(problem, optimizer=partial(torch.optim.Adam, lr=1e-2))
    *_, last = train(Run(problem))
    assert "val_accuracy" not in last.record.curves
    assert last.record.metrics["last.val_loss"] < 0.2
    assert last.record.metrics["last.test_loss"] < 0.2


# Saving and predicting.


@pytest.fixture
def fruit(tmp_path):
    """A model of fruits, saved."""
    table = table_problem(written(tmp_path, FRUIT), "kind", max_epochs=60, width=8, depth=1)
    save_model(tmp_path / "model", train_weights(table), table)
    return table, tmp_path / "model"


def test_predictions_are_those_of_the_network(tmp_path, fruit):
    table, folder = fruit
    weights = train_weights(table)
    predictions = predict(folder, tmp_path / "table.csv", probabilities=True)
    network = table.problem.build(0).eval()
    network.load_state_dict(weights)
    x = table.preprocessing.transform(read_table(tmp_path / "table.csv"))
    expected = network(x).detach().double().softmax(1)
    assert list(predictions) == ["kind", "probability of apple", "probability of fig"]
    np.testing.assert_allclose(predictions.iloc[:, 1:], expected, rtol=1e-5)
    assert predictions["kind"].tolist() == [("apple", "fig")[c] for c in expected.argmax(1)]
    assert (
        predictions["kind"].tolist() == ["apple", "fig"] * 20
    )  # what grams tells, and it is learned


def test_numbers_are_predicted_in_their_own_unit(tmp_path):
    frame = numbers(200)
    frame.to_csv(tmp_path / "a.csv", index=False)
    table = table_problem(tmp_path / "a.csv", "y", max_epochs=60, width=16, depth=2)
    save_model(tmp_path / "model", train_weights(table), table)
    predictions = predict(tmp_path / "model", tmp_path / "a.csv")
    assert list(predictions) == ["y"]
    assert predictions.shape == (200, 1)
    error = float((predictions["y"] - frame["y"]).std())
    assert error < 0.3 * float(frame["y"].std())
    assert abs(float((predictions["y"] - frame["y"]).mean())) < 5


def test_columns_are_matched_by_name(tmp_path, fruit, caplog):
    _, folder = fruit
    plain = predict(folder, tmp_path / "table.csv", probabilities=True)
    frame = pd.read_csv(tmp_path / "table.csv")
    with caplog.at_level(logging.WARNING, "flooding"):
        frame[["colour", "grams"]].to_csv(tmp_path / "new.csv", index=False, sep=";")
        again = predict(folder, tmp_path / "new.csv", probabilities=True)
        pd.testing.assert_frame_equal(again, plain)
        assert caplog.text == ""
        frame.assign(constant=1.0).to_csv(tmp_path / "kept.csv", index=False)
        same = table_problem(tmp_path / "kept.csv", "kind", max_epochs=1, width=8, depth=1)
        save_model(tmp_path / "kept", train_weights(same), same)
        predict(tmp_path / "kept", tmp_path / "kept.csv")
        assert caplog.text == ""  # the target and what training dropped are nothing new
        frame.assign(price=1.0, shop="here").to_csv(tmp_path / "new.tsv", index=False, sep="\t")
        again = predict(folder, tmp_path / "new.tsv", probabilities=True)
        pd.testing.assert_frame_equal(again, plain)
    assert "2 columns that training had not seen are ignored: price, shop" in caplog.text


def test_values_unknown_to_training_are_told_and_mute_columns_too(tmp_path, caplog):
    prices = ["" if i % 5 == 0 else f"model {i}" for i in range(60)]
    rows = "".join(
        f"{i % 29},{prices[i]},{'rgb'[i % 3]},{'no' if i % 4 else 'yes'}\n" for i in range(60)
    )
    table = table_problem(written(tmp_path, f"a,b,c,y\n{rows}"), "y", max_epochs=2)
    assert any(
        "tells nothing, since no value occurs twice; numbers written oddly? b." in s
        for s in table.assumptions
    )
    network = table.problem.build(0)
    save_model(tmp_path / "model", network.state_dict(), table)
    predict(tmp_path / "model", written(tmp_path, 'a,b,c\n1,"1,5",r\n2,"2,5",R\n3,"3,5",violet\n'))
    assert (
        "2 values of 'c' were rare or absent in training and count as none of its categories: "
        "R, violet" in caplog.text
    )


def test_unseen_and_missing_values_are_predicted(tmp_path, fruit):
    _, folder = fruit
    predictions = predict(
        folder,
        written(tmp_path, "grams,colour\n150,pink\n?,red\n160,\n", "new.csv"),
        probabilities=True,
    )
    assert len(predictions) == 3
    assert np.isfinite(predictions.iloc[:, 1:]).all(axis=None)
    assert predictions["kind"][0] == "apple"


def test_one_row_and_the_header_that_training_had(tmp_path, fruit):
    _, folder = fruit
    assert len(predict(folder, written(tmp_path, "grams,colour\n150,red\n", "new.csv"))) == 1
    rows = "".join(f"{i % 2},{i},{i % 5}\n" for i in range(40))
    table = table_problem(written(tmp_path, rows, "bare.csv"), 0, max_epochs=1, width=4, depth=1)
    save_model(tmp_path / "bare", train_weights(table), table)
    assert len(predict(tmp_path / "bare", written(tmp_path, "0,7,3\n", "new.csv"))) == 1
    with pytest.raises(ValueError, match=r"every column of the training table, got no 'c2'"):
        predict(tmp_path / "bare", written(tmp_path, "7,3\n", "new.csv"))  # the target came first


def test_categories_that_look_like_numbers_stay_text(tmp_path):
    rows = "".join(f"{['16', 'x17'][i % 2]},{i % 2}\n" for i in range(40))
    table = table_problem(
        written(tmp_path, f"code,y\n{rows}"), "y", max_epochs=20, width=8, depth=1
    )
    save_model(tmp_path / "model", train_weights(table), table)
    predictions = predict(tmp_path / "model", written(tmp_path, "code\n16\n16\n", "new.csv"))
    assert predictions["y"].tolist() == ["0", "0"]
    assert predictions.equals(
        predict(tmp_path / "model", tmp_path / "table.csv").iloc[[0, 2]].reset_index(drop=True)
    )


def test_archives_become_problems_and_predictions(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[::7, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=(x[:, 0] > 0).astype(int))
    table = table_problem(tmp_path / "a.npz", "y", max_epochs=60, width=8, depth=1)
    save_model(tmp_path / "model", train_weights(table), table)
    np.savez(tmp_path / "new.npz", x=x)
    predictions = predict(tmp_path / "model", tmp_path / "new.npz")
    assert np.mean(predictions["y"].astype(int) == (x[:, 0] > 0)) > 0.8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gram,colour\n1,red\n", r"got no 'grams'. Did you mean 'gram'\?"),
        ("colour,size\nred,1\n", r"got no 'grams'. There are colour, size\."),
        (
            "grams,colour\n1,red\nheavy,red\n",
            "column 'grams' must hold numbers as in training, got 'heavy'",
        ),
        (
            "grams,colour\ninf,red\n",
            "column 'grams' must hold finite numbers within 1e[+]30, got inf",
        ),
        ("grams,colour\n", "must have rows, got the header alone"),
    ],
)
def test_rows_that_cannot_be_predicted(tmp_path, fruit, text, message):
    with pytest.raises(ValueError, match=message):
        predict(fruit[1], written(tmp_path, text, "new.csv"))


def test_text_is_wanted_where_training_had_text(tmp_path, fruit):
    table, _ = fruit
    with pytest.raises(
        ValueError, match="column 'colour' must hold text as in training, got numbers"
    ):
        table.preprocessing.transform(pd.DataFrame({"grams": [1.0], "colour": [2.0]}))


def test_a_model_lies_in_a_new_folder_or_over_an_old_model(tmp_path, fruit):
    table, folder = fruit
    weights = train_weights(table)
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new/deeper"):
        save_model(tmp_path / place, weights, table)
        load_model(tmp_path / place)
    (folder / "notes.txt").write_text("mine")
    for place in (folder, tmp_path / "table.csv"):
        with pytest.raises(ValueError, match="folder must be new or hold a saved model alone"):
            save_model(place, weights, table)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (tmp_path / "table.csv").read_text() == FRUIT


def test_other_networks_of_the_same_family_are_saved(tmp_path, fruit):
    table, _ = fruit
    model = partial(mlp, 4, 2, width=8, depth=2, batch_norm=True, dropout=0.1)
    table = dataclasses.replace(table, problem=dataclasses.replace(table.problem, model=model))
    save_model(tmp_path / "normed", train_weights(table), table)
    assert not load_model(tmp_path / "normed").network.training
    assert predict(tmp_path / "normed", tmp_path / "table.csv").shape == (40, 1)


def test_saving_and_loading_leave_the_generator_alone(tmp_path, fruit):
    table, folder = fruit
    weights, before = train_weights(table), torch.get_rng_state()
    save_model(folder, weights, table)
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_saved_is_refused(tmp_path, fruit):
    table, _ = fruit
    weights = train_weights(table)
    with pytest.raises(
        ValueError,
        match=r"weights must be finite, got NaN or infinity in 1\.bias. Did the training",
    ):
        save_model(tmp_path / "new", {**weights, "1.bias": weights["1.bias"] * math.nan}, table)
    with pytest.raises(ValueError, match="the weights must fit the network"):
        save_model(tmp_path / "new", dict(list(weights.items())[1:]), table)
    own = dataclasses.replace(
        table, problem=dataclasses.replace(table.problem, model=torch.nn.Linear(4, 2))
    )
    with pytest.raises(ValueError, match="only networks made by partial"):
        save_model(tmp_path / "new", weights, own)
    assert not (tmp_path / "new").exists()


# Bad input.


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        (
            FRUIT,
            "kinds",
            r"target must be a column of table.csv, got 'kinds'. Did you mean 'kind'\?",
        ),
        (FRUIT.replace("kind", "KIND"), "kind", r"Did you mean 'KIND'\?"),
        (FRUIT, "weight", r"got 'weight'. There are kind, grams, colour\."),
        (FRUIT, 3, "target must be one of 3 columns of table.csv, got 3. -1 is the last"),
        ("", "y", "must hold rows, got the empty file"),
        (" \n\n", "y", "must hold rows, got the empty file"),
        ("a,y\n", "y", "must have rows, got the header alone"),
        ("a,y\n1,no\n2,no\n3,no\n", "y", "at least 2 classes, got 'no' in every row"),
        (
            FRUIT + "plum,60,blue\n" * 3,
            "kind",
            "got 3 of class 'plum', of which 1 and 1 .* merge the class with another",
        ),
        (
            "a,y\n" + "1,0\n2,1\n" * 10 + "3,2\n4,2\n",
            "y",
            "of class '2', .* predict it as a number: kind='regression'",
        ),
        (
            "a,y\n1,1.5\n2,2.5\n3,3.5\n",
            "y",
            "got 3 with a target, of which 1 and 1 .* Give more rows",
        ),
        (
            "a,y\n" + "1,no\n1,yes\n" * 10,
            "y",
            "at least one column must vary on the training rows, got a",
        ),
        (
            "y\n" + "no\nyes\n" * 10,
            "y",
            "at least one column must vary on the training rows, got none",
        ),
        (
            "a,y\n" + "1,no\ninf,yes\n" * 10,
            "y",
            "column 'a' must hold finite numbers within 1e[+]30, got inf",
        ),
        (
            "a,y\n" + "1,1.5\n2,-inf\n" * 10,
            "y",
            "column 'y' must hold finite numbers within 1e[+]30, got -inf",
        ),
        ("a,b,a,y\n1,2,3,4\n", "y", "column names must differ, got 'a' twice|got 'a' 2 times"),
        ("a,y\n1,\n2,?\n3,NA\n", "y", "target must have values, got 'y' with none in 3 rows"),
        ("a,y\n1,2\n3,4,5\n", "y", "rows of fields, got .*Expected 2 fields in line 3, saw 3"),
        ('a,y\n"1,2\n3,4\n', "y", "rows of fields, got .*EOF inside string"),
    ],
)
def test_tables_that_cannot_be_learned(tmp_path, text, target, message):
    with pytest.raises(ValueError, match=message):
        table_problem(written(tmp_path, text), target)


def test_a_number_that_never_changes_is_no_target(tmp_path):
    path = written(tmp_path, "a,y\n" + "".join(f"{i},0.5\n" for i in range(20)))
    with pytest.raises(
        ValueError, match=r"target must vary on the training rows, got 'y' = 0.5 in all"
    ):
        table_problem(path, "y", kind="regression")
    path = written(tmp_path, "a,y\n1,2\n2,high\n")
    with pytest.raises(ValueError, match="regression needs a target of numbers, got 'high' in 'y'"):
        table_problem(path, "y", kind="regression")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_share": 0}, r"val_share must lie in \(0, 1\)"),
        ({"val_share": 20}, "Give shares of the rows, not percent"),
        ({"test_share": -0.1}, r"test_share in \[0, 1\)"),
        ({"val_share": 0.5, "test_share": 0.5}, "both together below 1"),
        ({"kind": "regress"}, "kind must be classification, regression or None, got 'regress'"),
        ({"split_seed": -1}, "seed must be a non-negative integer"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"width": 0}, "width must be at least 1"),
    ],
)
def test_arguments_out_of_range(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        table_problem(written(tmp_path, FRUIT), "kind", **changes).problem.build(0)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(
        ValueError, match=r"must be a file, got .*nowhere\.csv, which does not exist"
    ):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"must be a file, got .*, a folder"):
        read_table(tmp_path)
    (tmp_path / "damaged.csv").write_bytes(b"a,y\n\x07\xff,1\n")
    with pytest.raises(ValueError, match=r"must be text, got .* Save it as CSV in UTF-8"):
        read_table(tmp_path / "damaged.csv")
    packed = gzip.compress(FRUIT.encode())
    for name, data in {
        "a.csv.gz": FRUIT.encode(),
        "b.csv.gz": packed[:40],
        "c.csv.xz": packed,
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="can be read and unpacked, got"):
            read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "target", "message"),
    [
        ({"y": np.zeros(3)}, None, r"must hold inputs x with rows, got y in"),
        ({"x": np.zeros((0, 3))}, None, "must hold inputs x with rows"),
        (
            {"x": np.zeros((3, 2)), "y": np.zeros(4)},
            None,
            r"target y must have 3 rows as x has, got shape \(4,\)",
        ),
        (
            {"x": np.zeros((3, 2)), "label": np.zeros(3)},
            "labels",
            r"got 'labels'. Did you mean 'label'\?",
        ),
        ({"x": np.zeros((3, 2), complex)}, None, "must hold numbers or text, got complex128 in c0"),
        (
            {"x": np.array([[1, None]], object)},
            None,
            "must hold arrays of numbers or text, got .*pickle",
        ),
    ],
)
def test_archives_that_cannot_be_read(tmp_path, arrays, target, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.npz", target)


def test_an_archive_with_infinities_or_of_something_else(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 2))
    x[3, 1] = np.inf
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 2)
    with pytest.raises(
        ValueError, match=r"column 'c1' must hold finite numbers within 1e\+30, got inf"
    ):
        table_problem(tmp_path / "a.npz", "y")
    with pytest.raises(ValueError, match="must hold arrays of numbers or text"):
        read_table(written(tmp_path, FRUIT, "b.npz"))


def test_without_pandas_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install .*\[tables\]'"):
        read_table(written(tmp_path, FRUIT))


def test_importing_the_package_imports_none_of_its_libraries():
    code = "import sys, flooding.tabular; print({'pandas', 'sklearn', 'skops'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


# Real files.


@pytest.fixture
def real():
    folder = Path(os.environ.get("FLOODING_DATA", "")) / "tables"
    if "FLOODING_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("FLOODING_DATA does not name a folder with tables/")
    return folder


def test_adult_is_learned_and_predicted(real, tmp_path):
    table = table_problem(real / "adult.data.gz", -1, max_epochs=1, width=64, depth=2)
    assert table.target == tabular.Target("c14", ("<=50K", ">50K"))
    counts = {name: len(values) for name, values in table.preprocessing.frequent.items()}
    # A missing value is one of the 30 categories of c13.
    assert counts == {"c1": 8, "c3": 16, "c5": 7, "c6": 14, "c7": 6, "c8": 5, "c9": 2, "c13": 29}
    assert table.preprocessing.incomplete == ("c1", "c6", "c13")
    assert [len(s) for s in existing_splits(table.problem.data)] == [19537, 6512, 6512]
    save_model(tmp_path / "model", train_weights(table), table)
    lines = (
        gzip.decompress((real / "adult.test.gz").read_bytes()).decode().splitlines()[1:]
    )  # below a remark
    predictions = predict(tmp_path / "model", written(tmp_path, "\n".join(lines), "test.csv"))
    truth = [line.split(", ")[-1].rstrip(".") for line in lines if line]
    assert len(predictions) == len(truth) == 16281
    assert np.mean(predictions["c14"] == truth) > 0.82  # 0.764 always says <=50K


@pytest.mark.parametrize(
    ("name", "rows", "inputs", "classes"),
    [
        ("churn", [3000, 1000, 1000], 19, ("False", "True")),  # without its ids
        ("german", [600, 200, 200], 20, ("0", "1")),
        ("spambase", [2759, 921, 921], 57, ("0", "1")),
    ],
)
def test_tables_with_a_header(real, name, rows, inputs, classes):
    table = table_problem(real / f"{name}.tsv.gz", "target")
    assert table.header is True
    assert table.target.classes == classes
    assert [tuple(s.x.shape) for s in existing_splits(table.problem.data)] == [
        (n, inputs) for n in rows
    ]
    columns = table.problem.data.train.x.double()
    assert torch.allclose(columns.mean(0), torch.zeros(inputs, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(
        columns.std(0, correction=0), torch.ones(inputs, dtype=torch.float64), atol=1e-5
    )
