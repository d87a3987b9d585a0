"""Flooding inside transformers' Trainer: equal to a hand-written loop over whole steps.

Skipped where transformers, accelerate or peft is not installed.
"""

from __future__ import annotations

import json
import math
import warnings
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from framework_oracle import end_ranks, start_ranks
from framework_table import EXACT, FLOAT32, cell

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from flooding import Flood, FloodStep, flood
from flooding.integrations.transformers import FloodTrainerMixin
from flooding.levels import (
    Auto,
    Delayed,
    Excess,
    PerClass,
    Plateau,
    StepInfo,
    Warmup,
    simulate,
)
from subprocess_checks import run_doctests
from trainer_twin import (
    ACCUMULATE,
    CLASS_LEVEL,
    EPOCHS,
    RATE,
    STEP,
    TOKEN_LEVEL,
    Texts,
    bert,
    by_hand,
    distance,
    flat,
    gpt2,
    llama,
    losses_of,
    make_trainer,
    plain,
    token_share,
    trainable,
)

ROW = "transformers"
IGNORES = "ignore:.*takes num_items_in_batch and ignores it:UserWarning"


class FloodTrainer(FloodTrainerMixin, Trainer):
    pass


class NaiveTrainer(Trainer):
    """What one would write: flood what compute_loss gives."""

    level = CLASS_LEVEL

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = flood(loss, self.level)
        return (loss, outputs) if return_outputs else loss


def flooded(model, level, folder, *, options=(), kind=FloodTrainer, **changes):
    trainer = make_trainer(
        kind, model, folder, options={"flood_level": level} | dict(options), **changes
    )
    trainer.train()
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def check_decisions(raw, level):
    """The loop by hand floods often, and no decision hangs on rounding."""
    below = [loss < level for loss in raw]
    assert 5 <= sum(below) <= len(raw) - 5
    assert sum(a != b for a, b in pairwise(below)) >= 5
    assert min(abs(loss - level) for loss in raw) > 1e-7


@pytest.fixture(scope="module")
def reference():
    """Loops by hand, trained once each."""
    cache = {}

    def get(make, level, **options):
        key = (make.__name__, str(level), *sorted(options.items()))
        if key not in cache:
            cache[key] = by_hand(make(), level, **options)
        return cache[key]

    return get


# Exact.


@pytest.mark.filterwarnings(IGNORES)
def test_a_classifier_is_exact(reference, tmp_path):
    model, naive = bert(), bert()
    trainer = flooded(model, CLASS_LEVEL, tmp_path)
    by_twin, raw, _ = reference(bert, CLASS_LEVEL)
    check_decisions(raw, CLASS_LEVEL)
    make_trainer(NaiveTrainer, naive, tmp_path).train()
    cell(ROW, "one line", "`class T(FloodTrainerMixin, Trainer)`, `T(..., flood_level=0.1)`")
    cell(
        ROW,
        "accumulation 4",
        distance(model, by_twin),
        naive=distance(naive, by_twin),
    )
    # What is logged: means over the three steps of an epoch.
    means = [sum(raw[i : i + 3]) / 3 for i in range(0, len(raw), 3)]
    assert logged(trainer, "raw_loss") == pytest.approx(means, abs=1e-6)
    assert logged(trainer, "loss") == pytest.approx(means, abs=1e-6)
    values = [abs(loss - CLASS_LEVEL) + CLASS_LEVEL for loss in raw]
    means = [sum(values[i : i + 3]) / 3 for i in range(0, len(raw), 3)]
    assert logged(trainer, "flooded_loss") == pytest.approx(means, abs=1e-6)
    fraction = sum(loss < CLASS_LEVEL for loss in raw) / len(raw)
    assert logged(trainer, "flooded_fraction")[-1] == pytest.approx(fraction)
    assert logged(trainer, "flood_level") == [pytest.approx(CLASS_LEVEL)] * EPOCHS
    assert trainer.flood_step.n_steps == len(raw)


