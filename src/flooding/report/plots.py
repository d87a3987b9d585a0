"""Figures of Records and Splits: functions that return a matplotlib ``Figure``.

They touch no global state. Figures over the epochs are in
:mod:`flooding.report.training_curves`, and importable from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from flooding.data import Split, Splits
from flooding.report.figures import PALETTE, legend_below, new_figure, save
from flooding.report.record_metrics import Epoch, format_metric
from flooding.report.stats import pluralize
from flooding.report.training_curves import (
    GROUPS,
    NEAR_ZERO,
    accuracy_curves,
    concept,
    loss_curves,
    stages,
)
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "NEAR_ZERO",
    "PALETTE",
    "accuracy_curves",
    "concept",
    "decision_boundary",
    "loss_curves",
    "pool_bins",
    "reliability",
    "save",
    "scatter",
    "stages",
]

_CLASSES = {0: ("class 0", "o"), 1: ("class 1", "^")}


def scatter(splits_by_name: Mapping[str, Splits]) -> Figure:
    """Draw the training split of each task, with its flipped labels ringed and counted.

    Points carry the colour and marker of the label the user has. Inputs of more than two dimensions
    are drawn by their first coordinate and by their projection on the line through the two class
    means of the split (clean labels).

    Args:
        splits_by_name: Two-class data by the name to draw above it; inputs ``[n, dimension]``,
            dimension at least 2.

    Returns:
        A figure of one panel per task.

    Example:
        >>> from flooding.data.synthetic import spiral
        >>> scatter({"Spiral": spiral(n_test=2, seed=0)}).axes[0].get_title().splitlines()
        ['Spiral', '10 of 100 flipped']
    """
    with new_figure(3.3) as figure:
        panels = figure.subplots(1, len(splits_by_name), squeeze=False)[0]
        for axes, (name, splits) in zip(panels, splits_by_name.items(), strict=True):
            points, labels = _two_dimensions(splits.train)
            flipped = _draw_points(axes, splits.train, points)
            title = f"{name}\n{flipped} of {len(points)} flipped"
            axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
            axes.margins(0.1)
            axes.set_aspect("equal", adjustable="datalim")
        legend_below(figure, panels, 3)
    return figure


def decision_boundary(
    plain: Record,
    flooded: Record,
    splits: Splits,
    probe_inputs: Tensor,
    truth: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Figure:
    """Draw the probability of class 1 over the plane, without and with flooding.

    The networks are those after the last epoch.

    Args:
        plain: Record without flooding, with probabilities on the probe.
        flooded: Record with flooding.
        splits: The data of their seed; the training split is drawn over the plane.
        probe_inputs: The inputs of the probe, a square grid ``[points * points, 2]`` with the first
            coordinate changing fastest, as from :func:`flooding.tasks.grid_2d`.
        truth: Function ``(x1, x2)`` that is positive in class 1 and 0 on the true boundary, or
            None.

    Returns:
        The figure.
    """
    side = round(len(probe_inputs) ** 0.5)
    x1, x2 = probe_inputs.numpy().T.reshape(2, side, side)
    points, labels = _two_dimensions(splits.train)
    with new_figure(4.0) as figure:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, to_rgb

        # Paler than the points that lie on it.
        low, high = (0.4 + 0.6 * np.array(to_rgb(PALETTE[f"class {number}"])) for number in (0, 1))
        colours = LinearSegmentedColormap.from_list("classes", [tuple(low), "white", tuple(high)])
        panels = figure.subplots(1, 2, sharey=True)
        for axes, group, record in zip(panels, GROUPS, (plain, flooded), strict=True):
            probabilities = _array(record, "last.probe", (side * side, 2))[:, 1]
            probabilities = probabilities.reshape(side, side)
            axes.pcolormesh(x1, x2, probabilities, cmap=colours, vmin=0, vmax=1)
            _draw_zero(axes, x1, x2, probabilities - 0.5, "-", "predicted boundary")
            if truth is not None:
                _draw_zero(axes, x1, x2, truth(x1, x2), "--", "true boundary")
            flipped = _draw_points(axes, splits.train, points)
            name = f"{GROUPS[group][0]}\n{flipped} of {len(points)} labels flipped"
            axes.set(title=name, xlabel=labels[0], aspect="equal")
        panels[0].set_ylabel(labels[1])
        bar = ScalarMappable(cmap=colours)
        figure.colorbar(bar, ax=list(panels), label="P(class 1)", shrink=0.8)
        legend_below(figure, panels, 3)
    return figure


def reliability(plain: Sequence[Record], flooded: Sequence[Record]) -> Figure:
    """Draw accuracy against confidence on the test split, and how often each confidence occurs.

    The networks are those after the last epoch. The bins of all seeds are pooled: counts are added,
    confidence and accuracy averaged with the counts as weights. Empty bins are not drawn. The
    legend gives the calibration error, mean and standard deviation over the seeds.

    Args:
        plain: Records of a classifier without flooding, one per seed.
        flooded: Records with flooding, one per seed.

    Returns:
        The figure.
    """
    with new_figure(6.8) as figure:
        diagram, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        diagram.plot([0, 1], [0, 1], color="0.5", ls=":", label="perfectly calibrated")
        for side, group, records in zip((0, 1), GROUPS, (plain, flooded), strict=True):
            confidence, accuracy, count = pool_bins(records)
            name, marker = GROUPS[group]
            errors = format_metric(records, "test_ece", digits=3)
            label = f"{name}: ECE {errors}, {pluralize(len(records), 'seed')}"
            full = count > 0
            look = {"color": PALETTE[group], "marker": marker, "clip_on": False}
            diagram.plot(confidence[full], accuracy[full], label=label, **look)
            width = 1 / len(count)
            left = width * (np.arange(len(count)) + (side + 0.1) / 2)
            # The two groups stand side by side in each bin.
            look = {"align": "edge", "color": PALETTE[group], "label": name}
            histogram.bar(left, count / count.sum(), 0.45 * width, **look)
        title = "Reliability on the test split, seeds pooled"
        diagram.set(ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1), title=title)
        histogram.set(xlabel="Confidence (highest probability)", ylabel="Share of examples")
        legend_below(figure, [diagram])
    return figure


def _two_dimensions(split: Split) -> tuple[np.ndarray, tuple[str, str]]:
    """Coordinates to draw, ``[n, 2]``, and the names of the two axes."""
    if split.x.ndim != 2 or split.x.shape[1] < 2 or not set(split.y.tolist()) <= set(_CLASSES):
        got = f"{list(split.x.shape)} and {sorted(set(split.y.tolist()))}"
        raise ValueError(
            f"inputs must be [n, 2 or more] and labels 0 or 1, got {got}. Draw two-class tasks "
            "only."
        )
    x, labels = split.x.double().numpy(), split.y
    if split.clean is not None:
        labels = split.clean
    if x.shape[1] == 2:
        return x, ("$x_1$", "$x_2$")
    y = labels.numpy()
    # More than two dimensions: one coordinate, and the direction that tells the classes apart.
    line = x[y == 1].mean(0) - x[y == 0].mean(0)
    points = np.stack([x[:, 0], x @ line / np.linalg.norm(line)], 1)
    return points, ("$x_1$", r"projection on $\mu_1 - \mu_0$")


def _draw_points(axes: Axes, split: Split, points: np.ndarray) -> int:
    """Draw labelled points and a ring around each flipped one; return how many there are."""
    labels = split.y.numpy()
    for number, (name, marker) in _CLASSES.items():
        x, y = points[labels == number].T
        axes.plot(x, y, marker, color=PALETTE[name], mec="black", mew=0.6, ms=5, label=name)
    flipped = np.zeros(len(labels), bool)
    if split.clean is not None:
        flipped = (split.y != split.clean).numpy()
    ring = {"color": "none", "mec": "black", "mew": 1.4, "ms": 11}
    axes.plot(*points[flipped].T, "o", label="flipped label", **ring)
    return int(flipped.sum())


def _array(record: Record, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Give an array of a Record, and check its shape."""
    array = record.arrays.get(name)
    if array is None or array.shape != shape:
        got = "none" if array is None else list(array.shape)
        raise ValueError(
            f"a Record must hold {name!r} of shape {list(shape)}, got {got}. Was it made by this "
            "probe?"
        )
    return array


