"""FloodCallback in the real Lightning, against a hand-written loop over whole batches."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from flooding import Flood, FloodStep
from flooding.levels import Auto, Delayed, PerClass, Plateau, StepInfo, Warmup
from flooding.methods import IFlood
from framework_oracle import (
    ACCUMULATE,
    EPOCHS,
    EXAMPLES,
    LEVEL,
    MICRO,
    STEPS,
    Oracle,
    data,
    distance,
    end_ranks,
    flat,
    network,
    sgd,
    start_ranks,
    stop_ranks,
)
from framework_table import EXACT, cell
from subprocess_checks import run_doctests

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint
    from lightning.pytorch.plugins.precision import MixedPrecision
    from lightning.pytorch.tuner import Tuner

    from flooding.extras import install_command
from flooding.integrations.lightning import FloodCallback, _count_validation, watch_loss

for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.ERROR)

# Lightning advises on workers, logging intervals and the like.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
WARMUP = Warmup(LEVEL, steps=30)


class Module(pl.LightningModule):
    """What a user has: nothing in it knows of flooding."""

    def __init__(self, criterion: nn.Module | None = None, dtype=torch.float64):
        super().__init__()
        self.net = network(dtype)
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.lr = 0.2
        self.plain_val_losses, self.val_losses = [], []

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = self.criterion(self.net(batch[0]), batch[1])
        self.log("val_loss", loss)
        self.val_losses.append(loss.item())
        self.plain_val_losses.append(F.cross_entropy(self.net(batch[0]), batch[1]).item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.lr, momentum=0.9)


def loader(batch=MICRO, n=EXAMPLES, dtype=torch.float64):
    return DataLoader(TensorDataset(*data(n, dtype)), batch_size=batch)


def make_trainer(*callbacks, accumulate=ACCUMULATE, epochs=EPOCHS, **options):
    defaults = {
        "precision": "64-true",
        "enable_checkpointing": False,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
    }
    return pl.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        **(defaults | options),
    )


def fit(*callbacks, module=None, batch=MICRO, n=EXAMPLES, val=False, ckpt_path=None, **options):
    """Fit and give the module."""
    module = Module() if module is None else module
    dtype = module.net[0].weight.dtype
    validation = loader(64, n, dtype) if val else None
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(module, loader(batch, n, dtype), validation, ckpt_path=ckpt_path)
    return module


@pytest.fixture(scope="module")
def oracle():
    return Oracle()


@pytest.fixture(scope="module", autouse=True)
def _start_ranks(request):
    """Start the ranks before the first test, if a selected test needs them."""
    if any("two_ranks" in item.name for item in request.session.items):
        request.getfixturevalue("ranks")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Two ranks, which train while the tests of this file run."""
    folder = tmp_path_factory.mktemp("lightning")
    packages = "torch._dynamo,lightning.pytorch"
    process = start_ranks("_lightning_ranks.py", folder, packages=packages)
    yield process, folder
    stop_ranks(process)


# Exact.


def test_accumulation_and_what_is_logged(oracle):
    callback = FloodCallback(LEVEL)
    module = fit(callback)
    naive = fit(module=Module(Flood(nn.CrossEntropyLoss(), LEVEL)))
    error = distance(module.net, oracle.model)
    cell("Lightning", "one line", "`Trainer(callbacks=[FloodCallback(0.1)])`")
    cell("Lightning", "accumulation 4", error, naive=distance(naive.net, oracle.model))
    logged = module.trainer.logged_metrics
    assert float(logged["flood/raw_loss"]) == pytest.approx(oracle.losses[-1], abs=1e-12)
    fraction = oracle.n_flooded / len(oracle.losses)
    assert 0.2 < fraction < 0.8
    assert float(logged["flood/flooded_fraction"]) == pytest.approx(fraction)
    assert float(logged["flood/flooded_loss"]) == pytest.approx(
        abs(oracle.losses[-1] - LEVEL) + LEVEL
    )
    assert float(logged["flood/level"]) == pytest.approx(LEVEL)
    assert int(callback.flood_step.n_steps) == len(oracle.losses)
    # The module logs its own raw loss: that of the last micro-batch.
    assert float(logged["train_loss"]) != pytest.approx(oracle.losses[-1])


