"""What transformers' Trainer must equal: a hand-written loop over whole steps, in plain torch.

Tiny random models, made from configurations, on token ids made here. Nothing is downloaded.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from flooding.levels import StepInfo

MICRO, ACCUMULATE, EPOCHS, RATE = 4, 4, 12, 0.2
STEP = MICRO * ACCUMULATE
SAMPLES = 3 * STEP  # three optimiser steps an epoch
# Below the loss of a guess, and crossed often.
CLASS_LEVEL, TOKEN_LEVEL = 0.65, 1.8


class Texts(torch.utils.data.Dataset):
    """Rows of ten token ids.

    Their class says whether the mean id is large, with 20 % label noise. For language models the
    labels are the ids, of which 3 to 10 of each row count.
    """

    def __init__(self, language, samples=SAMPLES):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(5, 12, (samples, 10), generator=generator)
        classes = (self.ids.double().mean(1) > 8).long()
        is_flipped = torch.rand(samples, generator=generator) < 0.2
        self.labels = torch.where(is_flipped, 1 - classes, classes)
        if language:
            lengths = torch.randint(3, 11, (samples, 1), generator=generator)
            self.labels = self.ids.masked_fill(torch.arange(10) >= lengths, -100)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


SIZES = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 16, "initializer_range": 0.3}


def bert(dropout=0.0):
    """A classifier whose head takes num_items_in_batch and ignores it."""
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return BertForSequenceClassification(BertConfig(**SIZES, **dropouts)).double()


def llama():
    """A language model whose head divides by num_items_in_batch."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).double()


def gpt2():
    """A language model whose labels Trainer counts before they are shifted."""
    sizes = {"vocab_size": 16, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, initializer_range=0.3)).double()


def is_language_model(model):
    return "LMHead" in type(model).__name__ or "CausalLM" in type(model).__name__


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def flat(model):
    return torch.cat([parameter.detach().double().flatten() for parameter in trainable(model)])


def distance(model, other):
    """Largest difference of any weight."""
    return (flat(model) - flat(other)).abs().max().item()


def losses_of(model, ids, labels, language, **options):
    """Cross-entropy of a batch, by hand."""
    logits = model(input_ids=ids).logits
    if language:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return functional.cross_entropy(logits, labels, **options)


def by_hand(
    model, level, *, language=False, epochs=EPOCHS, samples=SAMPLES, max_norm=1.0, smoothing=0.0
):
    """Train on whole steps: the mean loss L of all items, |L - b| + b, one backward, one step.

    A level with ``init`` and ``update`` is a controller, which is updated after each step.
    Gives the model, the raw losses and the number of clipped steps.
    """
    texts = Texts(language, samples)
    optimizer = torch.optim.SGD(trainable(model), lr=RATE, momentum=0.5)
    state = level.init() if hasattr(level, "init") else {"level": level}
    raw, num_clipped = [], 0
    for _ in range(epochs):
        for start in range(0, samples, STEP):
            batch = slice(start, start + STEP)
            ids, labels = texts.ids[batch], texts.labels[batch]
            loss = losses_of(model, ids, labels, language, label_smoothing=smoothing)
            b = state["level"]
            optimizer.zero_grad()
            (loss if b is None else (loss - b).abs() + b).backward()
            num_clipped += nn.utils.clip_grad_norm_(trainable(model), max_norm).item() > max_norm
            optimizer.step()
            raw.append(loss.item())
            if hasattr(level, "update"):
                state = level.update(state, StepInfo(loss.detach()))
        if hasattr(level, "update"):
            state = level.update(state, StepInfo())
    return model, raw, num_clipped


def arguments(folder, **changes):
    options = {
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": ACCUMULATE,
        "num_train_epochs": EPOCHS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 3,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **options | changes)


def make_trainer(kind, model, folder, *, language=False, samples=SAMPLES, options=(), **changes):
    """A trainer of a kind, a subclass of Trainer, on the texts.

    ``options`` go to the trainer, ``changes`` to its arguments.
    """
    optimizer = torch.optim.SGD(trainable(model), lr=RATE, momentum=0.5)
    texts = Texts(language, samples)
    return kind(
        model=model,
        args=arguments(folder, **changes),
        **{"train_dataset": texts, "eval_dataset": texts, "optimizers": (optimizer, None)}
        | dict(options),
    )


def token_share(outputs, labels, num_items_in_batch=None):
    """A compute_loss_func as transformers' documentation has it, in float64."""
    logits = outputs.logits
    if labels.dim() > 1:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def plain(model, folder, **options):
    """Train as Trainer does."""
    trainer = make_trainer(Trainer, model, folder, **options)
    trainer.train()
    return trainer
