"""The built-in Problems are those of their settings, find their Records again, and fit their
data."""

from dataclasses import replace

import pytest
import torch

from flooding import Run, run_all
from flooding.cli import _problem
from flooding.cli._problem import NetworkOptions, build_problem
from flooding.data import downloads, registry
from flooding.entries import DATASETS
from flooding.tasks import REAL, real
from flooding.training.config import is_hashable

FETCHED = [entry.name for entry in DATASETS if entry.summary == "fetched"]
VECTORS = ["spambase", "letter", "higgs7k", "twonorm"]


def splits_of(problem, name):
    """Make a problem's splits, where its files are there."""
    folder = (
        "fashion-mnist/"
        if name.startswith("fashion-mnist")
        else "mnist/"
        if name == "mnist"
        else f"tables/{name}."
    )
    if any(downloads.find(known) is None for known in registry.FILES if known.startswith(folder)):
        pytest.skip(f"{folder}* is neither in FLOODING_DATA nor in the cache")
    return problem.splits(seed=0)


def test_the_real_problems_are_those_of_the_settings_table():
    assert list(REAL) == ["digits", "spambase", "letter", "higgs7k", "fashion-mnist-5k", "twonorm"]
    for name in REAL:
        problem = real(name)
        assert problem.batch_size == 100
        assert (
            problem.augment is problem.lr_scheduler is problem.max_grad_norm is problem.key is None
        )
        assert problem.max_epochs == (30 if name == "fashion-mnist-5k" else 100)
        model = problem.build(seed=0)
        optimizer = problem.optimizer(model.parameters())
        assert type(optimizer) is torch.optim.Adam
        assert optimizer.defaults["lr"] == 0.001
        assert optimizer.defaults["weight_decay"] == 0
        if name != "fashion-mnist-5k":
            kinds = [type(module).__name__ for module in model]
            assert kinds == [
                "Flatten",
                "Linear",
                "ReLU",
                "Linear",
                "ReLU",
                "Linear",
                "ReLU",
                "Linear",
            ]
            assert [layer.out_features for layer in model if isinstance(layer, torch.nn.Linear)][
                :-1
            ] == [256] * 3


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
def test_a_real_problem_describes_itself(name, augment):
    assert is_hashable(Run(real(name, augment=augment)))


@pytest.mark.parametrize("name", REAL)
def test_a_real_problem_has_a_key_and_a_network_that_fits_its_data(name):
    problem = real(name)
    splits = splits_of(problem, name)
    assert problem.build(seed=0)(splits.train.x[:2]).shape == (2, splits.classes)
    keys = {
        Run(real(name, augment=augment, max_epochs=max_epochs)).key()
        for augment in (False, True)
        for max_epochs in (1, 2)
    }
    assert None not in keys
    assert len(keys) == 4


def test_vectors_are_jittered_and_images_shifted():
    torch.manual_seed(0)
    for name in VECTORS:
        noise = real(name, augment=True).augment(torch.zeros(1000, 20))
        assert float(noise.std()) == pytest.approx(0.1, rel=0.05)
    for name, shape in {"digits": (50, 64), "fashion-mnist-5k": (50, 1, 28, 28)}.items():
        x = torch.zeros(shape)
        side = 8 if name == "digits" else 28
        x.view(50, side, side)[:, 3, 4] = 1
        shifted = real(name, augment=True).augment(x).view(50, side, side)
        assert {tuple(pixel) for pixel in shifted.nonzero()[:, 1:].tolist()} == {
            (row, column) for row in (2, 3, 4) for column in (3, 4, 5)
        }
        assert torch.equal(shifted.sum((1, 2)), torch.ones(50))


def test_augmentation_changes_training_and_repeats_with_the_seed():
    quick = replace(real("digits", augment=True), data=REAL["digits"].splits(0))
    runs = [
        Run(quick, stop_epoch=1),
        Run(quick, stop_epoch=1, seed=0),
        Run(replace(quick, augment=None), stop_epoch=1),
    ]
    augmented, plain = (run_all([run], ledger=False, workers=0)[0] for run in runs[1:])
    assert run_all(runs[:1], ledger=False, workers=0)[0].content_hash == augmented.content_hash
    assert augmented.weights_sha256 != plain.weights_sha256
    assert (
        augmented.curves["val_loss"][0] == plain.curves["val_loss"][0]
    )  # only training is augmented


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "spambas"},
            "real problem must be one of digits, spambase, .*got spambas. Did you mean spambase",
        ),
        (
            {"name": "digits", "max_epochs": 0},
            "max_epochs must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_what_is_no_real_problem_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        real(**arguments)


@pytest.mark.parametrize("task", FETCHED)
def test_a_problem_of_fetched_data_can_be_assembled(task):
    problem = build_problem(task, {"n_train": 50, "n_val": 20}, NetworkOptions(width=4, depth=1))
    splits = splits_of(problem, task)
    assert [len(splits.train), len(splits.val)] == [50, 20]
    assert problem.build(seed=0)(splits.train.x[:2]).shape == (
        2,
        26 if task == "letter" else splits.classes,
    )


def test_a_task_that_is_none_is_answered_with_all_of_them():
    with pytest.raises(
        ValueError,
        match=r"two-gaussians, .*digits, spambase, .*mnist; got letters. Did you mean letter",
    ):
        build_problem("letters", {})


@pytest.mark.parametrize(
    ("task", "data", "network"),
    [
        ("sinusoid", {"n_train": 10**9, "n_test": 10**9}, {}),
        ("two-gaussians", {"n_test": 10**8, "dimension": 1000}, {}),
        ("sinusoid", {}, {"width": 10**6}),
        ("spiral", {}, {"width": 50_000, "depth": 100}),
        ("digits", {}, {"width": 10**6, "depth": 1000}),
        ("sinusoid", {}, {"width": 200_000, "depth": 2, "eval_batch_size": 10**7}),
    ],
    ids=["samples", "samples times inputs", "width", "depth", "both", "batch"],
)
def test_what_cannot_fit_into_memory_is_refused_before_it_is_made(task, data, network, monkeypatch):
    monkeypatch.setattr(_problem, "_memory", lambda: 16 * 2**30)
    settings = {"eval_batch_size": network.get("eval_batch_size", 500)}
    sizes = {name: value for name, value in network.items() if name not in settings}
    options = NetworkOptions(**sizes)
    with pytest.raises(
        ValueError, match=r"must fit into 16 GiB of memory, got .* about [\d,]+ GiB. Choose smaller"
    ):
        build_problem(task, data, options, **settings)


def test_what_fits_into_memory_is_not_refused(monkeypatch):
    monkeypatch.setattr(_problem, "_memory", lambda: 2**30)
    build_problem("sinusoid", {"n_train": 10**6}, NetworkOptions(width=500, depth=10))
    build_problem("digits", {}, NetworkOptions(width=2000, depth=3))


def test_memory_is_that_of_this_machine():
    assert 2**28 < _problem._memory() < 2**50
