"""A training loop of your own, with and without flooding.

The criterion is wrapped once. The loop stays as it is. A tenth of the training labels are wrong:
plain training learns them, flooding does not.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn import functional

from flooding import Flood
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp

splits = two_gaussians(n_test=2000, label_noise=0.1, seed=0)
train, test = splits.train, splits.test


def fit(level, epochs=150):
    torch.manual_seed(0)
    model = mlp(10, 2, width=50, depth=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    criterion = Flood(torch.nn.CrossEntropyLoss(), level)  # None: plain training
    train_losses, test_losses = [], []
    for _ in range(epochs):
        optimizer.zero_grad()
        criterion(model(train.x), train.y).backward()
        optimizer.step()
        train_losses.append(float(criterion.raw_loss))
        with torch.no_grad():
            test_losses.append(float(functional.cross_entropy(model(test.x), test.y)))
    return train_losses, test_losses


figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for level, color in ((None, "tab:red"), (0.3, "tab:blue")):
    train_losses, test_losses = fit(level)
    name = "plain" if level is None else f"level {level}"
    axes.plot(train_losses, color=color, linestyle=":", label=f"{name}, training")
    axes.plot(test_losses, color=color, label=f"{name}, test")
    print(f"{name}: training loss {train_losses[-1]:.2f}, test loss {test_losses[-1]:.2f}")
axes.set(xlabel="epoch", ylabel="cross-entropy, nats", ylim=(0, 2))
axes.legend()
figure.savefig("own_loop.png", dpi=100)
