"""What a loss says about itself: the same mean as torch's for each way to write it, reductions,
errors, warnings.

Expected numbers come from torch's own mean of the plain loss, ``functional.cross_entropy(...)`` and
the like.
"""

import copy
import enum
import functools
import math
import pickle
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]

from flooding import Flood, Problem, Run, flood, soft_flood, train
from flooding.criterion import check_reduction
from flooding.data import Split, Splits
from flooding.functional import is_flooded
from flooding.levels import Delayed, Excess, PerClass
from flooding.methods import SAM, Flooding, GradientPenalty, Hinge, IFlood, SoftAD, objective
from flooding.torch_losses import example_weight, loss_options, unreduced
from small import small

MEAN, EACH = [Flooding(), Hinge()], [IFlood(), SoftAD(sigma=0.5)]
CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
name = lambda method: type(method).__name__  # ruff: ignore[lambda-assignment]


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def draw(rng, shape):
    """Scores of 4 classes in float64 and their labels, three in ten of them 255."""
    scores = torch.randn(
        shape[0], 4, *shape[1:], generator=rng, dtype=torch.float64, requires_grad=True
    )
    y = torch.randint(4, shape, generator=rng)
    return scores, y.masked_fill(torch.rand(shape, generator=rng) < 0.3, 255)


# ---------------------------------------------------------------- one mean, however a loss is
# written


def wrapped(loss):
    """Wrap a loss the way a decorator does."""

    @functools.wraps(loss)
    def call(*args, **kwargs):
        return loss(*args, **kwargs)

    return call


class Named(nn.CrossEntropyLoss):
    """A subclass that changes nothing of what is computed."""


def unmerged(*args, **kwargs):
    """Make a partial that functools does not merge with the one around it, since it has an
    attribute."""
    bound = partial(*args, **kwargs)
    bound.note = "mine"
    return bound