def test_a_last_window_that_is_not_full():
    """14 micro-batches, windows of 4, 4, 4 and 2: Lightning divides the last one by 4 as well."""
    expected = Oracle(n=112, scale=lambda step: 0.5 if step == 3 else 1.0)
    module = fit(FloodCallback(LEVEL), n=112)
    assert distance(module.net, expected.model) <= EXACT


@pytest.mark.parametrize(
    ("clipping", "options"),
    [
        ({"norm": 0.2}, {"gradient_clip_val": 0.2}),
        ({"value": 0.02}, {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}),
    ],
    ids=["norm", "value"],
)
def test_clipping(clipping, options):
    expected = Oracle(**clipping)
    module = fit(FloodCallback(LEVEL), **options)
    naive = fit(module=Module(Flood(nn.CrossEntropyLoss(), LEVEL)), **options)
    error = distance(module.net, expected.model)
    cell("Lightning", "clipping", error, naive=distance(naive.net, expected.model))


class Manual(Module):
    watch = staticmethod(watch_loss)

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.watch(self, super().training_step(batch, batch_idx))
        self.manual_backward(loss / ACCUMULATE)
        if (batch_idx + 1) % ACCUMULATE == 0:
            optimizer.step()
            optimizer.zero_grad()


def test_manual_optimisation(oracle):
    module = fit(FloodCallback(LEVEL), module=Manual(), accumulate=1)
    assert distance(module.net, oracle.model) <= EXACT
    plain = fit(module=Manual(), accumulate=1)
    assert distance(plain.net, Oracle(None).model) <= EXACT


def test_manual_optimisation_without_a_watched_loss_is_refused_before_the_first_step():
    module = Manual()
    module.watch = lambda _, loss: loss
    with pytest.raises(RuntimeError, match=r"watch_loss\(self, loss\)"):
        fit(FloodCallback(LEVEL), module=module, accumulate=1)
    assert distance(module.net, network()) == 0


def test_a_flood_step_in_the_module_is_exact_too(oracle):
    class Stepped(Module):
        def training_step(self, batch, batch_idx):
            return self.flood_step(super().training_step(batch, batch_idx))

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            self.flood_step = FloodStep(optimizer, LEVEL)
            return optimizer

    assert distance(fit(module=Stepped()).net, oracle.model) <= EXACT


def mixed_by_hand(dtype, level, accumulate, norm=None, scaler=None, epochs=5):
    """Plain torch with autocast: micro-batches, one decision, one step."""
    x, y = data(dtype=torch.float32)
    model = network(torch.float32)
    optimizer = sgd(model.parameters())
    size, n_flooded = EXAMPLES // 4 // accumulate, 0
    for step in range(4 * epochs):
        optimizer.zero_grad()
        total = 0.0
        for k in range(accumulate):
            start = (step * accumulate + k) * size % EXAMPLES
            with torch.autocast("cpu", dtype):
                loss = F.cross_entropy(model(x[start : start + size]), y[start : start + size])
            scaled = loss / accumulate if scaler is None else scaler.scale(loss / accumulate)
            scaled.backward()
            total += loss.item() / accumulate
        if scaler is not None:
            scaler.unscale_(optimizer)
        if level is not None and total < level:
            n_flooded += 1
            for parameter in model.parameters():
                parameter.grad.neg_()
        if norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return model, n_flooded


def test_bfloat16_as_exact_as_lightning_without_flooding():
    errors = []
    for level in (None, 0.6):
        expected, n_flooded = mixed_by_hand(torch.bfloat16, level, ACCUMULATE)
        module = Module(dtype=torch.float32)
        callbacks = [] if level is None else [FloodCallback(level)]
        fit(*callbacks, module=module, precision="bf16-mixed", epochs=5)
        errors.append(distance(module.net, expected))
    assert n_flooded >= 5
    assert errors[1] <= max(1e-6, 2 * errors[0])


