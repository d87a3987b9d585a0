"""Images at reduced scale: validation alone chooses, levels that were not reached are not called
tested."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from flooding.data.augment import crop_and_flip
from flooding.experiments import images5k, kim2022_cifar10
from flooding.experiments.images5k import LEVELS, cells, start
from flooding.level_search.driver import run_generator
from flooding.models import IMAGENET_MEAN_SD
from flooding.report.level_grid import Cell
from flooding.training.archive import Archive, pack, run_id
from flooding.training.record import Record
from small import small


@pytest.fixture(autouse=True)
def _without_files(monkeypatch):
    """Plan with small problems in place of images."""
    plan = [
        Cell(name, small(max_epochs=max_epochs), LEVELS, (0, 1, 2))
        for name, max_epochs in (("A", 10), ("B", 20))
    ]
    monkeypatch.setattr(images5k, "cells", lambda quick=False, seeds=None: plan)


def answer(
    runs,
    flooded=0.5,
    falls=3,
    begins=1,
    best=lambda level, seed: 10,
    val=lambda level, seed: 0.5,
    test=lambda level, seed: 0.5 + level / 10,
):
    """Make Records whose training loss falls below 0.4 after some epochs; from epoch ``begins`` on
    it is flooded."""
    told = []
    for run in runs:
        level, seed, epochs = run.level or 0.0, run.seed, run.epochs
        curves = {
            "train_loss": np.where(np.arange(epochs + 1) < falls, 1.0, 0.01),
            "flooded": np.where(np.arange(epochs + 1) >= begins, flooded if level else 0.0, 0.0),
        }
        finals = {"best.epoch": best(level, seed)}
        for at in ("last", "best"):
            made = {
                "val_accuracy": val(level, seed),
                "val_loss": 1.0,
                "test_accuracy": test(level, seed),
            }
            made |= {"test_nll": 1.0 - level, "test_ece": 0.1, "train_loss": max(level, 0.01)}
            finals |= {f"{at}.{name}": value for name, value in made.items()}
        told.append(Record(run, curves, {}, finals, "", "", {"seconds": 36.0, "on": "a machine"}))
    return told


def report(**how):
    return run_generator(start(), partial(answer, **how))[0]


def rows(told, name):
    [found] = [table for table in told.tables if table.name == name]
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_the_plan_is_that_of_the_docstring(monkeypatch):
    monkeypatch.undo()
    plan = cells()
    assert [cell.title for cell in plan] == [
        "MNIST",
        "Fashion-MNIST",
        "Fashion-MNIST, 20 % label noise",
        "CIFAR-10",
    ]
    assert sum(len(cell.runs) for cell in plan) == 4 * 6 * 3
    assert [cell.problem.data.keywords["label_noise"] for cell in plan] == [0.0, 0.0, 0.2, 0.0]
    assert [cell.seeds for cell in cells(seeds=[5])] == [(5,)] * 4
    assert [cell.levels[-1] for cell in plan] == [0.4, 0.4, 1.0, 0.4]
    assert [cell.levels for cell in cells(quick=True)][1:3] == [(0.0, 0.1, 0.4), (0.0, 0.6, 1.0)]
    assert [cell.problem.max_epochs for cell in plan] == [30, 30, 60, 60]


def test_validation_chooses_a_level_above_0_and_ties_go_to_the_smaller():
    told = report(
        val=lambda level, seed: (
            0.9 if level == 0 else 0.8 if level >= 0.1 + 0.1 * (seed == 1) else 0.3
        )
    )
    [row, _] = rows(told, "last")
    assert row["levels"] == "0.1, 0.2, 0.1"
    assert row["flooding"] == "51.3 ± 0.6"
    assert row["plain"] == "50.0 ± 0.0"
    assert row["difference"].startswith("+1.3 [")


def test_levels_that_were_never_reached_read_not_tested():
    told = report(flooded=0.009)  # a stray batch
    assert all(row["flooding"] == "not tested: no level was reached" for row in rows(told, "last"))
    assert all(row["plain"] == "50.0 ± 0.0" for row in rows(told, "last"))
    assert [row["reached"] for row in rows(told, "levels")] == [
        "–",
        *["0 of 3: not tested"] * 5,
    ] * 2
    assert sum("not tested: no level was reached" in sentence for sentence in told.failures) == 6
    assert not any("wins" in sentence for sentence in told.findings)
    assert any("never reached: 0.02, 0.05, 0.1, 0.2, 0.4" in sentence for sentence in told.findings)
    assert [row["reached"] for row in rows(report(), "levels")] == ["–", *["3 of 3"] * 5] * 2


def capped(caps, **how):
    """Tell of a world in which plain training's lowest validation loss is a number by seed."""

    def answer_with_caps(runs):
        told = answer(runs, **how)
        made = []
        for r in told:
            curve = np.full(r.run.epochs + 1, 2.0, np.float32)
            # The state before training does not count, and no level's own loss does.
            curve[0] = 0.0
            curve[4] = caps[r.run.seed] if not r.run.level else 0.0
            made.append(replace(r, curves={**r.curves, "val_loss": curve}))
        return made

    return run_generator(start(), answer_with_caps)[0]


