"""Ignored targets count nowhere: a Problem with them measures what it measures without them."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import flooding.training.run
from flooding import Problem, Run, find_level, train
from flooding.data import Split, Splits
from flooding.level_search.advisor import advisor
from flooding.levels import PerExample
from flooding.methods import Flooding, IFlood, SoftAD, WaveBound
from flooding.metrics import balanced_accuracy
from flooding.models import mlp
from flooding.training.evaluation import drop_ignored_examples
from flooding.training.problem import Score, TestCurve
from small import small

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(240, 6, generator=GENERATOR)
Y = (X[:, 0] + X[:, 1] + torch.randn(240, generator=GENERATOR) > 0).long() + 2 * (X[:, 2] > 1)
IGNORED = torch.rand(240, generator=GENERATOR) < 0.3
sgd = partial(torch.optim.SGD, lr=0.5)


def smooth(output, y, ignore_index=7):
    return F.cross_entropy(output, y, ignore_index=ignore_index, label_smoothing=0.1)


class Own(nn.Module):
    """A loss of one's own with torch's name for what it ignores."""

    def __init__(self, ignore_index):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, output, y):
        return F.cross_entropy(output, y, ignore_index=self.ignore_index)


class LogSoftmax(nn.Sequential):
    def forward(self, x):
        return super().forward(x).log_softmax(1)


LOSSES = {
    "torch's default": (F.cross_entropy, -100),
    "a module": (
        nn.CrossEntropyLoss(ignore_index=255, weight=torch.tensor([1.0, 2.0, 1.0, 0.5])),
        255,
    ),
    "nested partials": (
        partial(partial(F.cross_entropy, ignore_index=-1), label_smoothing=0.1),
        -1,
    ),
    "nll": (partial(F.nll_loss, ignore_index=3), 3),
    "an argument's default": (smooth, 7),
    "a partial of one's own": (partial(smooth, ignore_index=-5), -5),
    "a module of one's own": (Own(255), 255),
}


def marked(y, index):
    return torch.where(IGNORED, index, y)


def parts(x, y, clean=None):
    places = [slice(0, 100), slice(100, 160), slice(160, 240)]
    return Splits(*(Split(x[p], y[p], None if clean is None else clean[p]) for p in places))


def dropped(splits):
    """The same splits without the ignored examples."""
    places = zip(("train", "val", "test"), IGNORED.split((100, 60, 80)), strict=True)
    return Splits(
        *(getattr(splits, name).take((~ignored).nonzero()[:, 0]) for name, ignored in places)
    )


def problem(loss, data, **changes):
    given = {"model": partial(mlp, 6, 4, width=16, depth=1), "optimizer": sgd, "max_epochs": 8}
    given |= {"test_curve": TestCurve(80, every=1), "score": Score(balanced_accuracy)}
    if getattr(loss, "func", None) is F.nll_loss:
        given["model"] = lambda: LogSoftmax(*mlp(6, 4, width=16, depth=1))
    return Problem(data, loss=loss, **given | changes)


def last(run):
    return list(train(run))[-1].record


@pytest.mark.parametrize(
    ("level", "method"), [(None, Flooding()), (0.9, Flooding())], ids=["plain", "flooded"]
)
@pytest.mark.parametrize(("loss", "index"), LOSSES.values(), ids=LOSSES)
def test_full_batches_measure_what_they_measure_without_the_ignored_examples(
    loss, index, level, method
):
    y = Y % 3 if index == 3 else Y
    data = parts(X, marked(y, index), y)
    record = last(Run(problem(loss, data), level, method))
    other = last(Run(problem(loss, dropped(data)), level, method))
    assert set(record.metrics) == set(other.metrics)
    for name, value in other.metrics.items():
        if "clean" not in name:  # clean labels have no ignored ones: there every example counts
            assert record.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True), (
                name
            )
    for name, curve in other.curves.items():
        if "clean" not in name:
            np.testing.assert_allclose(
                record.curves[name], curve, rtol=1e-4, atol=1e-5, err_msg=name
            )
    np.testing.assert_allclose(
        record.arrays["last.reliability"], other.arrays["last.reliability"], atol=1e-4
    )
    assert record.arrays["last.reliability"][2].sum() == (~IGNORED[160:]).sum()
    assert record.arrays["last.reliability_clean"][2].sum() == 80


@pytest.mark.parametrize(
    "method", [IFlood(), SoftAD(), WaveBound(epsilon=0.01)], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("name", ["torch's default", "nested partials"])
def test_methods_on_each_example_leave_ignored_ones_out_of_the_flooded_share_too(name, method):
    loss, index = LOSSES[name]
    level = None if isinstance(method, WaveBound) else 1.1
    data = parts(X, marked(Y, index))
    record, other = (last(Run(problem(loss, d), level, method)) for d in (data, dropped(data)))
    assert 0 < other.curves["flooded"][1] < 1 or isinstance(method, WaveBound)
    for name in ("train_loss", "val_loss", "flooded", "train_accuracy"):
        np.testing.assert_allclose(
            record.curves[name], other.curves[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_levels_of_ignored_examples_are_not_counted_as_flooded():
    data = parts(X, marked(Y, -100))
    levels = PerExample(torch.full((100,), 100.0), data.train.id)
    assert (
        last(Run(problem(F.cross_entropy, data), levels, IFlood())).curves["flooded"][1:].tolist()
        == [1.0] * 8
    )
    levels = PerExample(torch.where(IGNORED[:100], 100.0, -100.0), data.train.id)
    assert (
        last(Run(problem(F.cross_entropy, data), levels, IFlood())).curves["flooded"][1:].tolist()
        == [0.0] * 8
    )


def test_an_epochs_loss_is_the_mean_over_the_targets_that_count():
    """No step moves the weights, so each epoch sees one model: its loss over all is known."""
    still = partial(torch.optim.SGD, lr=0.0)
    data = parts(X, marked(Y, -100))
    run = Run(problem(F.cross_entropy, data, optimizer=still, batch_size=9))
    record = last(run)
    model = run.problem.build(0)
    with torch.no_grad():
        expected = float(F.cross_entropy(model(data.train.x), data.train.y))
    np.testing.assert_allclose(record.curves["train_loss"], expected, rtol=1e-5)


def test_batches_of_ignored_targets_alone_are_skipped():
    y = Y.clone()
    y[3:100] = -100
    for size in (10, 1):
        *_, row = train(
            Run(problem(F.cross_entropy, parts(X, y), batch_size=size, max_epochs=1), seed=1)
        )
        assert np.isfinite(row.record.curves["train_loss"]).all()
        assert 1 <= len(row.losses) <= 3  # steps: no other moved the weights
        assert len(row.losses) == 3 or size > 1


class Pixels(nn.Module):
    """Segments images, and gives a mapping as torchvision's do."""

    def __init__(self, mapping):
        super().__init__()
        self.line, self.mapping = nn.Conv2d(1, 3, 1), mapping

    def forward(self, x):
        output = self.line(x)
        return {"out": output} if self.mapping else output