def test_float16_with_a_gradient_scaler():
    errors = []
    for level in (None, 0.6):
        scalers = [
            torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10) for _ in range(2)
        ]
        expected, n_flooded = mixed_by_hand(torch.float16, level, ACCUMULATE, 0.5, scalers[0])
        callbacks = [] if level is None else [FloodCallback(level)]
        module = Module(dtype=torch.float32)
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scalers[1])
        options = {"precision": None, "plugins": [plugin], "gradient_clip_val": 0.5}
        fit(*callbacks, module=module, epochs=5, **options)
        errors.append(distance(module.net, expected))
    assert n_flooded >= 5
    assert errors[1] <= max(1e-6, 2 * errors[0])


def test_two_ranks(ranks):
    figures = end_ranks(*ranks)
    print(figures)
    for accumulate in (1, 4):
        error, naive = figures[f"callback {accumulate}"], figures[f"naive {accumulate}"]
        cell("Lightning", "two ranks", error, naive=naive)
        assert figures[f"apart {accumulate}"] == 0
    assert figures["plateau"] <= EXACT
    assert figures["apart plateau"] == 0
    assert figures["added packages"] == ["flooding"]


def test_resuming_with_a_moving_level(tmp_path):
    expected = Oracle(WARMUP)
    whole = distance(fit(FloodCallback(WARMUP)).net, expected.model)
    cell("Lightning", "moving level", whole)

    class Stepped(Module):
        """FloodStep in the module, whose state nobody saves."""

        def training_step(self, batch, batch_idx):
            return self.flood_step(super().training_step(batch, batch_idx))

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            self.flood_step = FloodStep(optimizer, WARMUP)
            return optimizer

    errors = []
    for module, callback in ((Module, lambda: [FloodCallback(WARMUP)]), (Stepped, list)):
        first = fit(*callback(), module=module(), epochs=4)
        first.trainer.save_checkpoint(tmp_path / "a.ckpt")
        callbacks = callback()
        second = fit(*callbacks, module=module(), ckpt_path=tmp_path / "a.ckpt")
        errors.append(distance(second.net, expected.model))
        if callbacks:
            assert int(callbacks[0].flood_step.n_steps) == STEPS
    cell("Lightning", "resume", errors[0], naive=errors[1])


def test_a_checkpoint_without_a_callback_begins_a_moving_level_anew_and_says_so(tmp_path):
    fit(epochs=2).trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match="begins anew"):
        fit(FloodCallback(WARMUP), epochs=3, ckpt_path=tmp_path / "a.ckpt")


def test_a_learning_rate_finder_leaves_no_trace(tmp_path):
    expected = Oracle(WARMUP)
    # Called by hand, before fit.
    callback = FloodCallback(WARMUP)
    module = Module()
    trainer = make_trainer(callback, default_root_dir=tmp_path)
    Tuner(trainer).lr_find(module, loader(), num_training=8, update_attr=False)
    trainer.fit(module, loader())
    assert distance(module.net, expected.model) <= EXACT
    assert int(callback.flood_step.n_steps) == STEPS

    class InTheMiddle(LearningRateFinder):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                self.lr_find(trainer, pl_module)

    # As a callback: at the start and once more in the middle, on either side of the flooding one.
    for first in (True, False):
        finder = InTheMiddle(num_training_steps=8, update_attr=False)
        callback = FloodCallback(WARMUP)
        callbacks = [finder, callback] if first else [callback, finder]
        module = fit(*callbacks, default_root_dir=tmp_path)
        assert int(callback.flood_step.n_steps) == STEPS
        assert distance(module.net, expected.model) <= EXACT


def test_two_fits_go_on_and_a_new_trainer_begins_anew():
    callback, module = FloodCallback(WARMUP), Module()
    trainer = make_trainer(callback, epochs=5)
    trainer.fit(module, loader())
    trainer.fit_loop.max_epochs = EPOCHS
    trainer.fit(module, loader())  # Lightning builds a new optimiser
    assert distance(module.net, Oracle(WARMUP, new_optimizer_after=5).model) <= EXACT
    assert int(callback.flood_step.n_steps) == STEPS
    assert distance(fit(callback).net, Oracle(WARMUP).model) <= EXACT


def test_level_none_is_plain_bit_for_bit():
    callback = FloodCallback(None)
    module, plain = fit(callback), fit()
    assert torch.equal(flat(module.net), flat(plain.net))
    assert "flood/level" not in module.trainer.logged_metrics
    assert float(module.trainer.logged_metrics["flood/flooded_fraction"]) == 0