@pytest.mark.parametrize("samples", [3 * STEP + 4, 3 * STEP - 2])
@pytest.mark.filterwarnings(IGNORES)
def test_the_last_window_may_be_short(samples, reference, tmp_path):
    # 52 rows: four micro-batches three times, then one. 46 rows: the last micro-batch has two rows,
    # and counts like the others for a loss that is a mean; with counts it is exact.
    model, function = bert(), token_share if samples % 4 else None
    options = {"compute_loss_func": function}
    flooded(model, CLASS_LEVEL, tmp_path, samples=samples, options=options)
    by_twin, raw, _ = reference(bert, CLASS_LEVEL, samples=samples)
    check_decisions(raw, CLASS_LEVEL)
    assert distance(model, by_twin) <= EXACT


def test_a_language_model_is_exact_with_counts(reference, tmp_path):
    model = llama()
    options = {"compute_loss_func": token_share}
    flooded(model, TOKEN_LEVEL, tmp_path, language=True, options=options)
    by_twin, raw, _ = reference(llama, TOKEN_LEVEL, language=True)
    check_decisions(raw, TOKEN_LEVEL)
    assert distance(model, by_twin) <= EXACT


def test_a_head_that_computes_in_float32(reference, tmp_path):
    model, control = llama(), llama()
    flooded(model, TOKEN_LEVEL, tmp_path, language=True)
    plain(control, tmp_path, language=True)
    assert distance(control, reference(llama, None, language=True)[0]) <= FLOAT32
    assert distance(model, reference(llama, TOKEN_LEVEL, language=True)[0]) <= FLOAT32


@pytest.mark.parametrize(
    ("make", "level"),
    [(bert, 0.6), (llama, 2.0)],
    ids=["bert", "llama"],
)
def test_label_smoothing(make, level, reference, tmp_path):
    language = make is llama
    model, control = make(), make()
    options = {"language": language, "label_smoothing_factor": 0.1}
    trainer = flooded(model, level, tmp_path, **options)
    plain(control, tmp_path, **options)
    options = {"language": language, "smoothing": 0.1}
    by_twin, raw, _ = reference(make, level, **options)
    check_decisions(raw, level)
    assert distance(control, reference(make, None, **options)[0]) <= FLOAT32
    assert distance(model, by_twin) <= FLOAT32
    # LabelSmoother divides by num_items_in_batch, whatever the head does.
    assert trainer.model_accepts_loss_kwargs