def test_a_level_above_the_cap_of_its_own_plain_run_is_no_candidate():
    def likes(level, seed):
        return level

    told = capped([0.3, 0.1, 0.4], val=likes)
    assert rows(told, "last")[0]["levels"] == "0.2, 0.1, 0.4", "a level at the cap is one"
    assert [row["candidate"] for row in rows(told, "levels")[:6]] == [
        *("–", "3 of 3", "3 of 3", "3 of 3"),
        *("2 of 3", "1 of 3"),
    ]
    none = capped([0.05, 0.05, 0.09], val=likes)
    assert [row["candidate"] for row in rows(none, "levels")[3:6]] == [
        "0 of 3: not a candidate"
    ] * 3
    assert any(s.endswith("; not a candidate: 0.1, 0.2, 0.4.") for s in none.findings)


def test_without_candidates_nothing_is_lost_and_nothing_is_tested():
    loses = {"test": lambda level, seed: 0.9 - level + 0.001 * seed}
    told = capped([0.01, 0.019, 0.2], **loses)
    sentences = [*told.failures, *told.findings]
    assert (
        "A: cannot be tested in 10 epochs: in 2 of 3 seeds every level lies above the lowest "
        in ("".join(s for s in sentences if s.startswith("A: ")))
    )
    assert "0.01 to 0.20" in "".join(s for s in sentences if s.startswith("A: "))
    assert "A, last epoch: cannot be tested in 10 epochs." in told.failures
    assert not any("LOSES" in s for s in sentences)
    assert rows(told, "last")[0]["flooding"] == "cannot be tested in 10 epochs"
    assert rows(told, "last")[0]["difference"] == "–"
    two = capped([0.01, 0.2, 0.3], **loses)
    assert rows(two, "last")[0]["difference"].endswith(", n = 2"), "two seeds can be compared"


def test_a_level_that_a_seed_did_not_reach_is_no_candidate_there():
    def some(runs):  # 0.4 alone is reached, by seeds 1 and 2
        told = answer(runs, val=lambda level, seed: 0.9 - level)
        low = [
            np.full_like(r.curves["flooded"], 0.5 * (r.run.level == 0.4 and r.run.seed > 0))
            for r in told
        ]
        return [
            replace(r, curves={**r.curves, "flooded": f}) for r, f in zip(told, low, strict=True)
        ]

    told = run_generator(start(), some)[0]
    row = rows(told, "last")[0]
    assert row["levels"] == "0.4, 0.4"
    assert row["difference"].endswith(", n = 2")
    assert row["flooding"] == "54.0 ± 0.0"
    levels = {row["level"]: row["reached"] for row in rows(told, "levels")[:6]}
    assert levels == {
        "plain": "–",
        **dict.fromkeys(["0.02", "0.05", "0.1", "0.2"], "0 of 3: not tested"),
        "0.4": "2 of 3",
    }


def test_a_best_epoch_before_the_level_was_reached_tests_no_flooding():
    # Level 0.4 is best at epoch 6, in seed 2 alone, and all others at epoch 5; flooding begins with
    # epoch 6.
    told = report(
        begins=6,
        best=lambda level, seed: 5 + (level == 0.4 and seed == 2),
        val=lambda level, seed: 0.9 - level,
    )
    last, stopped = rows(told, "last")[0], rows(told, "stopped")[0]
    assert (last["levels"], last["flooded %"]) == ("0.02, 0.02, 0.02", "25.0 ± 0.0")
    assert (stopped["levels"], stopped["flooded %"]) == ("0.4", "8.3")  # a half of one epoch in six
    assert (stopped["flooding, stopped"], stopped["difference"]) == ("54.0", "+4.0, n = 1")
    both = (
        "A, early stopping on both sides: flooding is not tested, by one pair: +4.0 points, n = 1"
    )
    missing = "(2 seeds not tested: no level was reached before the best epoch), p –."
    assert f"{both} {missing}" in told.failures
    levels = rows(told, "levels")[1:6]
    assert [row["reached, stopped"] for row in levels] == [*["0 of 3: not tested"] * 4, "1 of 3"]
    assert [row["reached"] for row in levels] == ["3 of 3"] * 5
    losses = rows(told, "losses")[0]
    assert losses["flooding, stopped: NLL"] == "0.600"
    assert [losses[f"flooding{end}: flooded %"] for end in ("", ", stopped")] == [
        "25.0 ± 0.0, n = 3",
        "8.3, n = 1",
    ]
    never = report(begins=6, best=lambda level, seed: 5)
    why = "not tested: no level was reached before the best epoch"
    assert [row["flooding, stopped"] for row in rows(never, "stopped")] == [why] * 2
    assert f"A, early stopping on both sides: {why}." in never.failures
    assert rows(never, "losses")[0]["flooding, stopped: flooded %"] == why


