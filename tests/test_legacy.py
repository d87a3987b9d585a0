"""Today's code must find the Records of a ledger that flooding 0.1.0 wrote.

``ledger_0_1_0.sqlite.gz`` was written by ``ledger_0_1_0.py`` with the source of 0.1.0. The Runs
below are those of that script, with today's names.
"""

import gzip
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from flooding import Problem, Run, metrics, run_all, tasks
from flooding.data import synthetic
from flooding.data.synthetic import two_gaussians
from flooding.levels import Heuristic, PerClass, Plateau, Warmup
from flooding.methods import IFlood, SoftAD
from flooding.models import mlp
from flooding.numerics import capture_settings, environment
from flooding.training.problem import Score

LEDGER = Path(__file__).with_name("ledger_0_1_0.sqlite.gz")

# Keys contain the version of torch and its settings.
pytestmark = [
    pytest.mark.skipif(
        torch.__version__ != "2.13.0+cpu",
        reason=f"torch 2.13.0+cpu wrote the ledger, and this is {torch.__version__}",
    ),
    pytest.mark.skipif(
        bool(capture_settings() or environment()),
        reason="the ledger was written under torch's default settings",
    ),
]


def runs():
    data = partial(two_gaussians, n_train=20, n_val=10, n_test=20)
    small = partial(Problem, data, partial(mlp, 10, 2, width=4, depth=1), max_epochs=2)
    demo = tasks.demo_sinusoid(tasks.adam)
    sinusoid = partial(synthetic.sinusoid, n_train=20, n_val=10, n_test=20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Linear(10, 2)
    return {
        "default optimizer": Run(small(), 0.3),
        "explicit Adam": Run(small(optimizer=partial(torch.optim.Adam, lr=1e-3)), 0.3),
        "demo_sinusoid": Run(
            replace(demo, probe_inputs=partial(tasks.grid_2d, points=3)), 0.1, stop_epoch=1
        ),
        "digits": Run(tasks.real("digits", max_epochs=2), 0.2, stop_epoch=1),
        "sinusoid": Run(Problem(sinusoid, partial(mlp, 2, 2, width=4), max_epochs=2), seed=1),
        "Warmup": Run(small(), Warmup(0.3, steps=4, num_steps=2)),
        "Heuristic": Run(small(), Heuristic(until_accuracy=0.5, min_delta=0.1, step_size=0.1)),
        "SoftAD": Run(small(), 0.3, SoftAD(sigma=0.5)),
        "PerClass": Run(small(), PerClass(torch.tensor([0.1, 0.2])), IFlood()),
        "schedule and clip": Run(
            small(
                lr_scheduler=partial(StepLR, step_size=1),
                max_grad_norm=1.0,
                eval_loss=partial(torch.nn.functional.cross_entropy, label_smoothing=0.0),
                score=Score(metrics.balanced_accuracy),
            ),
            0.3,
        ),
        "key": Run(Problem(data, module, max_epochs=2, key="mine"), 0.3),
    }


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(gzip.decompress(LEDGER.read_bytes()))
    return path


@pytest.mark.parametrize("name", runs())
def test_a_ledger_of_0_1_0_answers(name, ledger):
    run, started = runs()[name], []
    [record] = run_all([run], ledger=ledger, workers=0, on_start=started.extend)
    assert started == []
    assert record.run is run
    assert record.metrics["last.epoch"] == run.epochs


def test_a_record_of_0_1_0_is_what_is_measured_today(ledger):
    chosen = runs()
    del chosen["digits"], chosen["demo_sinusoid"]  # larger networks
    old = run_all(chosen.values(), ledger=ledger, workers=0)
    new = run_all(chosen.values(), ledger=False, workers=0)
    for a, b in zip(old, new, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    "run",
    [
        Run(runs()["default optimizer"].problem, 0.31),
        Run(runs()["default optimizer"].problem, Plateau(0.3, step_size=0.1, threshold=1.2)),
    ],
    ids=["another level", "Plateau, whose rule has changed since"],
)
def test_a_ledger_of_0_1_0_does_not_answer_for_other_trainings(run, ledger):
    started = []
    run_all([run], ledger=ledger, workers=0, on_start=started.extend)
    assert started == [run]
