"""The bake-off: equal budgets, choices by validation alone, the finder's level for flooding, words
from numbers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from flooding import Run, run_all
from flooding.experiments import bakeoff
from flooding.experiments.bakeoff_report import late_band
from flooding.level_search.base import run_generator
from flooding.levels import LevelSource
from flooding.methods import SAM, GradientPenalty, IFlood, SoftAD
from flooding.models import mlp
from flooding.report.rank_figures import equal_groups
from flooding.testing import fake_record
from flooding.training.archive import Archive, pack
from small import small

NETWORK = partial(mlp, 10, 2, width=16, depth=2)
PROBLEM = small(model=NETWORK, max_epochs=20, optimizer=partial(torch.optim.Adam, lr=1e-2))
WITHOUT = {"plain", "early stopping", "flooding", "flooding + early stopping"}


def answer(runs, worth):
    """Made-up Records whose validation and test accuracy is ``worth(run)``."""
    records = []
    for run in runs:
        made, (val, test) = fake_record(run), worth(run)
        curves = dict(made.curves) | {"val_accuracy": np.full(run.epochs + 1, val, np.float32)}
        finals = dict(made.metrics)
        for at in ("last", "best"):
            finals |= {
                f"{at}.val_accuracy": val,
                f"{at}.test_accuracy_clean": test,
                f"{at}.test_loss": 1.0,
            }
            finals |= {
                f"{at}.test_{name}_clean": 0.25
                for name in ("nll", "brier", "ece", "over_confidence")
            }
        records.append(replace(made, curves=curves, metrics=finals))
    return records


def told(worth, names=("a", "b"), seeds=(0, 1)):
    asked = []

    def ask(runs):
        asked.append(list(runs))
        return answer(runs, worth)

    report, records = run_generator(bakeoff.compare(dict.fromkeys(names, (PROBLEM, 2)), seeds), ask)
    return report, records, asked


def rows(report, name):
    [table] = [table for table in report.tables if table.name == name]
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_every_method_has_the_same_budget():
    _, _, asked = told(lambda run: (0.7, 0.7), names=("a",), seeds=(0,))
    first, *_, last = asked
    kinds = {
        "SAM": lambda r: isinstance(r.method, SAM),
        "gradient penalty": lambda r: isinstance(r.method, GradientPenalty),
        "SoftAD": lambda r: isinstance(r.method, SoftAD),
        "AdaFlood": lambda r: isinstance(r.level, LevelSource),
        "iFlood": lambda r: isinstance(r.method, IFlood) and not isinstance(r.level, LevelSource),
        "dropout": lambda r: "dropout" in getattr(r.problem.model, "keywords", {}),
        "weight decay": lambda r: "weight_decay" in r.problem.optimizer.keywords,
        "label smoothing": lambda r: r.problem.eval_loss is not None,
    }
    assert {name: sum(map(kind, first)) for name, kind in kinds.items()} == dict.fromkeys(
        kinds, bakeoff.BUDGET
    )
    assert len(first) == 4 * len(kinds) + 2, (
        "plain training and early stopping have nothing to choose"
    )
    assert len(last) == 1
    race = [run for round_ in asked[1:-1] for run in round_]
    assert sum(run.epochs for run in race) <= (bakeoff.BUDGET - 1) * PROBLEM.max_epochs * 1.1


def test_settings_are_what_their_names_say():
    runs = {
        name: [s.run(0) for s in make(PROBLEM, 2)]
        for name, (make, _) in bakeoff.METHODS.items()
        if make
    }
    assert {r.problem.optimizer.func for r in runs["weight decay"]} == {torch.optim.AdamW}, (
        "decoupled"
    )
    assert all(r.problem.optimizer.keywords["lr"] == 1e-2 for r in runs["weight decay"])
    assert [r.problem.build(0)[3].p for r in runs["dropout"]] == [0.1, 0.25, 0.5, 0.75]
    assert {r.problem.reported for r in runs["label smoothing"]} == {PROBLEM.loss}, (
        "the plain loss is reported"
    )
    assert [r.level for r in runs["iFlood"]] == [
        round(s * np.log(2), 3) for s in (0.05, 0.15, 0.3, 0.5)
    ]
    other = replace(
        PROBLEM, model=torch.nn.Linear(10, 2), optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    assert bakeoff._dropout(other, 2) == []
    assert bakeoff._weight_decay(other, 2)[0].problem.optimizer.func is torch.optim.SGD


def test_validation_chooses_the_setting_and_test_results_do_not():
    def worth(run):
        rho = getattr(run.method, "rho", None)
        return (0.9 if rho == 0.1 else 0.6), (0.55 if rho == 0.1 else 0.95)

    report, _, _ = told(worth)
    assert rows(report, "settings")["a"]["SAM"] == "rho 0.1; rho 0.1"
    assert rows(report, "accuracy")["a"]["SAM"] == "55.0 ± 0.0"
    assert rows(report, "accuracy")["b"]["plain"] == "95.0 ± 0.0"
    assert rows(report, "settings")["a"]["dropout"] == "0.1; 0.1", "the first of equals"


def test_what_beats_flooding_comes_first():
    def worth(run):
        good = isinstance(run.level, LevelSource)
        draw = 0.001 * (run.seed + len(str(run.level)) % 2)
        return 0.7, 0.7 + 0.1 * good + draw

    report, _, _ = told(worth, names=("a", "b", "c", "d"))
    against = [s for s in report.failures if s.startswith("flooding against AdaFlood: LOSES")]
    assert len(against) == 1
    assert "over 4 problems" in against[0]
    assert not any("against plain" in s for s in report.failures)
    assert rows(report, "overall")["AdaFlood"]["rank"] == "1.0"


def test_the_advice_follows_from_the_numbers():
    def worth(run, flooded, smoothed):
        draw = 0.001 * (
            (7 * run.seed + run.problem.batch_size * len(repr((run.level, run.method)))) % 11
        )
        better = flooded * (run.level not in {None, 0} and type(run.method).__name__ == "Flooding")
        return 0.7 + better / 10, 0.7 + better + smoothed * (
            run.problem.eval_loss is not None
        ) + draw * (better == 0)

    def advice(flooded, smoothed=0.0):
        names = {f"problem {n}": replace(PROBLEM, batch_size=12 + n) for n in range(4)}
        many = {name: (problem, 2) for name, problem in names.items()}
        report, _ = run_generator(
            bakeoff.compare(many, (0, 1)),
            lambda runs: answer(runs, partial(worth, flooded=flooded, smoothed=smoothed)),
        )
        return next(s for s in report.findings if s.startswith("When to use flooding"))

    wins = advice(0.1)
    assert "flooding is better than plain training (flooding minus it: +" in wins
    assert "is worse (flooding minus it: +" in wins, "plain early stopping is"
    assert "on top of early stopping adds to it" in wins
    assert "and none is shown to be better" in wins
    assert "trainings, some with dearer steps, weight decay, dropout, label smoothing" in wins
    assert "Mean ranks by accuracy: flooding 1.5, flooding + early stopping 1.5, " in wins
    assert (
        "n = 4 problems, 2 seeds each, intervals are 95 % and not corrected, p is after Holm over "
        "10" in wins
    )
    loses = advice(0.0, smoothed=0.2)
    assert "flooding is not shown to differ from plain training" in loses
    assert (
        "none is shown to be worse than flooding's last epoch and label smoothing is shown to be "
        "better" in loses
    )


def test_plain_training_is_a_fifth_setting_where_that_is_asked():
    def worth(run):
        smoothed = run.problem.eval_loss is not None
        return (0.6, 0.5) if smoothed and run.seed == 0 else (0.7, 0.8 if smoothed else 0.7)

    report, _, _ = told(worth)
    off = rows(report, "with-off")
    assert off["label smoothing"]["plain chosen"] == "2 of 4"
    assert off["label smoothing"]["accuracy %"] == "75.0"
    assert rows(report, "accuracy")["a"]["label smoothing"] == "65.0 ± 21.2"
    assert off["SAM"]["plain chosen"] == "0 of 4", "a setting that is as good stays"
    assert set(off) == set(bakeoff.METHODS) - WITHOUT
    assert rows(report, "pairs")["a"]["flooding − plain"].startswith("+0.0")


def test_cells_of_a_task_count_once():
    def worth(run):
        flooded = run.level not in {None, 0} and type(run.method).__name__ == "Flooding"
        return 0.7, 0.7 + flooded * (0.1 if run.problem.batch_size == 15 else 0.02)

    many = {
        n: (replace(PROBLEM, batch_size=s), 2)
        for n, s in (("A, 1 %", 12), ("A, 5 %", 13), ("B", 15))
    }
    report, _ = run_generator(bakeoff.compare(many, (0, 1)), lambda runs: answer(runs, worth))
    [sentence] = [
        s for s in report.findings if s.startswith("Cells of one task") and "minus plain" in s
    ]
    assert "+6.0 [" in sentence, "the mean of 2 and 10 points"
    assert "over 2 tasks" in sentence
    [most] = [s for s in report.findings if s.startswith("Flooding minus plain: most")]
    assert most.startswith("Flooding minus plain: most on B +10.0 [+10.0, +10.0]; ")
    assert "of the 3 problems on which the finder flooded any seed; n = 2" in most
    overall = rows(report, "overall")
    assert overall["dropout"]["gap"] == overall["label smoothing"]["gap"] == "–"
    assert overall["plain"]["gap"] != "–"


def test_extremes_are_of_problems_that_were_flooded():
    def worth(run):
        flooded = run.level not in {None, 0} and type(run.method).__name__ == "Flooding"
        return 0.7 - 0.3 * (flooded and run.problem.batch_size == 13), 0.7 + 0.02 * flooded

    many = {n: (replace(PROBLEM, batch_size=s), 2) for n, s in (("A", 12), ("B", 13), ("C", 15))}
    report, _ = run_generator(bakeoff.compare(many, (0, 1)), lambda runs: answer(runs, worth))
    [most] = [s for s in report.findings if s.startswith("Flooding minus plain: most")]
    assert "of the 2 problems on which the finder flooded any seed" in most
    assert "B +" not in most


def test_flooding_is_judged_by_a_full_training_at_the_finders_level():
    report, records, asked = told(
        lambda run: (0.7 + 0.1 * (run.level == 0.3), 0.8), names=("a",), seeds=(0,)
    )
    last = asked[-1][0]
    assert last.epochs == PROBLEM.max_epochs
    expected = "none" if last.level is None else f"b {last.level:g}"
    assert rows(report, "settings")["a"]["flooding"] == expected
    assert records[-1].run is last


def test_the_band_and_the_held_loss_are_those_of_the_late_epochs():
    record = fake_record(Run(PROBLEM, 0.2))
    curve = np.linspace(1, 0, 21).astype(np.float32)
    assert late_band(replace(record, curves={"train_loss": curve})) == pytest.approx(0.05)
    report, _, _ = told(lambda run: (0.7, 0.8))
    if held := rows(report, "held"):
        assert set(held) <= {"flooding", "weight decay", "dropout", "label smoothing"}


def test_groups_join_what_does_not_differ():
    assert equal_groups([1.0, 1.5, 3.0, 3.2], 1.0) == [(1.0, 1.5), (3.0, 3.2)]
    assert equal_groups([1.0, 2.0, 3.0], 1.0) == [(1.0, 2.0), (2.0, 3.0)]
    assert equal_groups([1.0, 5.0], 1.0) == []


def test_for_real_and_again_from_its_archive(tmp_path):
    small_one = {"one": (replace(PROBLEM, max_epochs=6), 2)}
    ask = partial(run_all, ledger=False, workers=0)
    report, records = run_generator(bakeoff.compare(small_one, [0, 1]), ask)
    path = pack(tmp_path / "a.npz", records, bakeoff.CURVES, "here", bakeoff.is_exact)
    again, _ = run_generator(bakeoff.compare(small_one, [0, 1]), Archive(path))
    told, expected = (
        [t.csv() for t in r.tables if t.name in {"accuracy", "nll", "settings"}]
        for r in (again, report)
    )
    assert told == expected, "no finals and no choice is rounded"
    names = list(rows(report, "overall")["plain"])[1:-1]  # the late band is of a rounded curve
    assert [[r[n] for n in names] for r in rows(again, "overall").values()] == [
        [r[n] for n in names] for r in rows(report, "overall").values()
    ]
    assert again.findings == report.findings
    assert set(rows(report, "overall")) == set(bakeoff.METHODS)
    assert report.figures == {}, "one problem has no ranks to draw"


def test_the_study_has_thirteen_problems_and_its_picture_names_every_method():
    assert len(bakeoff.problems()) == 13
    assert bakeoff.problems()["letter"][1] == 26
    report, _, _ = told(lambda run: (0.7, 0.7 + 0.01 * (run.level is None)))
    figure = report.figures["ranks"][1]()
    texts = [text.get_text().split("  ")[0] for text in figure.axes[0].texts]
    assert sorted(texts) == sorted(bakeoff.METHODS)