def test_rows_are_compared_in_the_seeds_that_both_have():
    told = report(
        begins=6,
        best=lambda level, seed: 5 + (seed == 2),
        test=lambda level, seed: 0.5 + 0.1 * seed,
    )
    assert rows(told, "stopped")[0]["plain, stopped"] == "70.0"
    assert rows(told, "last")[0]["plain"] == "60.0 ± 10.0"


def test_plain_training_must_be_below_the_largest_level_before_half():
    assert not report(falls=3).failures
    told = report(falls=9)  # of 10 epochs in the first cell, of 20 in the second
    when = "not below the level 0.4 before half of the epochs (seed by seed: 90 %, 90 %, 90 %)"
    assert list(told.failures) == [f"A: plain training is {when}."]
    assert any(
        s == "B: plain training is below the level 0.4 after 45 % of the epochs."
        for s in told.findings
    )
    never = report(falls=99).failures
    assert len(never) == 2
    assert "(seed by seed: never, never, never)" in never[0]


def test_a_loss_is_called_one_and_comes_first():
    told = report(test=lambda level, seed: 0.9 - level + 0.001 * seed * (level > 0))
    assert any("LOSES" in sentence for sentence in told.failures)
    assert not any("wins" in sentence for sentence in [*told.failures, *told.findings])


def test_what_the_paper_claims_is_reproduced_where_it_is_shown():
    told = report(test=lambda level, seed: 0.8 + 0.01 * (level > 0) * (-1 if seed == 0 else 1))
    texts = [s for s in told.failures if "is not shown to differ: +0.3 [" in s]
    assert [text.partition(":")[0] for text in texts] == [
        *("A, last epoch", "B, last epoch"),
        *("A, early stopping on both sides", "B, early stopping on both sides"),
    ]
    assert (
        sum(
            "against plain early stopping: flooding is not shown to differ" in s
            for s in told.findings
        )
        == 2
    )
    assert any(
        "early stopping: flooding ties in every pair: +0.0" in s
        for s in report(test=lambda *_: 0.8).findings
    )


def test_the_page_and_its_picture_are_written(tmp_path):
    told = report()
    names = {path.name for path in told.save(tmp_path, "images5k")}
    assert {"images5k.md", "images5k-levels.png", "images5k-last.csv"} <= names
    assert "Reduced protocol, not the sources'" in (tmp_path / "images5k.md").read_text()


def test_the_reproductions_setting_is_the_published_one_where_it_is_full():
    full, reduced = kim2022_cifar10.setting(0.1, full=True), kim2022_cifar10.setting(0.001)
    model = full.build(0)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.66e6, rel=0.01)
    assert (full.batch_size, full.max_epochs, full.augment) == (128, 500, crop_and_flip)
    sizes = {"n_train": 42_500, "n_val": 7_500, "label_noise": 0.0, "standardise": False}
    assert full.data.keywords == sizes
    assert [tuple(value.flatten().tolist()) for value in model[0].buffers()] == [
        pytest.approx(v) for v in IMAGENET_MEAN_SD
    ]
    optimizer = full.optimizer(model.parameters())
    schedule = full.lr_scheduler(optimizer)
    rates = []
    for _ in range(500):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [round(rates[epoch], 6) for epoch in (0, 249, 250, 399, 400)] == [
        0.1,
        0.1,
        0.01,
        0.01,
        0.001,
    ]
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert (reduced.max_epochs, reduced.augment) == (80, None)
    assert [cell.levels[-2:] for cell in kim2022_cifar10.cells(full=True)] == [(0.1, 0.2)] * 2
    assert [cell.problem.optimizer.keywords["lr"] for cell in kim2022_cifar10.cells()] == [
        0.1,
        0.001,
    ]
    assert [cell.levels[-1] for cell in kim2022_cifar10.cells()] == [0.2, 1.8], (
        "which their training losses fall below"
    )
    assert [cell.problem.data.keywords["n_train"] for cell in kim2022_cifar10.cells()] == [
        4_250
    ] * 2
    assert [
        cell.problem.data.keywords["n_train"] for cell in kim2022_cifar10.cells(quick=True)
    ] == [850] * 2


