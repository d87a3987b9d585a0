"""CIFAR-10 with a residual network: the published reproduction's setting, at its two rates.

The full protocol (ResNet-44, 500 epochs, 12 levels) needs a GPU: ``benchmarks/gpu/pieces.py``
trains it in pieces. Reduced, on a CPU: ResNet-8, 4,250 images, 80 epochs and no augmentation, with
which this network's training loss never falls below the levels on so few images. At the lower rate,
80 epochs are too few for the source's levels; it has higher ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.optim.lr_scheduler import MultiStepLR

from flooding.data import images
from flooding.data.augment import crop_and_flip
from flooding.experiments import Experiment, Study, grids
from flooding.experiments.grids import compare_levels
from flooding.experiments.study import choose_seeds
from flooding.models import IMAGENET_MEAN_SD, Standardise, resnet_cifar
from flooding.report.level_grid import Cell, LevelGrid
from flooding.training.problem import Problem, TestCurve
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = (*grids.CURVES, "level", "test_accuracy", "test_loss")
# Nats. Fixed by the training loss of one plain run at each rate, on a seed that is not used: at 0.1
# it falls below 0.2 after 27 of the 80 epochs and below 0.01 after 36; at 0.001 it is 1.72 at epoch
# 20 and 1.57 at 40, and ends at 1.54.
LEVELS = {0.1: (0.0, 0.01, 0.02, 0.05, 0.1, 0.2), 0.001: (0.0, 1.6, 1.65, 1.7, 1.8)}
# The rate of the source's code, and that of its text.
RATES = tuple(LEVELS)
FULL_LEVELS = (*(round(0.01 * n, 2) for n in range(11)), 0.2)


def network(depth: int) -> nn.Sequential:
    """Build the residual network for uint8 images.

    Args:
        depth: See :func:`flooding.models.resnet_cifar`.

    Returns:
        A network from images ``[n, 3, 32, 32]``, uint8, to logits ``[n, 10]``. It scales the images
        as is usual for ImageNet.
    """
    layers = nn.Sequential(Standardise(*IMAGENET_MEAN_SD), *resnet_cifar(depth))
    # A fifth less time on a CPU.
    return convert_conv2d_weight_memory_format(layers, torch.channels_last)


def setting(
    rate: float, *, full: bool = False, max_epochs: int | None = None, **sizes: int
) -> Problem:
    """Give the reproduction's setting.

    Args:
        rate: Learning rate; a tenth of it after half of the epochs, a hundredth after four fifths.
        full: Its full protocol: ResNet-44, 42,500 images with random crops and mirrors, 500 epochs.
        max_epochs: Other epochs; those of the decay go along.
        sizes: Other numbers of images, see :func:`flooding.data.images.cifar10`.

    Returns:
        CIFAR-10, kept as bytes, 85 : 15 training to validation images (validation is not augmented,
        unlike in the source's code, where it is by mistake); SGD with momentum 0.9, batches of 128,
        no weight decay. What crops add at the borders is black.
    """
    # Reduced: a tenth of the images, and a network and epochs that a CPU can train.
    epochs, depth, augment = 80, 8, None
    all_sizes = {"n_train": 4_250, "n_val": 750}
    if full:
        epochs, depth, augment = 500, 44, crop_and_flip
        all_sizes = {"n_train": 42_500, "n_val": 7_500}
    epochs = max_epochs or epochs
    all_sizes |= sizes
    milestones = (epochs // 2, epochs * 4 // 5)
    return Problem(
        partial(images.cifar10, label_noise=0.0, standardise=False, **all_sizes),
        partial(network, depth),
        partial(torch.optim.SGD, lr=rate, momentum=0.9),
        batch_size=128,
        max_epochs=epochs,
        lr_scheduler=partial(MultiStepLR, milestones=milestones, gamma=0.1),
        test_curve=TestCurve(2000, every=1),
        augment=augment,
    )


def cells(
    quick: bool = False, seeds: Sequence[int] | None = None, *, full: bool = False
) -> list[Cell]:
    """Plan a cell for each learning rate.

    Args:
        quick: Two seeds, three levels, 850 training images, 4 epochs: the shape of a result.
        seeds: Other seeds than the three; the full protocol has one.
        full: The full protocol.

    Returns:
        The cells.
    """
    count, sizes = 3, {}
    if full:
        count = 1
    elif quick:
        count = 2
    if quick:
        sizes = {"max_epochs": 4, "n_train": 850, "n_val": 150}
    plan = []
    for rate, levels in LEVELS.items():
        if full:
            levels = FULL_LEVELS
        elif quick:
            levels = (0.0, *levels[-2:])
        problem = setting(rate, full=full, **sizes)
        plan.append(Cell(f"learning rate {rate:g}", problem, levels, choose_seeds(seeds, count)))
    return plan


def start(quick: bool = False, seeds: Sequence[int] | None = None, *, full: bool = False) -> Study:
    """Train all levels at both rates; compare what validation picks and what the finder does."""
    plan = cells(quick, seeds, full=full)
    common = (
        f"{plan[0].problem.max_epochs} epochs, the learning rate divided by 10 after half and "
        "after four fifths of them, no weight decay"
    )
    if full:
        about = (
            "**The source's protocol**: CIFAR-10, 42,500 training and 7,500 validation images "
            "drawn for each seed, the 10,000 official test images (2,000 of them for curves), "
            "ResNet-44, crops and mirrors, SGD with momentum 0.9, batches of 128, "
            f"{common}. Validation images are not augmented, unlike in the source's code."
        )
    else:
        size = "850 training and 150" if quick else "4,250 training and 750"
        about = (
            f"**Reduced protocol, not the source's**: CIFAR-10, {size} validation images drawn "
            "for each seed, the 10,000 official test images (2,000 of them for curves), ResNet-8, "
            f"no augmentation, SGD with momentum 0.9, batches of 128, {common}. The source: "
            "ResNet-44, 42,500 images with crops and mirrors, 500 epochs, levels in steps of 0.01 "
            "up to 0.1. Levels were fixed by the training loss of one plain run at each rate, on "
            f"a seed that is not used; at {RATES[1]:g} so few steps do not reach the source's "
            "levels, hence the higher ones."
        )
    caption = (
        f"Loss over the epochs at learning rate {RATES[0]:g} without flooding and at the level "
        f"{plan[0].levels[-1]:g}: mean and standard deviation over seeds. The band reaches from 0 "
        "to the level. The learning rate falls after half and four fifths of the epochs, which "
        "shows, too."
    )
    title = "CIFAR-10 with a residual network"
    if not full:
        title += ", reduced"
    figures = {"losses": (caption, _draw_losses)}
    return compare_levels(plan, title, about, figures, search=True)


def _draw_losses(results: Sequence[LevelGrid]) -> Figure:
    """Draw training and test loss without flooding and at the highest level."""
    from flooding.report.plots import concept

    first = results[0]
    return concept(first.at(0.0), first.at(first.cell.levels[-1]))


def is_exact(run: Run) -> bool:  # noqa: ARG001
    """Tell whose curves an archive must not round: the finder reads all of them."""
    return True


EXPERIMENT = Experiment("kim2022_cifar10", start, CURVES, is_exact=is_exact)