FORMS = {
    "module": lambda **o: nn.CrossEntropyLoss(**o),
    "subclass": lambda **o: Named(**o),
    "partial": lambda **o: partial(F.cross_entropy, **o),
    "nested partial": lambda reduction, **o: partial(
        unmerged(F.cross_entropy, reduction=reduction), **o
    ),
    "overridden partial": lambda **o: partial(unmerged(F.cross_entropy, reduction="sum"), **o),
    "wraps of a partial": lambda **o: wrapped(partial(F.cross_entropy, **o)),
    "partial of wraps": lambda **o: partial(wrapped(F.cross_entropy), **o),
    "partial of a module": lambda ignore_index=-100, **o: partial(
        nn.CrossEntropyLoss(ignore_index=ignore_index, **o)
    ),
    "bound forward": lambda **o: nn.CrossEntropyLoss(**o).forward,
}
OPTIONS = {
    "ignored": {"ignore_index": 255},
    "class weights": {"ignore_index": 255, "weight": CLASS_WEIGHTS},
    "smoothing": {"ignore_index": 255, "weight": CLASS_WEIGHTS, "label_smoothing": 0.1},
}
SHAPES = {"[n]": (6,), "[n, d]": (3, 5), "[n, d1, d2]": (2, 3, 4)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_has_torchs_own_mean(form, options, shape, rng):
    scores, y = draw(rng, shape)
    expected = F.cross_entropy(scores, y, **options)
    loss = form(reduction="none", **options)
    for method in EACH:
        criterion = Flood(loss, None, method)
        for got in (
            criterion(scores, y),
            criterion.eval()(scores, y),
            criterion(input=scores, target=y),
        ):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    for method in MEAN:
        criterion = Flood(form(reduction="mean", **options), None, method)
        assert torch.equal(criterion(scores, y), expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("method", [*MEAN, *EACH], ids=name)
def test_every_form_floods_alike(form, method, shape, rng):
    scores, y = draw(rng, shape)
    level, options = 1.0, OPTIONS["class weights"]
    criterion = Flood(form(reduction=method.reduction, **options), level, method)
    if method in MEAN:
        expected = method(F.cross_entropy(scores, y, **options), level)
    else:  # the slow twin: one example after the other, the class weight after the level
        losses = F.cross_entropy(scores, y.clamp_max(3), reduction="none")
        both = zip(losses.view(-1), y.view(-1), strict=True)
        pairs = [(method(one, level), CLASS_WEIGHTS[c]) for one, c in both if c != 255]
        expected = sum(value * weight for value, weight in pairs) / sum(
            weight for _, weight in pairs
        )
        assert criterion(scores, y) is not None
        assert criterion.n_seen == len(pairs)
    torch.testing.assert_close(criterion(scores, y), expected, rtol=1e-12, atol=0)


def test_the_case_of_the_issue():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.randn(6, 4), torch.randint(4, (6,)), torch.randn(6, 4)  # what its script draws first
        seg, mask = torch.randn(2, 5, 8, 8), torch.randint(5, (2, 8, 8))
    mask[:, :6] = 255
    criterion = Flood(
        partial(F.cross_entropy, ignore_index=255, reduction="none"), 1.0, IFlood()
    ).eval()
    assert criterion(seg, mask).item() == pytest.approx(
        1.768, abs=5e-4
    )  # 0.442 with the ignored ones counted


@pytest.mark.parametrize("weight", [None, CLASS_WEIGHTS], ids=["plain", "class weights"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_soft_targets_have_torchs_own_mean(form, shape, weight, rng):
    scores, _ = draw(rng, shape)
    soft = torch.rand(scores.shape, generator=rng, dtype=torch.float64)
    expected = F.cross_entropy(scores, soft, weight)
    criterion = Flood(form(reduction="none", weight=weight), None, IFlood())
    for got in (criterion(scores, soft), criterion.eval()(scores, soft)):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_the_call_count(options, rng):
    scores, y = draw(rng, (6,))
    expected = F.cross_entropy(scores, y, **options)
    criterion = Flood(F.cross_entropy, None, IFlood())
    torch.testing.assert_close(
        criterion(scores, y, reduction="none", **options), expected, rtol=1e-12, atol=0
    )
    smoothing = options.get("label_smoothing", 0.0)
    positional = criterion(scores, y, options.get("weight"), None, 255, None, "none", smoothing)
    torch.testing.assert_close(positional, expected, rtol=1e-12, atol=0)


def test_a_compiled_module_has_torchs_own_mean(rng):
    scores, y = draw(rng, (3, 5))
    loss = torch.compile(
        nn.CrossEntropyLoss(reduction="none", **OPTIONS["smoothing"]), backend="eager"
    )
    expected = F.cross_entropy(scores, y, **OPTIONS["smoothing"])
    torch.testing.assert_close(Flood(loss, None, IFlood())(scores, y), expected, rtol=1e-12, atol=0)


def nll(scores, y, **options):
    return F.nll_loss(scores.log_softmax(1), y, **options)


OTHERS = {
    "nll_loss": (
        partial(F.nll_loss, weight=CLASS_WEIGHTS, ignore_index=255),
        nll,
        OPTIONS["class weights"],
    ),
    "NLLLoss": (
        nn.NLLLoss(weight=CLASS_WEIGHTS, ignore_index=255, reduction="none"),
        nll,
        OPTIONS["class weights"],
    ),
    "uint8": (partial(F.cross_entropy, ignore_index=255), F.cross_entropy, {"ignore_index": 255}),
}


@pytest.mark.parametrize(("loss", "torchs", "options"), OTHERS.values(), ids=OTHERS)
def test_other_losses_of_classes(loss, torchs, options, rng):
    scores, y = draw(rng, (12,))
    expected = torchs(scores, y, **options)
    loss = loss if isinstance(loss, nn.Module) else partial(loss, reduction="none")
    inputs = scores if torchs is F.cross_entropy else scores.log_softmax(1)
    y = y.byte() if torchs is F.cross_entropy else y
    torch.testing.assert_close(Flood(loss, None, IFlood())(inputs, y), expected, rtol=1e-12, atol=0)


def test_bytes_with_class_weights_and_with_a_level_per_class(rng):
    scores, y = draw(rng, (6,))
    criterion = Flood(
        partial(F.cross_entropy, **OPTIONS["class weights"], reduction="none"), None, IFlood()
    )
    expected = F.cross_entropy(scores, y, **OPTIONS["class weights"])
    torch.testing.assert_close(criterion(scores, y.byte()), expected, rtol=1e-12, atol=0)
    assert PerClass([0.5, 0.25]).lookup(torch.tensor([1, 0], dtype=torch.uint8)).tolist() == [
        0.25,
        0.5,
    ]


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.13")
def test_the_last_layer_inside_the_loss(rng):
    features, y = (
        torch.randn(6, 3, generator=rng, requires_grad=True),
        torch.tensor([0, 1, 2, 3, 255, 255]),
    )
    layer = torch.randn(4, 3, generator=rng)
    expected = F.linear_cross_entropy(features, layer, y, ignore_index=255)
    criterion = Flood(
        partial(F.linear_cross_entropy, ignore_index=255, reduction="none"), None, IFlood()
    )
    torch.testing.assert_close(criterion(features, layer, y), expected)
    module = nn.LinearCrossEntropyLoss(3, 4, ignore_index=255, reduction="none")
    expected = F.linear_cross_entropy(features, module.linear.weight, y, ignore_index=255)
    torch.testing.assert_close(Flood(module, None, IFlood())(features, y), expected)


@pytest.mark.parametrize("function", [F.mse_loss, F.l1_loss])
def test_weights_of_elements(function, rng):
    if "weight" not in loss_options.__globals__["_PARAMETERS"][function]:
        pytest.skip("torch before 2.13")
    a, b, w = (torch.rand(4, 3, generator=rng, dtype=torch.float64) for _ in range(3))
    a.requires_grad_()
    criterion = Flood(function, None, IFlood())
    expected = function(a, b, weight=w)
    torch.testing.assert_close(
        criterion(a, b, reduction="none", weight=w), expected, rtol=1e-12, atol=0
    )
    assert not torch.isclose(expected, (function(a, b, reduction="none") * w).mean()), "they differ"


BINARY = {
    "pos_weight": {"pos_weight": torch.tensor([10.0, 1.0, 0.5])},
    "weight": {"weight": torch.tensor([1.0, 2.0, 4.0])},
    "both": {"pos_weight": torch.tensor(3.0), "weight": torch.tensor([1.0, 2.0, 4.0])},
}


@pytest.mark.parametrize("options", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize("function", [False, True], ids=["module", "partial"])
def test_binary_losses_divide_by_the_number_of_elements(function, options, rng):
    scores = torch.randn(5, 3, generator=rng, requires_grad=True)
    y = torch.rand(5, 3, generator=rng).round()
    expected = F.binary_cross_entropy_with_logits(scores, y, **options)
    options = {"reduction": "none", **options}
    loss = (
        partial(F.binary_cross_entropy_with_logits, **options)
        if function
        else nn.BCEWithLogitsLoss(**options)
    )
    torch.testing.assert_close(Flood(loss, None, IFlood())(scores, y), expected)


# ---------------------------------------------------------------- losses of one's own


class Focal(nn.CrossEntropyLoss):
    """A subclass with a formula of its own."""

    def forward(self, scores, y):
        losses = F.cross_entropy(
            scores, y, self.weight, ignore_index=self.ignore_index, reduction="none"
        )
        return (1 - (-losses).exp()) ** 2 * losses


class OwnMask(nn.Module):
    """A loss of one's own with torch's name for what it ignores."""

    def __init__(self, ignore_index=255):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, scores, y):
        return F.cross_entropy(scores, y, ignore_index=self.ignore_index, reduction="none").square()


def squared(scores, y, ignore_index=255):
    return F.cross_entropy(scores, y, ignore_index=ignore_index, reduction="none").square()


OWN = {
    "subclass": Focal(ignore_index=255, reduction="none"),
    "attribute": OwnMask(),
    "default": squared,
    "partial": partial(lambda a, y, ignore_index: squared(a, y, ignore_index), ignore_index=255),
    "keyword only": lambda a, y, *, ignore_index=255: squared(a, y, ignore_index),
}


@pytest.mark.parametrize("loss", OWN.values(), ids=OWN)
def test_what_a_loss_of_ones_own_ignores_counts_for_nothing(loss, rng):
    scores, y = draw(rng, (3, 5))
    losses = loss(scores, y)
    criterion = Flood(loss, 0.75, IFlood())
    expected = flood(losses[y != 255], 0.75).mean()
    torch.testing.assert_close(criterion(scores, y), expected, rtol=1e-12, atol=0)
    assert criterion.n_seen == int((y != 255).sum())
    torch.testing.assert_close(
        criterion.eval()(scores, y), losses[y != 255].mean(), rtol=1e-12, atol=0
    )


def test_losses_of_another_shape_than_the_targets_each_count(rng):
    scores, y = draw(rng, (3, 5))
    sequence = lambda a, y, ignore_index=255: squared(a, y, ignore_index).mean(1)  # ruff: ignore[lambda-assignment]
    torch.testing.assert_close(
        Flood(sequence, 0.5, IFlood())(scores, y), flood(sequence(scores, y), 0.5).mean()
    )


def test_class_weights_in_a_forward_of_ones_own_are_refused():
    loss = Focal(weight=CLASS_WEIGHTS, reduction="none")
    with pytest.raises(
        ValueError,
        match=r"got Focal with one of its own.*objective\(losses, level, method, weight\)",
    ):
        Flood(loss, 0.1, IFlood())
    patched = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, reduction="none")
    patched.forward = lambda scores, y: F.cross_entropy(scores, y, reduction="none")
    with pytest.raises(ValueError, match="what its mean divides by is unknown"):
        Flood(patched, 0.1, IFlood())
    with pytest.raises(ValueError, match="got Focal with one of its own"):
        unreduced(Focal(weight=CLASS_WEIGHTS))


# ---------------------------------------------------------------- the losses of a Run


RUN_LOSSES = {
    "function": F.cross_entropy,
    "partial": partial(F.cross_entropy, **OPTIONS["class weights"]),
    "nested": partial(unmerged(F.cross_entropy, ignore_index=255), weight=CLASS_WEIGHTS),
    "module": nn.CrossEntropyLoss(**OPTIONS["smoothing"]),
    "compiled": torch.compile(nn.CrossEntropyLoss(**OPTIONS["ignored"]), backend="eager"),
    "wraps": wrapped(partial(F.cross_entropy, **OPTIONS["class weights"])),
    "partial of a module": partial(nn.CrossEntropyLoss(**OPTIONS["class weights"])),
    "legacy": partial(F.cross_entropy, size_average=True, ignore_index=255),
    "own": lambda a, y, ignore_index=255, reduction="mean": F.cross_entropy(
        a, y, ignore_index=ignore_index, reduction=reduction
    ),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("loss", RUN_LOSSES.values(), ids=RUN_LOSSES)
def test_per_example_losses_of_a_run_have_its_own_mean(loss, rng):
    scores, y = draw(rng, (6,))
    y = y.clamp_max(3) if loss is F.cross_entropy else y
    elementwise = unreduced(loss)
    losses = elementwise(scores, y)
    weight = example_weight(elementwise, y, losses)
    assert losses.shape == (6,)
    if weight is not None:
        losses = losses / weight.masked_fill(weight == 0, 1)
    torch.testing.assert_close(
        objective(losses, None, IFlood(), weight), loss(scores, y), rtol=1e-12, atol=0
    )


def test_nll_and_batchmean_as_losses_of_a_run(rng):
    scores, y = draw(rng, (6,))
    logs, soft = (
        scores.log_softmax(1),
        torch.rand(6, 4, generator=rng, dtype=torch.float64).softmax(1),
    )
    for loss in (partial(F.nll_loss, **OPTIONS["class weights"]), nn.NLLLoss(ignore_index=255)):
        elementwise = unreduced(loss)
        weight = example_weight(elementwise, y)
        losses = elementwise(logs, y) / weight.masked_fill(weight == 0, 1)
        torch.testing.assert_close(
            objective(losses, None, IFlood(), weight), loss(logs, y), rtol=1e-12, atol=0
        )
    for loss in (nn.KLDivLoss(reduction="batchmean"), partial(F.kl_div, reduction="batchmean")):
        losses = unreduced(loss)(logs, soft)
        assert losses.shape == (6,)
        torch.testing.assert_close(losses.mean(), loss(logs, soft), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(100,), (7, 30)])
def test_the_losses_of_a_run_are_those_of_the_module_bit_for_bit(shape, rng):
    scores, y = (
        torch.randn(shape[0], 4, *shape[1:], generator=rng),
        torch.randint(4, shape, generator=rng),
    )
    module = nn.CrossEntropyLoss(reduction="none")
    assert torch.equal(unreduced(F.cross_entropy)(scores, y), module(scores, y))
    losses, weight = module(scores, y), example_weight(module, y)
    means = objective(losses, None, IFlood(), weight), losses.mean()
    assert torch.equal(*means), "as nll_loss had it before"
    scores.requires_grad_()
    losses = module(scores, y)
    means = objective(losses / weight, None, IFlood(), weight), losses.mean()
    assert torch.equal(*(torch.autograd.grad(mean, scores, retain_graph=True)[0] for mean in means))


def ignoring(fraction):
    """Two Gaussians of which some training labels are ignored."""
    splits = small().splits(0)
    train_split = splits.train
    y = train_split.y.clone()
    y[: int(fraction * len(y))] = -100
    return Splits(Split(train_split.x, y), splits.val, splits.test)


def test_a_level_per_class_in_a_run_with_ignored_targets():
    data, table = ignoring(0.25), PerClass([0.3, 0.3])
    runs = [Run(small(data=data), level, IFlood()) for level in (0.3, table)]
    plain, per_class = (list(train(run))[-1].record for run in runs)
    assert per_class.weights_sha256 == plain.weights_sha256


# ---------------------------------------------------------------- reductions


class Word(enum.Enum):
    MEAN, NONE, SUM = "mean", "none", "sum"


class Number(enum.IntEnum):
    NONE, MEAN, SUM = range(3)


class Own(nn.Module):
    """A loss that reads its reduction as a word or a member of an Enum."""

    def __init__(self, reduction):
        super().__init__()
        self.reduction = reduction

    def forward(self, scores, y):
        word = getattr(self.reduction, "name", self.reduction)
        losses = F.cross_entropy(scores, y, reduction="none")
        return (
            losses
            if word in ("NONE", "none")
            else losses.sum()
            if word in ("SUM", "sum", "Sum")
            else losses.mean()
        )


def summing(scores, y, reduction="sum"):
    return F.mse_loss(scores, y, reduction=reduction)


def leading(reduction, scores, y):
    return F.cross_entropy(scores, y, reduction=reduction)


MEANS = {
    "Enum": Own(Word.MEAN),
    "IntEnum": Own(Number.MEAN),
    "elementwise_mean": Own("elementwise_mean"),
    "mean_batch": Own("mean_batch"),
    "None": Own(None),
    "number": Own(16),
    "positional": partial(leading, "mean"),
    "legacy": partial(F.cross_entropy, size_average=True),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS)
@pytest.mark.parametrize("method", MEAN, ids=name)
def test_a_scalar_mean_by_any_word_is_accepted(loss, method, rng):
    scores, y = (
        torch.randn(6, 4, generator=rng, requires_grad=True),
        torch.randint(4, (6,), generator=rng),
    )
    torch.testing.assert_close(
        Flood(loss, 0.5, method)(scores, y), method(F.cross_entropy(scores, y), 0.5)
    )
    Problem(small().data, small().model, loss=loss)


@pytest.mark.parametrize(
    "loss", [nn.KLDivLoss(reduction="batchmean"), partial(F.kl_div, reduction="batchmean")]
)
@pytest.mark.parametrize("method", MEAN, ids=name)
def test_batchmean_is_a_mean(loss, method, rng):
    logs = torch.randn(6, 4, generator=rng).log_softmax(1).requires_grad_()
    soft = torch.rand(6, 4, generator=rng).softmax(1)
    raw = F.kl_div(logs, soft, reduction="batchmean")
    criterion = Flood(loss, 1.0, method)
    torch.testing.assert_close(criterion(logs, soft), method(raw, 1.0))
    torch.testing.assert_close(criterion.eval()(logs, soft), raw)
    Problem(small().data, small().model, loss=loss)


SUMS = {
    "partial": partial(F.mse_loss, reduction="sum"),
    "nested": partial(unmerged(F.cross_entropy, reduction="sum"), label_smoothing=0.1),
    "legacy": partial(F.mse_loss, size_average=False),
    "Enum": Own(Word.SUM),
    "IntEnum": Own(Number.SUM),
    "capital": Own("Sum"),
    "default": summing,
    "positional": partial(leading, "sum"),
    "module": nn.KLDivLoss(reduction="sum"),
    "wraps": wrapped(partial(F.mse_loss, reduction="sum")),
    "compiled": torch.compile(nn.MSELoss(reduction="sum"), backend="eager"),
    "bound forward": nn.MSELoss(reduction="sum").forward,
}


@pytest.mark.parametrize("loss", SUMS.values(), ids=SUMS)
def test_a_sum_is_refused(loss):
    for method in (*MEAN, *EACH):
        with pytest.raises(
            ValueError, match=rf"got a criterion with reduction='sum'. Build.*'{method.reduction}'"
        ):
            Flood(loss, 0.1, method)
    for field in ("loss", "eval_loss"):
        with pytest.raises(
            ValueError,
            match=f"the {field} must be a batch's mean, got reduction='sum'.*reduction='mean'",
        ):
            Problem(small().data, small().model, **{field: loss})
    assert check_reduction(F.mse_loss) is None


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("keywords", [{"reduction": "sum"}, {"size_average": False}], ids=str)
def test_a_sum_of_the_call_is_refused(keywords, rng):
    a, b = torch.rand(4, generator=rng, requires_grad=True), torch.rand(4, generator=rng)
    with pytest.raises(ValueError, match="got a call with reduction='sum'"):
        Flood(F.mse_loss, 0.1)(a, b, **keywords)
    with pytest.raises(ValueError, match="got a call with reduction='sum'"):
        Flood(F.mse_loss, 0.1)(a, b, None, None, "sum")


NONES = {
    "partial": partial(F.cross_entropy, reduction="none"),
    "legacy": partial(F.mse_loss, reduce=False),
    "Enum": Own(Word.NONE),
    "default": lambda a, y, reduction="none": F.mse_loss(a, y, reduction=reduction),
}


@pytest.mark.parametrize("loss", NONES.values(), ids=NONES)
def test_a_problem_takes_no_losses_per_example(loss):
    with pytest.raises(
        ValueError, match=r"the loss must be a batch's mean, got reduction='none'\. Per-example"
    ):
        Problem(small().data, small().model, loss=loss)


def test_a_problem_takes_a_plain_loss_that_is_built():
    with pytest.raises(ValueError, match=r"got the class MSELoss\. Write MSELoss\(\)"):
        Problem(small().data, small().model, loss=nn.MSELoss)
    with pytest.raises(
        ValueError, match=r"the loss must be plain, got Flood\. Give the Problem its criterion"
    ):
        Problem(small().data, small().model, loss=Flood(nn.MSELoss(), 0.1))


def test_reductions_of_a_run_are_set_to_none(rng):
    scores, y = torch.randn(6, 4, generator=rng), torch.randint(4, (6,), generator=rng)
    for loss in (Own(Word.MEAN), Own(Number.MEAN), Own("elementwise_mean"), nn.CrossEntropyLoss()):
        before = loss.reduction
        assert unreduced(loss)(scores, y).shape == (6,)
        assert loss.reduction is before, "the loss itself is left alone"

    def narrow(scores, y):
        return F.cross_entropy(scores, y)

    for loss in (
        narrow,
        functools.wraps(F.cross_entropy)(narrow),
        partial(leading, "mean"),
        Silent(),
        Two(Some.MEAN),
    ):
        with pytest.raises(
            ValueError, match=r"needs a loss with reduction='none', got .* Give it that argument"
        ):
            unreduced(loss)


class Silent(nn.Module):
    def forward(self, scores, y):
        return F.cross_entropy(scores, y)


class Some(enum.Enum):
    MEAN, SUM = "mean", "sum"


class Two(Own):
    """A loss whose Enum has no member for none."""


# ---------------------------------------------------------------- errors: arguments in the wrong
# place, wrong types


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (0.1, nn.CrossEntropyLoss()),
            r"criterion must be a loss .* got 0.1. The order is Flood\(criterion, level\)",
        ),
        ((torch.tensor(0.1), nn.CrossEntropyLoss()), r"got tensor\(0.1000\). The order is Flood"),
        (("cross_entropy", 0.1), "got 'cross_entropy'. The order is"),
        ((None, 0.1), "got None. The order is"),
        (
            (nn.CrossEntropyLoss, 0.1),
            r"got the class CrossEntropyLoss. Build it first: CrossEntropyLoss\(\)",
        ),
        (
            (F.mse_loss, F.mse_loss),
            r"level must be a number.*got <function.*Flood\(criterion, level\)",
        ),
        (
            (nn.MSELoss(), nn.MSELoss()),
            r"level must be a number.*got MSELoss\(\).*Flood\(criterion, level\)",
        ),
        ((nn.MSELoss(), 0.1, "iflood"), "method must be a method such as .* got 'iflood'"),
        ((nn.MSELoss(), 0.1, IFlood), "got <class .*IFlood'>. Build it first"),
        ((nn.MSELoss(), 0.1, SAM()), "SAM needs more than the loss.* Use a Run"),
        ((nn.MSELoss(), 0.1, GradientPenalty(0.1)), "GradientPenalty needs more than the loss"),
    ],
)
def test_arguments_of_flood_in_the_wrong_place(arguments, message):
    with pytest.raises(TypeError, match=message):
        Flood(*arguments)


