"""transformers: a mixin before Trainer, under accumulation.

A small BERT reads made-up reviews, a fifth of them with the wrong label. The picture shows the
validation loss after every epoch.
"""

import random
import tempfile

from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers import set_seed

from flooding.integrations.transformers import FloodTrainerMixin  # <-- flooding

GOOD = "wonderful moving funny clever warm gripping".split()
BAD = "dull tired clumsy hollow noisy tedious".split()
OTHER = "the a film plot cast scene music is was and with its one hour of two".split()
WORDS = ["[PAD]", *GOOD, *BAD, *OTHER]


def reviews(number, seed, noise):
    rng = random.Random(seed)
    examples = []
    for _ in range(number):
        label = rng.randrange(2)
        words = rng.choices(OTHER, k=8)
        words[rng.randrange(8)] = rng.choice(GOOD if label else BAD)
        if rng.random() < noise:
            label = 1 - label
        ids = [WORDS.index(word) for word in words]
        examples.append({"input_ids": ids, "labels": label})
    return examples


class FloodTrainer(FloodTrainerMixin, Trainer):  # <-- flooding
    pass  # <-- flooding


def train(flood_level):
    set_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=8,
    )
    trainer = FloodTrainer(  # <-- flooding
        model=BertForSequenceClassification(config),
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            num_train_epochs=30,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=500,
            gradient_accumulation_steps=4,
            learning_rate=5e-3,
            lr_scheduler_type="constant",
            eval_strategy="epoch",
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=reviews(320, seed=0, noise=0.2),
        eval_dataset=reviews(500, seed=1, noise=0.2),
        flood_level=flood_level,  # <-- flooding
    )
    trainer.train()
    return trainer


before = train(flood_level=None)
after = train(flood_level=0.45)
history = after.state.log_history
print({name: history[-3][name] for name in ("loss", "flooded_loss", "flooded_fraction")})

last = [trainer.state.log_history[-2]["eval_loss"] for trainer in (before, after)]
print(f"validation loss {last[0]:.2f} -> {last[1]:.2f}")
last[1] < last[0] - 0.1  # -> True


# The picture.
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, trainer, color in (("plain", before, "tab:red"), ("flooded", after, "tab:blue")):
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    ax.plot(range(1, len(losses) + 1), losses, color=color, label=name)
ax.set(xlabel="epoch", ylabel="validation loss, nats")
ax.legend()
figure.savefig("transformers_trainer.png", dpi=100)
