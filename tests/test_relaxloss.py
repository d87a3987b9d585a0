"""RelaxLoss: flooding in even epochs, flattened targets in odd ones, by the definition of each."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import cross_entropy

from flooding import Flood, Run, run_all
from flooding.functional import flood
from flooding.methods import Flooding, RelaxLoss
from flooding.testing import check_method
from small import small


def batch(classes=4, n=6, seed=0):
    """Logits with a graph, of which some classify their label correctly and some do not."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = outputs.argmax(1)
    labels[: n // 2] = (labels[: n // 2] + 1) % classes
    return outputs.requires_grad_(), labels


def step(outputs, labels, level, epoch):
    """Value and gradient of the objective, and the raw loss."""
    loss = cross_entropy(outputs, labels)
    value = RelaxLoss().objective_from_outputs(outputs, labels, loss, level, epoch)
    [gradient] = torch.autograd.grad(value, outputs)
    return value.detach(), gradient, loss.detach()


def test_it_keeps_the_protocol():
    check_method(RelaxLoss())


@pytest.mark.parametrize("level", [0.1, 9.0], ids=["above the level", "below the level"])
def test_an_even_epoch_floods(level):
    outputs, labels = batch()
    value, gradient, loss = step(outputs, labels, level, epoch=2)
    assert value == pytest.approx(float(flood(loss, level)))
    [raw] = torch.autograd.grad(cross_entropy(outputs, labels), outputs)
    assert torch.equal(gradient, raw if loss > level else -raw)


def test_an_odd_epoch_descends_above_the_level_and_at_it():
    outputs, labels = batch()
    loss = float(cross_entropy(outputs, labels).detach())
    [raw] = torch.autograd.grad(cross_entropy(outputs, labels), outputs)
    for level in (0.1, loss):
        value, gradient, _ = step(outputs, labels, level, epoch=3)
        assert float(value) == loss
        assert torch.equal(gradient, raw)


@pytest.mark.parametrize("classes", [2, 4])
def test_an_odd_epoch_below_the_level_flattens_what_is_correct(classes):
    outputs, labels = batch(classes)
    _, gradient, loss = step(outputs, labels, 9.0, epoch=1)
    assert loss < 9
    # Example by example, as the source's text defines the targets.
    for logits, label, own in zip(outputs.detach(), labels, gradient, strict=True):
        p = logits.softmax(0)
        expected = p.clone()
        if int(p.argmax()) == int(label):
            for c in range(classes):
                expected[c] -= p[label] if c == label else (1 - p[label]) / (classes - 1)
        else:
            expected[label] -= 1
        assert torch.allclose(own, (expected / len(labels)).to(own), atol=1e-6)
    if classes == 2:
        assert gradient[len(labels) // 2 :].abs().max() < 1e-6


@pytest.mark.parametrize("level", [torch.tensor(-math.inf), -math.inf], ids=["tensor", "number"])
def test_without_a_level_yet_it_is_plain(level):
    outputs, labels = batch()
    value, _, loss = step(outputs, labels, level, epoch=1)
    assert value == loss


def test_it_needs_logits_and_labels():
    with pytest.raises(ValueError, match=r"logits \[batch, classes\].*got \[3\] and \[3\]"):
        RelaxLoss().objective_from_outputs(
            torch.zeros(3), torch.zeros(3), torch.tensor(0.1), 0.5, 1
        )
    with pytest.raises(TypeError, match="RelaxLoss needs more than the loss"):
        Flood(torch.nn.CrossEntropyLoss(), 0.1, RelaxLoss())


@dataclass(frozen=True)
class Spy(RelaxLoss):
    """Notes the epochs that it is asked in."""

    def objective_from_outputs(self, outputs, targets, loss, level, epoch):
        EPOCHS.append(epoch)
        return super().objective_from_outputs(outputs, targets, loss, level, epoch)


EPOCHS = []


def test_the_loop_tells_it_the_epoch_from_1():
    EPOCHS.clear()
    problem = small(max_epochs=4)
    run_all([Run(problem, 0.3, Spy())], ledger=False, workers=0)
    assert sorted(set(EPOCHS)) == [1, 2, 3, 4]
    assert sorted(EPOCHS) == EPOCHS


def test_it_is_another_training_than_flooding_once_the_level_is_reached():
    problem = small(max_epochs=8)
    runs = [
        Run(problem, level, method) for level in (9.0, 0.0) for method in (RelaxLoss(), Flooding())
    ]
    high, high_flooded, low, low_flooded = run_all(runs, ledger=False, workers=0)
    assert high.weights_sha256 != high_flooded.weights_sha256
    # The loss of this problem never reaches 0: above the level all methods are plain training.
    assert low.weights_sha256 == low_flooded.weights_sha256
