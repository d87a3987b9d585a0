"""Optimisers that evaluate other weights than they train are switched around all that is measured
and returned."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from flooding import Run, run_all, train
from flooding.methods import SAM
from small import normed, small


class Averaged(torch.optim.SGD):
    """SGD that evaluates the mean of its iterates. Its mode is no part of its state; misuse is an
    error."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.training = False

    def _swap(self, training):
        if self.training != training:
            for p in (p for group in self.param_groups for p in group["params"] if p in self.state):
                mean = self.state[p]["mean"]
                before = p.detach().clone()
                p.data.copy_(mean)
                mean.copy_(before)
        self.training = training

    def train(self):
        self._swap(training=True)

    def eval(self):
        self._swap(training=False)

    @torch.no_grad()
    def step(self, closure=None):
        assert self.training
        super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"]):
            state = self.state[p]
            state["n"] = state.get("n", 0) + 1
            mean = state.setdefault("mean", torch.zeros_like(p))
            mean += (p - mean) / state["n"]


def pytorch_optimizer(name, **options):
    def make(parameters):
        library = pytest.importorskip("pytorch_optimizer")
        return getattr(library, name)(parameters, **options)

    return make


def wrapped(parameters):
    library = pytest.importorskip("pytorch_optimizer")
    return library.ScheduleFreeWrapper(torch.optim.SGD(parameters, lr=0.1))


OPTIMIZERS = {
    "own": partial(Averaged, lr=0.3),
    "ScheduleFreeSGD": pytorch_optimizer("ScheduleFreeSGD", lr=0.5),
    "ScheduleFreeAdamW": pytorch_optimizer("ScheduleFreeAdamW", lr=1e-2),
    "ScheduleFreeRAdam": pytorch_optimizer("ScheduleFreeRAdam", lr=1e-2),
    "ScheduleFreeWrapper": wrapped,
}


def by_hand(run, epochs):
    """Train for so many epochs without an evaluation on the way: losses seen, and the model to
    evaluate."""
    problem, split, losses = run.problem, run.problem.splits(0).train, []
    model = problem.build(0)
    optimizer = problem.optimizer(model.parameters())
    optimizer.train()
    for _ in range(epochs):
        loss = F.cross_entropy(model(split.x), split.y)
        optimizer.zero_grad()
        ((loss - run.level).abs() + run.level if run.level else loss).backward()
        optimizer.step()
        losses.append(loss.item())
    optimizer.eval()
    return losses, model.eval()


@pytest.mark.parametrize("level", [None, 0.5], ids=["plain", "flooded"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_is_measured_and_returned_are_the_evaluation_weights(optimizer, level):
    run = Run(small(optimizer=optimizer, max_epochs=12), level)
    *_, row = train(run)
    val, best = run.problem.splits(0).val, int(row.record.metrics["best.epoch"])
    for name, epochs in (("best", best), ("last", 12), (None, 5)):
        losses, model = by_hand(run, epochs)
        assert (
            row.record.curves["train_loss"][1 : epochs + 1].tolist() == np.float32(losses).tolist()
        )
        with torch.no_grad():
            assert row.record.curves["val_loss"][epochs] == np.float32(
                F.cross_entropy(model(val.x), val.y).item()
            )
        for key, tensor in model.state_dict().items() if name else ():
            assert torch.equal(row.weights[name][key], tensor)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_run_that_goes_on_and_one_that_keeps_its_first_flooded_weights_have_the_same_bits(
    optimizer,
):
    run = Run(normed(optimizer=optimizer), 0.6)
    *_, whole = train(run)
    *_, row = train(run, keep_first_flooded=True)
    assert row.record.content_hash == whole.record.content_hash
    states = [
        row.snapshot(copied=True)
        for row in train(run)
        if row.snapshot is not None and row.record is None
    ]
    for state in states[::2]:
        *_, rest = train(run, resume=state)
        assert rest.record.content_hash == whole.record.content_hash


def test_the_first_flooded_weights_are_those_to_evaluate():
    run = Run(small(optimizer=partial(Averaged, lr=0.3), max_epochs=30), 0.5)
    *_, row = train(run, keep_first_flooded=True)
    epoch = int(np.argmax(row.record.curves["flooded"] > 0))  # full batches: a step each
    assert epoch > 1
    *_, before = train(Run(run.problem, None, stop_epoch=epoch - 1))
    for name, tensor in before.weights["last"].items():
        torch.testing.assert_close(row.weights["first_flooded"][name], tensor)


def test_prefix_sharing_has_the_bits_of_training_alone():
    problem = small(optimizer=partial(Averaged, lr=0.3), max_epochs=20)
    runs = [Run(problem, level) for level in (None, 0.3, 0.5)]
    shared = run_all(runs, ledger=False, workers=0)
    assert [record.content_hash for record in shared] == [
        list(train(run))[-1].record.content_hash for run in runs
    ]


def test_sam_switches_the_optimiser_inside():
    pytest.importorskip("pytorch_optimizer")
    problem = small(optimizer=partial(Averaged, lr=0.3), max_epochs=5)
    *_, row = train(Run(problem, None, SAM(0.01)))
    *_, plain = train(Run(problem))
    last = small(optimizer=partial(torch.optim.SGD, lr=0.3), max_epochs=5)
    *_, trained = train(Run(last, None, SAM(0.01)))
    assert row.record.weights_sha256 not in {
        plain.record.weights_sha256,
        trained.record.weights_sha256,
    }
    assert (
        row.record.curves["train_loss"].tolist() == trained.record.curves["train_loss"].tolist()
    )  # the same path
    assert (
        row.record.metrics["last.val_loss"] != trained.record.metrics["last.val_loss"]
    )  # the mean of it


def test_an_optimiser_with_one_of_the_two_methods_is_left_alone():
    class Half(torch.optim.SGD):
        def eval(self):
            raise AssertionError("not a schedule-free optimiser")

    *_, row = train(Run(small(optimizer=partial(Half, lr=0.1))))
    *_, plain = train(Run(small(optimizer=partial(torch.optim.SGD, lr=0.1))))
    assert row.record.weights_sha256 == plain.record.weights_sha256
