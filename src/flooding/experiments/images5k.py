"""Real images at reduced scale: 4,000 training images, small networks, six levels.

This is not the full protocol of the sources: it shows on a CPU, in less than an hour, whether
flooding helps where images, labels and networks are real, with and without early stopping. In full,
the grey images (MNIST, Fashion-MNIST) take hours on a CPU; CIFAR-10 with the sources' residual
networks is work for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from flooding.data import images
from flooding.experiments import Experiment, Study
from flooding.experiments.grids import CURVES, compare_levels
from flooding.experiments.study import choose_seeds
from flooding.models import small_cnn
from flooding.report.level_grid import Cell
from flooding.tasks import adam
from flooding.training.problem import Problem

# In nats; fixed beforehand.
LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
# With a fifth of the labels wrong the training loss falls slowly, and the irreducible loss is 0.94.
NOISY_LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def sizes(quick: bool = False) -> dict[str, int]:
    """Give the numbers of training and validation images, as arguments of the loaders."""
    if quick:
        return {"n_train": 400, "n_val": 200}
    return {"n_train": 4000, "n_val": 1000}


def cells(quick: bool = False, seeds: Sequence[int] | None = None) -> list[Cell]:
    """Plan MNIST, Fashion-MNIST without and with label noise, and CIFAR-10, with three seeds."""
    colour = partial(small_cnn, channels=3, size=32)
    settings = (
        ("MNIST", images.mnist, 0.0, small_cnn, 30),
        ("Fashion-MNIST", images.fashion_mnist, 0.0, small_cnn, 30),
        ("Fashion-MNIST, 20 % label noise", images.fashion_mnist, 0.2, small_cnn, 60),
        ("CIFAR-10", images.cifar10, 0.0, colour, 60),
    )
    chosen = choose_seeds(seeds, 2 if quick else 3)
    plan = []
    for title, source, noise, model, max_epochs in settings:
        data = partial(source, label_noise=noise, **sizes(quick))
        levels = NOISY_LEVELS if noise else LEVELS
        # Every second of the larger levels, and a third of the epochs.
        if quick:
            levels, max_epochs = (0.0, *levels[3::2]), max_epochs // 3
        problem = Problem(data, model, adam, batch_size=100, max_epochs=max_epochs)
        plan.append(Cell(title, problem, levels, chosen))
    return plan


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train all levels of all cells and compare, for each seed, what validation picks."""
    plan, size = cells(quick, seeds), sizes(quick)
    about = (
        f"**Reduced protocol, not the sources'**: {size['n_train']:,} training and "
        f"{size['n_val']:,} validation images drawn for each seed, the official test images, a "
        "convolutional network of two layers, Adam at 0.001, batches of 100, no augmentation; "
        f"{plan[0].problem.max_epochs} epochs, {plan[-1].problem.max_epochs} for CIFAR-10 and "
        "with label noise."
    )
    return compare_levels(plan, "Real images at reduced scale", about)


EXPERIMENT = Experiment("images5k", start, CURVES)
