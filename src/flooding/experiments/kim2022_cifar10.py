"""CIFAR-10 with a residual network, the setting of the published reproduction, at its two learning
rates.

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
from flooding.experiments import Experiment, Study
from flooding.experiments.grids import CURVES as GRID_CURVES
from flooding.experiments.grids import Cell, Result, compare_levels
from flooding.models import IMAGENET, Standardise, resnet_cifar
from flooding.training.problem import Problem, TestCurve
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CURVES",
    "EXPERIMENT",
    "FULL_LEVELS",
    "LEVELS",
    "RATES",
    "cells",
    "exact",
    "experiment",
    "network",
    "setting",
]

CURVES = (*GRID_CURVES, "level", "test_accuracy", "test_loss")
# Nats. Fixed by the training loss of one plain run at each rate, on a seed that is not used: at 0.1
# it falls below 0.2 after 27 of the 80 epochs and below 0.01 after 36; at 0.001 it is 1.72 at epoch
# 20 and 1.57 at 40, and ends at 1.54.
LEVELS = {0.1: (0.0, 0.01, 0.02, 0.05, 0.1, 0.2), 0.001: (0.0, 1.6, 1.65, 1.7, 1.8)}
RATES = tuple(LEVELS)  # the source's code, and its text
FULL_LEVELS = (*(round(0.01 * n, 2) for n in range(11)), 0.2)


def network(depth: int) -> nn.Sequential:
    """Build the residual network for images that are kept as bytes; it scales them as is usual for
    ImageNet.

    Args:
        depth: See :func:`flooding.models.resnet_cifar`.

    Returns:
        A network from images ``[n, 3, 32, 32]``, uint8, to logits ``[n, 10]``.
    """
    layers = nn.Sequential(Standardise(*IMAGENET), *resnet_cifar(depth))
    return convert_conv2d_weight_memory_format(
        layers, torch.channels_last
    )  # a fifth less time on a CPU


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
    epochs = max_epochs or (500 if full else 80)
    sizes = (
        {"n_train": 42_500, "n_val": 7_500} if full else {"n_train": 4_250, "n_val": 750}
    ) | sizes
    return Problem(
        partial(images.cifar10, label_noise=0.0, standardise=False, **sizes),
        partial(network, 44 if full else 8),
        partial(torch.optim.SGD, lr=rate, momentum=0.9),
        batch_size=128,
        max_epochs=epochs,
        lr_scheduler=partial(MultiStepLR, milestones=(epochs // 2, epochs * 4 // 5), gamma=0.1),
        test_curve=TestCurve(2000, every=1),
        augment=crop_and_flip if full else None,
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
    chosen = tuple(seeds) if seeds is not None else (0,) if full else (0, 1) if quick else (0, 1, 2)
    less = {"max_epochs": 4, "n_train": 850, "n_val": 150} if quick else {}
    return [
        Cell(
            f"learning rate {rate:g}",
            setting(rate, full=full, **less),
            FULL_LEVELS if full else (0.0, *levels[-2:]) if quick else levels,
            chosen,
        )
        for rate, levels in LEVELS.items()
    ]


def experiment(
    quick: bool = False, seeds: Sequence[int] | None = None, *, full: bool = False
) -> Study:
    """Train all levels at both learning rates and compare what validation chooses, and what the
    finder does.

    Args:
        quick: See :func:`cells`.
        seeds: Other seeds than the three.
        full: The full protocol, which needs a GPU.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    plan = cells(quick, seeds, full=full)
    how = (
        f"{plan[0].problem.max_epochs} epochs, the learning rate divided by 10 after half and after four fifths of them, "
        "no weight decay"
    )
    if full:
        about = (
            "**The source's protocol**: CIFAR-10, 42,500 training and 7,500 validation images drawn for each seed, the "
            "10,000 official test images (2,000 of them for curves), ResNet-44, crops and mirrors, SGD with momentum "
            f"0.9, batches of 128, {how}. Validation images are not augmented, unlike in the source's code."
        )
    else:
        size = "850 training and 150" if quick else "4,250 training and 750"
        about = (
            f"**Reduced protocol, not the source's**: CIFAR-10, {size} validation images drawn for each seed, the "
            "10,000 official test images (2,000 of them for curves), ResNet-8, no augmentation, SGD with momentum 0.9, "
            f"batches of 128, {how}. The source: ResNet-44, 42,500 images with crops and mirrors, 500 epochs, levels "
            "in steps of 0.01 up to 0.1. Levels were fixed by the training loss of one plain run at each rate, on a "
            f"seed that is not used; at {RATES[1]:g} so few steps do not reach the source's levels, hence the higher "
            "ones."
        )
    caption = (
        f"Loss over the epochs at learning rate {RATES[0]:g} without flooding and at the level {plan[0].levels[-1]:g}: "
        "mean and standard deviation over seeds. The band reaches from 0 to the level. The learning rate falls after "
        "half and four fifths of the epochs, which shows, too."
    )
    figures = {"losses": (caption, _draw_losses)}
    title = "CIFAR-10 with a residual network" + ("" if full else ", reduced")
    return (yield from compare_levels(plan, title, about, figures, search=True))


def exact(run: Run) -> bool:  # noqa: ARG001
    """Tell whose curves an archive must not round: those the finder reads, which is all of them."""
    return True


def _draw_losses(results: Sequence[Result]) -> Figure:
    """Draw training and test loss without flooding and with it, figure F1 (c) and (d)."""
    from flooding.report.plots import concept

    return concept(
        [records[0] for records in results[0].table], [records[-1] for records in results[0].table]
    )


EXPERIMENT = Experiment("kim2022_cifar10", experiment, CURVES, is_exact=exact)
