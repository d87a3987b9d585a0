"""Lightning: one callback, under accumulation and clipping.

Handwritten digits with a fifth of the training labels replaced. The picture shows what flooding
changes on validation labels, which are as noisy, and on clean test labels.
"""

import logging

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from flooding.data.tables import digits
from flooding.integrations.lightning import FloodCallback  # <-- added

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
splits = digits(label_noise=0.2, seed=0)


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.log("val_loss", functional.cross_entropy(logits, y), sync_dist=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), sync_dist=True)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def loader(split, shuffle=False):
    return DataLoader(TensorDataset(split.x, split.y), batch_size=25, shuffle=shuffle)


def train(callbacks=()):
    pl.seed_everything(0, verbose=False)
    module = Digits()
    trainer = pl.Trainer(
        max_epochs=25,
        accumulate_grad_batches=4,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, loader(splits.train, shuffle=True), loader(splits.val))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (test,) = trainer.test(module, loader(splits.test), verbose=False)
    return metrics | test


plain = train()
flooded = train([FloodCallback(0.8)])  # <-- added
print(f"plain    val_loss {plain['val_loss']:.2f}  test_acc {plain['test_acc']:.3f}")
print(f"flooded  val_loss {flooded['val_loss']:.2f}  test_acc {flooded['test_acc']:.3f}")
print({name: round(value, 3) for name, value in flooded.items() if name.startswith("flood/")})


# The picture.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
for ax, name, title in zip(
    axes, ("val_loss", "test_acc"), ("validation loss, nats", "test accuracy"), strict=True
):
    ax.bar(["plain", "flooded"], [plain[name], flooded[name]], color=["tab:red", "tab:blue"])
    ax.set_title(title)
figure.savefig("lightning_callback.png", dpi=100)
