"""Criteria: flooded in training only, exact at the edges, cheap for the device, and what users trip
over."""

import copy
import functools
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]
from torch.utils._python_dispatch import TorchDispatchMode

from flooding.criterion import Flood
from flooding.functional import flood
from flooding.levels import Excess, PerClass, PerExample, excess, target_entropy
from flooding.methods import (
    EMATeacher,
    Flooding,
    Hinge,
    IFlood,
    SoftAD,
    WaveBound,
    flooded_fraction,
    objective,
)

METHODS = [Flooding(), IFlood(), SoftAD(sigma=0.5), Hinge()]
ABS = [Flooding(), IFlood()]
name = lambda method: type(method).__name__  # ruff: ignore[lambda-assignment]


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def batch(rng):
    """Logits and labels of 6 examples in 3 classes, in float64."""
    logits = torch.randn(6, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor([0, 1, 2, 2, 1, 0])


def cross_entropy(method, **options):
    return nn.CrossEntropyLoss(reduction=method.reduction, **options)


def raw(value, method, n=3):
    """A raw loss as the method needs it, all of one value."""
    loss = torch.full((n,) if method.reduction == "none" else (), value)
    return loss.requires_grad_()


def slopes(value, level, method):
    loss = raw(value, method)
    result = method(loss, level)
    return result, torch.autograd.grad(result.sum(), loss)[0]


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_evaluation_and_no_grad_are_plain(method, batch):
    logits, y = batch
    logits = logits + 3 * F.one_hot(y)
    plain = F.cross_entropy(logits, y)
    criterion = Flood(cross_entropy(method), level=plain.item() + 0.05, method=method)
    assert not torch.equal(criterion(logits, y), plain), (
        "training floods: the level lies above the loss"
    )

    with torch.no_grad():
        assert torch.equal(criterion(logits, y), plain)
    with torch.inference_mode():
        assert torch.equal(criterion(logits.detach(), y), plain)
    assert torch.equal(criterion(logits.detach(), y), plain), "a loss without gradient"
    criterion.eval()
    assert torch.equal(criterion(logits, y), plain), (
        "evaluation mode with gradients, as for saliency maps"
    )


def test_evaluation_leaves_the_training_figures_alone(batch):
    logits, y = batch
    criterion = Flood(nn.CrossEntropyLoss(), level=9.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 9 is above ln 3, on purpose
        criterion(logits, y)

    def figures():
        return [
            t.clone()
            for t in (criterion.raw_loss, criterion.flooded_loss, criterion.flooded_fraction)
        ]

    before = figures()
    criterion.eval()(2 * logits, y)
    assert all(map(torch.equal, before, figures()))


# ---------------------------------------------------------------- edges of the methods


@pytest.mark.parametrize("method", METHODS, ids=name)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_losses_pass_through_with_slope_one(method, value):
    for level in (0.1, torch.tensor(0.1)):
        result, slope = slopes(value, level, method)
        assert torch.equal(result.nan_to_num(nan=7.0), raw(value, method).nan_to_num(nan=7.0))
        assert torch.equal(slope, torch.ones_like(slope))


def test_the_bare_formula_does_not_pass_them_through():
    # The naive twin of the test above: this is why the methods mask.
    minus = torch.tensor(-math.inf, requires_grad=True)
    flood(minus, 0.1).backward()
    assert flood(minus, 0.1) == math.inf
    assert minus.grad == -1
    nan = torch.tensor(math.nan, requires_grad=True)
    flood(nan, 0.1).backward()
    assert nan.grad == 0


@pytest.mark.parametrize("method", [IFlood(), SoftAD()], ids=name)
def test_one_bad_example_does_not_touch_the_others(method):
    good, bad = torch.tensor([0.05, 0.9]), torch.tensor([0.05, math.inf, 0.9])
    bad.requires_grad_()
    good.requires_grad_()
    slope = torch.autograd.grad(method(bad, 0.1).sum(), bad)[0]
    assert torch.equal(slope[[0, 2]], torch.autograd.grad(method(good, 0.1).sum(), good)[0])


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_a_level_of_minus_infinity_is_plain_bit_for_bit(method):
    loss = raw(0.3, method)
    result, slope = slopes(0.3, torch.tensor(-math.inf), method)
    assert torch.equal(result, loss)
    assert torch.equal(slope, torch.ones_like(slope))
    assert torch.equal(
        objective(loss, torch.tensor(-math.inf), method), objective(loss, None, method)
    )


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_what_passes_through_leaves_no_nan_in_the_backward_pass(method):
    with torch.autograd.detect_anomaly():  # raises where any node returns NaN, masked later or not
        objective(raw(0.3, method), torch.tensor(-math.inf), method).backward()
        objective(raw(math.inf, method), 0.1, method).backward()


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_a_nan_level_poisons(method):
    assert objective(raw(0.3, method), torch.tensor(math.nan), method).isnan()


@pytest.mark.parametrize(("method", "slope"), [(m, 0.0) for m in METHODS], ids=map(name, METHODS))
def test_at_the_level_the_slope_is_zero(method, slope):
    result, got = slopes(0.125, 0.125, method)
    assert torch.equal(got, torch.full_like(got, slope))
    assert torch.equal(result, torch.full_like(result, 0.125))


@pytest.mark.parametrize("method", [*ABS, Hinge()], ids=name)
def test_negative_levels(method):
    below, slope = slopes(-2.0, -1.5, method)
    expected = -1.5 if isinstance(method, Hinge) else -1.0
    assert torch.equal(below, torch.full_like(below, expected))
    assert torch.equal(slope, torch.full_like(slope, 0.0 if isinstance(method, Hinge) else -1.0))
    assert torch.equal(slopes(-1.0, -1.5, method)[1], torch.ones_like(slope))


@pytest.mark.parametrize("level", [0.3, torch.tensor(0.3), None], ids=["number", "tensor", "None"])
def test_above_the_level_the_gradient_is_the_plain_one_bit_for_bit(level, rng):
    torch_state = torch.random.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(16, 5, generator=rng), torch.randint(3, (16,), generator=rng)
    plain = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    flooded = torch.autograd.grad(
        objective(F.cross_entropy(model(x), y), level), list(model.parameters())
    )
    assert all(map(torch.equal, plain, flooded))
    assert torch.equal(torch_state, torch.random.get_rng_state())


def test_without_a_level_the_loss_is_the_very_same_tensor():
    loss = torch.tensor(0.3, requires_grad=True)
    assert objective(loss, None) is loss
    losses = torch.tensor([0.1, 0.6], requires_grad=True)
    assert torch.equal(objective(losses, None), losses.mean())


@pytest.mark.parametrize(
    ("dtype", "sign"), [(torch.bfloat16, 1), (torch.float16, -1)], ids=["bfloat16", "float16"]
)
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_half_precision_compares_in_float32(dtype, sign, method):
    # The bfloat16 nearest to 0.05 is 0.0500488 and the float16 0.0499878: the types themselves see
    # a tie.
    loss = torch.full((3,) if method.reduction == "none" else (), 0.05, dtype=dtype)
    assert not (loss > torch.tensor(0.05, dtype=dtype)).any()
    assert not (loss < torch.tensor(0.05, dtype=dtype)).any(), "the comparison in the type errs"
    loss.requires_grad_()
    for level in (0.05, torch.tensor(0.05)):
        result = method(loss, level)
        assert result.dtype == torch.float32
        assert flooded_fraction(loss, level) == (sign < 0)
        slope = torch.autograd.grad(result.sum(), loss)[0]
        assert slope.dtype == dtype
        assert (slope.sign() == (max(sign, 0) if isinstance(method, Hinge) else sign)).all()


# ---------------------------------------------------------------- objective: weights and shapes


def slow_objective(losses, levels, weights, formula):
    total = sum(
        w * formula(loss, b) for loss, b, w in zip(losses, levels, weights, strict=True) if w
    )
    return total / sum(weights)


@pytest.mark.parametrize(
    "weights", [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.5, 2.0, 0.0, 1.25]]
)
def test_weighted_mean_against_the_slow_twin(weights):
    losses, levels = [0.1, 0.9, 0.4, 0.2], [0.3, 0.3, 0.1, 0.7]
    fast = objective(
        torch.tensor(losses, dtype=torch.float64),
        torch.tensor(levels, dtype=torch.float64),
        IFlood(),
        weight=torch.tensor(weights, dtype=torch.float64),
    )
    assert float(fast) == pytest.approx(slow_objective(losses, levels, weights, flood), rel=1e-12)


@pytest.mark.parametrize("level", [None, 0.1])
def test_ignored_examples_count_for_nothing_even_when_nan(level):
    losses = torch.tensor([0.3, math.nan], requires_grad=True)
    value = objective(losses, level, IFlood(), weight=torch.tensor([1.0, 0.0]))
    value.backward()
    assert float(value.detach()) == pytest.approx(0.3)
    assert losses.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("level", [None, 0.1])
def test_all_ignored_gives_zero_with_a_gradient(level):
    losses = torch.tensor([0.3, 0.4], requires_grad=True)
    value = objective(losses, level, IFlood(), weight=torch.zeros(2))
    value.backward()
    assert value == 0
    assert losses.grad.tolist() == [0.0, 0.0]


def test_objective_refuses_the_wrong_raw_loss():
    losses = torch.rand(3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        ValueError,
        match=r"Flooding needs the scalar batch mean, got shape \(3,\).*reduction='mean'",
    ):
        objective(losses, 0.1)
    with pytest.raises(
        ValueError, match=r"IFlood needs one raw loss per example, got shape \(\).*reduction='none'"
    ):
        objective(losses.mean(), 0.1, IFlood())
    with pytest.raises(
        ValueError, match=r"weight must have the shape of the loss, \(3,\), got \(2,\)"
    ):
        objective(losses, 0.1, IFlood(), weight=torch.ones(2))
    with pytest.raises(ValueError, match="WaveBound averages inside"):
        objective(losses, 0.1, WaveBound(0.01), weight=torch.ones(3))
    with pytest.raises(ValueError, match=r"teacher's losses must have shape \(3,\), got \(2,\)"):
        objective(losses, torch.ones(2), WaveBound(0.01))
    with pytest.raises(ValueError, match="epsilon must be finite, got nan"):
        WaveBound(math.nan)
    with pytest.raises(ValueError, match="eta must be finite, got inf"):
        SoftAD(eta=math.inf)


def test_flooded_fraction_is_strict_and_masked():
    losses = torch.tensor([0.0, 0.1, 0.3, math.nan, -math.inf])
    assert flooded_fraction(losses, 0.1) == 0.2  # 0.0 only: a tie, NaN and -inf are not flooded
    assert flooded_fraction(losses, None) == 0
    assert (
        flooded_fraction(
            losses, torch.full((5,), 0.2), weight=torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0])
        )
        == 0.5
    )
    assert flooded_fraction(losses, 0.1, weight=torch.zeros(5)) == 0
    assert flooded_fraction(torch.tensor(0.05), 0.1) == 1


