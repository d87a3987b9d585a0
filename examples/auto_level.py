"""One training that chooses its own level: the controller Auto in a loop of your own.

It needs the validation result after every epoch. It tries shares of the lowest validation loss,
then holds the level at which validation was best.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn import functional

from flooding import Flood
from flooding.data.synthetic import two_gaussians
from flooding.levels import Auto
from flooding.metrics import accuracy
from flooding.models import mlp

EPOCHS = 200
splits = two_gaussians(n_test=10, label_noise=0.1, seed=0)
train, val = splits.train, splits.val

torch.manual_seed(0)
model = mlp(10, 2, width=50, depth=2)
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
criterion = Flood(torch.nn.CrossEntropyLoss(), Auto(epochs=EPOCHS))
train_losses, val_losses, levels = [], [], []
for _ in range(EPOCHS):
    optimizer.zero_grad()
    criterion(model(train.x), train.y).backward()
    optimizer.step()
    with torch.no_grad():
        logits = model(val.x)
    val_loss = float(functional.cross_entropy(logits, val.y))
    criterion.on_epoch_end(val_loss=val_loss, val_accuracy=float(accuracy(logits, val.y)))
    train_losses.append(float(criterion.raw_loss))
    val_losses.append(val_loss)
    levels.append(float(criterion.level))
print(f"level {levels[-1]:.2f}, validation loss {val_losses[-1]:.2f}")

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(train_losses, color="tab:blue", label="training loss")
ax.plot(val_losses, color="tab:orange", label="validation loss")
ax.step(range(EPOCHS), levels, color="gray", label="level")
ax.set(xlabel="epoch", ylabel="cross-entropy, nats", ylim=(0, 1.2))
ax.legend()
figure.savefig("auto_level.png", dpi=100)