def test_a_step_whose_micro_batches_all_return_none_is_plain_and_does_not_count():
    class Skips(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            # All of the second window, and one micro-batch of the third.
            return None if batch_idx in (4, 5, 6, 7, 9) else loss

    # A window with three of four losses, divided by four.
    order = [
        torch.arange(32),
        torch.tensor([*range(64, 72), *range(80, 96)]),
        torch.arange(96, 128),
    ]
    expected = Oracle(order=order, scale=lambda step: 0.75 if step == 1 else 1.0)
    callback = FloodCallback(LEVEL)
    module = fit(callback, module=Skips())
    assert distance(module.net, expected.model) <= EXACT
    assert int(callback.flood_step.n_steps) == 3 * EPOCHS


def test_an_output_that_is_a_dictionary_and_a_step_without_batch_idx(oracle):
    class Other(Module):
        def training_step(self, batch):
            return {"loss": super().training_step(batch, 0), "more": 1}

    assert distance(fit(FloodCallback(LEVEL), module=Other()).net, oracle.model) <= EXACT


# Levels.


def test_a_controller_sees_the_validation_loss_at_the_end_of_each_epoch():
    plateau = Plateau(LEVEL, patience=1, step_size=0.05, high=0.7)

    def info(model):
        x, y = data()
        losses = [
            F.cross_entropy(model(a), b) for a, b in zip(x.split(64), y.split(64), strict=True)
        ]
        return StepInfo(None, val_loss=sum(losses).detach().float() / 2)

    expected = Oracle(plateau, epoch_info=info)
    callback = FloodCallback(plateau)
    module = fit(callback, val=True)
    cell("Lightning", "moving level", distance(module.net, expected.model))
    assert callback.flood_step.level != LEVEL
    # Validation is plain.
    differences = [
        abs(a - b) for a, b in zip(module.val_losses, module.plain_val_losses, strict=True)
    ]
    cell("Lightning", "evaluation plain", max(differences))


def test_an_auto_level_is_told_the_number_of_validation_examples():
    seen = []

    class Watched(Auto):
        def update(self, state, info):
            if info.loss is None and info.n_val is not None:
                seen.append((float(info.val_loss), float(info.val_accuracy), int(info.n_val)))
            return super().update(state, info)

    class Measured(Module):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).double().mean())

    assert EXAMPLES % 64 == 0
    for limit, n_val in ((1.0, EXAMPLES), (1, None)):
        callback = FloodCallback(Watched(epochs=20), val_accuracy="val_acc")
        fit(callback, module=Measured(), val=True, epochs=20, limit_val_batches=limit)
        if n_val is None:
            assert seen == [], "a part of the validation is not counted"
            continue
        assert {n for *_, n in seen} == {n_val}
        lowest = min(loss for loss, *_ in seen)
        assert 0.5 * lowest < callback.flood_step.level < lowest
        seen.clear()


def test_a_validation_that_leaves_examples_out_is_not_counted():
    examples = TensorDataset(torch.zeros(10, 1))
    half = SubsetRandomSampler(range(5))
    cases = [
        (DataLoader(examples, batch_size=4), 10),
        ([DataLoader(examples, batch_size=4)], 10),
        ([DataLoader(examples)] * 2, None),
        (DataLoader(examples, batch_size=4, drop_last=True), None),
        (DataLoader(examples, batch_size=4, sampler=half), None),
        (None, None),
    ]
    for loader, expected in cases:
        trainer = SimpleNamespace(val_dataloaders=loader, limit_val_batches=1.0)
        assert _count_validation(trainer) == expected, loader


def test_an_epoch_without_validation_is_not_shown():
    seen = []

    class Watches:
        def init(self):
            return {"level": torch.tensor(0.1)}

        def update(self, state, info):
            if info.loss is None and info.val_loss is not None:
                seen.append(float(info.val_loss))
            return state

    module = fit(FloodCallback(Watches()), val=True, epochs=6, check_val_every_n_epoch=3)
    # Two epochs, each with a check of its own; the sanity check comes first.
    assert len(seen) == 5
    assert seen[-1] == pytest.approx(sum(module.val_losses[-2:]) / 2)