# ---------------------------------------------------------------- criteria of torch


WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
OPTIONS = [
    {},
    {"ignore_index": 1},
    {"weight": WEIGHTS},
    {"weight": WEIGHTS, "ignore_index": 2, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_per_example_without_a_level_is_torchs_own_mean(options, batch):
    logits, y = batch
    expected = nn.CrossEntropyLoss(**options)(logits, y)
    criterion = Flood(nn.CrossEntropyLoss(reduction="none", **options), level=None, method=IFlood())
    got = criterion(logits, y)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(criterion.raw_loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(criterion.eval()(logits, y), expected, rtol=1e-12, atol=0)
    pair = [torch.autograd.grad(loss, logits)[0] for loss in (got, expected)]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=lambda o: "+".join(o) or "plain")
@pytest.mark.parametrize("method", [IFlood(), SoftAD()], ids=name)
def test_the_level_acts_on_each_valid_loss_before_its_class_weight(options, method, batch):
    logits, y = batch
    losses = F.cross_entropy(logits, y, reduction="none").tolist()
    class_weight = options.get("weight", torch.ones(3)).tolist()
    weights = [0.0 if c == options.get("ignore_index") else class_weight[c] for c in y.tolist()]
    criterion = Flood(nn.CrossEntropyLoss(reduction="none", **options), level=0.75, method=method)
    one = lambda loss, b: method(torch.tensor(loss, dtype=torch.float64), b).item()  # ruff: ignore[lambda-assignment]
    expected = slow_objective(losses, [0.75] * 6, weights, one)
    assert criterion(logits, y).item() == pytest.approx(expected, rel=1e-12)
    valid = [loss for loss, w in zip(losses, weights, strict=True) if w]
    assert criterion.n_seen == len(valid)
    assert criterion.n_flooded == sum(loss < 0.75 for loss in valid)


def test_an_iflood_mean_without_the_mask_adds_two_levels_per_ignored_example(batch):
    # The naive twin: ignored losses are 0, and flood(0, b) = 2 b.
    logits, y = batch
    inner = nn.CrossEntropyLoss(reduction="none", ignore_index=1)
    naive = objective(inner(logits, y), 0.5, IFlood())
    ours = Flood(inner, 0.5, IFlood())(logits, y)
    assert naive.item() == pytest.approx((4 * ours.item() + 2 * 2 * 0.5) / 6)


def test_a_batch_of_ignored_examples_is_zero_and_not_nan(batch):
    logits, y = batch
    criterion = Flood(nn.CrossEntropyLoss(reduction="none"), 0.5, IFlood())
    value = criterion(logits, torch.full_like(y, -100))
    assert value == 0
    assert torch.autograd.grad(value, logits)[0].abs().max() == 0
    assert criterion.flooded_fraction.isnan(), "nothing was seen"
    assert nn.CrossEntropyLoss()(logits, torch.full_like(y, -100)).isnan(), "torch's own mean"


def test_pixels_with_a_level_per_class_and_per_image(rng):
    logits = torch.randn(2, 3, 4, generator=rng, requires_grad=True)
    y = torch.randint(3, (2, 4), generator=rng)
    y[0, 0] = -100
    losses = F.cross_entropy(logits, y, reduction="none")
    inner, valid = nn.CrossEntropyLoss(reduction="none"), (y != -100).float()

    table = torch.tensor([0.5, 1.0, 1.5])
    per_class = Flood(inner, PerClass(table), IFlood())(logits, y)
    expected = objective(losses, table[y.clamp_min(0)], IFlood(), weight=valid)
    assert torch.equal(per_class, expected)

    per_image = Flood(inner, PerExample(torch.tensor([0.5, 1.5]), torch.tensor([8, 9])), IFlood())
    expected = objective(losses, torch.tensor([[1.5], [0.5]]), IFlood(), weight=valid)
    assert torch.equal(per_image(logits, y, ids=torch.tensor([9, 8])), expected)


@pytest.mark.parametrize(
    "inner", [F.cross_entropy, lambda a, y: F.cross_entropy(a, y), nn.CrossEntropyLoss()]
)
def test_any_module_or_function_is_a_criterion(inner, batch):
    logits, y = batch
    torch.testing.assert_close(
        Flood(inner, 0.5)(logits, y), flood(F.cross_entropy(logits, y), 0.5), rtol=1e-7, atol=0
    )
    if inner is F.cross_entropy:
        assert Flood(inner, 0.5)(input=logits, target=y, label_smoothing=0.1) > 0


def test_two_losses_with_a_level_each(rng):
    # Multi-task: one criterion per task. Flooding the sum is another method.
    a = torch.randn(5, 2, generator=rng, requires_grad=True)
    b = torch.randn(5, generator=rng, requires_grad=True)
    y, z = torch.tensor([0, 1, 1, 0, 1]), torch.zeros(5)
    one, two = F.cross_entropy(a, y).item(), F.mse_loss(b, z).item()
    classify, regress = Flood(nn.CrossEntropyLoss(), one / 2), Flood(nn.MSELoss(), two * 2)
    (classify(a, y) + regress(b, z)).backward()
    assert torch.equal(a.grad, torch.autograd.grad(F.cross_entropy(a, y), a)[0])
    assert torch.equal(b.grad, -torch.autograd.grad(F.mse_loss(b, z), b)[0])
    assert (classify.flooded_fraction, regress.flooded_fraction) == (0, 1)


# ---------------------------------------------------------------- errors and warnings


def test_a_criterion_with_another_reduction_is_refused():
    for reduction in ("sum", "none"):
        with pytest.raises(
            ValueError, match=f"Flooding needs the scalar batch mean, got a .*{reduction}"
        ):
            Flood(nn.CrossEntropyLoss(reduction=reduction), 0.1)
    with pytest.raises(
        ValueError, match=r"IFlood needs one raw loss per example, got a .*reduction='mean'"
    ):
        Flood(nn.CrossEntropyLoss(), 0.1, IFlood())
    with pytest.raises(ValueError, match="reduction='sum'"):
        Flood(functools.partial(F.cross_entropy, reduction="sum"), 0.1)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_a_function_with_another_reduction_is_refused_when_called(mode, batch):
    none = functools.partial(F.cross_entropy)
    with pytest.raises(ValueError, match=r"Flooding needs the scalar batch mean, got shape \(6,\)"):
        Flood(none, 0.1).train(mode)(*batch, reduction="none")
    with pytest.raises(ValueError, match=r"IFlood needs one raw loss per example, got shape \(\)"):
        Flood(none, 0.1, IFlood()).train(mode)(*batch)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_level_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="level must be finite, got"):
        Flood(nn.MSELoss(), bad)
    with pytest.raises(ValueError, match="level must be finite, got"):
        Flood(nn.MSELoss(), torch.tensor(bad))
    with pytest.raises(ValueError, match="level must be finite, got"):
        Excess(bad, classes=2)
    with pytest.raises(ValueError, match="1-d tensor of finite numbers"):
        PerClass(torch.tensor([0.1, bad]))
    criterion = Flood(nn.MSELoss(), 0.1)
    with pytest.raises(ValueError, match="level must be finite, got"):
        criterion.level = bad


def test_other_wrong_levels_and_methods_are_refused():
    with pytest.raises(ValueError, match=r"must be 0-d, got shape \(2,\)"):
        Flood(nn.MSELoss(), torch.ones(2))
    with pytest.raises(ValueError, match="PerClass needs a method on each example, got Flooding"):
        Flood(nn.CrossEntropyLoss(), PerClass(torch.ones(2)))
    with pytest.raises(ValueError, match="Excess supports no class weights"):
        Flood(nn.CrossEntropyLoss(weight=torch.ones(2)), Excess(0.1, classes=2))
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\], got 2"):
        Excess(0.1, classes=2, label_smoothing=2.0)
    with pytest.raises(TypeError, match=r"WaveBound's level is a teacher's loss.*objective\(\)"):
        Flood(nn.MSELoss(reduction="none"), 0.1, WaveBound(0.01))
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1"):
        EMATeacher(nn.Linear(1, 1), decay=1.0)