NO_LEVELS = {
    "string": ("1e-2", "got '1e-2'. Write it without quotes"),
    "bytes": (b"1", "Write it without quotes"),
    "list": ([0.1, 0.2], r"got \[0.1, 0.2\].*PerClass or PerExample"),
    "tuple": ((0.1,), "PerClass or PerExample"),
    "array with an axis": (np.array([0.1]), "PerClass or PerExample"),
    "function": (lambda epoch: 0.1, "For a schedule set criterion.level"),
    "dict": ({"level": 0.1}, "level must be a number"),
    "complex": (1j, "level must be a number"),
    "Decimal": (Decimal("0.1"), r"pass float\(\) of it"),
    "True": (True, "got True. Write 0.0 or 1.0"),
    "np.False_": (np.False_, "Write 0.0 or 1.0"),
    "array of a string": (np.array("0.1"), "Write it without quotes"),
    "class of controllers": (Delayed, "Build it first"),
    "bool tensor": (torch.tensor(True), "must hold a real number, got torch.bool"),
    "complex tensor": (torch.tensor(1j), "must hold a real number, got torch.complex64"),
}


@pytest.mark.parametrize(("level", "message"), NO_LEVELS.values(), ids=NO_LEVELS)
def test_what_is_no_level_is_refused_and_changes_nothing(level, message):
    with pytest.raises(TypeError, match=message):
        Flood(nn.MSELoss(), level)
    table = PerClass([0.1, 0.2])
    criterion = Flood(nn.CrossEntropyLoss(reduction="none"), table, IFlood())
    with pytest.raises(TypeError, match=message):
        criterion.level = level
    assert torch.equal(criterion.level.levels, table.levels)
    if not isinstance(level, torch.Tensor):
        with pytest.raises(TypeError, match=message):
            Excess(level, classes=2)


