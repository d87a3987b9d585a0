"""The second descent on CIFAR-10, reduced for a CPU: with and without augmentation, rate decay and
weight decay.

The reproduction of our sources saw none with weight decay, on a ResNet-44 whose training loss its
levels did not reach. Here the network is small and the images few, so that the levels are reached;
the criterion is that of :mod:`flooding.experiments.double_descent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from flooding.data import images
from flooding.data.augment import crop_and_flip
from flooding.experiments import Experiment, Study
from flooding.experiments.double_descent import (
    CURVES,
    FACTORS,
    Condition,
    combinations,
    decayed,
    listed,
    study,
)
from flooding.experiments.images5k import sizes
from flooding.models import small_cnn
from flooding.tasks import adam
from flooding.training.problem import Problem, TestCurve

__all__ = ["AUGMENTED_LEVELS", "CURVES", "LEVELS", "WEIGHT_DECAY", "experiment", "plan"]

# Nats. Fixed by the training loss of one plain run of each condition, on a seed that is not used.
LEVELS = (0.0, 0.3, 0.8)  # without augmentation; they are reached after 11 to 25 of 60 epochs
AUGMENTED_LEVELS = (
    0.0,
    1.0,
    1.2,
)  # with it; after 20 to 54 of 100. With weight decay, too, it stays above 0.8.
EPOCHS, AUGMENTED_EPOCHS = 60, 100
WEIGHT_DECAY = 0.5  # decoupled, times the learning rate; that of the digits


def plan(quick: bool = False) -> list[Condition]:
    """Plan the eight conditions.

    Args:
        quick: Two of them, 400 images, two seeds and 6 epochs.

    Returns:
        The conditions.
    """
    problem = Problem(
        partial(images.cifar10, label_noise=0.0, **sizes(quick)),
        partial(small_cnn, channels=3, size=32),
        adam,
        batch_size=100,
        max_epochs=6 if quick else EPOCHS,
        test_curve=TestCurve(2000, every=1),
    )

    def condition(factors: tuple[str, ...]) -> Condition:
        augmented = FACTORS[0] in factors
        moved = (
            replace(problem, augment=crop_and_flip, max_epochs=AUGMENTED_EPOCHS)
            if augmented
            else problem
        )
        title, seeds = " + ".join(["CIFAR-10", *factors]), (0, 1) if quick else (0, 1, 2)
        levels = AUGMENTED_LEVELS if augmented else LEVELS
        return Condition(title, decayed(moved, factors, WEIGHT_DECAY), levels, seeds, factors)

    return [
        condition(factors) for factors in ([(), ("weight decay",)] if quick else combinations())
    ]


def experiment(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train all conditions and judge every test curve.

    Args:
        quick: See :func:`plan`.
        seeds: Other seeds than the three.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    conditions = plan(quick)
    first, size = conditions[0], sizes(quick)
    about = (
        f"**Reduced protocol**: CIFAR-10, {size['n_train']:,} training and {size['n_val']:,} validation images drawn "
        f"for each seed, a convolutional network of two layers, batches of 100, in {len(conditions)} combinations of "
        "augmentation (crops and mirrors), learning-rate decay (times 0.1 at 1/2 and 4/5 of the epochs) and weight "
        f"decay (AdamW, {WEIGHT_DECAY:g}; otherwise Adam); {first.problem.max_epochs} epochs and levels "
        f"{listed(first.levels)}, with augmentation, which slows the fall of the training loss, {AUGMENTED_EPOCHS} "
        f"epochs and levels {listed(AUGMENTED_LEVELS)}; 2,000 of the official test images, every epoch. The criterion, "
        "fixed beforehand, also counts a bump of an epoch or two in a curve that falls all the same: where the table "
        "of epochs has M right after m1. Levels are those that one plain run of each condition reached, on a seed that "
        "is not used: after 11 to 25 of 60 epochs, with augmentation after 20 to 54 of 100 (of the whole protocol)."
    )
    title = "A second descent on CIFAR-10, reduced"
    return (yield from study({"cifar10": conditions}, title, about, seeds))


EXPERIMENT = Experiment("double_descent_cifar10", experiment, CURVES)