def test_a_level_above_the_loss_of_a_guess_warns_once(batch):
    logits, y = batch
    for inner, args, guess in [
        (nn.CrossEntropyLoss(), (logits, y), "ln 3 = 1.0986"),
        (F.cross_entropy, (logits, y), "ln 3 = 1.0986"),
        (nn.BCEWithLogitsLoss(), (logits[:, 0], (y == 0).double()), "ln 2 = 0.6931"),
    ]:
        criterion = Flood(inner, level=1.2)
        with pytest.warns(UserWarning, match=guess) as caught:
            criterion(*args)
        assert caught[0].filename == __file__, "the warning points at the caller"
        criterion(*args)  # warnings are errors here: no second one
        criterion.level = 1.3
        criterion(*args)
        Flood(inner, level=0.6)(*args)
    Flood(nn.MSELoss(), level=9.0)(logits, torch.zeros_like(logits))  # no classes: nothing known


def test_a_level_below_the_label_smoothing_floor_warns(batch):
    # 0.1 over 3 classes: t = (14/15, 1/30, 1/30), H = 0.2911.
    entropy = -(14 / 15) * math.log(14 / 15) - 2 / 30 * math.log(1 / 30)
    with pytest.warns(UserWarning, match=f"above {entropy:.4f}.*it floods nothing.*Excess"):
        Flood(nn.CrossEntropyLoss(label_smoothing=0.1), level=0.2)(*batch)
    Flood(nn.CrossEntropyLoss(label_smoothing=0.1), level=0.3)(*batch)
    Flood(nn.CrossEntropyLoss(label_smoothing=0.1), level=Excess(0.01, 3, 0.1))(*batch)


