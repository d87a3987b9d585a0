"""AdaFlood: held-out means held-out, the levels are the formula, and a user's own loop is served by
id."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flooding import Flood, Problem, Run, train
from flooding.adaflood import AdaFlood, AdaFloodLevels, LastLayer, adaflood, cross_fit_levels
from flooding.data import Split, Splits
from flooding.data.synthetic import two_gaussians
from flooding.levels import PerExample
from flooding.methods import IFlood
from flooding.models import mlp
from flooding.training.problem import TestCurve
from flooding.training.rng import derive_seed
from slow_twin import by_hand
from small import FromDict, normed, regression, small


def given(probability, gamma=0.5, **more):
    n = len(probability)
    probability = torch.tensor(probability, dtype=torch.float64)
    return AdaFloodLevels(
        torch.arange(n), torch.arange(n) % 2, gamma, 0, "0" * 64, probability, **more
    )


def flat_regression(**changes):
    """The small regression problem with targets and outputs ``[n]``."""
    splits = regression().data
    flat = {name: getattr(splits, name) for name in ("train", "val", "test")}
    flat = {name: replace(split, y=split.y[:, 0]) for name, split in flat.items()}
    return regression(**{"data": Splits(**flat), "model": FlatFromDict} | changes)


class FlatFromDict(FromDict):
    def forward(self, inputs):
        return super().forward(inputs)[:, 0]


class Memory(nn.Module):
    """Remembers exactly whom it was trained on, says class 1 for those and a coin toss for
    everybody else."""

    def __init__(self, n=24):
        super().__init__()
        self.register_buffer("seen", torch.zeros(n, dtype=torch.bool))
        self.last = nn.Linear(1, 2)

    def forward(self, x):
        who = x[:, 0].long()
        if self.training:
            self.seen[who] = True
        known = torch.where(self.seen[who], 40.0, 0.0)
        return torch.stack([torch.zeros_like(known), known], 1) + 0 * self.last(x)


def everybody_is_one(n=24):
    """Training inputs that say who they are; validation is somebody of no interest."""
    x = torch.arange(n, dtype=torch.float32)[:, None]
    ids = 3 * torch.arange(n).flip(0) + 5  # neither sorted nor counted from 0
    train, other = (
        Split(x, torch.ones(n, dtype=torch.int64), id=ids),
        Split(x[:2], torch.ones(2, dtype=torch.int64)),
    )
    return Problem(Splits(train, other, other), Memory, max_epochs=3, batch_size=7)


@pytest.mark.parametrize("at", ["best", "last"])
def test_no_network_has_seen_the_example_it_scores(at):
    assert (adaflood(everybody_is_one(), folds=5, at=at).probability == 0.5).all()


def test_the_last_layer_variant_has_seen_every_example_through_its_features():
    assert (adaflood(everybody_is_one(), folds=5, variant=LastLayer()).probability > 1 - 1e-9).all()


def test_every_training_is_a_plain_run_on_the_other_folds_alone():
    problem, rows = (
        small(test_curve=TestCurve(), probe_inputs=lambda: pytest.fail("drawn"), key="mine"),
        [],
    )
    found = adaflood(problem, folds=4, on_row=rows.append)
    runs = [row.run for row in rows if row.record]
    assert len(runs) == 4
    splits = problem.splits(0)
    for number, run in enumerate(runs):
        assert run.level is run.problem.test_curve is run.problem.key is None
        assert torch.equal(run.problem.data.train.id, found.ids[found.folds != number])
        assert run.problem.data.val is splits.val
        assert run.problem.data.test is splits.val, (
            "the fold must not be measured by the training either"
        )
    for label in (0, 1):
        counts = found.folds[splits.train.y == label].bincount(minlength=4)
        assert counts.max() - counts.min() <= 1, "folds are stratified"
    assert len({run.seed for run in runs} | {0}) == 2, "one seed for all, which is not the Run's"


N_RANDOM = 400  # fixed beforehand


def random_labels():
    generator = torch.Generator().manual_seed(0)

    def split(n):
        return Split(
            torch.randn(n, 30, generator=generator), torch.randint(2, (n,), generator=generator)
        )

    adam = partial(torch.optim.Adam, lr=3e-3)
    return Problem(
        Splits(split(N_RANDOM), split(20), split(20)),
        partial(mlp, 30, 2, width=64, depth=2),
        adam,
        max_epochs=30,
    )


def test_labels_that_mean_nothing_are_predicted_by_chance_however_much_is_memorised():
    problem = random_labels()
    # p lies in [0, 1] with mean 1/2 for labels that are tosses of a coin, so its standard deviation
    # is at most 1/2.
    error = 0.5 / math.sqrt(N_RANDOM)
    found = adaflood(problem, at="last")
    assert abs(float(found.probability.mean()) - 0.5) < 4 * error
    *_, row = train(Run(problem))
    model = problem.build(0).eval()
    model.load_state_dict(row.weights["last"])
    split = problem.data.train
    inside = model(split.x).softmax(1).gather(1, split.y[:, None])
    assert inside.mean() > 0.95
    leaky = adaflood(problem, at="last", variant=LastLayer())
    assert float(leaky.probability.mean()) > 0.5 + 8 * error
    assert leaky.levels.levels.mean() < 0.5 * found.levels.levels.mean(), (
        "and so its levels are too low"
    )


def test_folds_partition_the_ids_and_spread_every_class():
    y = torch.tensor([0] * 13 + [1] * 7 + [2] * 3)[
        torch.randperm(23, generator=torch.Generator().manual_seed(0))
    ]
    ids, asked, trained = torch.arange(100, 123).flip(0), [], []

    def fit(train_ids):
        trained.append(train_ids)
        return lambda ids: (asked.append(ids), torch.full((len(ids),), 0.5))[1]

    found = cross_fit_levels(fit, ids, labels=y, folds=4, seed=3)
    assert torch.equal(torch.cat(asked).sort().values, ids.sort().values)
    for number, (out, rest) in enumerate(zip(asked, trained, strict=True)):
        assert torch.equal(out, ids[found.folds == number])
        assert sorted(out.tolist() + rest.tolist()) == sorted(ids.tolist())
    for members in [y >= 0, y == 0, y == 1, y == 2]:
        counts = found.folds[members].bincount(minlength=4)
        assert counts.max() - counts.min() <= 1


def test_equal_seeds_give_equal_levels_and_others_do_not():
    problem = normed()
    first, again, other = (adaflood(problem, folds=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.probability, again.probability)
    assert torch.equal(first.folds, again.folds)
    assert not torch.equal(first.folds, other.folds)
    fixed = small(data=small().splits(0))
    zero, one = (adaflood(fixed, folds=3, seed=seed) for seed in (0, 1))
    assert not torch.equal(zero.folds, one.folds)
    assert not torch.equal(zero.probability, one.probability)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_levels_agree_with_cross_validation_written_out(gamma):
    problem = small(batch_size=12, eval_batch_size=5)
    found = adaflood(problem, gamma=gamma, folds=3, at="last", epochs=4)
    split, levels = problem.splits(0).train, {}
    for number in range(3):
        rest = replace(problem.splits(0), train=split.take((found.folds != number).nonzero()[:, 0]))
        auxiliary = replace(problem, data=rest, max_epochs=4)
        weights, _ = by_hand(Run(auxiliary, seed=derive_seed(0, "adaflood")))
        model = problem.build(0).eval()
        model.load_state_dict(weights)
        for n in (found.folds == number).nonzero()[:, 0].tolist():
            logits = model(split.x[n : n + 1])[0].tolist()
            p = math.exp(logits[split.y[n]]) / sum(math.exp(logit) for logit in logits)
            levels[n] = -math.log((1 - gamma) * p + gamma)
    # float32 logits of one example alone and of its fold differ in the last bits
    assert found.levels.levels.tolist() == pytest.approx(
        [levels[n] for n in range(len(split))], abs=1e-6
    )
    assert found.cost == 12


def test_gamma_zero_is_the_held_out_loss_and_gamma_one_is_no_level():
    found = given([0.25, 0.5, 1.0])
    assert found.with_gamma(0.0).levels.levels.tolist() == pytest.approx([
        math.log(4),
        math.log(2),
        0.0,
    ])
    assert found.with_gamma(1.0).levels.levels.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(found.probability, found.with_gamma(1.0).probability)
    assert given([0.0], gamma=1e-3).levels.levels.tolist() == pytest.approx([-math.log(1e-3)])


def test_gamma_one_trains_plainly_bit_for_bit():
    problem = small(batch_size=12)
    found = adaflood(problem, folds=2)
    weights = []
    for run in (
        Run(problem),
        *(Run(problem, f.levels, IFlood()) for f in (found.with_gamma(1.0), found)),
    ):
        *_, row = train(run)
        weights.append(row.record.weights_sha256)
    assert weights[0] == weights[1] != weights[2]


def test_flipped_labels_get_higher_levels_than_clean_ones():
    data = partial(two_gaussians, n_train=200, n_val=100, n_test=100, label_noise=0.2)
    problem = small(data=data, max_epochs=20, batch_size=50)
    split = problem.splits(0).train
    flipped = split.y != split.clean
    levels = adaflood(problem).levels.lookup(split.y, split.id)
    high, low = levels[flipped], levels[~flipped]
    assert (len(high), len(low)) == (40, 160)
    auc = float((high[:, None] > low).double().mean())
    # The standard error of the rank-sum statistic where levels know nothing, Hanley & McNeil 1982.
    error = math.sqrt((len(high) + len(low) + 1) / (12 * len(high) * len(low)))
    assert auc > 0.5 + 4 * error


@pytest.mark.parametrize("variant", [None, LastLayer()], ids=["folds", "last layer"])
def test_nothing_of_the_caller_changes(variant):
    module = mlp(2, 2, width=16, depth=2, batch_norm=True, dropout=0.2).train()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    problem = normed(model=module)
    torch.set_num_threads(2)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # ruff: ignore[numpy-legacy-random]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # ruff: ignore[numpy-legacy-random]
    adaflood(problem, folds=5, variant=variant)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # ruff: ignore[numpy-legacy-random]
    assert random.getstate() == states[2]
    assert torch.get_num_threads() == 2
    assert module.training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


class Restless(nn.Linear):
    """Draws from the global generator whenever it is asked, in evaluation too."""

    def forward(self, x):
        return super().forward(x) + torch.randn(len(x), 2)


def test_a_network_that_draws_when_asked_repeats_itself_and_leaves_the_generator_alone():
    problem, found = small(model=partial(Restless, 10, 2)), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(adaflood(problem, folds=2).probability)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*found)


class OnThreads(nn.Linear):
    def __init__(self, threads):
        super().__init__(10, 2)
        self.threads = threads

    def forward(self, x):
        assert torch.get_num_threads() == self.threads
        return super().forward(x)


@pytest.mark.parametrize(("callers", "threads"), [(2, 1), (1, 2)])
def test_networks_are_trained_and_asked_on_their_own_threads(callers, threads):
    torch.set_num_threads(callers)
    adaflood(small(model=partial(OnThreads, threads)), folds=2, threads=threads)
    assert torch.get_num_threads() == callers


def test_epochs_and_the_weights_that_score():
    problem, rows = small(max_epochs=40), []
    best = adaflood(problem, folds=2, epochs=50, on_row=rows.append)
    assert best.cost == 100 == sum(row.epoch > 0 for row in rows)
    assert {row.epoch for row in rows if row.record} == {50}
    last = adaflood(problem, folds=2, epochs=50, at="last")
    ends = [row for row in rows if row.record]
    for at, found in (("best", best), ("last", last)):
        for number, row in enumerate(ends):
            model, split = problem.build(0).eval(), problem.splits(0).train
            model.load_state_dict(row.weights[at])
            p = model(split.x).double().softmax(1)[torch.arange(len(split)), split.y]
            own = found.folds == number
            assert torch.allclose(p[own], found.probability[own], atol=1e-6)
    assert not torch.equal(best.probability, last.probability)


def test_the_last_layer_alone_is_tuned_from_a_fresh_start():
    rows = []
    found = adaflood(
        normed(max_epochs=30),
        epochs=30,
        folds=3,
        variant=LastLayer(epochs=5),
        at="last",
        on_row=rows.append,
    )
    base, *tuned = [row.weights["last"] for row in rows if row.record]
    assert len(tuned) == 3
    assert found.cost == 30 + 3 * 5
    name = list(base)[-1].removesuffix(".bias")
    for weights in tuned:
        for key, t in weights.items():
            key = key.removeprefix("model.")
            assert torch.equal(t, base[key]) == (not key.startswith(name)), key
    ends = [row for row in rows if row.record]
    starts = [row for row in rows if row.epoch == 0]
    trained = ends[0].record.curves["train_loss"][-1]
    assert all(row.values["train_loss"] > trained + 0.1 for row in starts[1:]), (
        "a fresh layer knows nothing yet"
    )


def test_the_last_layer_is_tuned_as_long_as_the_network_unless_told():
    assert adaflood(small(), folds=2, epochs=3, variant=LastLayer()).cost == 3 + 2 * 3


def test_a_last_layer_of_several_modules_trains_as_it_would_in_the_network():
    rows = []

    def build():
        return nn.Sequential(
            nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))
        )

    variant = LastLayer(epochs=4, layer=lambda model: model[2])
    adaflood(
        small(model=build, batch_size=10), folds=2, variant=variant, at="last", on_row=rows.append
    )
    base, tuned, _ = [row.weights["last"] for row in rows if row.record]
    assert tuned["model.1.num_batches_tracked"] == base["1.num_batches_tracked"] == 6 * 4
    assert tuned["model.2.0.num_batches_tracked"] == 4 * 2, "from a fresh start, in training mode"


def test_the_last_layer_is_the_one_the_user_names():
    rows = []
    adaflood(
        small(),
        folds=2,
        variant=LastLayer(layer=lambda model: model[1]),
        at="last",
        on_row=rows.append,
    )
    base, tuned, _ = [row.weights["last"] for row in rows if row.record]
    changed = {key for key in base if not torch.equal(base[key], tuned[f"model.{key}"])}
    assert changed == {"1.weight", "1.bias"}


def test_squared_error_gives_the_shrunk_held_out_error():
    problem = flat_regression()
    found = adaflood(problem, gamma=0.25, folds=2, at="last")
    assert found.probability is None
    split, expected = problem.data.train, torch.empty(len(problem.data.train))
    for number in range(2):
        own = found.folds == number
        model = FlatFromDict()
        rest = replace(problem, data=replace(problem.data, train=split.take(~own)))
        *_, row = train(Run(rest, seed=derive_seed(0, "adaflood")))
        model.load_state_dict(row.weights["last"])
        expected[own] = 0.75**2 * (model({"x": split.x["x"][own]}) - split.y[own]).detach() ** 2
    assert torch.allclose(found.levels.lookup(None, split.id), expected, rtol=1e-5)
    assert found.with_gamma(1.0).levels.levels.max() == 0
    *_, row = train(Run(problem, found.levels, IFlood()))
    assert row.record.metrics["last.flooded"] > 0
    own = cross_fit_levels(
        lambda _: lambda ids: -2.0 * torch.ones(len(ids)), 4, folds=2, gamma=0.5, squared_error=True
    )
    assert own.levels.levels.tolist() == [1.0] * 4


class WithIds(TensorDataset):
    def __getitem__(self, n):
        return *super().__getitem__(n), n


def test_levels_find_their_examples_in_a_loop_of_ones_own():
    problem = small()
    found, split = adaflood(problem, folds=4), problem.splits(0).train
    model, table = (
        problem.build(0),
        dict(zip(found.levels.ids.tolist(), found.levels.levels.tolist(), strict=True)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = Flood(nn.CrossEntropyLoss(reduction="none"), found.levels, IFlood())
    order = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(2):
        for x, y, ids in DataLoader(
            WithIds(split.x, split.y), batch_size=7, shuffle=True, generator=order
        ):
            loss = criterion(model(x), y, ids=ids)
            raw = nn.functional.cross_entropy(model(x), y, reduction="none").tolist()
            by_id = [
                abs(r - table[one]) + table[one] for r, one in zip(raw, ids.tolist(), strict=True)
            ]
            assert loss.item() == pytest.approx(sum(by_id) / len(by_id), rel=1e-5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += ids.tolist()
    assert sorted(seen) == sorted(2 * list(range(len(split))))
    assert seen[: len(split)] != list(range(len(split)))


def test_an_example_without_a_level_is_an_error_and_never_level_zero():
    problem = small()
    found, split = adaflood(problem, folds=2), problem.splits(0).train
    short = PerExample(found.levels.levels[:-2], found.levels.ids[:-2])
    with pytest.raises(ValueError, match=r"every training example needs a level.*\[38, 39\]"):
        next(train(Run(problem, short, IFlood())))
    criterion = Flood(nn.CrossEntropyLoss(reduction="none"), short, IFlood())
    assert criterion(problem.build(0)(split.x), split.y, ids=split.id).isnan()


def test_a_file_gives_back_everything(tmp_path):
    problem = small()
    found = adaflood(problem, gamma=0.3, folds=2, seed=1)
    path = found.save(tmp_path / "deep" / "levels.pt")
    back = AdaFloodLevels.load(path)
    for name in ("ids", "folds", "probability"):
        assert torch.equal(getattr(back, name), getattr(found, name))
    assert torch.equal(back.levels.levels, found.levels.levels)
    told = ("gamma", "seed", "data_sha256", "cost", "error")
    assert [getattr(back, n) for n in told] == [0.3, 1, problem.splits(1).sha256, 12, None]
    regression = AdaFloodLevels.load(
        adaflood(flat_regression(), folds=2).save(tmp_path / "regression.pt")
    )
    assert regression.probability is None
    assert isinstance(torch.load(path, weights_only=True), dict)


def test_other_data_is_refused():
    problem = small()
    found = adaflood(problem, folds=2)
    found.check(problem)
    found.check(problem.splits(0).sha256)
    other = small(data=partial(two_gaussians, n_train=40, n_val=30, n_test=200, label_noise=0.2))
    for check in (
        lambda: found.check(other),
        lambda: found.check(problem, seed=1),
        lambda: found.check("f" * 64),
    ):
        with pytest.raises(
            ValueError, match=r"must come from the data .* got .* Find levels for this data"
        ):
            check()


def test_own_data_is_known_by_its_hash():
    def fit(_):
        return lambda ids: [0.5] * len(ids)

    found = cross_fit_levels(fit, 4, folds=2)
    with pytest.raises(ValueError, match="must come from the data"):
        cross_fit_levels(fit, 4, folds=2, labels=torch.tensor([0, 1, 0, 1])).check(
            found.data_sha256
        )
    cross_fit_levels(fit, 4, folds=2, data_sha256="mine").check("mine")


@pytest.mark.parametrize("broken", ["torch.save", "os.replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = given([0.5]).save(tmp_path / "levels.pt")
    whole = path.read_bytes()

    def fail(what, where):
        if broken == "torch.save":
            where.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="no space left"):
        given([0.25]).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["levels.pt"]
    assert path.read_bytes() == whole


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"must be one that save\(\) wrote, got .*model.pt"):
        AdaFloodLevels.load(tmp_path / "model.pt")


class Spell:
    def __reduce__(self):
        return pytest.fail, ("executed",)


def test_a_file_is_never_executed(tmp_path):
    torch.save(Spell(), tmp_path / "spell.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        AdaFloodLevels.load(tmp_path / "spell.pt")


@pytest.mark.parametrize("damage", ["flips", "cut", "empty"])
def test_damaged_levels_are_refused_and_never_other_levels(tmp_path, damage):
    path = given([0.5, 0.25, 0.125]).save(tmp_path / "levels.pt")
    content, levels = path.read_bytes(), AdaFloodLevels.load(path).levels.levels
    places = range(0, len(content), 37) if damage == "flips" else [0]
    refused = 0
    for place in places:
        flipped = content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]
        path.write_bytes(
            {"flips": flipped, "cut": content[: len(content) // 2], "empty": b""}[damage]
        )
        try:
            assert torch.equal(AdaFloodLevels.load(path).levels.levels, levels)
        except ValueError as error:
            refused += "must be one that save() wrote" in str(error)
    assert refused > len(places) // 4


def test_levels_of_the_version_before_are_read_and_the_log_says_what_is_unknown(tmp_path, caplog):
    path = given([0.5]).save(tmp_path / "levels.pt")
    stored = torch.load(path, weights_only=True)
    del stored["digest"]
    torch.save(stored, path)
    assert AdaFloodLevels.load(path).levels.levels.tolist() == given([0.5]).levels.levels.tolist()
    assert "Save it again" in caplog.text


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda ids: [0.5] * (len(ids) - 1), r"one number per id, shape \[3\], got \[2\]"),
        (
            lambda ids: torch.full((len(ids), 2), 0.5),
            r"one number per id, shape \[3\], got \[3, 2\]",
        ),
        (
            lambda ids: [math.nan] + [0.5] * (len(ids) - 1),
            r"must lie in \[0, 1\], got \[nan\] for 1 of 3 ids",
        ),
        (
            lambda ids: [0.5] * (len(ids) - 1) + [1.5],
            r"must lie in \[0, 1\], got \[1.5\] for 1 of 3 ids",
        ),
        (
            lambda ids: [-0.1] * len(ids),
            r"must lie in \[0, 1\], got \[-0.1, -0.1, -0.1\] for 3 of 3 ids",
        ),
    ],
    ids=["an id is missing", "an axis too many", "NaN", "above 1", "below 0"],
)
def test_predictions_that_are_no_probabilities_are_refused(answer, match):
    with pytest.raises(ValueError, match=match):
        cross_fit_levels(lambda _: answer, 6, folds=2)


def test_an_error_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"an error must be finite, got \[inf"):
        cross_fit_levels(
            lambda _: lambda ids: [math.inf] * len(ids), 4, folds=2, squared_error=True
        )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gamma": 1.5}, "gamma must lie in"),
        ({"folds": 1}, "folds must lie in 2 to the 6 examples, got 1"),
        ({"folds": 7}, "folds must lie in 2 to the 6 examples, got 7"),
        ({"ids": torch.tensor([1, 2, 1])}, "every id must come once"),
        ({"labels": torch.zeros(5)}, r"labels must be one per id"),
    ],
    ids=["gamma", "one fold", "more folds than examples", "an id twice", "a label missing"],
)
def test_bad_arguments_are_refused_before_anything_trains(arguments, match):
    def fit(_):
        pytest.fail("trained")

    with pytest.raises(ValueError, match=match):
        cross_fit_levels(fit, **{"ids": 6} | arguments)


@pytest.mark.parametrize(
    ("problem", "arguments", "match"),
    [
        (small, {"gamma": -0.1, "variant": LastLayer()}, "gamma must lie in"),
        (
            small,
            {"folds": 41, "variant": LastLayer()},
            "folds must lie in 2 to the 40 examples, got 41",
        ),
        (small, {"at": "first"}, "at must be 'best' or 'last', got 'first'"),
        (small, {"epochs": 0}, "max_epochs must be"),
        (small, {"variant": LastLayer(epochs=0)}, "max_epochs must be"),
        (small, {"variant": LastLayer(layer=lambda _: nn.Linear(1, 1))}, "must return a submodule"),
        (
            regression,
            {},
            r"outputs must be .* got \[2, 1\] for torch.float32 \[2, 1\]. Use cross_fit_levels",
        ),
        (
            partial(flat_regression, loss=nn.functional.l1_loss),
            {},
            "outputs must be .* Use cross_fit_levels",
        ),
        (
            partial(flat_regression, model=FromDict),
            {},
            r"outputs must be .* got \[2, 1\] for torch.float32 \[2\]",
        ),
    ],
    ids=[
        "gamma",
        "folds",
        "at",
        "epochs",
        "tuning epochs",
        "layer",
        "two axes",
        "absolute error",
        "axis to broadcast",
    ],
)
def test_bad_problems_are_refused_before_anything_trains(problem, arguments, match):
    with pytest.raises(ValueError, match=match):
        adaflood(problem(), **arguments, on_row=lambda _: pytest.fail("trained"))


def test_mean_squared_error_is_known_in_every_form():
    for loss in (nn.MSELoss(), partial(nn.functional.mse_loss, reduction="mean")):
        assert adaflood(flat_regression(loss=loss, max_epochs=1), folds=2).error is not None


def test_no_probability_may_be_zero_without_trust():
    with pytest.raises(
        ValueError,
        match=r"at gamma 0 no probability may be 0, got \[0.0\] for 1 of 2 ids, first \[1\]",
    ):
        given([0.5, 0.0], gamma=0.0)
    with pytest.raises(ValueError, match="no probability may be 0"):
        given([0.5, 0.0]).with_gamma(0.0)


def test_a_very_unlikely_label_still_has_a_level():
    class Sure(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(10, 2)

        def forward(self, x):
            return torch.tensor([600.0, 0.0]) + 0 * self.line(x)

    found = adaflood(small(model=Sure, max_epochs=1), gamma=0.0, folds=2)
    # float32 would have made exp(-600) a 0
    assert found.levels.levels.max() == pytest.approx(600)


def test_exactly_one_kind_of_result():
    half = torch.tensor([0.5])
    for more in ({}, {"probability": half, "error": half}):
        with pytest.raises(ValueError, match="either probability or error"):
            AdaFloodLevels(torch.tensor([0]), torch.tensor([0]), 0.5, 0, "", **more)
    with pytest.raises(ValueError, match="gamma must lie in"):
        AdaFloodLevels(torch.tensor([0]), torch.tensor([0]), 2.0, 0, "", error=half)


def record_of(run):
    *_, row = train(run)
    return row.record


def test_a_level_that_describes_itself_trains_as_the_levels_it_finds():
    problem = small(max_epochs=8)
    level = AdaFlood(gamma=0.3, folds=3, epochs=4)
    found = adaflood(problem, gamma=0.3, folds=3, epochs=4, seed=1)
    given, by_itself = (
        record_of(Run(problem, found.levels, IFlood(), 1)),
        record_of(Run(problem, level, IFlood(), 1)),
    )
    assert by_itself.weights_sha256 == given.weights_sha256
    assert by_itself.content_hash == given.content_hash
    assert Run(problem, level, IFlood()).key() is not None
    keys = {
        Run(problem, AdaFlood(*arguments), IFlood()).key()
        for arguments in [(0.3,), (0.4,), (0.3, 4), (0.3, 5, 2)]
    }
    assert len(keys) == 4


def test_auxiliary_networks_are_trained_once_whatever_gamma(monkeypatch):
    problem, trained = small(max_epochs=3, batch_size=17), []
    original = adaflood
    monkeypatch.setattr(
        "flooding.adaflood.adaflood", lambda *a, **k: trained.append(k["seed"]) or original(*a, **k)
    )
    first = record_of(Run(problem, AdaFlood(0.2, 2), IFlood()))
    second = record_of(Run(problem, AdaFlood(0.7, 2), IFlood()))
    assert trained == [0]
    assert (first.metadata["epochs_trained"], second.metadata["epochs_trained"]) == (2 * 3 + 3, 3)
    record_of(Run(problem, AdaFlood(0.2, 2), IFlood(), seed=1))
    record_of(Run(replace(problem, batch_size=18), AdaFlood(0.2, 2), IFlood()))
    record_of(Run(problem, AdaFlood(0.2, 3), IFlood()))
    assert trained == [0, 1, 0, 0]
    own = small(max_epochs=2, model=lambda: mlp(10, 2, width=4, depth=1))
    for _ in range(2):
        record_of(Run(own, AdaFlood(0.2, 2), IFlood()))
    assert trained == [0, 1, 0, 0, 0, 0], "code of the user's own may have changed"


def test_a_level_that_describes_itself_is_refused_like_one_for_each_example():
    with pytest.raises(ValueError, match="needs a method on each example"):
        Run(small(), AdaFlood())
    with pytest.raises(ValueError, match="gamma"):
        AdaFlood(1.5)


def test_it_goes_on_from_a_checkpoint():
    run = Run(small(max_epochs=6), AdaFlood(0.4, 2), IFlood())
    rows = list(train(replace(run, stop_epoch=3)))
    *_, row = train(run, resume=rows[-1].snapshot(copied=True))
    assert row.record.weights_sha256 == record_of(run).weights_sha256


def test_labels_that_the_loss_ignores_are_refused_before_anything_trains():
    splits = small().splits(0)
    y = splits.train.y.clone()
    y[[3, 8]] = -100
    problem = small(data=replace(splits, train=replace(splits.train, y=y)))
    message = (
        r"every training label must count, .* got 2 of 40 that the loss ignores, -100\. "
        r"Leave these examples out of the training split\."
    )
    rows = []
    with pytest.raises(ValueError, match=message):
        adaflood(problem, folds=2, on_row=rows.append)
    assert rows == []
    with pytest.raises(ValueError, match=message):
        next(train(Run(problem, AdaFlood(0.5, 2), IFlood())))
