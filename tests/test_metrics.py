"""Every metric agrees with its slow, obvious twin in float64, at its edges too."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flooding.metrics import (
    accuracy,
    balanced_accuracy,
    bayes_accuracy,
    brier,
    ece,
    filter_normalized_gradient_norm,
    gradient_accordance,
    gradient_norm,
    kl_to_posterior,
    loss_variance,
    nll,
    over_confidence,
    probabilities,
    reliability,
)
from flooding.models import mlp, small_cnn


def softmax(row):
    top = max(row)
    powers = [math.exp(z - top) for z in row]
    return [p / sum(powers) for p in powers]


def slow_accuracy(rows, y):
    return sum(row.index(max(row)) == label for row, label in zip(rows, y, strict=True)) / len(y)


def slow_balanced_accuracy(rows, y):
    recalls = []
    for c in set(y):
        own = [row for row, label in zip(rows, y, strict=True) if label == c]
        recalls.append(slow_accuracy(own, [c] * len(own)))
    return sum(recalls) / len(recalls)


def slow_nll(rows, y):
    # ln(sum exp) - z_y, with the highest logit taken out.
    losses = [
        max(r) + math.log(sum(math.exp(z - max(r)) for z in r)) - r[c]
        for r, c in zip(rows, y, strict=True)
    ]
    return sum(losses) / len(y)


def slow_brier(rows, y):
    total = 0.0
    for row, label in zip(rows, y, strict=True):
        for c, p in enumerate(softmax(row)):
            total += (p - (c == label)) ** 2
    return total / len(y)


def slow_bins(confidences, correct, bins):
    """(confidences, hits) of each bin (lo, hi]; the first bin also takes 0."""
    filled = [([], []) for _ in range(bins)]
    for confidence, hit in zip(confidences, correct, strict=True):
        for b in range(bins):
            low, high = b / bins, (b + 1) / bins
            if low < confidence <= high or (b == 0 and confidence == 0):
                filled[b][0].append(confidence)
                filled[b][1].append(hit)
    return filled


def slow_ece(confidences, correct, bins):
    total = 0.0
    for inside, hits in slow_bins(confidences, correct, bins):
        if inside:
            total += (
                len(inside) / len(correct) * abs(sum(hits) / len(hits) - sum(inside) / len(inside))
            )
    return total


def logits_for(*rows):
    """Logits whose softmax is these probabilities, to a rounding; 0 becomes exactly 0."""
    return torch.tensor(
        [[math.log(p) if p else -1e4 for p in row] for row in rows], dtype=torch.float64
    )


@st.composite
def batches(draw):
    n, classes = draw(st.integers(1, 9)), draw(st.integers(2, 5))
    logit = st.floats(-30, 30, allow_nan=False, width=32)
    rows = draw(
        st.lists(st.lists(logit, min_size=classes, max_size=classes), min_size=n, max_size=n)
    )
    y = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return rows, y


@given(batches())
def test_metrics_agree_with_their_twins(batch):
    rows, y = batch
    logits, labels = torch.tensor(rows, dtype=torch.float64), torch.tensor(y)
    near = {"rel": 1e-12, "abs": 1e-13}
    for found, row in zip(probabilities(logits).tolist(), rows, strict=True):
        assert found == pytest.approx(softmax(row), **near)
    assert accuracy(logits, labels).item() == pytest.approx(slow_accuracy(rows, y), **near)
    assert balanced_accuracy(logits, labels).item() == pytest.approx(
        slow_balanced_accuracy(rows, y), **near
    )
    assert nll(logits, labels).item() == pytest.approx(slow_nll(rows, y), **near)
    assert brier(logits, labels).item() == pytest.approx(slow_brier(rows, y), **near)
    mean_confidence = sum(max(softmax(row)) for row in rows) / len(y)
    assert over_confidence(logits, labels).item() == pytest.approx(
        mean_confidence - slow_accuracy(rows, y), **near
    )


@given(batches(), st.integers(1, 20))
def test_calibration_agrees_with_its_twin(batch, bins):
    rows, y = batch
    logits, labels = torch.tensor(rows, dtype=torch.float64), torch.tensor(y)
    # The confidences are taken as computed: a last-bit difference would decide the bin at an edge.
    confidences = probabilities(logits).amax(1).tolist()
    correct = [row.index(max(row)) == label for row, label in zip(rows, y, strict=True)]
    assert ece(logits, labels, bins).item() == pytest.approx(
        slow_ece(confidences, correct, bins), abs=1e-12
    )
    found = reliability(logits, labels, bins)
    expected = slow_bins(confidences, correct, bins)
    assert found.count.tolist() == [len(inside) for inside, _ in expected]
    for b, (inside, hits) in enumerate(expected):
        if inside:
            assert found.confidence[b].item() == pytest.approx(sum(inside) / len(inside), abs=1e-12)
            assert found.accuracy[b].item() == pytest.approx(sum(hits) / len(hits), abs=1e-12)
        else:
            assert found.confidence[b].isnan()
            assert found.accuracy[b].isnan()


def test_confidences_of_exactly_one_share_the_last_bin():
    # Four examples in the last of five bins: gaps -0.1 (right at 0.9), +1 (wrong at 1.0), 0, 0
    # (right at 1.0). Together |0.9| / 4 = 0.225; a bin of its own for 1.0 gives (0.1 + 1.0) / 4 =
    # 0.275.
    logits = logits_for((0.9, 0.1), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0))
    y = torch.tensor([0, 1, 0, 0])
    assert probabilities(logits)[1:].amax(1).eq(1).all()
    assert ece(logits, y, bins=5).item() == pytest.approx(0.225, abs=1e-12)
    assert reliability(logits, y, bins=5).count.tolist() == [0, 0, 0, 0, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("classes", "bins", "number"),
    [(2, 2, 0), (2, 4, 1), (4, 4, 0), (5, 5, 0), (5, 10, 1), (3, 15, 4)],
)
def test_a_confidence_at_an_edge_belongs_to_the_bin_below(dtype, classes, bins, number):
    # Equal logits: the confidence is the float nearest to 1 / classes, which is also the edge.
    found = reliability(torch.zeros(1, classes, dtype=dtype), torch.tensor([0]), bins)
    assert found.count.argmax() == number
    assert found.count.sum() == 1


def test_ece_of_one_bin_is_the_size_of_over_confidence():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits, y = torch.randn(50, 3).double(), torch.randint(3, (50,))
    assert torch.allclose(ece(logits, y, bins=1), over_confidence(logits, y).abs(), rtol=1e-12)


@pytest.mark.parametrize("metric", [nll, brier, ece, over_confidence])
def test_nan_logits_give_nan(metric):
    logits = torch.tensor([[0.0, 1.0], [math.nan, 0.0]])
    assert metric(logits, torch.tensor([0, 1])).isnan()


def test_of_equal_logits_the_first_counts():
    assert accuracy(torch.zeros(3, 3), torch.tensor([0, 0, 2])).item() == pytest.approx(2 / 3)


def test_balanced_accuracy_counts_every_class_alike_and_leaves_absent_ones_out():
    # Class 0: 3 of 4 right. Class 2: 0 of 1. Class 1 does not occur, though one row is taken for
    # it.
    logits = torch.eye(3)[[0, 0, 0, 1, 0]]
    assert balanced_accuracy(logits, torch.tensor([0, 0, 0, 0, 2])) == 0.375


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    logits, y = (
        torch.tensor([[0.25, 1.5], [2.0, -1.0]], dtype=dtype),
        torch.tensor([0, 0]),
    )  # exact in both
    for metric in (accuracy, balanced_accuracy, nll, brier, ece, over_confidence):
        assert metric(logits, y).dtype == torch.float32
        assert torch.equal(metric(logits, y), metric(logits.float(), y))


def test_a_perfect_and_a_perfectly_wrong_brier_score():
    logits = logits_for((1.0, 0.0), (0.0, 1.0))
    assert brier(logits, torch.tensor([0, 1])) == 0
    assert brier(logits, torch.tensor([1, 0])) == 2  # the sum over classes counts both


@given(batches(), st.integers(0, 2**20))
def test_divergence_from_the_posterior_agrees_with_its_twin(batch, seed):
    rows, _ = batch
    logits = torch.tensor(rows, dtype=torch.float64)
    weights = torch.rand(
        logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    weights[:, 0] *= seed % 2  # half of the cases have an impossible class
    posterior = weights / weights.sum(1, keepdim=True)
    total = 0.0
    for row, exact in zip(rows, posterior.tolist(), strict=True):
        log_sum = max(row) + math.log(sum(math.exp(z - max(row)) for z in row))
        total += sum(
            q * (math.log(q) - (z - log_sum)) for z, q in zip(row, exact, strict=True) if q > 0
        )
    assert kl_to_posterior(logits, posterior).item() == pytest.approx(
        total / len(rows), rel=1e-10, abs=1e-12
    )
    best = sum(max(exact) for exact in posterior.tolist()) / len(rows)
    assert bayes_accuracy(posterior).item() == pytest.approx(best, rel=1e-12)
    assert kl_to_posterior(posterior.log(), posterior).abs() < 1e-12 or seed % 2 == 0


def test_expected_nll_is_the_divergence_plus_the_entropy():
    posterior = torch.tensor([[0.3, 0.7], [0.9, 0.1]], dtype=torch.float64)
    logits = torch.tensor([[0.2, -1.0], [3.0, 0.5]], dtype=torch.float64)
    expected = -(posterior * logits.log_softmax(1)).sum(1).mean()
    entropy = -(posterior * posterior.log()).sum(1).mean()
    assert torch.allclose(kl_to_posterior(logits, posterior), expected - entropy, rtol=1e-12)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_loss_variance_agrees_with_its_twin(losses):
    mean = sum(losses) / len(losses)
    expected = sum((loss - mean) ** 2 for loss in losses) / len(losses)
    assert loss_variance(torch.tensor(losses, dtype=torch.float64)).item() == pytest.approx(
        expected, abs=1e-9
    )


LABELLED = [accuracy, balanced_accuracy, nll, brier, ece, over_confidence]


@pytest.mark.parametrize("metric", LABELLED)
def test_metrics_are_scalars_that_never_leave_the_device(metric):
    # Meta tensors have no values: any fetch to the host raises.
    found = metric(torch.zeros(6, 3, device="meta"), torch.zeros(6, device="meta").long())
    assert found.shape == ()
    assert found.device.type == "meta"


def test_the_other_metrics_never_leave_the_device_either():
    logits = torch.zeros(6, 3, device="meta")
    assert (
        kl_to_posterior(logits, logits).shape
        == bayes_accuracy(logits).shape
        == loss_variance(logits[:, 0]).shape
    )
    assert reliability(logits, torch.zeros(6, device="meta").long(), bins=4).count.shape == (4,)
    model = mlp(3, 2, width=4, depth=1).to("meta")
    loss = model(logits).sum()
    assert (
        gradient_norm(model, loss).shape == filter_normalized_gradient_norm(model, loss).shape == ()
    )


@pytest.mark.parametrize("metric", LABELLED)
def test_metrics_vectorise_over_runs(metric):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 30, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (30,), generator=generator)
    together = torch.vmap(metric, in_dims=(0, None))(logits, y)
    assert torch.allclose(together, torch.stack([metric(run, y) for run in logits]), rtol=1e-12)


def test_comparisons_with_the_posterior_vectorise_over_runs():
    generator = torch.Generator().manual_seed(0)
    logits, exact = torch.randn(2, 4, 30, 3, generator=generator, dtype=torch.float64)
    posterior = exact.softmax(-1)
    together = torch.vmap(kl_to_posterior)(logits, posterior), torch.vmap(bayes_accuracy)(posterior)
    alone = map(kl_to_posterior, logits, posterior), map(bayes_accuracy, posterior)
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, torch.stack(list(b)), rtol=1e-12)


@pytest.mark.parametrize("metric", LABELLED)
@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        ((4,), (4,), r"logits must be \[n, classes\].*got \[4\]"),
        ((4, 1), (4,), r"got \[4, 1\]. Stack \[0, z\]"),
        ((0, 2), (0,), r"got \[0, 2\]"),
        ((2, 4, 3), (4,), r"got \[2, 4, 3\]"),
        ((4, 3), (5,), r"labels must be \[n\] with n = 4, got \[5\]"),
        ((4, 3), (4, 1), r"labels must be \[n\] with n = 4, got \[4, 1\]"),
    ],
)
def test_shapes_that_do_not_match_are_refused(metric, logits, y, message):
    with pytest.raises(ValueError, match=message):
        metric(torch.zeros(logits), torch.zeros(y).long())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probabilities(torch.zeros(3)), "logits must be"),
        (
            lambda: kl_to_posterior(torch.zeros(3, 2), torch.zeros(2, 2)),
            r"got \[2, 2\] and \[3, 2\]",
        ),
        (lambda: bayes_accuracy(torch.zeros(3)), r"must be \[n, classes\]"),
        (
            lambda: ece(torch.zeros(3, 2), torch.zeros(3).long(), bins=0),
            "bins must be at least 1, got 0",
        ),
        (
            lambda: reliability(torch.zeros(3, 2), torch.zeros(3).long(), bins=-1),
            "bins must be at least 1, got -1",
        ),
        (lambda: loss_variance(torch.tensor(1.0)), r"losses must be \[n\] with n >= 1, got \[\]"),
        (lambda: loss_variance(torch.zeros(0)), r"got \[0\]"),
        (lambda: gradient_norm(nn.ReLU()), "trainable parameters, got none"),
        (lambda: gradient_norm(nn.Linear(1, 1), torch.zeros(2)), r"scalar, got shape \[2\]"),
        (lambda: filter_normalized_gradient_norm(nn.LayerNorm(2)), "two or more axes, got none"),
        (lambda: gradient_accordance(nn.Linear(1, 1), []), "at least two batches, got 0"),
        (
            lambda: gradient_accordance(nn.Linear(1, 1), [torch.zeros(2)]),
            r"scalar, got shape \[2\]",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def slow_gradient_norms(model):
    """Both norms from ``.grad``, entry by entry."""
    plain = filtered = 0.0
    for weight in model.parameters():
        if weight.grad is None:
            continue
        plain += sum(g * g for g in weight.grad.flatten().tolist())
        if weight.ndim >= 2:
            for w, g in zip(weight, weight.grad, strict=True):
                size, slope = (sum(v * v for v in t.flatten().tolist()) for t in (w, g))
                filtered += size * slope
    return math.sqrt(plain), math.sqrt(filtered)


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double()


def a_network(kind):
    generator = torch.Generator().manual_seed(1)
    if kind == "mlp":
        model, x = (
            seeded(lambda: mlp(4, 3, width=6, depth=2, batch_norm=True)),
            torch.randn(8, 4, generator=generator),
        )
    else:
        model, x = (
            seeded(lambda: small_cnn(3, 2, size=8)),
            torch.randn(8, 2, 8, 8, generator=generator),
        )
    y = torch.randint(3, (8,), generator=generator)
    return model, nll(model(x.double()), y)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_gradient_norms_agree_with_their_twins(kind):
    model, loss = a_network(kind)
    fresh = gradient_norm(model, loss), filter_normalized_gradient_norm(model, loss)
    assert all(w.grad is None for w in model.parameters())  # .grad is left alone
    loss.backward()  # and the graph is still there
    stored = gradient_norm(model), filter_normalized_gradient_norm(model)
    expected = slow_gradient_norms(model)
    for a, b, c in zip(fresh, stored, expected, strict=True):
        assert a.item() == pytest.approx(c, rel=1e-12)
        assert b.item() == pytest.approx(c, rel=1e-12)
        assert not a.requires_grad
        assert not b.requires_grad


def test_parameters_without_a_gradient_count_as_zero():
    model = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(3, 3), nn.Linear(1, 1)])
    model[2].requires_grad_(False)
    loss = model[0](torch.tensor([[3.0, 4.0]])).sum()
    assert gradient_norm(model, loss) == 5
    assert gradient_norm(model) == 0
    loss.backward()
    assert gradient_norm(model) == 5


def test_filter_normalisation_undoes_a_rescaling_before_batch_norm():
    # Batch norm with a vanishing epsilon ignores the scale of a filter: the network and its
    # sharpness stay the same.
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = torch.arange(16) % 2
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5, eps=1e-30), nn.Linear(5, 2)
        )
    )
    before = nll(model(x), y)
    plain, filtered = gradient_norm(model, before), filter_normalized_gradient_norm(model, before)
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor([0.1, 0.5, 1.0, 2.0, 10.0], dtype=torch.float64)[:, None])
    after = nll(model(x), y)
    assert torch.allclose(before, after, rtol=1e-12)
    assert torch.allclose(filtered, filter_normalized_gradient_norm(model, after), rtol=1e-10)
    assert abs(gradient_norm(model, after) / plain - 1) > 0.1  # the plain norm is fooled


def test_filter_normalised_norm_is_the_slope_along_normalised_directions():
    # Along d_f = |w_f| * g_f / |g_f| the slope of the loss is sum_f |w_f| |g_f|, for a single
    # filter the norm itself. The central difference is exact up to rounding for a quadratic.
    model = seeded(lambda: nn.Linear(3, 1, bias=False))
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)

    def loss():
        return model(x).square().sum()

    norm = filter_normalized_gradient_norm(model, loss())
    loss().backward()
    weight, gradient = model.weight.detach().clone(), model.weight.grad
    direction = weight.norm() * gradient / gradient.norm()
    values = []
    with torch.no_grad():
        for h in (1e-4, -1e-4):
            model.weight.copy_(weight + h * direction)
            values.append(loss().item())
    assert norm.item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-7)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_gradient_accordance_agrees_with_its_twin(kind):
    model, loss = a_network(kind)
    losses = [loss, -loss + sum(w.square().sum() for w in model.parameters()), loss.sin()]
    gradients = []
    for each in losses:
        model.zero_grad()
        each.backward(retain_graph=True)
        gradients.append([g for w in model.parameters() for g in w.grad.flatten().tolist()])
    kept = [w.grad.clone() for w in model.parameters()]
    cosines = [
        sum(a * b for a, b in zip(gradients[i], gradients[j], strict=True))
        / math.sqrt(sum(a * a for a in gradients[i]) * sum(b * b for b in gradients[j]))
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    found = gradient_accordance(model, losses)
    assert found.item() == pytest.approx(sum(cosines) / 6, rel=1e-9)
    assert not found.requires_grad
    assert all(torch.equal(w.grad, g) for w, g in zip(model.parameters(), kept, strict=True))


def test_gradient_accordance_at_its_ends():
    model = nn.Linear(2, 1, bias=False)
    loss = model(torch.tensor([3.0, 4.0])).sum()
    assert gradient_accordance(model, [loss, 2 * loss]).item() == pytest.approx(1)
    assert gradient_accordance(model, [loss, -loss]).item() == pytest.approx(-1)
    assert gradient_accordance(model, [loss, 0 * loss]).item() == 0
    assert gradient_accordance(model, [loss, math.nan * loss]).isnan()