# ---------------------------------------------------------------- levels by shape


def test_levels_per_class():
    table = PerClass([0.25, 0.5])
    assert table.lookup(torch.tensor([[1], [0]])).tolist() == [[0.5], [0.25]]
    for missing in (2, -1):
        with pytest.raises(IndexError):
            table.lookup(torch.tensor([missing]))


def test_levels_per_example_against_a_dictionary(rng):
    ids = (
        torch.randperm(1000, generator=rng)[:50] * 10**12
    )  # large and sparse: no dense table could hold them
    levels = torch.rand(50, generator=rng)
    table = PerExample(levels, ids)
    slow = dict(zip(ids.tolist(), levels.tolist(), strict=True))
    order = ids[torch.randperm(50, generator=rng)]
    assert table.lookup(None, order).tolist() == [slow[i] for i in order.tolist()]
    table.check(order)
    for level in (table, table.to("cpu"), pickle.loads(pickle.dumps(table))):
        assert torch.equal(level.lookup(None, order), table.lookup(None, order))


def test_an_example_without_a_level_is_never_level_zero():
    table = PerExample(torch.tensor([0.25, 0.5]), torch.tensor([3, 5]))
    missing = torch.tensor([2, 3, 4, 5, 6, -1])
    assert table.lookup(None, missing).isnan().tolist() == [True, False, True, False, True, True]
    with pytest.raises(ValueError, match=r"none for 4 of 6 ids, first \[2, 4, 6, -1\]"):
        table.check(missing)
    for method in (IFlood(), SoftAD()):
        assert objective(torch.rand(6), table.lookup(None, missing), method).isnan(), (
            "it cannot go unnoticed"
        )
    with pytest.raises(ValueError, match="need the examples' ids, got none"):
        Flood(nn.MSELoss(reduction="none"), table, IFlood())(
            torch.zeros(2, requires_grad=True), torch.zeros(2)
        )
    with pytest.raises(ValueError, match="every id must come once"):
        PerExample(torch.ones(2), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="equal length, got 2 and 1"):
        PerExample(torch.ones(2), torch.tensor([1]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_target_entropy_is_the_least_cross_entropy(smoothing):
    y = torch.tensor([0, 2])
    soft = F.one_hot(y, 3).double()
    mixed = (1 - smoothing) * soft + smoothing / 3
    expected = [-sum(p * math.log(p) for p in row if p) for row in mixed.tolist()]
    for target in (y, soft):
        entropy = target_entropy(target, 3, smoothing)
        torch.testing.assert_close(
            entropy.double(), torch.tensor(expected).double(), rtol=1e-6, atol=1e-7
        )
        assert not torch.signbit(entropy).any(), "never -0.0"
        # Logits ln(mixed) reach it; where a class is impossible -60 stands for minus infinity.
        best = mixed.log().clamp_min(-60)
        reached = F.cross_entropy(best, target, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(
            excess(reached, target, 3, smoothing), torch.zeros(2).double(), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("method", [Flooding(), IFlood(), SoftAD(sigma=0.2)], ids=name)
@pytest.mark.parametrize("kind", ["smoothing", "mixup"])
def test_excess_levels_flood_the_excess_loss(method, kind, rng):
    logits = torch.randn(8, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    if kind == "smoothing":
        y, smoothing = torch.randint(3, (8,), generator=rng), 0.1
    else:
        y, smoothing = torch.rand(8, 3, generator=rng, dtype=torch.float64).softmax(1), 0.0
    losses = F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)
    over = excess(losses, y, 3, smoothing)
    level = over.detach().median().item() + 0.01
    slow = objective(over.mean() if method.reduction == "mean" else over, level, method)
    criterion = Flood(
        cross_entropy(method, label_smoothing=smoothing), Excess(level, 3, smoothing), method
    )
    fast = criterion(logits, y)
    pair = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (fast, slow)]
    torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-7)  # entropies of hard targets are float32
    torch.testing.assert_close(criterion.eval()(logits, y), losses.mean(), rtol=1e-12, atol=0)


def test_excess_of_a_batch_mean_with_ignored_examples(batch):
    logits, _ = batch
    y = torch.tensor([0, 1, -100, -100, 1, 0])
    criterion = Flood(nn.CrossEntropyLoss(label_smoothing=0.1), Excess(5.0, 3, 0.1))
    plain = F.cross_entropy(logits, y, label_smoothing=0.1)
    level = 5.0 + target_entropy(y, 3, 0.1)[0]
    torch.testing.assert_close(criterion(logits, y), flood(plain, level), rtol=1e-7, atol=0)


# ---------------------------------------------------------------- state


def test_figures_and_reset(batch):
    logits, y = batch
    plain = F.cross_entropy(logits, y)
    criterion = Flood(nn.CrossEntropyLoss(), level=None)
    assert criterion.level == -math.inf
    assert criterion.flooded_fraction.isnan()
    assert torch.equal(criterion(logits, y), plain)
    criterion.level = plain.detach() / 2
    criterion(logits, y)
    criterion.level = 1.0
    scaled = 0.01 * logits  # nearly ln 3
    criterion(scaled, y)
    criterion.level = torch.tensor(1.5)
    flooded = criterion(scaled, y)
    assert (criterion.n_seen, criterion.n_flooded, criterion.flooded_fraction) == (4, 1, 0.25)
    assert torch.equal(criterion.flooded_loss, flooded)
    assert torch.equal(criterion.raw_loss, F.cross_entropy(scaled, y))
    assert not criterion.raw_loss.requires_grad
    criterion(math.nan * logits, y)
    assert criterion.n_nonfinite == 1
    assert criterion.raw_loss.isnan()
    criterion.reset()
    assert (criterion.n_seen, criterion.n_flooded, criterion.n_nonfinite) == (0, 0, 0)


def test_non_finite_examples_are_counted_each():
    criterion = Flood(nn.MSELoss(reduction="none"), 0.5, IFlood())
    x = torch.tensor([0.0, math.inf, math.nan, 2.0], requires_grad=True)
    criterion(x, torch.zeros(4))
    assert (criterion.n_nonfinite, criterion.n_flooded, criterion.n_seen) == (2, 1, 4)


def test_state_dicts_load_strictly_both_ways():
    plain, flooded = (
        {"net": nn.Linear(2, 2), "loss": loss} for loss in (nn.CrossEntropyLoss(), None)
    )
    flooded["loss"] = Flood(nn.CrossEntropyLoss(), 0.3)
    plain, flooded = nn.ModuleDict(plain), nn.ModuleDict(flooded)
    flooded.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(flooded.state_dict(), strict=True)
    assert list(flooded.state_dict()) == ["net.weight", "net.bias"]
    assert flooded["loss"].level == torch.tensor(0.3)


def test_casting_a_model_does_not_round_the_level():
    criterion = Flood(nn.MSELoss(), 0.05)
    for cast in (criterion.half, criterion.bfloat16, lambda: criterion.to(torch.bfloat16)):
        cast()
        assert criterion.level.dtype == torch.float32
        assert criterion.level == torch.tensor(0.05)
        assert criterion._buffers["_scalar"] is criterion.level, "still a buffer"
    assert criterion.double().level.dtype == torch.float64
    buffer = criterion.level
    criterion.level = 0.1
    assert criterion.level is buffer, "set in place: on its device, in its dtype"
    assert buffer == 0.1
    assert Flood(nn.MSELoss(), torch.tensor(0.05, dtype=torch.float64)).level == 0.05
    assert Flood(nn.MSELoss(), torch.tensor(1)).level.dtype == torch.float32


@pytest.mark.parametrize(
    "level",
    [0.5, PerExample(torch.tensor([0.5, 1.0]), torch.tensor([0, 1]))],
    ids=["number", "per example"],
)
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_independent(level, clone):
    x, ids = torch.tensor([0.5, 1.5], requires_grad=True), torch.tensor([0, 1])
    criterion = Flood(nn.MSELoss(reduction="none"), level, IFlood())
    criterion(
        x, torch.zeros(2), ids=ids
    )  # its figures must not hold on to the graph: deepcopy would refuse
    twin = clone(criterion)
    assert torch.equal(twin(x, torch.zeros(2), ids=ids), criterion(x, torch.zeros(2), ids=ids))
    assert torch.equal(twin.n_seen, criterion.n_seen)
    twin.level = 0.25
    twin(x, torch.zeros(2))
    assert criterion.level is not twin.level
    assert criterion.n_seen == 4
    assert twin.n_seen == 6


class Reads(TorchDispatchMode):
    """Counts reads of a tensor's value by the host, each of which would make it wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func.overloadpacket in {
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.item,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
            torch.ops.aten.nonzero,
        }
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "level"),
    [
        *((m, 0.5) for m in METHODS),
        (IFlood(), PerClass(torch.tensor([0.2, 0.4, 0.6]))),
        (IFlood(), PerExample(torch.arange(6) / 6, torch.arange(6))),
        (Flooding(), Excess(0.2, classes=3)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_step_never_waits_for_the_device(method, level):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, ids = torch.tensor([0, 1, 2, 2, 1, -100]), torch.arange(6)
    criterion = Flood(cross_entropy(method), level, method)
    with Reads() as reads:
        for step in range(3):
            criterion(logits, y, ids=ids).backward()
            if not isinstance(level, (PerClass, PerExample)):
                criterion.level = 0.1 * step
                criterion.level = torch.tensor(0.1)
        figures = (
            criterion.raw_loss,
            criterion.flooded_loss,
            criterion.flooded_fraction,
            criterion.n_nonfinite,
        )
        criterion.reset()
        assert reads.n == 0
        _ = [float(t) for t in figures]
        assert reads.n == 4, "the counter counts"


# ---------------------------------------------------------------- torch.compile and torch.func


class Naive(nn.Module):
    """The textbook criterion: its level is a Python number."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, logits, y):
        return flood(F.cross_entropy(logits, y), self.level)


def graphs(criterion, rng, ids=None):
    """Compile model and criterion together, change the level 12 times, and count the graphs."""
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    extra = {} if ids is None else {"id": ids}

    def step(x, y):
        return criterion(model(x), y, **extra)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    x, y = torch.randn(6, 4, generator=rng), torch.tensor([0, 1, 2, 2, 1, 0])
    for i in range(12):
        criterion.level = 0.2 + i / 8
        values = compiled(x, y), step(x, y)
        gradients = [torch.autograd.grad(value, list(model.parameters())) for value in values]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)
    torch._dynamo.reset()
    return counter.frame_count


@pytest.mark.filterwarnings("ignore:the level should lie below")  # levels up to 1.575 > ln 3
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_torch_compile_makes_one_graph_for_twelve_levels(method, rng):
    criterion = Flood(cross_entropy(method), 0.1, method)
    assert graphs(criterion, rng) == 1
    # Compiled and plain calls in turn: 12 + 12 batches were seen.
    assert criterion.n_seen == 24 * (6 if method.reduction == "none" else 1)
    assert 0 < criterion.flooded_fraction < 1


def test_a_level_that_is_a_python_number_recompiles(rng):
    assert graphs(Naive(0.1), rng) > 1


def test_vmap_of_grad_turns_flooding_into_iflood(rng):
    # Per-example gradients see a batch of one, so the batch mean is each example's own loss.
    w = torch.randn(3, generator=rng, dtype=torch.float64)
    x, y = (
        torch.randn(8, 3, generator=rng, dtype=torch.float64),
        torch.randn(8, generator=rng, dtype=torch.float64),
    )

    def batch_flooded(w, x, y):
        return objective(F.mse_loss(x @ w, y), 1.0)

    def each_flooded(w):
        return objective((x @ w - y).square(), 1.0, IFlood())

    per_example = torch.func.vmap(torch.func.grad(batch_flooded), in_dims=(None, 0, 0))(w, x, y)
    torch.testing.assert_close(
        per_example.mean(0), torch.func.grad(each_flooded)(w), rtol=1e-12, atol=0
    )
    batch = torch.func.grad(batch_flooded)(w, x, y)
    assert not torch.allclose(per_example.mean(0), batch)
    # The criterion keeps counts, which torch.func refuses to change in place: there the trap is an
    # error.
    criterion = Flood(nn.MSELoss(), 1.0)
    with pytest.raises(RuntimeError, match="in-place"):
        torch.func.vmap(torch.func.grad(lambda w, x, y: criterion(x @ w, y)), in_dims=(None, 0, 0))(
            w, x, y
        )


# ---------------------------------------------------------------- the teacher


def test_teacher_is_an_exponential_moving_average():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    teacher = EMATeacher(model, decay=0.75)
    teacher.update_parameters(model)  # the first one copies
    expected = model[0].weight.detach().clone()
    for step in range(3):
        with torch.no_grad():
            model[0].weight += 1.0 + step
            model[1].running_mean += 1.0
        teacher.update_parameters(model)
        expected = 0.75 * expected + 0.25 * model[0].weight.detach()
    torch.testing.assert_close(teacher.module[0].weight, expected)
    assert torch.equal(teacher.module[1].running_mean, model[1].running_mean), "buffers are copied"
    nn.ModuleList([model, teacher]).train()
    assert model.training
    assert not teacher.training
    assert not teacher.module[2].training
    x = torch.ones(4, 2)
    assert torch.equal(teacher(x), teacher(x))
    assert not teacher(x).requires_grad
    assert model(x).requires_grad
    twin = EMATeacher(model, decay=0.75)
    twin.load_state_dict(teacher.state_dict())
    assert torch.equal(twin(x), teacher(x))


def test_wavebound_holds_each_output_at_its_teachers_risk_less_epsilon(rng):
    # More weights than examples, so plain training would drive both risks to 0; the teacher is an
    # early copy.
    x, y = torch.randn(8, 10, generator=rng), torch.randn(8, 2, generator=rng)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(10, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def step(level, method):
        optimizer.zero_grad()
        losses = (model(x) - y).square()
        objective(losses, level, method).backward()
        optimizer.step()
        return losses.detach().mean(0)

    for _ in range(50):
        step(None, IFlood())
    teacher = EMATeacher(model)
    target = (teacher(x) - y).square()
    bound = target.mean(0) - 0.05
    risks = torch.stack([step(target, WaveBound(epsilon=0.05)) for _ in range(200)])
    assert (risks[0] > bound).all()
    # The step turns round when it crosses the level, so it can be no further from it than one step
    # goes.
    one_step = risks[150:].diff(dim=0).abs().amax(0)
    assert ((risks[150:] - bound).abs() <= one_step).all()
    assert (one_step < 0.05).all()
    assert (risks[150:] < bound).any(0).all()

    for _ in range(100):
        plain = step(None, IFlood())
    assert (plain < bound - one_step).all(), "without it both risks fall further"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("level", [0.3, 0.0, -0.5, torch.tensor(0.3), torch.tensor(-math.inf)])
@pytest.mark.parametrize("value", [0.31, 0.3, 0.29, 0.0, -0.5, math.nan, math.inf, -math.inf])
def test_slope_is_what_the_objective_multiplies_the_gradient_by(value, level, dtype):
    loss = torch.tensor(value, dtype=dtype, requires_grad=True)
    objective(loss, level).backward()
    slope = Flooding().slope(loss.detach(), level)
    assert loss.grad.item() == (1.0 if slope is None else slope.item())
