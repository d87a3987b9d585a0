"""Sharpness measures against the dense Hessian of a small network; the network is as before
afterwards."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from flooding.models import mlp, small_cnn
from flooding.sharpness import (
    filter_direction,
    hessian_eigenvalues,
    hessian_product,
    hessian_trace,
    landscape,
    principal_directions,
    project,
    weights,
)


@pytest.fixture(params=["tanh", "relu with batch norm"])
def case(request):
    """A network of about 100 parameters in float64, its loss in three parts, and its dense
    Hessian."""
    torch.manual_seed(0)
    if request.param == "tanh":
        model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    else:
        model = mlp(4, 3, width=7, depth=2, batch_norm=True).double()
        model(torch.randn(50, 4, dtype=torch.double))  # statistics that are not those it began with
    x, y = torch.randn(30, 4, dtype=torch.double), torch.randint(3, (30,))

    def losses():
        for part in torch.arange(30).split([7, 11, 12]):
            yield len(part) / 30 * nn.functional.cross_entropy(model(x[part]), y[part])

    model.eval()
    names = [name for name, _ in model.named_parameters()]

    def whole(vector):
        parts = vector.split([p.numel() for p in model.parameters()])
        given = {
            n: part.view_as(p) for n, part, p in zip(names, parts, model.parameters(), strict=True)
        }
        return nn.functional.cross_entropy(torch.func.functional_call(model, given, (x,)), y)

    dense = torch.autograd.functional.hessian(whole, weights(model))
    return model.train(), losses, dense


def test_products_eigenvalues_and_trace_are_those_of_the_dense_hessian(case):
    model, losses, dense = case
    vector = torch.randn(len(dense), dtype=torch.double, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        hessian_product(model, losses, vector), dense @ vector, rtol=1e-10, atol=1e-12
    )
    known = torch.linalg.eigvalsh(dense).flip(0).numpy()
    assert known[0] > 1.5 * known[5] > 0, "the largest must be told apart"
    found = hessian_eigenvalues(model, losses, k=5, tolerance=1e-9)
    np.testing.assert_allclose(found, known[:5], rtol=1e-6)
    np.testing.assert_allclose(hessian_eigenvalues(model, losses), known[:1], rtol=1e-4)
    for seed in range(3):
        trace, error = hessian_trace(model, losses, probes=200, seed=seed)
        assert abs(trace - float(dense.trace())) < 3 * error
        assert 0 < error < 0.2 * trace


def test_everything_is_as_before_also_after_an_exception(case):
    model, losses, _ = case
    model[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    draws = torch.get_rng_state()
    hessian_trace(model, losses)
    direction = filter_direction(model, seed=0)
    landscape(model, losses, [direction], [(-1.0, 1.0)])
    calls = []

    def fails():
        calls.append(0)
        if len(calls) > 1:
            raise RuntimeError("out of luck")
        return losses()

    with pytest.raises(RuntimeError, match="out of luck"):
        landscape(model, fails, [direction], [(-1.0, 1.0)])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(draws, torch.get_rng_state())


def test_a_filter_direction_is_as_long_as_each_filter_and_spares_what_has_none():
    torch.manual_seed(2)
    model = nn.Sequential(small_cnn(), nn.BatchNorm1d(10))
    direction = filter_direction(model, seed=3)
    parts = direction.split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        if p.ndim < 2:
            assert not part.any()
        else:
            assert torch.allclose(
                part.view(len(p), -1).norm(dim=1), p.detach().flatten(1).norm(dim=1), rtol=1e-5
            )
    assert torch.equal(direction, filter_direction(model, seed=3))
    assert not torch.equal(direction, filter_direction(model, seed=4))


def test_a_filter_scaled_with_its_loss_unchanged_has_the_same_landscape():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 2)
    )
    model = model.double()
    x, y = torch.randn(40, 5, dtype=torch.double), torch.randint(2, (40,))

    def losses():
        return [nn.functional.cross_entropy(model(x), y)]

    steps = np.linspace(-1, 1, 7)
    before = landscape(model, losses, [filter_direction(model, seed=0)], [steps])
    with torch.no_grad():
        for p in model[0].parameters():
            p *= 10
    after = landscape(model, losses, [filter_direction(model, seed=0)], [steps])
    np.testing.assert_allclose(after, before, rtol=1e-3)  # batch norm's epsilon is not scaled


def test_a_landscape_has_the_loss_of_every_place(case):
    model, losses, _ = case
    first, second = (filter_direction(model, seed=seed) for seed in (0, 1))
    found = landscape(model, losses, [first, second], [(-0.5, 0.0, 0.5), (0.0, 1e-3)])
    assert found.shape == (3, 2)
    model.eval()
    assert found[1, 0] == pytest.approx(sum(loss.item() for loss in losses()), rel=1e-12)
    shifted = copy.deepcopy(model)
    nn.utils.vector_to_parameters(weights(model) + 0.5 * first, shifted.parameters())
    nn.utils.vector_to_parameters(weights(shifted), model.parameters())
    assert found[2, 0] == pytest.approx(sum(loss.item() for loss in losses()), rel=1e-12)


def test_iterates_are_projected_where_they_were_made():
    generator = torch.Generator().manual_seed(4)
    origin = torch.randn(50, generator=generator, dtype=torch.double)
    plane = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.double)).Q.T
    made = torch.randn(20, 2, generator=generator, dtype=torch.double) * torch.tensor([5.0, 1.0])
    iterates = list(origin + made @ plane)
    np.testing.assert_allclose(project(iterates, origin, list(plane)), made.numpy(), atol=1e-12)
    found = principal_directions(iterates, origin)
    again = origin + torch.from_numpy(project(iterates, origin, found)) @ torch.stack(found)
    assert torch.allclose(again, torch.stack(iterates), atol=1e-10), (
        "two directions span the plane they were made in"
    )
    spread = project(iterates, origin, found).std(0)
    assert spread[0] > spread[1]


LINE = nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights(nn.ReLU()), "must have parameters that require a gradient"),
        (lambda: hessian_product(LINE, list, torch.ones(3)), "at least one scalar, got none"),
        (
            lambda: hessian_product(LINE, lambda: [LINE.weight.sum()], torch.ones(2)),
            r"the 3 trainable .* got \[2\]",
        ),
        (
            lambda: hessian_eigenvalues(LINE, lambda: [LINE.weight.sum()], k=3),
            "below the 3 parameters, got 3",
        ),
        (lambda: hessian_trace(LINE, lambda: [LINE.weight.sum()], probes=1), "at least 2, got 1"),
        (
            lambda: landscape(LINE, lambda: [LINE.weight.sum()], [torch.ones(3)], []),
            "steps for each direction",
        ),
        (lambda: principal_directions([torch.ones(3)], torch.ones(3)), "at least 2 iterates"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_that_is_linear_has_no_curvature():
    assert not hessian_product(LINE, lambda: [LINE.weight.sum()], torch.ones(3)).any()
