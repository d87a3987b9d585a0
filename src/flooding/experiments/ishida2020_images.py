"""All images of MNIST and Fashion-MNIST in the setting of Ishida et al., ICML 2020, section 4.2.

The paper's split, optimiser, rate and batches (80 : 20, SGD at 0.1 with momentum 0.9, batches of
200) with a network and a number of epochs that a CPU can train: two hidden layers of 200 units, 150
epochs in place of 500. A level is searched for, and one training chooses its own; averaged weights
are kept beside the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from flooding.averaging import EMA
from flooding.data import images
from flooding.experiments import Experiment, Study, grids
from flooding.experiments.grids import compare_levels
from flooding.experiments.study import choose_seeds
from flooding.models import mlp
from flooding.report.level_grid import Cell
from flooding.training.problem import Problem

CURVES = (*grids.CURVES, "level", "average.val_accuracy", "average.val_loss")
# Title, loader, label noise and levels in nats. The levels were fixed by one plain training of each
# on a seed that is not used: its lowest validation loss was 0.09, 0.31 and 1.21, its training loss
# ended at 0.00, 0.04 and 0.55.
SETTINGS = (
    ("MNIST", images.mnist, 0.0, (0.0, 0.01, 0.02, 0.03, 0.05, 0.07)),
    ("Fashion-MNIST", images.fashion_mnist, 0.0, (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)),
    (
        "Fashion-MNIST, 20 % label noise",
        images.fashion_mnist,
        0.2,
        (0.0, 0.7, 0.8, 0.9, 1.0, 1.1),
    ),
)
EPOCHS = 150


def cells(quick: bool = False, seeds: Sequence[int] | None = None) -> list[Cell]:
    """Plan MNIST and Fashion-MNIST, the latter without and with label noise.

    Args:
        quick: Two seeds, three levels, 800 training images, 10 epochs: the shape of a result.
        seeds: Other seeds than the three.

    Returns:
        The cells.
    """
    sizes = {"n_train": 48_000, "n_val": 12_000}
    max_epochs = EPOCHS
    if quick:
        sizes = {"n_train": 800, "n_val": 200}
        max_epochs = 10
    chosen = choose_seeds(seeds, 2 if quick else 3)
    plan = []
    for title, source, noise, levels in SETTINGS:
        if quick:
            levels = (0.0, *levels[-2:])
        problem = Problem(
            partial(source, label_noise=noise, **sizes),
            partial(mlp, 784, 10, width=200, depth=2),
            partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
            batch_size=200,
            max_epochs=max_epochs,
            averaging=EMA(),
        )
        plan.append(Cell(title, problem, levels, chosen))
    return plan


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train all levels and the auto level of all cells, and compare what validation picks."""
    plan = cells(quick, seeds)
    size = "800 training and 200" if quick else "48,000 training and 12,000"
    about = (
        "The setting of Ishida et al., ICML 2020, section 4.2, but for the network, the epochs "
        f"and the levels: {size} validation images drawn for each seed, the 10,000 official test "
        "images, SGD at 0.1 with momentum 0.9, batches of 200, no augmentation. The network is "
        "ours: two hidden layers of 200 units, ReLU. "
        f"{plan[0].problem.max_epochs} epochs, the paper's are 500. Levels were fixed by plain "
        "training on a seed that is not used: below its lowest validation loss, and reached."
    )
    return compare_levels(plan, "MNIST and Fashion-MNIST, all images", about, auto=True)


EXPERIMENT = Experiment("ishida2020_images", start, CURVES)