@pytest.mark.parametrize("make", [bert, llama])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # in peft
@pytest.mark.filterwarnings(IGNORES)
def test_lora(make, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    language = make is llama
    targets = ["q_proj", "v_proj"] if language else ["query", "value"]

    def adapted():
        config = peft.LoraConfig(
            task_type="CAUSAL_LM" if language else "SEQ_CLS",
            r=4,
            lora_alpha=32,
            target_modules=targets,
        )
        with torch.random.fork_rng():
            torch.manual_seed(4)
            return peft.get_peft_model(make(), config).double()

    level = 2.4 if language else CLASS_LEVEL + 0.05
    model, before = adapted(), adapted()
    options = {"compute_loss_func": token_share if language else None}
    flooded(model, level, tmp_path, language=language, options=options)
    by_twin, raw, _ = by_hand(adapted(), level, language=language)
    assert 3 <= sum(loss < level for loss in raw) <= len(raw) - 3
    assert distance(model, by_twin) <= EXACT
    assert distance(model, before) > 1e-2


@pytest.mark.filterwarnings(IGNORES)
def test_clipping(reference, tmp_path):
    model, naive = bert(), bert()
    flooded(model, CLASS_LEVEL, tmp_path, max_grad_norm=0.3)
    make_trainer(NaiveTrainer, naive, tmp_path, max_grad_norm=0.3).train()
    by_twin, raw, num_clipped = reference(bert, CLASS_LEVEL, max_norm=0.3)
    check_decisions(raw, CLASS_LEVEL)
    assert num_clipped > len(raw) / 2
    cell(ROW, "clipping", distance(model, by_twin), naive=distance(naive, by_twin))


@pytest.mark.filterwarnings(IGNORES)
def test_evaluation_is_plain(tmp_path):
    figures, texts = {}, Texts(False)
    for kind in (FloodTrainer, NaiveTrainer):
        model = bert()
        options = {"flood_level": NaiveTrainer.level} if kind is FloodTrainer else {}
        changes = {"num_train_epochs": 1, "eval_strategy": "epoch"}
        trainer = make_trainer(kind, model, tmp_path, options=options, **changes)
        trainer.train()
        with torch.no_grad():
            loss = losses_of(model.eval(), texts.ids, texts.labels, False).item()
        # Within the training, and after it.
        assert logged(trainer, "eval_loss") == [trainer.evaluate()["eval_loss"]]
        figures[kind] = abs(trainer.evaluate()["eval_loss"] - loss)
    naive = figures[NaiveTrainer]
    cell(ROW, "evaluation plain", figures[FloodTrainer], naive=naive)


def test_none_is_plain_training_bit_for_bit(tmp_path):
    model, control = bert(), bert()
    trainer = flooded(model, None, tmp_path)
    other = plain(control, tmp_path)
    assert torch.equal(flat(model), flat(control))
    assert trainer.flood_step is None
    keys = [set(entry) for entry in trainer.state.log_history]
    assert keys == [set(entry) for entry in other.state.log_history]


def test_a_compute_loss_of_your_own(reference, tmp_path):
    class OwnLoss(FloodTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = losses_of(model, inputs["input_ids"], inputs["labels"], False)
            return (loss, {}) if return_outputs else loss

    model = bert()
    with pytest.warns(UserWarning, match="ignores it"):
        flooded(model, CLASS_LEVEL, tmp_path, kind=OwnLoss)
    assert distance(model, reference(bert, CLASS_LEVEL)[0]) <= EXACT


def test_two_ranks_with_uneven_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    packages = "torch._dynamo,transformers.trainer"
    ranks = start_ranks("trainer_ranks.py", tmp_path, packages=packages)
    figures = end_ranks(ranks, tmp_path)
    result, naive = figures["flooded"], figures["naive"]
    assert 0.1 < result["below"] < 0.9
    assert result["apart"] == 0
    assert result["logged"] < 1e-6
    cell(ROW, "two ranks", result["distance"], naive=naive["distance"])
    ignoring = figures["head that ignores the count"]
    assert ignoring["distance"] <= EXACT
    assert ignoring["logged"] < 1e-6


# A level that moves.


def rising(level):
    return Warmup(level, steps=30)


@pytest.mark.parametrize(
    ("level", "save"),
    [
        (rising(CLASS_LEVEL), "epoch"),
        (rising(CLASS_LEVEL), "in an epoch"),
        (Delayed(CLASS_LEVEL, until_loss=0.7), "last step of an epoch"),
    ],
    ids=["epoch", "in an epoch", "last step of an epoch"],
)
@pytest.mark.filterwarnings(IGNORES)
def test_resume_with_a_moving_level(level, save, reference, tmp_path):
    steps = {"epoch": 0, "in an epoch": 7, "last step of an epoch": 6}[save]
    changes = {"save_strategy": "steps", "save_steps": steps} if steps else {}
    changes = {"save_strategy": "epoch"} | changes
    # Killed after two epochs and a half, and continued by a new process's objects.
    model = bert()
    trainer = make_trainer(FloodTrainer, model, tmp_path, options={"flood_level": level}, **changes)
    trainer.add_callback(_StopAt(7))
    trainer.train()
    checkpoint = tmp_path / f"checkpoint-{steps or 6}"
    assert "controller.level" in (checkpoint / "trainer_state.json").read_text()

    model = bert()
    trainer = make_trainer(FloodTrainer, model, tmp_path, options={"flood_level": level}, **changes)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    by_twin, raw, _ = reference(bert, level)
    assert distance(model, by_twin) <= EXACT
    assert trainer.flood_step.n_steps == len(raw)
    if save == "epoch" and isinstance(level, Warmup):
        naive = bert()
        _without_state(checkpoint)
        other = make_trainer(
            FloodTrainer, naive, tmp_path, options={"flood_level": level}, **changes
        )
        with pytest.warns(UserWarning, match="holds no state of flooding"):
            other.train(resume_from_checkpoint=str(checkpoint))
        cell(ROW, "resume", distance(model, by_twin), naive=distance(naive, by_twin))


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


def _without_state(checkpoint):
    """Make a checkpoint what it would be without the mixin."""
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    del state["stateful_callbacks"]["_FloodState"]
    file.write_text(json.dumps(state))


@pytest.mark.filterwarnings(IGNORES)
def test_restored_callbacks_still_save_the_state(tmp_path):
    changes = {"save_strategy": "epoch", "restore_callback_states_from_checkpoint": True}
    for epochs, resume in ((1, None), (2, True)):
        trainer = make_trainer(
            FloodTrainer,
            bert(),
            tmp_path,
            options={"flood_level": rising(CLASS_LEVEL)},
            num_train_epochs=epochs,
            **changes,
        )
        trainer.train(resume_from_checkpoint=resume)
        file = tmp_path / f"checkpoint-{3 * epochs}" / "trainer_state.json"
        saved = json.loads(file.read_text())["stateful_callbacks"]["_FloodState"]
        assert saved["attributes"]["saved"]["flood_step"]["n_steps"] == 3 * epochs


@pytest.mark.filterwarnings(IGNORES)
def test_a_moving_level(reference, tmp_path):
    model = bert()
    trainer = flooded(model, rising(CLASS_LEVEL), tmp_path)
    by_twin, raw, _ = reference(bert, rising(CLASS_LEVEL))
    assert sum(loss < CLASS_LEVEL for loss in raw) >= 5
    cell(ROW, "moving level", distance(model, by_twin))
    states = simulate(rising(CLASS_LEVEL), [StepInfo(torch.ones(()))] * len(raw))
    levels = [state["level"].item() for state in states]
    assert logged(trainer, "flood_level") == levels[3::3]


@pytest.mark.filterwarnings(IGNORES)
def test_a_controller_is_shown_the_validation_loss(tmp_path):
    level = Plateau(0.3, patience=1, threshold=1.02)
    changes = {"eval_strategy": "epoch", "eval_on_start": True, "logging_strategy": "epoch"}
    trainer = flooded(bert(), level, tmp_path, **changes)
    losses = logged(trainer, "eval_loss")[1:]
    states = simulate(level, [StepInfo(val_loss=loss) for loss in losses])
    levels = [state["level"].item() for state in states]
    assert len(set(levels)) > 2
    assert logged(trainer, "flood_level") == levels[:-1]
    assert trainer.flood_step.level == levels[-1]


@pytest.mark.filterwarnings(IGNORES)
def test_an_auto_level_is_told_the_number_of_validation_examples(tmp_path):
    seen = []

    class Watched(Auto):
        def update(self, state, info):
            if info.loss is None and info.n_val is not None:
                seen.append(int(info.n_val))
            return super().update(state, info)

    changes = {"eval_strategy": "epoch", "num_train_epochs": 12}
    trainer = flooded(bert(), Watched(epochs=12), tmp_path, **changes)
    assert {*seen} == {len(trainer.eval_dataset)}
    assert len(seen) >= 12
    lowest = min(logged(trainer, "eval_loss"))
    assert 0.5 * lowest < trainer.flood_step.level < lowest


# A level for each class.


@pytest.mark.filterwarnings(IGNORES)
def test_a_level_for_each_class(tmp_path):
    levels = torch.tensor([0.3, 0.6], dtype=torch.float64)
    model = bert()
    options = {"flood_level": PerClass(levels)}
    trainer = make_trainer(FloodTrainer, model, tmp_path, options=options)
    trainer.train()

    twin, texts = bert(), Texts(False)
    optimizer = torch.optim.SGD(trainable(twin), lr=RATE, momentum=0.5)
    below, raw = [], []
    for _ in range(EPOCHS):
        for start in range(0, 3 * STEP, STEP):
            ids, labels = texts.ids[start : start + STEP], texts.labels[start : start + STEP]
            losses = losses_of(twin, ids, labels, False, reduction="none")
            b = levels[labels]
            optimizer.zero_grad()
            ((losses - b).abs() + b).mean().backward()
            torch.nn.utils.clip_grad_norm_(trainable(twin), 1.0)
            optimizer.step()
            below.append((losses < b).double().mean().item())
            raw.append(losses.mean().item())
    assert 0.1 < sum(below) / len(below) < 0.9
    assert distance(model, twin) <= EXACT
    assert logged(trainer, "raw_loss")[-1] == pytest.approx(sum(raw[-3:]) / 3)
    assert logged(trainer, "flooded_fraction")[-1] == pytest.approx(sum(below[-3:]) / 3)
    # Evaluation is plain, within the training and after it.
    plain_loss = losses_of(model.eval(), texts.ids, texts.labels, False).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain_loss, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (llama, {}, "single-label classification .* LlamaForCausalLM"),
        (bert, {"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        (bert, {"levels": 3}, "3 levels and 2 labels"),
        (bert, {"problem_type": "regression"}, "problem_type='regression'"),
    ],
    ids=["language model", "label smoothing", "number of classes", "regression"],
)
def test_levels_per_class_are_refused(make, change, message, tmp_path):
    model, change = make(), dict(change)
    level = PerClass(torch.full((change.pop("levels", 2),), 0.1))
    model.config.problem_type = change.pop("problem_type", None)
    with pytest.raises(ValueError, match=message):
        make_trainer(FloodTrainer, model, tmp_path, options={"flood_level": level}, **change)


# The faults of transformers that the page tells about.


def test_a_head_that_ignores_the_count_is_found_once(tmp_path):
    """Without flooding, Trainer's gradient and logged loss are four times too large."""
    model, texts = bert(), Texts(False)
    options = {"max_steps": 1, "logging_steps": 1, "max_grad_norm": 0.0}
    trainer = plain(model, tmp_path, **options)
    twin = bert()
    loss = losses_of(twin, texts.ids[:STEP], texts.labels[:STEP], False)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainable(twin)])
    update = (flat(bert()) - flat(model)) / RATE
    assert torch.allclose(update, ACCUMULATE * gradient, rtol=1e-9, atol=1e-12)
    assert logged(trainer, "loss")[0] == pytest.approx(ACCUMULATE * loss.item(), rel=1e-6)

    model = bert(dropout=0.1).train()
    with pytest.warns(UserWarning, match="4 times too large") as caught:
        trainer = flooded(model, 0.0, tmp_path, num_train_epochs=2)
    assert len([w for w in caught if "ignores" in str(w.message)]) == 1
    assert logged(trainer, "loss")[0] < 1.2
    assert not trainer.model_accepts_loss_kwargs