@pytest.mark.parametrize("val", [True, False], ids=["another name", "no validation"])
def test_a_metric_that_is_not_logged_is_an_error_before_the_first_step(val):
    module = Module()
    with pytest.raises(ValueError, match=r"Plateau needs.*monitor="):
        fit(FloodCallback(Plateau(0.1), monitor="valid/loss"), module=module, val=val)
    assert distance(module.net, network()) == 0


def test_a_training_metric_that_is_not_logged_is_an_error():
    with pytest.raises(ValueError, match=r"Delayed needs.*train_accuracy="):
        fit(FloodCallback(Delayed(0.1, until_accuracy=0.5)), epochs=1)


def test_a_level_per_class_belongs_in_the_criterion_and_is_exact_there():
    table = PerClass(torch.tensor([0.4, 0.6]))
    with pytest.raises(TypeError, match=r"PerClass.*IFlood"):
        FloodCallback(table)
    criterion = Flood(nn.CrossEntropyLoss(reduction="none"), table, IFlood())
    module = fit(module=Module(criterion))
    x, y = data()
    model = network()
    optimizer = sgd(model.parameters())
    for step in range(4 * EPOCHS):
        batch = slice(step * 32 % EXAMPLES, step * 32 % EXAMPLES + 32)
        losses = F.cross_entropy(model(x[batch]), y[batch], reduction="none")
        levels = torch.tensor([0.4, 0.6])[y[batch]]
        optimizer.zero_grad()
        ((losses - levels).abs() + levels).mean().backward()
        optimizer.step()
    assert distance(module.net, model) <= EXACT