def pool_bins(
    records: Sequence[Record], at: Epoch = "last"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pool the bins of several Records.

    Args:
        records: Records of a classifier.
        at: The epoch: the last, or the best on the validation split.

    Returns:
        Confidence, accuracy and count of each bin, ``[bins]``; NaN in empty bins.

    Raises:
        ValueError: If a Record has no bins.
    """
    name = f"{at}.reliability"
    if any(name not in record.arrays for record in records):
        raise ValueError(
            f"every Record must hold {name!r}, got one without. Only classifiers have it."
        )
    bins = np.stack([record.arrays[name] for record in records]).astype(np.float64)
    # Confidence and accuracy are weighted by the counts.
    count = bins[:, 2].sum(0)
    sums = np.where(bins[:, 2:] > 0, bins[:, :2] * bins[:, 2:], 0.0).sum(0)
    confidence, accuracy = np.divide(sums, count, out=np.full_like(sums, np.nan), where=count > 0)
    return confidence, accuracy, count


def _draw_zero(
    axes: Axes, x1: np.ndarray, x2: np.ndarray, height: np.ndarray, dashes: str, label: str
) -> None:
    """Draw the line on which a height is 0."""
    axes.contour(x1, x2, height, levels=[0.0], colors="black", linestyles=dashes, linewidths=1.5)
    # A contour has no legend entry.
    axes.plot([], [], color="black", ls=dashes, lw=1.5, label=label)