def test_finding_out_leaves_no_trace(tmp_path):
    """The probe draws no random number and leaves the model in training."""
    weights = []
    for is_declared in (False, True):
        model = bert(dropout=0.3)
        trainer = make_trainer(
            FloodTrainer, model, tmp_path, options={"flood_level": 0.2}, num_train_epochs=2
        )
        if is_declared:
            trainer.model_accepts_loss_kwargs = False
            trainer.train()
        else:
            with pytest.warns(UserWarning, match="ignores it"):
                trainer.train()
        weights.append(flat(model))
    assert torch.equal(*weights)


def test_a_function_that_ignores_the_count_is_an_error(tmp_path):
    def mean(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    model = bert()
    with pytest.raises(ValueError, match="must divide by num_items_in_batch"):
        flooded(model, 0.2, tmp_path, options={"compute_loss_func": mean})
    assert distance(model, bert()) == 0


def test_labels_that_are_counted_before_the_shift(tmp_path):
    """GPT-2's own loss in Trainer is lower than the mean over the tokens that have one."""
    texts = Texts(True)
    model = gpt2()
    with torch.no_grad():
        mean = losses_of(model, texts.ids[:STEP], texts.labels[:STEP], True).item()
    counted = (texts.labels[:STEP] != -100).sum().item()
    averaged = (texts.labels[:STEP, 1:] != -100).sum().item()
    options = {"language": True, "max_steps": 1, "logging_steps": 1}
    trainer = plain(gpt2(), tmp_path, **options)
    factor = averaged / counted
    assert factor < 0.9
    assert logged(trainer, "loss")[0] == pytest.approx(mean * factor, rel=1e-5)
    with pytest.warns(UserWarning, match="Trainer counts .* labels in a micro-batch"):
        trainer = flooded(gpt2(), 0.1, tmp_path, **options)
    assert logged(trainer, "raw_loss")[0] == pytest.approx(mean * factor, rel=1e-5)


# Bad input: a clear error before the first step.


@pytest.mark.parametrize(
    ("level", "error", "message"),
    [
        ("0.1", TypeError, "level must be a number"),
        (math.nan, ValueError, "finite"),
        (Warmup, TypeError, "level must be a number"),
        (Excess(0.1, 2), TypeError, "got Excess"),
        (torch.ones(2), ValueError, "no axes"),
    ],
    ids=["text", "nan", "class", "table", "axes"],
)
def test_a_level_that_is_none(level, error, message, tmp_path):
    with pytest.raises(error, match=message):
        make_trainer(FloodTrainer, bert(), tmp_path, options={"flood_level": level})


def test_the_mixin_comes_first():
    with pytest.raises(TypeError, match="must come before Trainer"):
        type("T", (Trainer, FloodTrainerMixin), {})
    with pytest.raises(TypeError, match="needs a Trainer"):
        FloodTrainerMixin(flood_level=0.1)


def test_an_optimizer_in_backward_is_refused(tmp_path):
    model = bert()
    # What a layer-wise optim builds: hooks on the model, and an optimiser that does nothing.
    options = {"flood_level": 0.1, "optimizers": (LayerWiseDummyOptimizer(), None)}
    trainer = make_trainer(FloodTrainer, model, tmp_path, options=options)
    hook = next(model.parameters()).register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(ValueError, match="as layer-wise optimisers"):
        trainer.train()
    hook.remove()
    with pytest.raises(ValueError, match="steps inside backward"):
        make_trainer(FloodTrainer, model, tmp_path, options=options, optim="lomo")
    assert distance(model, bert()) == 0


def test_zero_3_is_refused(tmp_path, monkeypatch):
    class UseZero3(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            plugin = SimpleNamespace(zero_stage=3)
            monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin)

    options = {"flood_level": 0.1, "callbacks": [UseZero3()]}
    trainer = make_trainer(FloodTrainer, bert(), tmp_path, options=options)
    with pytest.raises(ValueError, match="ZeRO 3"):
        trainer.train()


def test_flooding_twice_is_refused(tmp_path):
    model = bert()
    function = Flood(token_share, 0.1)
    options = {"flood_level": 0.1, "compute_loss_func": function}
    with pytest.raises(ValueError, match="is a Flood already"):
        make_trainer(FloodTrainer, model, tmp_path, options=options)
    trainer = make_trainer(FloodTrainer, model, tmp_path, options={"flood_level": 0.1})
    with FloodStep(trainer.optimizer, 0.1), pytest.raises(ValueError, match="has a FloodStep"):
        trainer.train()
    assert distance(model, bert()) == 0


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (Plateau(0.1), "Plateau needs a metric"),
        (Delayed(0.1, until_accuracy=1.0), "no training accuracy"),
    ],
)
def test_a_controller_without_its_metric_is_refused(level, message, tmp_path):
    model = bert()
    with pytest.raises(ValueError, match=message):
        flooded(model, level, tmp_path)
    assert distance(model, bert()) == 0