def segment(output, y, ignore_index=255):
    return F.cross_entropy(
        output["out"] if isinstance(output, dict) else output, y, ignore_index=ignore_index
    )


@pytest.mark.parametrize("mapping", [False, True], ids=["tensor", "mapping"])
def test_pixels_that_are_ignored_weigh_nothing_in_chunks_and_batches(mapping):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 1, 4, 4, generator=generator)
    y = torch.randint(3, (20, 4, 4), generator=generator)
    y[torch.rand(20, 4, 4, generator=generator) < torch.linspace(0, 1, 20)[:, None, None]] = 255
    y[12:15] = 255  # a whole chunk of validation
    data = Splits(Split(x[:10], y[:10]), Split(x[10:], y[10:]), Split(x[10:], y[10:]))
    run = Run(
        Problem(
            data,
            partial(Pixels, mapping),
            partial(torch.optim.SGD, lr=0.0),
            segment,
            batch_size=4,
            eval_batch_size=1,
            max_epochs=2,
        )
    )
    record, model = last(run), run.problem.build(0)
    with torch.no_grad():
        for name in ("train", "val"):
            split = getattr(data, name)
            np.testing.assert_allclose(
                record.curves[f"{name}_loss"], float(segment(model(split.x), split.y)), rtol=1e-5
            )
    assert record.metrics["last.test_loss"] == pytest.approx(
        record.curves["val_loss"][-1], rel=1e-5
    )


def test_the_number_of_classes_and_the_limit_know_what_is_ignored():
    for index in (-100, 255):
        ignoring = problem(
            partial(F.cross_entropy, ignore_index=index), parts(X, marked(Y, index)), max_epochs=10
        )
        assert ignoring.classes(0) == 4
        _, counts = Y[:100][~IGNORED[:100]].unique(return_counts=True)
        entropy = float(torch.distributions.Categorical(counts.double()).entropy())
        found = find_level(ignoring, workers=0)
        told = {s.name: s.level for s in found.suggestions}
        assert told["label entropy"] == pytest.approx(entropy)
        with pytest.raises(StopIteration) as answer:
            next(advisor(ignoring))
        assert [s.level for s in answer.value.value.suggestions] == [pytest.approx(entropy)]
    assert problem(F.mse_loss, parts(X, X[:, :1])).classes(0) is None
    assert parts(X, torch.where(Y > 9, Y, -100)).classes == 0


def test_one_class_beside_ignored_targets_is_one_class():
    y = torch.where(Y == 1, 1, -100)
    with pytest.raises(
        ValueError, match="the train split must hold at least two classes, got only class 1"
    ):
        find_level(problem(F.cross_entropy, parts(X, y)), workers=0)


def test_only_problems_with_ignored_targets_have_another_key(monkeypatch):
    """Older Records of theirs hold an accuracy that counts ignored targets as wrong."""
    whole, some = (
        problem(F.cross_entropy, d, score=None) for d in (parts(X, Y), parts(X, marked(Y, -100)))
    )
    now = [Run(p).key() for p in (whole, some)]
    monkeypatch.setattr(flooding.training.run, "_has_ignored_targets", lambda *_: False)
    before = [Run(p).key() for p in (whole, some)]
    assert None not in now
    assert now[0] == before[0]
    assert now[1] != before[1]


def test_without_ignored_targets_nothing_is_copied():
    split = small().splits(0).val
    output = torch.zeros(len(split), 2)
    found = drop_ignored_examples(small(), output, split.y)
    assert found[0] is output  # so the bits are those of before
    assert found[1] is split.y
