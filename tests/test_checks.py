"""The parts of a Problem must fit together: said on the first batch, with rule, value and fix."""

import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import lr_scheduler

from flooding import Problem, Run, find_level, train
from flooding.data import Split, Splits
from flooding.methods import IFlood, WaveBound
from flooding.training.checks import check_last_batch
from small import adam

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def halves(x, y):
    return Splits(Split(x[:20], y[:20]), Split(x[20:30], y[20:30]), Split(x[30:], y[30:]))


def net(outputs=2):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


class Scalars(nn.Module):
    """Outputs [n]."""

    def __init__(self):
        super().__init__()
        self.net = net(1)

    def forward(self, x):
        return self.net(x).squeeze(1)


class As(nn.Module):
    """Gives its outputs in a structure."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = net(), kind

    def forward(self, x):
        return self.kind(self.net(x))


class AsInTraining(As):
    """Gives its outputs in a structure in training alone, as GoogLeNet does."""

    def forward(self, x):
        return super().forward(x) if self.training else self.net(x)


def problem(**changes):
    return Problem(
        **{"data": halves(X, Y), "model": net, "optimizer": adam, "max_epochs": 3, "batch_size": 8}
        | changes
    )


def refused(message, method=None, **changes):
    """Both ways in must refuse, one before any worker starts."""
    run = Run(problem(**changes)) if method is None else Run(problem(**changes), 0.1, method)
    with pytest.raises(ValueError, match=message) as error:
        list(train(run))
    assert "\n" not in str(error.value)


# Shapes


ELEMENTWISE = [
    F.mse_loss,
    nn.MSELoss(),
    partial(F.l1_loss, reduction="mean"),
    nn.HuberLoss(delta=0.5),
    partial(partial(F.smooth_l1_loss, beta=0.5), reduction="mean"),
    nn.BCEWithLogitsLoss(),
    F.poisson_nll_loss,
]


@pytest.mark.parametrize(
    "loss", ELEMENTWISE, ids=lambda loss: type(getattr(loss, "func", loss)).__name__
)
def test_outputs_n_1_against_targets_n_are_refused(loss):
    refused(
        r"outputs \[20, 1\] and targets \[20\]\. Give the targets that axis",
        loss=loss,
        data=halves(X, Y.float()),
        model=partial(net, 1),
    )
    refused(
        r"outputs \[20\] and targets \[20, 1\]\. Drop the last axis",
        loss=loss,
        data=halves(X, Y.float()[:, None]),
        model=Scalars,
    )
    refused(
        r"outputs \[20, 3\] and targets \[20, 1\]\. Give both the same",
        loss=loss,
        data=halves(X, Y.float()[:, None]),
        model=partial(net, 3),
    )
    fits = problem(loss=loss, data=halves(X, Y.float()[:, None]), model=partial(net, 1))
    assert list(train(Run(fits)))[-1].record is not None


def test_a_loss_of_torch_inside_ones_own_is_refused_too_but_not_what_makes_the_shapes_equal():
    data = halves(X, Y.float())
    with (
        pytest.warns(UserWarning, match="target size")
        if False
        else pytest.raises(ValueError, match=r"\[20, 1\] and targets \[20\]")
    ):
        list(
            train(
                Run(
                    problem(
                        loss=lambda output, y: F.mse_loss(output, y),
                        data=data,
                        model=partial(net, 1),
                    )
                )
            )
        )
    for loss in (
        lambda output, y: F.mse_loss(output.squeeze(1), y),
        lambda output, y: F.mse_loss(output, y.view_as(output)),
        lambda output, y: (output[:, 0] - y).square().mean(),
    ):
        list(train(Run(problem(loss=loss, data=data, model=partial(net, 1)))))


def test_a_loss_of_ones_own_that_makes_every_pair_is_told(caplog):
    def pairs(output, y):
        return (output - y).square().mean()

    list(train(Run(problem(loss=pairs, data=halves(X, Y.float()), model=partial(net, 1)))))
    told = [r.message for r in caplog.records if "every pair" in r.message]
    assert told
    assert "[20, 1] and [20]" in told[0]
    caplog.clear()
    list(train(Run(problem(loss=pairs, data=halves(X, Y.float()), model=Scalars))))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": partial(net, 1)},
            r"at least two classes, got outputs \[20, 1\].*BCEWithLogitsLoss",
        ),
        (
            {"data": halves(X, Y[:, None])},
            r"must have shape \[20\], got outputs \[20, 2\] and targets \[20, 1\].*squeeze",
        ),
        (
            {"data": halves(X, F.one_hot(Y))},
            r"targets \[20, 2\]\. For one-hot targets use y\.argmax\(1\)",
        ),
        ({"model": Scalars}, r"needs outputs \[n, classes\], got outputs \[20\]"),
        (
            {"data": halves(X, Y.float())},
            r"must be int64, got torch\.float32 \[20\]\. Convert with y\.long",
        ),
        (
            {"loss": F.nll_loss, "data": halves(X, F.one_hot(Y).float())},
            r"nll_loss must be int64, got torch\.float32",
        ),
        (
            {
                "loss": nn.CrossEntropyLoss(),
                "model": partial(As, lambda o: o[:, None].expand(-1, 5, -1)),
                "data": halves(X, Y[:, None].expand(-1, 5)),
            },
            r"movedim",
        ),
    ],
    ids=[
        "one logit",
        "an axis too many",
        "one-hot integers",
        "no class axis",
        "float labels",
        "nll of probabilities",
        "classes last",
    ],
)
def test_outputs_and_targets_of_class_losses_must_fit(changes, message):
    refused(message, **changes)


def test_class_probabilities_and_uint8_labels_are_as_good():
    list(train(Run(problem(data=halves(X, F.one_hot(Y).float())))))
    one, two = (list(train(Run(problem(data=halves(X, y)))))[-1].record for y in (Y, Y.byte()))
    assert one.weights_sha256 == two.weights_sha256
    assert one.metrics == two.metrics


# Labels


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.bool], ids=str)
@pytest.mark.parametrize(
    "loss",
    [F.cross_entropy, nn.NLLLoss(), partial(F.multi_margin_loss, p=1)],
    ids=["ce", "nll", "margin"],
)
def test_labels_that_are_no_int64_are_refused(dtype, loss):
    refused(
        rf"must be torch\.int64, got {dtype} in the train split\. Convert them with y\.long\(\)",
        data=halves(X, Y.to(dtype)),
        loss=loss,
    )


def with_label(label, at):
    y = Y.clone()
    y[at] = label
    return halves(X, y)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            halves(X, Y + 1),
            r"labels must be 0 to 1, since the model has 2 outputs, got 1 to 2 in the train .* Count from 0: y - 1",
        ),
        (with_label(5, 3), r"got 0 to 5 in the train split\. Give the model 6 outputs"),
        (with_label(2, 25), r"got 0 to 2 in the val split"),
        (with_label(2, 35), r"got 0 to 2 in the test split"),
        (
            with_label(-1, 35),
            r"got -1 to 1 in the test split\. If -1 marks what to leave out, set ignore_index=-1",
        ),
        (with_label(255, 3), r"set ignore_index=255"),
    ],
    ids=["from 1", "in training", "in validation", "in test", "-1", "255"],
)
def test_labels_without_an_output_are_refused_before_training(data, message):
    refused(message, data=data)
    refused(message, data=data, loss=partial(F.cross_entropy, ignore_index=-7))


def test_labels_without_an_output_under_a_loss_of_ones_own_are_told(caplog):
    def own(output, y):
        return F.cross_entropy(output, y, ignore_index=-1)

    list(train(Run(problem(data=with_label(-1, 3), loss=own))))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "from -1 to 1, but the model has outputs 0 to 1" in record.getMessage()
    own.ignore_index = -1
    caplog.clear()
    list(train(Run(problem(data=with_label(-1, 3), loss=own))))
    assert caplog.records == []


@pytest.mark.parametrize("name", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (F.cross_entropy, -100),
        (nn.CrossEntropyLoss(ignore_index=255), 255),
        (partial(F.nll_loss, ignore_index=1), 1),
    ],
    ids=["-100", "255", "a class"],
)
def test_a_split_without_a_target_that_counts_is_refused(name, loss, label):
    data = halves(X, Y.clone())
    y = getattr(data, name).y
    y[:] = label
    message = (
        rf"the {name} split must hold at least one target that counts, but all {len(y)} are {label}"
    )
    refused(message, data=data, loss=loss)
    with pytest.raises(ValueError, match=message):
        find_level(problem(data=data, loss=loss), workers=0)


# Types


class Casting(nn.Sequential):
    def forward(self, x):
        return super().forward(x.float())


def convolution():
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("x", "model", "got"),
    [
        (X.double(), net, "float64"),
        (X.half(), net, "float16"),
        (X.double(), convolution, "float64"),
        (X.double(), lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2)), "float64"),
        (X.long(), net, "int64"),
        (X.double(), lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), "float64"),
    ],
    ids=["double", "half", "convolution", "layer norm", "integers", "lazy"],
)
def test_inputs_of_another_type_than_the_model_are_refused(x, model, got):
    refused(
        rf"inputs must have the type of the model's parameters, torch\.float32, got torch\.{got}\. .*x\.to\(",
        data=halves(x, Y),
        model=model,
    )


def test_floats_for_an_embedding_are_refused():
    model = lambda: nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(24, 2))  # noqa: E731
    refused(
        r"an embedding takes inputs of torch\.int64, got torch\.float32",
        data=halves(X.abs().clamp(max=2).floor(), Y),
        model=model,
    )
    list(train(Run(problem(data=halves(X.abs().clamp(max=2).long(), Y), model=model))))


def test_a_model_that_casts_takes_any_inputs():
    list(train(Run(problem(data=halves(X.double(), Y), model=lambda: Casting(*net())))))
    list(train(Run(problem(data=halves(X.double(), Y), model=lambda: net().double()))))


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (nn.HuberLoss(), X[:, :1].double()),
        (F.binary_cross_entropy_with_logits, Y[:, None]),
        (nn.HuberLoss(), Y[:, None]),
    ],
    ids=["double", "integers", "integers, huber"],
)
def test_targets_of_another_type_than_the_outputs_are_refused(loss, y):
    refused(
        rf"targets must have the type of the outputs, torch\.float32, got {y.dtype}\.",
        data=halves(X, y),
        loss=loss,
        model=partial(net, 1),
    )


class Broken(nn.Linear):
    def __init__(self):
        super().__init__(6, 2)

    def forward(self, x):
        raise RuntimeError("out of luck")


class Mixed(nn.Linear):
    def __init__(self):
        super().__init__(6, 2)

    def forward(self, x):
        return super().forward(x) @ torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(("model", "message"), [(Broken, "out of luck"), (Mixed, "same dtype")])
def test_other_errors_of_a_users_code_stay_as_they_are(model, message):
    with pytest.raises(RuntimeError, match=message) as error:
        list(train(Run(problem(model=model))))
    assert not isinstance(error.value, ValueError)
    assert error.traceback[-1].name == "forward"


# What model and loss return


@pytest.mark.parametrize("model", [As, AsInTraining], ids=["always", "in training"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            lambda o: {"loss": 0.0, "logits": o},
            r"one tensor, got dict of loss, logits\. .*cross_entropy\(output\['logits'\], y\)",
        ),
        (lambda o: (o, o), r"one tensor, got tuple of 2\. .*cross_entropy\(output\[0\], y\)"),
    ],
    ids=["dict", "tuple"],
)
def test_outputs_that_are_no_tensor_need_a_loss_that_picks_one(model, kind, message):
    refused(message, model=partial(model, kind))


def test_a_loss_that_picks_its_output_trains():
    record = list(
        train(
            Run(
                problem(
                    model=partial(As, lambda o: {"out": o}),
                    loss=lambda o, y: F.cross_entropy(o["out"], y),
                )
            )
        )
    )[-1].record
    assert record.metrics["last.train_loss"] < 1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda o, y: {"loss": F.cross_entropy(o, y), "n": 1},
            r"a 0-d tensor, got dict of loss, n\. Return that part",
        ),
        (lambda o, y: (F.cross_entropy(o, y), o), r"a 0-d tensor, got tuple of 2"),
        (lambda o, y: None, r"a 0-d tensor, got NoneType"),
        (
            lambda o, y: F.cross_entropy(o, y, reduction="none"),
            r"a 0-d tensor, got shape \[20\]\. Use reduction='mean'",
        ),
        (
            lambda o, y: F.cross_entropy(o, y).item(),
            r"the loss must have a gradient, got the number 0\..*\.item\(\)",
        ),
        (
            lambda o, y: F.cross_entropy(o.detach(), y),
            r"the loss must have a gradient, got a constant",
        ),
    ],
    ids=["dict", "tuple", "nothing", "one each", "a number", "no graph"],
)
def test_a_loss_must_return_a_mean(loss, message):
    refused(message, loss=loss)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        partial(F.cross_entropy, reduction="sum"),
        partial(partial(F.mse_loss), reduction="none"),
    ],
    ids=["module", "partial", "nested"],
)
@pytest.mark.parametrize("name", ["loss", "eval_loss"])
def test_a_problem_refuses_a_loss_that_is_no_mean(loss, name):
    with pytest.raises(
        ValueError, match=rf"the {name} must be a batch's mean, got reduction='(sum|none)'"
    ):
        problem(**{name: loss})


# Schedules


@pytest.mark.parametrize(
    "schedule",
    [
        partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=9),
        partial(lr_scheduler.OneCycleLR, max_lr=0.1, epochs=3, steps_per_epoch=3),
        partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=2),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [
                lr_scheduler.ConstantLR(optimizer, total_iters=1),
                lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
            ],
            milestones=[1],
        ),
    ],
    ids=["steps", "epochs and steps", "too short", "inside another"],
)
def test_a_one_cycle_that_does_not_end_with_the_training_is_refused(schedule):
    refused(
        r"stepped once an epoch, so OneCycleLR needs total_steps=3, the max_epochs, got [29]\.",
        lr_scheduler=schedule,
    )


def test_a_one_cycle_of_the_horizon_ends_at_its_lowest_rate():
    schedule = partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=5)
    rates = [row.values["lr"] for row in train(Run(problem(max_epochs=5, lr_scheduler=schedule)))][
        1:
    ]
    assert rates[-1] == min(rates) < 1e-5
    assert max(rates) > 0.09


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (
            partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, cycle_momentum=False),
            "the cycle of 4000 of CyclicLR",
        ),
        (partial(lr_scheduler.CosineAnnealingLR, T_max=9), "the T_max of 9 of CosineAnnealingLR"),
        (partial(lr_scheduler.LinearLR, total_iters=9), "the total_iters of 9 of LinearLR"),
        (partial(lr_scheduler.CosineAnnealingLR, T_max=3), None),
        (partial(lr_scheduler.StepLR, step_size=1), None),
        (partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0), None),
    ],
    ids=["cyclic", "cosine", "linear", "cosine of the max_epochs", "steps", "anything"],
)
def test_a_schedule_longer_than_the_training_is_told(schedule, told, caplog):
    list(train(Run(problem(lr_scheduler=schedule))))
    assert [told in record.getMessage() for record in caplog.records] == [True] * (told is not None)


# Batch norm


def normalised():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Folded(nn.Module):
    """Batch norm over several values of each example."""

    def __init__(self):
        super().__init__()
        self.norm, self.line = nn.BatchNorm1d(3), nn.Linear(6, 2)

    def forward(self, x):
        return self.line(self.norm(x.reshape(-1, 3, 2)).flatten(1))


@pytest.mark.parametrize("size", [19, 1])
def test_a_last_batch_of_one_example_under_batch_norm_is_refused_before_training(size):
    message = (
        rf"no batch may hold a single example, but 20 examples in batches of {size} leave one over"
    )
    with pytest.raises(ValueError, match=message):
        next(train(Run(problem(model=normalised, batch_size=size))))
    with pytest.raises(ValueError, match=message):
        check_last_batch(
            problem(
                model=lambda: nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(6, 2)), batch_size=size
            ),
            0,
        )


@pytest.mark.parametrize(
    ("model", "size"),
    [(normalised, 18), (Folded, 19), (net, 19), (lambda: normalised().requires_grad_(), 20)],
)
def test_what_batch_norm_can_take_is_not_refused(model, size):
    list(train(Run(problem(model=model, batch_size=size))))


# Lazy modules


def lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyBatchNorm1d(), nn.LazyLinear(2))


@pytest.mark.parametrize(
    "model",
    [lazy, nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.BatchNorm1d(8), nn.LazyLinear(2))],
    ids=["builder", "module"],
)
def test_lazy_modules_train_alike_each_time(model):
    before = torch.get_rng_state()
    one, two = (list(train(Run(problem(model=model), 0.1)))[-1] for _ in range(2))
    other = list(train(Run(problem(model=model), 0.1, seed=1)))[-1]
    assert torch.equal(before, torch.get_rng_state())
    assert one.record.content_hash == two.record.content_hash != other.record.content_hash
    assert one.weights["last"]["0.weight"].shape == (8, 6)
    built = problem(model=model).build(0)
    assert built.training
    assert built[2].running_mean.tolist() == [0] * 8  # nothing was trained, nor counted
    built.load_state_dict(one.weights["last"])


def test_a_lazy_module_that_torch_cannot_copy_is_refused():
    refused(r"a lazy Sequential does not\. Give a function that builds it", model=lazy())


def test_a_lazy_problem_is_searched():
    found = find_level(problem(model=lazy, max_epochs=10), workers=0)
    assert found.model().eval()(X).shape == (40, 2)


# What stays as it was


def test_a_method_on_each_example_is_checked_too():
    refused(
        r"outputs \[8, 1\] and targets \[8\]|outputs \[20, 1\]",
        IFlood(),
        loss=nn.MSELoss(),
        data=halves(X, Y.float()),
        model=partial(net, 1),
    )


# Methods with a teacher


WEIGHT = torch.tensor([1.0, 3.0])


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(WEIGHT),
        partial(F.cross_entropy, weight=WEIGHT),
        partial(F.mse_loss, weight=torch.ones(2)),
    ],
    ids=["module", "partial", "squared error"],
)
def test_wavebound_refuses_a_loss_whose_mean_is_weighted(loss):
    message = (
        r"WaveBound takes the plain mean of the losses, so the loss must have no weight, got "
        r"\w+ with weight=\[1\.0, [13]\.0\]\. Leave the weight out, or use IFlood\(\)"
    )
    with pytest.raises(ValueError, match=message):
        Run(problem(loss=loss), None, WaveBound(0.01))
    Run(problem(loss=loss), 0.1, IFlood())


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))],
    ids=["without a weight", "a weight inside each loss"],
)
def test_wavebound_takes_a_loss_with_a_plain_mean(loss):
    Run(problem(loss=loss), None, WaveBound(0.01))
