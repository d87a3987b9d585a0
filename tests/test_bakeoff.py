"""The bake-off: equal budgets, choices by validation alone, the finder's level for flooding, words
from numbers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from flooding import Run, run_all
from flooding.averaging import EMA
from flooding.experiments import bakeoff
from flooding.level_search.driver import run_generator
from flooding.level_search.finder import finder
from flooding.methods import SAM, Flooding, GradientPenalty, Hinge, IFlood, RelaxLoss, SoftAD
from flooding.models import mlp
from flooding.report.method_comparison import late_band
from flooding.report.rank_figures import equal_groups
from flooding.testing import fake_record
from flooding.training.archive import Archive, pack, run_id
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
        if run.problem.averaging is not None:
            curves |= {f"average.{name}": curves[name] for name in ("val_accuracy", "val_loss")}
            finals |= {f"average.{name}": value for name, value in finals.items()}
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
    first = [run for run in asked[0] if not bakeoff.is_later(run)]
    rounds = [runs for runs in asked[1:] if not any(map(bakeoff.is_later, runs))]
    [last] = [run for run in asked[-1] if run.problem.averaging and type(run.method) is Flooding]
    kinds = {
        "SAM": lambda r: isinstance(r.method, SAM),
        "gradient penalty": lambda r: isinstance(r.method, GradientPenalty),
        "SoftAD": lambda r: isinstance(r.method, SoftAD),
        "AdaFlood": lambda r: hasattr(r.level, "resolve"),
        "iFlood": lambda r: isinstance(r.method, IFlood) and not hasattr(r.level, "resolve"),
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
    assert last.epochs == PROBLEM.max_epochs
    race = [run for round_ in rounds for run in round_]
    assert sum(run.epochs for run in race) <= (bakeoff.BUDGET - 1) * PROBLEM.max_epochs * 1.1


def test_later_methods_are_what_their_names_say():
    _, _, asked = told(lambda run: (0.7 + 0.1 * (run.level is not None), 0.7), ("a",), (0,))
    later = [run for run in asked[0] if bakeoff.is_later(run)]
    relaxed = [run for run in later if isinstance(run.method, RelaxLoss)]
    assert [run.level for run in relaxed] == [0.035, 0.104, 0.208, 0.347]
    later = [run for run in later if run not in relaxed]
    kinds = [(type(run.level).__name__, run.problem.averaging is not None) for run in later]
    assert sorted(kinds) == [
        *(("Auto", False), ("Auto", True)),
        *(("NoneType", True), ("NoneType", True)),
    ]
    at_level = [run for runs in asked for run in runs if run.epochs == 20 and run.level]
    hinged = [run for run in at_level if isinstance(run.method, Hinge)]
    # One at the level that the finder found for the network, one at that for its average.
    assert [run.problem.averaging for run in hinged] == [None, EMA()]
    flooded = [run for run in asked[-1] if type(run.method) is Flooding]
    assert [run.level for run in flooded] == [hinged[1].level]
    assert all(run.problem.averaging == EMA() for run in asked[-1])
    assert set(bakeoff.STANDARD) | set(bakeoff.LATER) == set(bakeoff.METHODS)


def test_averages_are_judged_by_the_average():
    def worth(run):
        return 0.7, 0.6

    def with_better_averages(runs):
        records = answer(runs, worth)
        better = []
        for record in records:
            metrics = dict(record.metrics)
            for name in metrics:
                if name.startswith("average.") and name.endswith("test_accuracy_clean"):
                    metrics[name] = 0.9
            better.append(replace(record, metrics=metrics))
        return better

    study = bakeoff.compare({"a": (PROBLEM, 2), "b": (PROBLEM, 2)}, (0, 1))
    report, _ = run_generator(study, with_better_averages)
    cells = rows(report, "accuracy")["a"]
    averaged = {name for name in bakeoff.METHODS if name.endswith("average")}
    assert {name for name, cell in cells.items() if cell == "90.0 ± 0.0"} == averaged
    assert rows(report, "overall")["plain + average"]["gap"] == "–"


def test_what_an_archive_lacks_is_said_and_nothing_else_changes(tmp_path):
    def worth(run):
        return 0.7, 0.7 + 0.01 * (run.level is None) + 0.001 * run.seed

    names, seeds = {"a": (PROBLEM, 2), "b": (replace(PROBLEM, batch_size=13), 2)}, (0, 1)
    full, records = run_generator(bakeoff.compare(names, seeds), lambda runs: answer(runs, worth))
    assert "Not trained" not in full.about
    old = [record for record in records if not bakeoff.is_later(record.run)]
    old = [replace(record, metadata={"seconds": 36.0}) for record in old]
    is_exact = partial(bakeoff.is_exact, compared=[problem for problem, _ in names.values()])
    path = pack(tmp_path / "a.npz", old, bakeoff.CURVES, "here", is_exact)
    part, _ = run_generator(bakeoff.compare(names, seeds), bakeoff.EXPERIMENT.load(path))
    assert list(rows(part, "overall")) == list(bakeoff.STANDARD)
    assert f"Not trained: {', '.join(bakeoff.LATER)}." in part.about
    # auto, auto + average, plain + average, the finder's three and its level, two hinges, four of
    # RelaxLoss: 13 trainings of 36 s for each of four cases.
    assert "about 0.5 CPU hours (13 trainings for each problem and seed)" in part.about
    for name in ("plain", "flooding"):
        assert rows(part, "accuracy")["a"][name] == rows(full, "accuracy")["a"][name]
    assert f"{len({run_id(record.run) for record in old})} trainings" in part.provenance
    # What every archive must have is still an error.
    fewer = [record for record in old if getattr(record.run.method, "rho", None) != 0.1]
    fewer = pack(tmp_path / "b.npz", fewer, bakeoff.CURVES, "here", is_exact)
    with pytest.raises(ValueError, match="lacks 4 of"):
        run_generator(bakeoff.compare(names, seeds), bakeoff.EXPERIMENT.load(fewer))


def test_methods_may_have_fewer_seeds_and_are_compared_in_those_of_both(tmp_path):
    def worth(run):
        smoothed = run.problem.eval_loss is not None
        # The third seed is an easy one.
        return 0.7, 0.6 + 0.05 * smoothed + 0.3 * (run.seed == 2)

    names, seeds = {"a": (PROBLEM, 2), "b": (replace(PROBLEM, batch_size=13), 2)}, (0, 1, 2)
    study = bakeoff.compare(names, seeds, seeds[:2])
    report, records = run_generator(study, lambda runs: answer(runs, worth))
    overall = rows(report, "overall")
    assert {name: row["seeds"] for name, row in overall.items()} == {
        name: "3" if name in bakeoff.MAIN else "2" for name in bakeoff.METHODS
    }
    assert (overall["plain"]["accuracy %"], overall["label smoothing"]["accuracy %"]) == (
        "60.0",
        "65.0",
    ), "of the seeds that all have"
    assert rows(report, "accuracy")["a"]["plain"] == "70.0 ± 17.3"
    assert overall["label smoothing"]["minus plain"] == "+5.0 [+5.0, +5.0]"
    assert overall["label smoothing"]["rank"] == "1.0", "ranks are of the seeds that all have"
    off = rows(report, "with-off")["label smoothing"]
    assert off["flooding minus it"] == "-5.0 [-5.0, -5.0]"
    assert off["plain chosen"].endswith(" of 4")
    assert "2 to 3 seeds" in report.about
    [ranks] = [s for s in report.findings if s.startswith("Mean ranks")]
    assert "2 problems, 2 seeds each" in ranks
    # A seed that an archive has of some problems alone is left out.
    late = [
        replace(record, run=replace(record.run, seed=record.run.seed + 2)) for record in records
    ]
    kept = []
    for record in late:
        is_smoothed = record.run.problem.eval_loss is not None
        if not (is_smoothed and record.run.seed == 3 and record.run.problem.batch_size == 13):
            kept.append(record)
    assert len(kept) == len(late) - 4
    is_exact = partial(bakeoff.is_exact, compared=[problem for problem, _ in names.values()])
    path = pack(tmp_path / "a.npz", kept, bakeoff.CURVES, "here", is_exact)
    study = bakeoff.compare(names, (2, 3, 4), (2, 3))
    with pytest.raises(ValueError, match="lacks"):
        run_generator(study, Archive(path))
    study = bakeoff.compare(names, (2, 3, 4), (2, 3))
    part, _ = run_generator(study, bakeoff.EXPERIMENT.load(path))
    counts = {name: row["seeds"] for name, row in rows(part, "overall").items()}
    assert (counts["plain"], counts["label smoothing"], counts["SAM"]) == ("3", "1", "2")


def test_a_look_before_the_last_seed_is_called_one(monkeypatch):
    monkeypatch.setattr(bakeoff, "problems", lambda quick: {"a": (PROBLEM, 2)})
    for quick, seeds, is_early in ((False, (0, 1), True), (True, (0, 1), False)):
        study = bakeoff.start(quick, seeds)
        report, _ = run_generator(study, lambda runs: answer(runs, lambda run: (0.7, 0.7)))
        assert ("This is a look before the end: planned are 10 seeds" in report.about) == is_early


def test_fewer_seeds_of_the_other_methods_than_planned_are_said():
    for others, is_short in (((0, 1), False), ((0,), True)):
        study = bakeoff.compare({"a": (PROBLEM, 2)}, range(4), others, planned=4)
        report, _ = run_generator(study, lambda runs: answer(runs, lambda run: (0.7, 0.7)))
        said = "Planned were 2 seeds of the methods that have the fewest; they have 1."
        assert (said in report.about) == is_short


def test_the_main_methods_are_the_rows_with_a_level_and_their_rivals():
    others = set(bakeoff.METHODS) - set(bakeoff.MAIN)
    assert others == {
        *("weight decay", "dropout", "label smoothing", "SAM", "gradient penalty"),
        *("iFlood", "SoftAD", "AdaFlood", "RelaxLoss"),
    }


def test_settings_are_what_their_names_say():
    runs = {
        name: [s.run(0) for s in competitor.settings(PROBLEM, 2)]
        for name, competitor in bakeoff.METHODS.items()
        if competitor.settings
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


@pytest.fixture
def few_methods(monkeypatch):
    """Compare the methods alone that the planned tests and the advice speak of."""
    names = ("plain", "early stopping", "label smoothing", "flooding", "flooding + early stopping")
    monkeypatch.setattr(bakeoff, "METHODS", {name: bakeoff.METHODS[name] for name in names})
    monkeypatch.setattr(bakeoff, "LATER", ())


def by_problem(worth, n=8):
    """Report on ``n`` problems whose test accuracy is ``worth(method, index of the problem)``.

    The validation accuracy prefers levels above 0.
    """
    names = {f"problem {k}": (replace(PROBLEM, batch_size=12 + k), 2) for k in range(n)}

    def judge(run):
        is_flooded = run.level not in {None, 0} and type(run.method) is Flooding
        index = run.problem.batch_size - 12
        method = "flooding" if is_flooded else "other"
        if run.problem.eval_loss is not None:
            method = "smoothed"
        if run.level is None and type(run.method) is Flooding and method == "other":
            method = "plain"
        return 0.7 + 0.1 * is_flooded, worth(method, index) + 0.001 * run.seed

    def stopped_apart(runs):
        records = answer(runs, judge)
        apart = []
        for record in records:
            metrics = dict(record.metrics)
            index = record.run.problem.batch_size - 12
            if record.run.level is None and record.run.problem.eval_loss is None:
                stopped = worth("stopped", index) + 0.001 * record.run.seed
                metrics["best.test_accuracy_clean"] = stopped
            apart.append(replace(record, metrics=metrics))
        return apart

    return run_generator(bakeoff.compare(names, (0, 1)), stopped_apart)[0]


def uneven(size, k):
    """A difference that varies a little from problem to problem."""
    return size * (1 + k / 10)


@pytest.mark.usefixtures("few_methods")
def test_the_two_planned_tests_are_wilcoxons_with_holm_over_the_two():
    worths = {"flooding": 0.7, "plain": 0.6, "stopped": 0.7, "smoothed": 0.9}

    def worth(method, k):
        return worths[method] + (-1) ** k * uneven(0.01, k) * (method == "stopped")

    report = by_problem(worth)
    planned = rows(report, "planned")
    assert list(planned) == ["flooding − plain", "flooding − early stopping"]
    plain, stopped = planned.values()
    assert (plain["verdict"], plain["better, worse, equal"]) == ("better", "8, 0, 0")
    assert (stopped["verdict"], stopped["better, worse, equal"]) == ("not shown", "4, 4, 0")
    # All eight differences of one sign: 2 of 2^8 signs, times 2 for Holm's first of two.
    assert plain["p (Wilcoxon)"] == f"{2 * 2 / 2**8:.3f}"
    flooding, others = 0.7, [0.7 + (-1) ** k * uneven(0.01, k) for k in range(8)]
    p = stats.wilcoxon([flooding - other for other in others]).pvalue
    assert stopped["p (Wilcoxon)"] == f"{p:.3f}"
    assert any(
        s.startswith("Planned: flooding against plain: wins: +10.0") for s in report.findings
    )
    # Others are compared without a verdict and without p.
    [exploratory] = [s for s in report.findings if s.startswith("Exploratory, flooding minus")]
    assert "label smoothing -20.0 [-20.0, -20.0]" in exploratory
    assert "plain" not in exploratory
    assert " p " not in exploratory
    assert not report.failures


@pytest.mark.usefixtures("few_methods")
def test_a_planned_test_that_flooding_loses_comes_first():
    report = by_problem(lambda method, k: 0.6 + uneven(0.1, k) * (method == "stopped"))
    [loss] = report.failures
    assert loss.startswith("Planned: flooding against early stopping: LOSES: -")
    assert "(Wilcoxon)" in loss
    assert "(t)" in loss


def advice(worth):
    report = by_problem(worth)
    return next(s for s in report.findings if s.startswith("When to use flooding"))


@pytest.mark.usefixtures("few_methods")
def test_the_advice_follows_from_the_planned_tests():
    wins = advice(lambda method, k: 0.6 + uneven(0.1, k) * (method == "flooding"))
    assert "last epoch, flooding gains 13.5 points over plain training." in wins
    assert "epoch, flooding is still 13.5 points better, for four trainings." in wins
    assert "Flooding on top of early stopping gains 13.5 points more." in wins
    assert "mean differences in test accuracy over 8 problems." in wins
    loses = advice(lambda method, k: 0.9 - uneven(0.1, k) * (method == "flooding"))
    assert "last epoch, do not flood: it costs 13.5 points." in loses
    assert "use plain early stopping: it costs one training instead of four and is 13.5 " in loses
    assert "Flooding on top of early stopping costs 13.5 points." in loses
    equal = advice(lambda method, k: 0.6 + (-1) ** k * 0.01 * (k + 1) * (method == "flooding"))
    assert "flooding is not shown to differ from plain training (-0.5 points)" in equal
    assert "instead of four and is as good (+0.5 points, not significant)" in equal
    assert "Flooding on top of early stopping adds nothing that shows." in equal
    best = advice(lambda method, k: 0.6 + 0.1 * (method == "smoothed"))
    assert "Try label smoothing, too: it has the best mean rank" in best


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
    assert set(off) == {*bakeoff.STANDARD, "RelaxLoss"} - WITHOUT
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
    # The last Runs are those of the average, before them those of the network.
    rounds = [runs for runs in asked if all(run.problem.averaging is None for run in runs)]
    last = rounds[-1][0]
    assert last.epochs == PROBLEM.max_epochs
    expected = "none" if last.level is None else f"b {last.level:g}"
    assert rows(report, "settings")["a"]["flooding"] == expected
    assert records[-2].run is asked[-1][0]


def test_the_band_is_that_of_the_late_epochs():
    record = fake_record(Run(PROBLEM, 0.2))
    curve = np.linspace(1, 0, 21).astype(np.float32)
    assert late_band(replace(record, curves={"train_loss": curve})) == pytest.approx(0.05)


def test_groups_join_what_does_not_differ():
    assert equal_groups([1.0, 1.5, 3.0, 3.2], 1.0) == [(1.0, 1.5), (3.0, 3.2)]
    assert equal_groups([1.0, 2.0, 3.0], 1.0) == [(1.0, 2.0), (2.0, 3.0)]
    assert equal_groups([1.0, 5.0], 1.0) == []


def test_for_real_and_again_from_its_archive(tmp_path, monkeypatch):
    # One method of each kind is enough.
    names = ("plain", "early stopping", "label smoothing", "flooding", "flooding + early stopping")
    names += ("auto level + average", "flooding + average", "hinge + average")
    monkeypatch.setattr(bakeoff, "METHODS", {name: bakeoff.METHODS[name] for name in names})
    monkeypatch.setattr(bakeoff, "LATER", [name for name in names if name in bakeoff.LATER])
    problem = replace(PROBLEM, max_epochs=6)
    small_one = {"one": (problem, 2)}
    ask = partial(run_all, ledger=False, workers=0)
    report, records = run_generator(bakeoff.compare(small_one, [0, 1]), ask)
    is_exact = partial(bakeoff.is_exact, compared=[problem])
    path = pack(tmp_path / "a.npz", records, bakeoff.CURVES, "here", is_exact)
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


def test_what_the_finder_reads_is_not_rounded_and_all_else_is():
    for averaging in (None, EMA()):
        problem = replace(PROBLEM, max_epochs=60, averaging=averaging)
        asked = []

        def train(runs, asked=asked):
            asked += runs
            return run_all(runs, ledger=False, workers=0)

        run_generator(finder(problem, budget=3, seeds=[0]), train)
        assert len(asked) > 1
        assert all(bakeoff.is_exact(run, [problem]) for run in asked)
    for name in ("weight decay", "dropout", "label smoothing", "SAM", "AdaFlood", "auto level"):
        settings = bakeoff.METHODS[name].settings(PROBLEM, 2)
        assert settings
        assert not any(bakeoff.is_exact(setting.run(0), [PROBLEM]) for setting in settings), name
    digits, _ = bakeoff.problems()["digits"]
    assert bakeoff.is_exact(Run(digits, 0.3))
    assert not bakeoff.is_exact(Run(PROBLEM, 0.3)), "it is none of the experiment's"


def test_the_study_has_thirteen_problems_and_its_picture_names_every_method():
    assert len(bakeoff.problems()) == 13
    assert bakeoff.problems()["letter"][1] == 26
    report, _, _ = told(lambda run: (0.7, 0.7 + 0.01 * (run.level is None)))
    figure = report.figures["ranks"][1]()
    texts = [text.get_text().split("  ")[0] for text in figure.axes[0].texts]
    assert sorted(texts) == sorted(bakeoff.METHODS)
