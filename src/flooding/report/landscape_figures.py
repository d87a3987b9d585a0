"""Figures of the training loss around the weights; the networks are trained anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from flooding.levels import Delayed
from flooding.report.figures import PALETTE, legend_below, new_figure
from flooding.sharpness import filter_direction, landscape, principal_directions, project, weights
from flooding.training.loop import train
from flooding.training.problem import Problem
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["loss_planes", "loss_surface", "weight_vector"]

_LOSS = "Training loss (nats), common logarithm"


def weight_vector(problem: Problem, seed: int, state: Mapping[str, Tensor]) -> Tensor:
    """Put the weights of a state into a vector, in the order of the network's parameters.

    Args:
        problem: The Problem.
        seed: Seed of the Run.
        state: Weights by name.

    Returns:
        Weights ``[n]``.
    """
    model = problem.build(seed)
    model.load_state_dict(state)
    return weights(model)


def loss_planes(problem: Problem, level: float) -> Figure:
    """Draw the loss in a plane around the last weights, without flooding and with it.

    Args:
        problem: The Problem, trained with seed 0.
        level: Flood level in nats.

    Returns:
        A figure of two panels.
    """
    steps = np.linspace(-1, 1, 31)
    all_losses = [_loss_plane(Run(problem, own), steps) for own in (None, level)]
    # One scale of heights for both panels.
    lowest, highest = min(map(np.min, all_losses)), max(map(np.max, all_losses))
    shades = np.log10(np.geomspace(lowest, highest, 25))
    with new_figure(4.2) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        titles = ("Without flooding", f"Flooded at {level:g}")
        filled = []
        for axes, losses, title in zip(panels, all_losses, titles, strict=True):
            heights = np.log10(losses.T)
            filled.append(axes.contourf(steps, steps, heights, levels=shades, cmap="viridis"))
            axes.contour(steps, steps, losses.T, levels=[level], colors="white", linewidths=1.5)
            axes.plot(0, 0, "*", color="white", ms=12)
            axes.set(title=title, xlabel="Step along one direction")
        panels[0].set_ylabel("Step along another")
        figure.colorbar(filled[0], ax=list(panels), label=_LOSS, location="top", aspect=40)
    return figure


def _loss_plane(run: Run, steps: np.ndarray) -> np.ndarray:
    """Train a Run and compute the loss along two filter-normalised directions."""
    *_, row = train(run)
    assert row.weights is not None
    problem = run.problem
    model, data = problem.build(run.seed), problem.splits(run.seed).train
    model.load_state_dict(row.weights["last"])
    directions = [filter_direction(model, seed=seed) for seed in (0, 1)]
    return landscape(
        model,
        lambda: [problem.loss(model(data.x), data.y)],
        directions,
        [steps.tolist(), steps.tolist()],
    )


def loss_surface(problem: Problem, level: float) -> Figure:
    """Draw the iterates of flooding and of backward flooding in one plane.

    It is the plane in which the iterates of backward flooding spread most.

    Args:
        problem: The Problem, trained with seed 0.
        level: Flood level in nats.

    Returns:
        A figure of one panel.
    """
    # Train both ways, and span the plane by the iterates of the backward one.
    forward = _iterates(Run(problem, level))
    backward = _iterates(Run(problem, Delayed(level, until_accuracy=1.0)))
    origin = backward[-1]
    directions = principal_directions(backward, origin)
    paths = [project(iterates, origin, directions) for iterates in (forward, backward)]
    # The surface spans all iterates and a margin.
    points = np.concatenate(paths)
    low, high = points.min(0), points.max(0)
    margin = 0.15 * (high - low)
    x, y = np.linspace(low - margin, high + margin, 41).T
    # The heights of the surface are losses at points of the plane.
    model, data = problem.build(0), problem.splits(0).train
    nn.utils.vector_to_parameters(origin, model.parameters())
    heights = landscape(
        model, lambda: [problem.loss(model(data.x), data.y)], directions, [x.tolist(), y.tolist()]
    )
    with new_figure(5.8) as figure:
        axes = figure.subplots()
        shades = np.log10(np.maximum(heights.T, 1e-6))
        filled = axes.contourf(x, y, shades, levels=25, cmap="Greys", alpha=0.7)
        axes.contour(x, y, heights.T, levels=[level], colors="black", linewidths=2)
        looks = (("flooding", "flooded", forward), ("backward flooding", "plain", backward))
        for path, (name, group, iterates) in zip(paths, looks, strict=True):
            label = f"{name} ({_percent_in_plane(path, iterates, origin):.0f} %)"
            colour = PALETTE[group]
            axes.plot(*path.T, "-", color=colour, lw=0.8, alpha=0.8)
            axes.plot(*path[::10].T, ".", color=colour, ms=4, label=label)
            axes.plot(*path[0], "s", color=colour, ms=7)
            axes.plot(*path[-1], "*", color=colour, ms=12)
        # Entries of the legend that belong to both paths.
        axes.plot([], [], color="black", lw=2, label=f"training loss {level:g}")
        axes.plot([], [], "s", color="0.4", label="first weights")
        axes.plot([], [], "*", color="0.4", label="last weights")
        axes.set(xlabel="First direction", ylabel="Second direction")
        legend_below(figure, [axes], 2)
        figure.colorbar(filled, label=_LOSS, location="top", aspect=40)
    return figure


def _percent_in_plane(path: np.ndarray, iterates: list[Tensor], origin: Tensor) -> float:
    """Compute how much of the squared distance from the origin a projection keeps."""
    distance = sum(float((iterate - origin).square().sum()) for iterate in iterates)
    return 100 * float(np.square(path).sum() / distance)


def _iterates(run: Run) -> list[Tensor]:
    """Train a Run and collect its weights after every epoch."""
    iterates = []
    for row in train(run, with_record=False):
        if row.snapshot is not None:
            state = row.snapshot()["model"]
            iterates.append(weight_vector(run.problem, run.seed, state))
    return iterates