def test_a_level_that_should_be_trained_is_refused():
    with pytest.raises(TypeError, match=r"must not be a Parameter.* Pass level.detach\(\)"):
        Flood(nn.MSELoss(), nn.Parameter(torch.tensor(0.1)))


@pytest.mark.parametrize(
    "level",
    [
        0.25,
        np.float16(0.25),
        np.float32(0.25),
        np.float64(0.25),
        np.array(0.25),
        np.array(0.25, np.float32),
        Fraction(1, 4),
    ],
    ids=lambda level: f"{type(level).__name__} {getattr(level, 'dtype', '')}",
)
def test_any_real_number_is_a_level(level, rng):
    a, b = torch.rand(4, generator=rng, requires_grad=True), torch.zeros(4)
    assert Flood(nn.MSELoss(), level).level == 0.25
    assert torch.equal(Flood(nn.MSELoss(), level)(a, b), Flood(nn.MSELoss(), 0.25)(a, b))
    for whole in (1, np.int64(1), np.array(1)):
        assert Flood(nn.MSELoss(), whole).level == 1.0


@pytest.mark.parametrize(
    "level",
    [10**400, 1e39, -1e39, np.float64("inf"), np.array(math.nan)],
    ids=lambda v: f"{v!s:.9}",
)
def test_numbers_too_large_for_the_level_are_refused(level):
    with pytest.raises(ValueError, match="level must be finite"):
        Flood(nn.MSELoss(), level)
    assert Flood(nn.MSELoss().double(), torch.tensor(1e39, dtype=torch.float64)).level == 1e39


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("ab", "got 'ab'"),
        ([True, False], "got torch.bool"),
        ([1j], "got torch.complex64"),
        ({"a": 1}, "got {'a': 1}"),
    ],
)
def test_tables_of_levels_are_numbers(levels, message):
    with pytest.raises(
        TypeError, match=f"levels must be a 1-d tensor of finite numbers, {message}"
    ):
        PerClass(levels)


