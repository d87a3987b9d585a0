"""What FloodCallback costs a training step of Lightning, beside Lightning alone.

    python benchmarks/frameworks_overhead.py [--rounds 10] [--batch 128]

Steps of the two trainings take turns in one process, so that a drifting machine slows both: two
Trainers run in two threads, and each step waits for the other's. The figure is the median ratio of
neighbouring steps, first on a small network, where the callback's own time shows, then on
ResNet-20 with images of 32 x 32 pixels, forward, backward and step.
"""

# Hooks take arguments that they do not need.
# ruff: file-ignore[unused-method-argument]

from __future__ import annotations

import argparse
import logging
import statistics
import threading
import time
import warnings

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from flooding.integrations.lightning import FloodCallback
from flooding.models import resnet_cifar

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(pl.LightningModule):
    """A network with cross-entropy and SGD."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        """Compute the loss."""
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        """Build SGD with momentum."""
        return torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)


class Turns(pl.Callback):
    """Let two trainings step in turn, and time each step."""

    def __init__(self, mine: threading.Semaphore, other: threading.Semaphore) -> None:
        self.mine, self.other = mine, other
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Begin a step after the other training's."""
        if batch_idx:
            self.seconds.append(time.perf_counter() - self.began)
            self.other.release()
        self.mine.acquire()
        self.began = time.perf_counter()

    def on_train_end(self, trainer, pl_module):
        """Let the other training end."""
        self.other.release()


def fit(net, x, y, steps, callbacks):
    """Train for some steps, each on the same batch."""
    examples = TensorDataset(x.expand(steps, *x.shape), y.expand(steps, *y.shape))
    loader = DataLoader(examples, batch_size=None)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Module(net), loader)


def paired(build, x, y, steps):
    """Give the seconds of each step with the callback and without it."""
    semaphores = [threading.Semaphore(1), threading.Semaphore(0)]
    turns = [Turns(*semaphores), Turns(*reversed(semaphores))]
    threads = []
    for turn, extra in zip(turns, ([FloodCallback(0.5)], []), strict=True):
        # The first callback of a Trainer starts the clock, so that it times all the others.
        arguments = (build(), x, y, steps, [turn, *extra])
        threads.append(threading.Thread(target=fit, args=arguments))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    warm = steps // 5
    return [turn.seconds[warm:] for turn in turns]


def report(name, flooded, plain):
    """Print and give the median difference of neighbouring steps, and the median plain step."""
    pairs = list(zip(flooded, plain, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    difference = statistics.median(a - b for a, b in pairs)
    quartiles = statistics.quantiles([a / b for a, b in pairs], n=4)
    print(
        f"{name}: {1e3 * statistics.median(plain):.2f} ms a step without, ratio {ratio:.4f} "
        f"(quartiles {quartiles[0]:.4f} to {quartiles[2]:.4f}), {1e6 * difference:+.0f} us"
    )
    return difference, statistics.median(plain)


def main() -> None:
    """Measure both networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="steps of ResNet-20")
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    y = torch.randint(10, (arguments.batch,))
    small = torch.randn(arguments.batch, 64)
    mlp = lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))  # noqa: E731
    own_time, _ = report("small network", *paired(mlp, small, y, 1000))
    images = torch.randn(arguments.batch, 3, 32, 32)
    _, step = report("ResNet-20", *paired(resnet_cifar, images, y, arguments.rounds))
    print(
        f"by itself {1e6 * own_time:.0f} us: {100 * own_time / step:.3f} % of a step of ResNet-20"
    )


if __name__ == "__main__":
    main()
