"""Fleets behind ``run_all``: keys, look-up, workers, the rule, what is refused, memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from flooding import Run, find_level, run_all
from flooding.level_search.grid import grid
from flooding.levels import PerClass, Plateau
from flooding.methods import SAM, IFlood
from flooding.models import mlp
from flooding.training import fleet_jobs
from flooding.training.fleet import Fleet, FleetError, probe
from flooding.training.fleet.probe import Probe
from flooding.training.runner import run_key
from small import noisy, normed, small

LEVELS = (None, 0.3, Plateau(0.2))


def runs_of(problem, levels=LEVELS, seeds=(0, 1)):
    return [Run(problem, level, seed=seed) for seed in seeds for level in levels]


def hashes(records):
    return [record.content_hash for record in records]


def kernels(records):
    return [record.metadata.get("kernel", "single") for record in records]


def losses(records):
    return [record.metrics["last.test_loss"] for record in records]


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_a_fleets_records_are_looked_up_apart_from_single_ones(ledger):
    runs = runs_of(small())
    trained = []
    options = {"ledger": ledger, "workers": 0, "on_start": trained.append}
    single = run_all(runs, **options)
    fleet = run_all(runs, fleet=True, **options)
    assert kernels(single) == ["single"] * 6
    assert kernels(fleet) == ["fleet"] * 6
    assert losses(fleet) == pytest.approx(losses(single), abs=1e-5)
    # Both kinds are there now, and neither answers for the other.
    assert hashes(run_all(runs, fleet=True, **options)) == hashes(fleet)
    assert hashes(run_all(runs, **options)) == hashes(single)
    assert [len(batch) for batch in trained] == [6, 6, 0, 0]


def test_the_keys_of_single_runs_do_not_change_with_fleets():
    run = Run(small(), 0.2)
    assert run_key(run) == run_key(run, kernel="single")
    assert run_key(run, kernel="fleet") != run_key(run)


def test_auto_takes_records_of_either_kind(ledger, monkeypatch):
    monkeypatch.setattr(fleet_jobs, "measure_fleet", lambda runs, **_: Probe(2.0, 1.0, 1))
    runs = runs_of(small())
    single = run_all(runs[:2], ledger=ledger, workers=0)
    records = run_all(runs, ledger=ledger, workers=0, fleet="auto")
    assert hashes(records)[:2] == hashes(single)
    assert kernels(records)[2:] == ["fleet"] * 4
    assert hashes(run_all(runs, ledger=ledger, workers=0, fleet="auto")) == hashes(records)


@pytest.mark.parametrize(("single", "kind"), [(2.0, "fleet"), (1.0, "single")])
def test_auto_trains_as_is_faster_and_logs_it(monkeypatch, caplog, single, kind):
    monkeypatch.setattr(fleet_jobs, "measure_fleet", lambda runs, **_: Probe(single, 1.0, 1))
    with caplog.at_level(logging.INFO, logger="flooding"):
        records = run_all(runs_of(small()), ledger=False, workers=0, fleet="auto")
    assert kernels(records) == [kind] * 6
    words = "train in fleets" if kind == "fleet" else "train one by one"
    assert words in caplog.text


def test_what_is_too_little_to_time_follows_a_rule_of_sizes(caplog):
    with caplog.at_level(logging.INFO, logger="flooding"):
        records = run_all(runs_of(small()), ledger=False, workers=0, fleet="auto")
    assert kernels(records) == ["fleet"] * 6
    # One batch of 40 examples through layers of 10 to 16, 16 and 2.
    work = 40 * (10 * 16 + 16 * 16 + 16 * 2)
    assert f"too few epochs to time a fleet; a step of a run takes {work:.2g}" in caplog.text
    assert "6 runs train in fleets" in caplog.text


@pytest.mark.parametrize(
    ("work", "device", "expected"),
    [(1e8, "cpu", True), (3e8, "cpu", False), (3e8, "cuda", True)],
)
def test_the_rule_of_sizes_keeps_large_networks_on_a_processor_alone(work, device, expected):
    assert Probe(None, None, 1, work).is_faster(device) is expected


def test_fleets_make_up_for_the_steps_that_single_runs_share():
    for single, alone, over_sharing in (
        (1.05, False, False),
        (1.3, True, False),
        (1.6, True, True),
    ):
        result = Probe(single, 1.0, 1)
        assert result.is_faster() is alone
        assert result.is_faster(shares=True) is over_sharing
    assert Probe(None, None, 1, 1e8).is_faster()
    assert not Probe(None, None, 1, 1e8).is_faster(shares=True)


@pytest.mark.parametrize(("levels", "kind"), [((0.1,), "fleet"), ((0.1, 0.3), "single")])
def test_auto_knows_whether_single_runs_would_share(monkeypatch, levels, kind):
    monkeypatch.setattr(fleet_jobs, "measure_fleet", lambda runs, **_: Probe(1.3, 1.0, 1))
    runs = [Run(small(), level, seed=seed) for seed in (0, 1) for level in levels]
    records = run_all(runs, ledger=False, workers=0, fleet="auto")
    assert kernels(records) == [kind] * len(runs)


@pytest.mark.parametrize("planned", [0, 100, 1000, 5000, 100_000])
def test_timing_a_fleet_takes_a_small_share_of_what_is_planned(planned, monkeypatch):
    trained = []

    def time_both(runs, turns, options):
        trained.append((len(runs) + 1) * turns)
        return 2.0, 1.0

    monkeypatch.setattr(probe, "_time_both", time_both)
    runs = runs_of(small(max_epochs=50), seeds=range(8))
    result = probe.measure_fleet(runs, planned_epochs=planned)
    assert sum(trained) <= 0.03 * planned
    assert (result.single is not None) == (planned >= 1000)


def test_workers_train_fleets_of_a_largest_size(ledger):
    runs = runs_of(small())
    rows = []
    records = run_all(runs, ledger=ledger, workers=2, fleet=2, on_row=rows.append)
    assert {record.metadata["fleet_size"] for record in records} == {2}
    for run in runs:
        assert [row.epoch for row in rows if row.run is run] == list(range(7))
    assert losses(records) == pytest.approx(losses(run_all(runs, ledger=False)), abs=1e-5)


def test_a_search_trains_its_levels_and_seeds_in_a_fleet(ledger):
    options = {"ledger": ledger, "workers": 0, "seeds": 2}
    options["strategy"] = partial(grid, levels=[None, 0.1, 0.3])
    result = find_level(small(), fleet=True, **options)
    assert kernels(result.records) == ["fleet"] * 6
    assert {record.metadata["fleet_size"] for record in result.records} == {6}
    single = find_level(small(), **options)
    assert kernels(single.records) == ["single"] * 6
    assert losses(result.records) == pytest.approx(losses(single.records), abs=1e-5)
    assert result.level == single.level


def test_the_network_of_a_search_with_one_training_comes_from_a_fleet_as_well(ledger):
    result = find_level(small(), budget=1, fleet=True, ledger=ledger, workers=0)
    assert kernels(result.records) == ["fleet"]
    assert isinstance(result.model(), nn.Module)


def test_the_command_find_trains_fleets_where_it_is_asked_to(flooding, tmp_path):
    words = "find two-gaussians --epochs 3 --strategy grid --levels none,0.2 --seeds 2 --workers 0"
    code, _, errors = flooding(f"{words} --fleet on --out here")
    assert code == 0, errors
    code, _, errors = flooding(f"{words} --fleet on --out here")
    assert "4 of 4 runs from the ledger" in errors
    # The kind of training is no part of the command's result, but its Records are others.
    code, _, errors = flooding(f"{words} --out here")
    assert code == 0, errors
    assert "0 of 4 runs from the ledger" in errors


@pytest.mark.parametrize("fleet", [1, 0.5, "on", None])
def test_what_is_no_option_is_refused(fleet):
    with pytest.raises(ValueError, match="fleet must be True, False, 'auto' or"):
        run_all([], fleet=fleet, ledger=False)


class Branches(nn.Linear):
    """A module that reads a number, which vmap does not allow."""

    def __init__(self):
        super().__init__(10, 2)

    def forward(self, x):
        return super().forward(x) * (1.0 if x.sum().item() > 0 else 2.0)


def intercepted(how):
    """A linear layer with code beside its class that takes part in a pass."""
    model = nn.Linear(10, 2)
    if how == "module":
        model.register_forward_hook(lambda module, inputs, output: 2 * output)
    elif how == "weight":
        model.weight.register_hook(lambda gradient: gradient / 2)
    else:
        model.forward = lambda x: nn.functional.linear(x, 2 * model.weight, model.bias)
    return model


@dataclass(frozen=True)
class Metric:
    def __call__(self, model, problem, splits):
        return {"one": 1.0}


ALONE = {
    "SAM": (Run(small(), 0.1, SAM()), "SAM needs more than one loss"),
    "table": (Run(small(), PerClass([0.1, 0.2]), IFlood()), "looked up for each batch, PerClass"),
    "augmentation": (Run(small(augment=noisy)), "an augmentation draws for one Run"),
    "extra metrics": (Run(small(extra_metrics=Metric())), "extra_metrics take one model"),
    "LBFGS": (Run(small(optimizer=torch.optim.LBFGS, max_epochs=2)), "LBFGS computes gradients"),
    "branch": (Run(small(model=Branches)), "Branches cannot train in a fleet"),
    "module hook": (Run(small(model=partial(intercepted, "module"))), "hooks, and a forward"),
    "weight hook": (Run(small(model=partial(intercepted, "weight"))), "hooks, and a forward"),
    "own forward": (Run(small(model=partial(intercepted, "forward"))), "hooks, and a forward"),
    "ignored": (
        Run(small(loss=partial(nn.functional.cross_entropy, ignore_index=1))),
        "targets that the loss ignores",
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_go_in_a_fleet_is_refused_and_trains_alone(name, caplog):
    run, reason = ALONE[name]
    with pytest.raises(FleetError, match="(?i)" + reason):
        Fleet([run, replace(run, seed=1)])
    records = run_all([run], ledger=False, workers=0, fleet=True)
    assert kernels(records) == ["single"]
    assert reason.lower() in caplog.text.lower()
    assert hashes(records) == hashes(run_all([run], ledger=False, workers=0))


def test_a_fleet_is_of_one_problem():
    with pytest.raises(FleetError, match="may differ in seed, level and optimiser alone"):
        Fleet([Run(small(), 0.1), Run(small(batch_size=7), 0.1)])
    with pytest.raises(FleetError, match="at least one Run"):
        Fleet([])


def test_several_problems_are_fleets_of_their_own():
    runs = [*runs_of(small()), *runs_of(normed(model=partial(mlp, 2, 2, width=8, depth=1)))]
    records = run_all(runs, ledger=False, workers=0, fleet=True)
    assert {record.metadata["fleet_size"] for record in records} == {6}
    assert losses(records) == pytest.approx(losses(run_all(runs, ledger=False)), abs=1e-4)


def test_where_memory_runs_out_a_fleet_goes_on_in_halves(ledger, monkeypatch, caplog):
    runs = runs_of(small())
    expected = run_all(runs, ledger=False, workers=0, fleet=True)

    class Hungry(Fleet):
        """More than two Runs do not fit from the third epoch on."""

        def _train_epoch(self, epoch):
            if epoch > 2 and len(self) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._train_epoch(epoch)

    monkeypatch.setattr(fleet_jobs, "Fleet", Hungry)
    rows = []
    records = run_all(runs, ledger=ledger, workers=0, fleet=True, on_row=rows.append)
    assert losses(records) == pytest.approx(losses(expected), abs=1e-5)
    # Each epoch once, and one warning.
    for run in runs:
        assert [row.epoch for row in rows if row.run is run] == list(range(7))
    assert caplog.text.count("memory ran out") == 1
    assert hashes(run_all(runs, ledger=ledger, workers=0, fleet=True)) == hashes(records)


def test_a_fleet_is_divided_so_that_it_fits(monkeypatch):
    available = 2 * 2 * 100
    result = Probe(1.0, 1.0, 100, available=available)
    monkeypatch.setattr(fleet_jobs, "measure_fleet", lambda runs, **_: result)
    records = run_all(runs_of(small()), ledger=False, workers=0, fleet=True)
    assert {record.metadata["fleet_size"] for record in records} == {2}


EXPERIMENT = """
from flooding import Run
from flooding.experiments import Experiment
from flooding.report.document import Report
from small import small

def runs():
    shared = small(max_epochs=2)
    return [Run(shared, 0.1, seed=seed) for seed in (0, 1)]

def start(quick, seeds):
    yield runs()
    return Report("Mine", "About.", (), ())

EXPERIMENT = Experiment("mine", start, ("train_loss",))
"""


@pytest.mark.parametrize(("words", "fleet"), [("--fleet on", True), ("", False)])
def test_the_command_line_trains_fleets_where_it_is_asked_to(
    flooding, tmp_path, monkeypatch, words, fleet
):
    (tmp_path / "my_fleet.py").write_text(EXPERIMENT)
    monkeypatch.syspath_prepend(tmp_path)
    code, _, errors = flooding(f"reproduce my_fleet:EXPERIMENT --workers 0 -q {words}")
    assert code == 0, errors
    import my_fleet

    trained = []
    for option in (True, False):
        run_all(my_fleet.runs(), workers=0, fleet=option, on_start=trained.append)
    # What the command trained is not trained again.
    assert [len(batch) for batch in trained] == ([0, 2] if fleet else [2, 0])