RETURNS = {
    "dict": (
        {"loss": 1.0, "logits": 2.0},
        "a dict with keys 'loss', 'logits'. Return the loss alone",
    ),
    "tuple": ((torch.tensor(1.0), None), "a tuple of 2. Return the loss alone"),
    "list": ([torch.tensor(1.0)], "a list of 1. Return the loss alone"),
    "float": (0.5, "float 0.5, which has no gradient"),
    "NumPy scalar": (np.float32(0.5), "float32 .*which has no gradient"),
    "array": (np.zeros(2), "ndarray .*which has no gradient"),
    "None": (None, "None. Does the function end with a return"),
    "module": (nn.MSELoss(), "the module MSELoss. Build the loss once"),
}


@pytest.mark.parametrize(("value", "message"), RETURNS.values(), ids=RETURNS)
def test_a_loss_that_returns_no_tensor(value, message):
    for mode in (True, False):
        with pytest.raises(ValueError, match=f"the loss must be one tensor, got {message}"):
            Flood(lambda a, b: value, 0.1).train(mode)(
                torch.zeros(2, requires_grad=True), torch.zeros(2)
            )


LABELS = torch.tensor([0, 1, 2, 2])
MISFITS = {
    "int32": (
        F.cross_entropy,
        lambda x: (x, LABELS.int()),
        r"int64, got torch.int32 .* Pass y.long\(\)",
    ),
    "float labels": (
        nn.NLLLoss(),
        lambda x: (x, LABELS.float()),
        r"int64, got torch.float32 .* Pass y.long\(\)",
    ),
    "bool": (
        nn.CrossEntropyLoss(),
        lambda x: (x, LABELS > 0),
        r"got torch.bool .* Pass y.long\(\)",
    ),
    "from 1": (
        F.cross_entropy,
        lambda x: (x, LABELS + 1),
        r"0 to 2, since outputs have 3 scores, got \[3\].*from 1",
    ),
    "negative": (nn.CrossEntropyLoss(), lambda x: (x, LABELS - 1), r"got \[-1\]"),
    "255": (
        F.cross_entropy,
        lambda x: (x, LABELS.masked_fill(LABELS == 0, 255)),
        r"got \[255\].*ignore_index",
    ),
    "an axis too many": (
        nn.CrossEntropyLoss(),
        lambda x: (x, LABELS[:, None]),
        r"\[4, 1\] .* Pass y.squeeze\(1\)",
    ),
    "NumPy targets": (
        F.cross_entropy,
        lambda x: (x, LABELS.numpy()),
        r"targets of type ndarray. Pass torch.as_tensor",
    ),
    "list": (
        nn.MSELoss(),
        lambda x: (x, [0.0]),
        r"mse_loss needs tensors, got targets of type list",
    ),
    "tuple of outputs": (
        nn.CrossEntropyLoss(),
        lambda x: ((x, x), LABELS),
        "outputs of type tuple. Pass the tensor in it",
    ),
    "whole numbers": (
        nn.BCEWithLogitsLoss(),
        lambda x: (x[:, 0], LABELS),
        r"float targets, got torch.int64. Pass y.float",
    ),
    "double weights": (
        partial(F.cross_entropy, weight=torch.ones(3, dtype=torch.float64)),
        lambda x: (x, LABELS),
        "class weights must be torch.float32 as the outputs are, got torch.float64",
    ),
}


