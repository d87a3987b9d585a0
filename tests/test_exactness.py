"""check_exact tells what a loop floods, for loops that flood in a known way."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from flooding import Flood, FloodStep
from flooding.functional import flood
from flooding.testing import check_exact, measure_exactness

LEVEL = 0.5


def loop(backward, model, optimizer, micro_batches, k=4, norm=None):
    """A loop that accumulates k micro-batches; ``backward`` says what it floods."""
    for i, (x, y) in enumerate(micro_batches, 1):
        backward(functional.cross_entropy(model(x), y), k)
        if i % k == 0:
            if norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), norm)
            optimizer.step()
            optimizer.zero_grad()


def exact(model, optimizer, micro_batches, k=4, norm=None, divide=True):
    flood_step = FloodStep(optimizer, LEVEL)

    def backward(loss, k):
        loss = flood_step(loss)
        (loss / k if divide else loss).backward()

    loop(backward, model, optimizer, micro_batches, k, norm)


def watch_the_share(model, optimizer, micro_batches):
    flood_step = FloodStep(optimizer, LEVEL)
    loop(lambda loss, k: flood_step(loss / k).backward(), model, optimizer, micro_batches)


def add_up(model, optimizer, micro_batches):
    """Flip by the sum of the losses of two micro-batches."""
    total = []

    def backward(loss, k):
        total.append(loss.item())
        (loss / k).backward()
        if len(total) == k:
            if sum(total) < 1.0:
                for parameter in model.parameters():
                    parameter.grad.neg_()
            total.clear()

    loop(backward, model, optimizer, micro_batches, 2)


def each_example(model, optimizer, micro_batches):
    criterion = nn.CrossEntropyLoss(reduction="none")
    for i, (x, y) in enumerate(micro_batches, 1):
        (flood(criterion(model(x), y), LEVEL).mean() / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def divided_first(loss, k):
    flood(loss / k, LEVEL).backward()


def each_microbatch(loss, k):
    (flood(loss, LEVEL) / k).backward()


def plain(loss, k):
    (loss / k).backward()


@pytest.mark.parametrize(
    ("train", "verdict"),
    [
        (exact, "floods the step"),
        (partial(loop, each_microbatch), "floods each micro-batch"),
        (each_example, "floods each example"),
        (partial(loop, plain), "does not flood"),
        (partial(loop, divided_first), "floods each share of a micro-batch"),
        (watch_the_share, "floods by the loss divided by the number of micro-batches"),
        (lambda *_: None, "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_loop_that_floods_in_a_known_way_is_recognised(train, verdict):
    result = measure_exactness(train)
    assert result.verdict == verdict
    if verdict != "unknown":
        # Another backward path, so other rounding, but nothing more.
        assert result.differences[verdict] < 1e-12
    for name, difference in result.differences.items():
        # The sum of four losses never comes down to 0.5, so flooding by it is plain training here.
        if name != verdict and "sum" not in name:
            assert difference > 1e-3
    assert result.is_exact == (train is exact)


def test_the_sum_of_the_losses_is_recognised_where_it_crosses_the_level():
    # At level 1 the sum of two losses of 0.5 decides.
    with pytest.raises(AssertionError, match="Take their mean"):
        check_exact(add_up, level=1.0, accumulate=2)


def test_check_exact_says_what_to_do():
    assert check_exact(exact).is_exact
    with pytest.raises(
        AssertionError, match=r"floods each micro-batch.*\n.*Use FloodStep"
    ) as error:
        check_exact(partial(loop, each_microbatch))
    assert "floods the step: " in str(error.value)
    with pytest.raises(AssertionError, match="max_grad_norm"):
        check_exact(lambda *_: None)


def test_gradients_that_are_added_up_are_exact_too():
    result = check_exact(partial(exact, divide=False))
    assert not result.averages
    assert "adds up the gradients" in str(result)
    assert measure_exactness(exact).averages


def test_clipping_and_another_optimizer():
    adam = partial(torch.optim.Adam, lr=0.03)
    assert check_exact(partial(exact, norm=0.2), max_grad_norm=0.2, optimizer=adam).is_exact
    assert measure_exactness(partial(exact, norm=0.2)).verdict == "unknown"


def test_without_accumulation_the_criterion_is_enough():
    criterion = Flood(nn.CrossEntropyLoss(), LEVEL)

    def train(model, optimizer, micro_batches):
        for x, y in micro_batches:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()

    result = check_exact(train, accumulate=1)
    assert list(result.differences) == ["floods the step", "floods each example", "does not flood"]
    assert measure_exactness(train, accumulate=1, level=LEVEL).is_exact


def test_float32_needs_a_tolerance():
    def train(model, optimizer, micro_batches):
        half = model.float()
        inner = torch.optim.SGD(half.parameters(), lr=0.2, momentum=0.9)
        exact(half, inner, [(x.float(), y) for x, y in micro_batches])

    assert measure_exactness(train).verdict == "unknown"
    assert check_exact(train, tolerance=1e-4).is_exact


def test_a_level_that_tells_nothing_apart_is_refused():
    with pytest.raises(ValueError, match="Choose a level that the loss crosses"):
        measure_exactness(exact, level=0.01)


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    measure_exactness(exact)
    assert torch.equal(torch.get_rng_state(), before)