def test_its_report_draws_the_pair_of_losses(tmp_path, monkeypatch):
    problems = [small(max_epochs=10, batch_size=size) for size in (11, 12)]
    plan = [Cell(f"learning rate {p.batch_size}", p, (0.0, 0.1, 0.4), (0, 1)) for p in problems]
    monkeypatch.setattr(kim2022_cifar10, "cells", lambda quick=False, seeds=None, full=False: plan)

    def curved(runs):
        told = answer(runs)
        falling = {name: np.linspace(2.3, 0.1, 11) for name in ("test_loss",)}
        return [
            replace(r, curves={**r.curves, **falling, "level": np.full(11, r.run.level or np.nan)})
            for r in told
        ]

    asked = []

    def findable(runs):
        asked.append(runs)
        told = [
            {"val_loss": np.full(r.run.epochs + 1, 1 - (r.level or 0.0) / 2), **r.curves}
            for r in curved(runs)
        ]
        told = [
            {name: curve.astype(np.float32) for name, curve in curves.items()} for curves in told
        ]
        return [replace(r, curves=curves) for r, curves in zip(curved(runs), told, strict=True)]

    told, records = run_generator(kim2022_cifar10.start(), findable)
    for cell, row in zip(plan, rows(told, "finder"), strict=True):
        chosen = [run for run in asked[-1] if run.problem is cell.problem]
        assert [run.seed for run in chosen] == [0, 1]
        assert row["levels"] == ", ".join(f"{run.level or 0:g}" for run in chosen)
        mean = np.mean([50 + 10 * (run.level or 0) for run in chosen])  # as answer says
        assert row["finder"].startswith(f"{mean:.1f} ±")
    assert len(asked) > 2
    assert all(run.level for run in asked[-1]), "the case tells a level from plain training"
    assert [row["data"] for row in rows(told, "finder-against-all")] == [
        cell.title for cell in plan
    ]
    assert f"{len({run_id(run) for runs in asked for run in runs})} trainings" in told.provenance
    path = pack(
        tmp_path / "a.npz", records, kim2022_cifar10.CURVES, "here", kim2022_cifar10.is_exact
    )
    again = run_generator(kim2022_cifar10.start(), Archive(path))[0]
    assert again.markdown("x") == told.markdown("x")
    names = {path.name for path in again.save(tmp_path, "kim2022_cifar10")}
    assert {"kim2022_cifar10-losses.png", "kim2022_cifar10-levels.png"} <= names


def test_a_finder_that_finds_nothing_worth_flooding_tests_no_flooding(monkeypatch):
    plan = [Cell("one", small(max_epochs=10), (0.0, 0.1, 0.4), (0, 1))]
    monkeypatch.setattr(kim2022_cifar10, "cells", lambda quick=False, seeds=None, full=False: plan)

    def worse(runs):
        told = answer(runs)
        losses = [np.full(r.run.epochs + 1, 1 + (r.run.level or 0.0), np.float32) for r in told]
        curves = [{"val_accuracy": 1 - loss / 4, "val_loss": loss} for loss in losses]
        return [replace(r, curves={**r.curves, **c}) for r, c in zip(told, curves, strict=True)]

    told = run_generator(kim2022_cifar10.start(), worse)[0]
    assert rows(told, "finder")[0]["finder"] == "not tested: the finder chose no flooding"
    assert (
        "one, the finder against plain training: not tested: the finder chose no flooding."
        in told.findings
    )
    assert rows(told, "finder-against-all")[0]["levels"] == "0, 0"
    assert rows(told, "finder-against-all")[0]["difference"].endswith(", n = 2")
    full = run_generator(kim2022_cifar10.start(full=True), worse)[0]
    assert (full.title, told.title) == (
        "CIFAR-10 with a residual network",
        "CIFAR-10 with a residual network, reduced",
    )
    assert full.about.startswith("**The source's protocol**: CIFAR-10, 42,500 training")