@pytest.mark.parametrize(("loss", "batch", "message"), MISFITS.values(), ids=MISFITS)
def test_arguments_that_do_not_fit_a_loss_of_torch(loss, batch, message):
    with pytest.raises(ValueError, match=message) as caught:
        Flood(loss, 0.1)(*batch(torch.zeros(4, 3, requires_grad=True)))
    assert caught.value.__cause__ is not None, "torch's own error stays visible"


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_other_errors_of_a_loss_pass_through():
    def broken(a, b):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        Flood(broken, 0.1)(torch.zeros(1), torch.zeros(1))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Flood(nn.MSELoss(), 0.1)(torch.zeros(1))
    with pytest.raises(RuntimeError, match="must match the size"):
        Flood(F.l1_loss, 0.1).eval()(torch.zeros(2, 3), torch.zeros(2, 2))


# ---------------------------------------------------------------- a level per class


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_is_ignored_is_no_class(form, rng):
    scores, y = draw(rng, (3, 5))
    criterion = Flood(
        form(reduction="none", ignore_index=255), PerClass([0.5, 1.0, 1.5, 2.0]), IFlood()
    )
    losses, valid = F.cross_entropy(scores, y.clamp_max(3), reduction="none"), y != 255
    levels = torch.tensor([0.5, 1.0, 1.5, 2.0])[y[valid]]
    torch.testing.assert_close(
        criterion(scores, y), flood(losses[valid], levels).mean(), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    ("classes", "wrong"), [([0, 2], "2"), ([-1, 1], "-1"), ([5, 9, 1], "5, 9")]
)
def test_classes_outside_the_table(classes, wrong):
    table = PerClass([0.1, 0.2])
    with pytest.raises(
        IndexError, match=rf"classes must lie in 0 to 1, .* 2 levels, got \[{wrong}\].*ignore_index"
    ):
        table.lookup(torch.tensor(classes))