@pytest.mark.filterwarnings(IGNORES)
def test_a_failed_training_leaves_a_plain_trainer(tmp_path):
    trainer = make_trainer(FloodTrainer, bert(), tmp_path, options={"flood_level": 5.0})
    trainer.add_callback(_Fail())
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.train()
    assert "backward" not in vars(trainer.accelerator)
    model, trainer.flood_level = trainer.model, None
    trainer.remove_callback(_Fail)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before  # it would climb at level 5
    assert trainer.flood_step is None
    assert model is trainer.model


class _Fail(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.filterwarnings(IGNORES)
def test_selecting_by_the_training_loss_is_warned_about(stops, tmp_path):
    changes = {"eval_strategy": "epoch", "num_train_epochs": 1, "metric_for_best_model": "loss"}
    callbacks = [EarlyStoppingCallback(2)] if stops else []
    if not stops:
        changes |= {"load_best_model_at_end": True, "save_strategy": "epoch"}
    options = {"flood_level": 0.1, "callbacks": callbacks}
    trainer = make_trainer(FloodTrainer, bert(), tmp_path, options=options, **changes)
    with pytest.warns(UserWarning, match="loss of the training data"):
        trainer.train()
    # Other data are what a checkpoint is to be selected by.
    options |= {"eval_dataset": Texts(False, samples=8)}
    trainer = make_trainer(FloodTrainer, bert(), tmp_path, options=options, **changes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert not [w for w in caught if "loss of the training data" in str(w.message)]


def test_the_examples_of_the_adapter_run():
    import flooding.integrations.transformers as adapter
    from flooding import integrations

    assert run_doctests(adapter, integrations) >= 2
