"""The synthetic setting of Ishida et al., ICML 2020, section 4.1: three tasks, three noises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from flooding.data import synthetic
from flooding.report.level_grid import Cell
from flooding.tasks import ishida2020_problem

# For each task its data and its number of inputs.
TASKS = {
    "two-gaussians": (synthetic.two_gaussians, 10),
    "sinusoid": (synthetic.sinusoid, 2),
    "spiral": (synthetic.spiral, 2),
}
TITLES = {"two-gaussians": "Two Gaussians", "sinusoid": "Sinusoid", "spiral": "Spiral"}
NOISES = (0.01, 0.05, 0.1)
LEVELS = tuple(round(0.01 * n, 2) for n in range(51))


@dataclass(frozen=True)
class SyntheticCell(Cell):
    """One task at one noise.

    Args:
        task: A name of :data:`TASKS`.
        noise: Share of flipped labels.
    """

    task: str
    noise: float


def synthetic_cell(
    task: str,
    noise: float,
    levels: Sequence[float] = LEVELS,
    seeds: Sequence[int] = tuple(range(10)),
    max_epochs: int = 500,
) -> SyntheticCell:
    """Give the paper's setting for one task at one noise."""
    data, inputs = TASKS[task]
    problem = ishida2020_problem(partial(data, label_noise=noise), inputs)
    problem = replace(problem, max_epochs=max_epochs)
    title = f"{TITLES[task]}, {100 * noise:g} %"
    return SyntheticCell(title, problem, tuple(levels), tuple(seeds), task, noise)


def cells(quick: bool = False) -> list[SyntheticCell]:
    """Plan the nine cells.

    Args:
        quick: Two seeds, four levels and 150 epochs: the shape of the result in three minutes on
            two cores.

    Returns:
        Tasks, then noises.
    """
    sizes = (LEVELS, range(10), 500)
    if quick:
        sizes = ((0.0, 0.05, 0.15, 0.3), (0, 1), 150)
    plan = []
    for task in TASKS:
        for noise in NOISES:
            plan.append(synthetic_cell(task, noise, *sizes))
    return plan


def best_accuracy(task: str, noise: float) -> float:
    """Give the best possible accuracy on noisy labels, in percent."""
    if task == "two-gaussians":
        return 100 * synthetic.two_gaussians_best_accuracy(noise)
    if task == "spiral":
        return 100 * synthetic.spiral_best_accuracy(noise)
    # The clean labels of Sinusoid are certain.
    return 100 * (1 - noise)