def test_levels_per_class_need_classes(rng):
    criterion = Flood(nn.CrossEntropyLoss(reduction="none"), PerClass([0.1, 0.2, 0.3]), IFlood())
    scores = torch.randn(4, 3, generator=rng, requires_grad=True)
    with pytest.raises(
        TypeError, match=r"integer classes, got torch\.float32\. For soft targets see Excess"
    ):
        criterion(scores, scores.detach().softmax(1))
    own = Flood(
        lambda a, labels: F.cross_entropy(a, labels, reduction="none"),
        PerClass([0.1, 0.2, 0.3]),
        IFlood(),
    )
    with pytest.raises(TypeError, match=r"need the targets, got NoneType\. Pass them as target=y"):
        own(scores, labels=LABELS)


# ---------------------------------------------------------------- warnings


def best_guess(loss, scores, target):
    """Search the lowest loss of one probability for all, over a grid of logits."""
    grid = torch.linspace(-6, 6, 241)
    return min(loss(torch.full_like(scores, z), target).item() for z in grid.tolist())


def test_the_guess_with_pos_weight_is_not_ln_2(rng):
    # The case of the issue, and the reason why nothing is said there.
    rare, loss = (
        (torch.rand(1000, generator=rng) < 0.3).float(),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(10.0)),
    )
    assert best_guess(loss, torch.zeros(1000), rare) > 1.7 > math.log(2)


SILENT = {
    "pos_weight": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(10.0)), "binary", 1.5),
    "pos_weight in a partial": (
        partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor([10.0, 1.0, 1.0])),
        "binary",
        1.5,
    ),
    "weight of BCE": (nn.BCEWithLogitsLoss(weight=torch.tensor(5.0)), "binary", 3.0),
    "soft targets with class weights": (
        nn.CrossEntropyLoss(weight=torch.full((3,), 5.0)),
        "soft",
        5.0,
    ),
    "several labels at once": (nn.CrossEntropyLoss(), "multi-hot", 2.0),
    "class weights and smoothing": (
        partial(F.cross_entropy, weight=torch.tensor([0.1, 9.0, 9.0]), label_smoothing=0.5),
        "labels",
        1.2,
    ),
    "floor with class weights": (
        nn.CrossEntropyLoss(weight=torch.tensor([9.0, 0.1, 0.1]), label_smoothing=0.1),
        "labels",
        0.2,
    ),
    "own forward": (Focal(reduction="none"), "each", 2.0),
    "below": (F.cross_entropy, "labels", 1.0),
}


def targets(kind, rng):
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    hot = F.one_hot(y, 3).float()
    soft = {"binary": hot, "soft": 0.9 * hot + 0.1 / 3, "multi-hot": hot + hot.roll(1, 1)}
    return soft.get(kind, y)