def test_a_level_may_be_assigned_during_and_between_fits():
    class Moves(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 5:
                callback.level = 0.4

    class Steps:
        """The same by hand: the level of the 20th step and later."""

        def init(self):
            return {"level": torch.tensor(0.6, dtype=torch.float64), "step": torch.tensor(0)}

        def update(self, state, info):
            step = state["step"] + 1
            level = torch.where(step < 20, 0.6, 0.4).double()
            return {"level": level, "step": step}

    callback = FloodCallback(0.6)
    module = fit(callback, Moves())
    assert distance(module.net, Oracle(Steps()).model) <= EXACT
    with pytest.raises(TypeError, match="level must be a number"):
        callback.level = "0.1"


# Lightning's command line.


def run_cli(tmp_path, monkeypatch, *words):
    cli = pytest.importorskip("lightning.pytorch.cli", reason="jsonargparse is not installed")

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader(32)

    monkeypatch.chdir(tmp_path)
    options = {
        "max_epochs": EPOCHS,
        "logger": "false",
        "enable_checkpointing": "false",
        "precision": "64-true",
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
        "accelerator": "cpu",
        "devices": 1,
    }
    arguments = ["fit", *(f"--trainer.{name}={value}" for name, value in options.items()), *words]
    done = cli.LightningCLI(Module, Data, args=arguments, save_config_callback=None)
    return done.model


CALLBACK = "--trainer.callbacks+=flooding.integrations.lightning.FloodCallback"
FLOOD = "--model.criterion=flooding.Flood"
LOSS = "--model.criterion.criterion=torch.nn.CrossEntropyLoss"


@pytest.mark.parametrize(
    ("level", "words"),
    [
        (LEVEL, [CALLBACK, f"--trainer.callbacks.level={LEVEL}"]),
        (
            WARMUP,
            [
                CALLBACK,
                "--trainer.callbacks.level=flooding.levels.Warmup",
                f"--trainer.callbacks.level.level={LEVEL}",
                "--trainer.callbacks.level.steps=30",
            ],
        ),
        (LEVEL, [FLOOD, LOSS, f"--model.criterion.level={LEVEL}"]),
        (
            LEVEL,
            [
                *(FLOOD, LOSS, f"--model.criterion.level={LEVEL}"),
                "--model.criterion.method=flooding.methods.Flooding",
            ],
        ),
    ],
    ids=["callback", "callback with a controller", "criterion", "criterion with a method"],
)
def test_by_class_path(level, words, tmp_path, monkeypatch):
    assert distance(run_cli(tmp_path, monkeypatch, *words).net, Oracle(level).model) <= EXACT


# Refused or warned about.


def test_two_callbacks_are_refused():
    class Mine(FloodCallback):
        pass

    with pytest.raises(RuntimeError, match="more than one stateful callback of type `Flood"):
        make_trainer(FloodCallback(0.1), FloodCallback(0.2))
    with pytest.raises(ValueError, match=r"flooded once.*levels 0.1, 0.2"):
        fit(FloodCallback(0.1), Mine(0.2))


def test_two_optimisers_are_refused():
    class Two(Manual):
        def configure_optimizers(self):
            return [sgd(self.net[:1].parameters()), sgd(self.net[1:].parameters())]

    with pytest.raises(ValueError, match="one optimiser, got 2"):
        fit(FloodCallback(LEVEL), module=Two(), accumulate=1)


def test_an_optimiser_in_backward_is_refused_before_the_first_step():
    class InBackward(Module):
        def configure_optimizers(self):
            for parameter in self.net.parameters():
                parameter.register_post_accumulate_grad_hook(lambda _: None)
            return super().configure_optimizers()

    module = InBackward()
    with pytest.raises(ValueError, match="post-accumulate-grad"):
        fit(FloodCallback(LEVEL), module=module)
    assert distance(module.net, network()) == 0


@pytest.mark.parametrize("level", [float("nan"), float("inf"), "0.1", torch.ones(2)])
def test_what_is_no_level_is_refused_when_the_callback_is_built(level):
    with pytest.raises((TypeError, ValueError), match="level must"):
        FloodCallback(level)


@pytest.mark.parametrize(
    "callback",
    [
        lambda _: EarlyStopping("train_loss", patience=100),
        lambda _: EarlyStopping("flood/raw_loss", patience=100, strict=False),
        lambda path: ModelCheckpoint(path, monitor="train_loss_epoch"),
    ],
    ids=["early stopping", "the flooded loss", "checkpoint"],
)
def test_stopping_by_a_training_loss_is_warned_about(callback, tmp_path):
    class Logs(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss_epoch", loss, on_step=False, on_epoch=True)
            return loss

    with pytest.warns(UserWarning, match="a training loss, which flooding keeps near the level"):
        fit(
            *(callback(tmp_path), FloodCallback(LEVEL)),
            module=Logs(),
            epochs=1,
            enable_checkpointing=True,
            default_root_dir=tmp_path,
        )


def test_stopping_by_a_validation_loss_is_not_warned_about(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(
            *(EarlyStopping("val_loss"), ModelCheckpoint(tmp_path, monitor="val_loss")),
            FloodCallback(LEVEL),
            val=True,
            epochs=2,
            enable_checkpointing=True,
        )
    assert not [warning for warning in caught if "flood" in str(warning.message)]


def test_a_flood_criterion_beside_the_callback_is_warned_about():
    with pytest.warns(UserWarning, match="flooded already"):
        fit(FloodCallback(LEVEL), module=Module(Flood(nn.CrossEntropyLoss(), LEVEL)), epochs=1)


def test_an_interrupted_fit_leaves_nothing_behind():
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 6:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    callback, module = FloodCallback(LEVEL), Fails()
    trainer = make_trainer(callback)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.fit(module, loader())
    assert "training_step" not in vars(trainer.strategy)
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert int(callback.flood_step.n_steps) == 6
    assert distance(fit(callback).net, Oracle().model) <= EXACT


def test_flooding_alone_imports_no_framework():
    names = ["lightning", "pytorch_lightning", "accelerate", "deepspeed"]
    code = (
        "import sys, flooding, flooding.step, flooding.integrations, flooding.testing\n"
        f"print(*set({names}) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_without_lightning_the_error_says_how_to_install_it():
    code = "import sys\nsys.modules['lightning'] = None\nimport flooding.integrations.lightning"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"flooding needs lightning: {install_command('lightning')}" in done.stderr


def test_the_examples_of_the_adapter_run():
    import flooding.integrations.lightning as adapter
    from flooding import integrations

    assert run_doctests(adapter, integrations) >= 4