@pytest.mark.parametrize(("loss", "kind", "level"), SILENT.values(), ids=SILENT)
def test_no_warning_where_the_loss_of_a_guess_is_another(loss, kind, level, rng):
    scores = torch.randn(6, 3, generator=rng, requires_grad=True)
    Flood(loss, level, IFlood() if kind == "each" else Flooding())(
        scores, targets(kind, rng)
    )  # warnings are errors


WARNED = {
    "partial": (partial(F.cross_entropy), "labels", "ln 3"),
    "nested partial": (
        partial(unmerged(F.cross_entropy, ignore_index=5), label_smoothing=0.1),
        "labels",
        "ln 3",
    ),
    "class weights": (nn.CrossEntropyLoss(weight=torch.tensor([0.1, 9.0, 1.0])), "labels", "ln 3"),
    "wraps": (wrapped(F.nll_loss), "labels", "ln 3"),
    "binary function": (F.binary_cross_entropy_with_logits, "binary", "ln 2"),
    "BCELoss": (nn.BCELoss(), "binary", "ln 2"),
}


@pytest.mark.parametrize(("loss", "kind", "guess"), WARNED.values(), ids=WARNED)
def test_a_level_above_the_loss_of_a_guess_warns_in_every_form(loss, kind, guess, rng):
    scores, target = torch.rand(6, 3, generator=rng, requires_grad=True), targets(kind, rng)
    same = torch.full((6, 3), {"ln 3": math.log(1 / 3), "ln 2": 0.0}[guess])
    same = torch.full((6, 3), 0.5) if isinstance(loss, nn.BCELoss) else same
    assert loss(same, target).item() == pytest.approx(math.log(int(guess[-1]))), (
        "it is the loss of a guess"
    )
    with pytest.warns(UserWarning, match=f"below {guess} = .*, got 1.2"):
        Flood(loss, 1.2)(scores, target)


def test_a_level_below_the_floor_of_a_smoothed_partial_warns(rng):
    scores, y = torch.randn(6, 3, generator=rng, requires_grad=True), targets("labels", rng)
    for call in (
        lambda: Flood(partial(F.cross_entropy, label_smoothing=0.1), 0.2)(scores, y),
        lambda: Flood(F.cross_entropy, 0.2)(scores, y, label_smoothing=0.1),
    ):
        with pytest.warns(
            UserWarning, match=r"above 0.2911, the lowest loss that label smoothing 0.1 allows"
        ):
            call()


def test_excess_levels_refuse_class_weights_in_a_partial():
    with pytest.raises(ValueError, match="Excess supports no class weights"):
        Flood(partial(F.cross_entropy, weight=torch.ones(2)), Excess(0.1, classes=2))


# ---------------------------------------------------------------- state and tools


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"]
)
def test_copies_of_a_partial_criterion(clone, rng):
    scores, y = draw(rng, (6,))
    criterion = Flood(
        partial(F.cross_entropy, **OPTIONS["class weights"], reduction="none"), 0.5, IFlood()
    )
    assert torch.equal(clone(criterion)(scores, y), criterion(scores, y))
    assert list(criterion.state_dict()) == []
    assert list(Flood(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), 0.5).state_dict()) == [
        "criterion.weight"
    ]


def test_the_printed_form_shows_level_and_method():
    assert "level=0.1, method=Flooding()" in repr(Flood(nn.MSELoss(), 0.1))
    assert "level=None, method=Hinge()" in repr(Flood(F.mse_loss, None, Hinge()))
    assert "level=PerClass, method=IFlood()" in repr(
        Flood(nn.NLLLoss(reduction="none"), PerClass([0.1]), IFlood())
    )


@pytest.mark.parametrize(
    "loss",
    [
        partial(F.cross_entropy, weight=CLASS_WEIGHTS.float(), ignore_index=255, reduction="none"),
        squared,
    ],
    ids=["partial", "own"],
)
def test_compiled_forms_keep_one_graph(loss, rng):
    scores, y = torch.randn(3, 4, generator=rng, requires_grad=True), torch.tensor([0, 255, 2])
    criterion = Flood(loss, 0.1, IFlood())
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(
        lambda scores, y: criterion(scores, y), fullgraph=True, backend=counter
    )
    for level in (0.1, 0.5, 1.0):
        criterion.level = level
        torch.testing.assert_close(compiled(scores, y), criterion(scores, y))
    torch._dynamo.reset()
    assert counter.frame_count == 1


def test_torch_func_names_the_way_out():
    criterion = Flood(nn.MSELoss(), 1.0)
    with pytest.raises(
        RuntimeError, match=r"counts in-place, which torch.func does not allow. Call objective\("
    ):
        torch.func.grad(lambda a: criterion(a, torch.zeros(3)))(torch.ones(3))


@pytest.mark.parametrize("loss", [0.5, np.ones(2), torch.ones(2)], ids=["float", "NumPy", "torch"])
@pytest.mark.parametrize("formula", [flood, soft_flood, is_flooded])
def test_formulas_say_what_is_no_number(formula, loss):
    with pytest.raises(
        TypeError, match=r"numbers or arrays.* level of type str. Convert it: float\('0.1'\)"
    ):
        formula(loss, "0.1")
    with pytest.raises(
        TypeError, match=r"a loss of type dict and a level of type float\. Pass the numbers"
    ):
        formula({}, 0.1)
