"""Figures of searches for the level: curves of every level, and controllers that move it.

Curves are means over seeds, faint as measured and above that smoothed. A search is its Records by
level, smallest first; 0 is plain training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from flooding.report.figures import PALETTE, legend_below, level_colours, new_figure
from flooding.report.record_metrics import metric_values
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = ["Search", "controlled_training", "hide_rise", "learning_curves", "search_curves"]
__all__ += ["smooth_curve"]
__all__ += ["training_accuracies"]

Search: TypeAlias = Mapping[float, Sequence[Record]]
"""Records by level, smallest first, one for each seed."""

# Epochs to either side that are averaged.
_REACH = 12


class _Curve(NamedTuple):
    """A curve, its label on an axis, and the factor to its unit there."""

    name: str
    label: str
    scale: float = 1.0


_LEVEL = _Curve("level", "Flood level (nats)")
_TRAIN_LOSS = _Curve("train_loss", "Training loss (nats)")
_TRAIN_ACCURACY = _Curve("train_accuracy", "Training accuracy (%)", 100.0)
_TEST_LOSS = _Curve("test_loss", "Test loss (nats)")
_TEST_ACCURACY = _Curve("test_accuracy", "Test accuracy (%)", 100.0)


def search_curves(search: Search) -> Figure:
    """Draw losses and accuracies against the epoch, a line for each level.

    Args:
        search: The Records.

    Returns:
        A figure of four panels.
    """
    curves = (_TRAIN_LOSS, _TRAIN_ACCURACY, _TEST_LOSS, _TEST_ACCURACY)
    with new_figure(6.4) as figure:
        panels = list(figure.subplots(2, 2, sharex=True).flat)
        colours = _add_colorbar(figure, panels, search)
        for axes, curve in zip(panels, curves, strict=True):
            _draw_levels(axes, search, curve, colours)
            axes.set_ylabel(curve.label)
            if curve in {_TRAIN_ACCURACY, _TEST_ACCURACY}:
                hide_rise([axes])
        for axes in panels[2:]:
            axes.set_xlabel("Epoch")
        legend_below(figure, panels, 2)
    return figure


def training_accuracies(forward: Search, backward: Search) -> Figure:
    """Draw the training accuracy of two searches, by epoch and at the last epoch by level.

    Args:
        forward: Records of constant levels.
        backward: Records of the same levels, flooded late.

    Returns:
        A figure of three panels.
    """
    with new_figure(6.6) as figure:
        grid = figure.subplot_mosaic([["forward", "backward"], ["last", "last"]])
        panels, last = [grid["forward"], grid["backward"]], grid["last"]
        # The two searches are compared by height.
        panels[1].sharey(panels[0])
        colours = _add_colorbar(figure, panels, forward)
        _draw_levels(panels[0], forward, _TRAIN_ACCURACY, colours)
        _draw_last(last, forward, "forward", PALETTE["flooded"], "o")
        _draw_levels(panels[1], backward, _TRAIN_ACCURACY, colours)
        _draw_last(last, backward, "backward", PALETTE["plain"], "s")
        hide_rise(panels)
        panels[0].set(title="Forward", xlabel="Epoch", ylabel=_TRAIN_ACCURACY.label)
        panels[1].set(title="Backward", xlabel="Epoch")
        last.set(title="Last epoch", xlabel=_LEVEL.label, ylabel=_TRAIN_ACCURACY.label)
        last.legend()
    return figure


def _draw_last(axes: Axes, search: Search, label: str, colour: str, marker: str) -> None:
    """Draw training accuracy at the last epoch against the level, with standard deviations."""
    means, deviations = [], []
    for records in search.values():
        accuracies = metric_values(records, "train_accuracy", 100)
        means.append(np.mean(accuracies))
        # A single seed has no deviation.
        deviation = 0.0
        if len(accuracies) > 1:
            deviation = np.std(accuracies, ddof=1)
        deviations.append(deviation)
    look = {"color": colour, "marker": marker, "capsize": 3, "label": label}
    axes.errorbar(list(search), means, deviations, **look)


def controlled_training(records: Sequence[Record]) -> Figure:
    """Draw level, training loss and test loss, epochs counted from where flooding begins.

    Args:
        records: Records of a controller that began to flood, one a seed.

    Returns:
        A figure of three panels.
    """
    with new_figure(7.0) as figure:
        panels = list(figure.subplots(3, 1, sharex=True))
        for axes, curve in zip(panels, (_LEVEL, _TRAIN_LOSS, _TEST_LOSS), strict=True):
            lines = [_aligned(record, curve.name) for record in records]
            # A faint line for each seed, and their mean above.
            for line in lines:
                axes.plot(*line, color=PALETTE["flooded"], alpha=0.25, lw=0.8, label="a seed")
            mean = _mean_line(lines)
            axes.plot(*mean, color="black", lw=1.8, label=f"mean, n = {len(records)}")
            axes.axvline(0, color="0.5", ls=":", label="flooding begins")
            axes.set_ylabel(curve.label)
        panels[-1].set_xlabel("Epochs since flooding began")
        legend_below(figure, panels, 3)
    return figure


def learning_curves(
    rewards: np.ndarray, levels: np.ndarray, seeds: Sequence[int], control: Sequence[float] = ()
) -> Figure:
    """Draw what agents gain and which levels they draw, against the number of their training.

    Args:
        rewards: Mean validation accuracy of each training in percent, ``[agents, trainings]``.
        levels: Mean level of each training in nats, ``[agents, trainings]``.
        seeds: Seeds of the agents.
        control: Rewards of trainings whose levels were drawn at random.

    Returns:
        A figure of two panels.
    """
    numbers = np.arange(1, rewards.shape[1] + 1)
    with new_figure(6.4) as figure:
        from matplotlib.ticker import MaxNLocator

        upper, lower = figure.subplots(2, 1, sharex=True)
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        for values, axes in ((rewards, upper), (levels, lower)):
            for seed, line, mark in zip(seeds, values, "os^Dv<>ph*"[: len(seeds)], strict=True):
                axes.plot(numbers, line, marker=mark, ms=4, lw=1, label=f"agent, seed {seed}")
            axes.plot(numbers, values.mean(0), color="black", lw=2, label="mean of agents")
        lower.set_xlabel("Training of the agent")
        if control:
            mean = float(np.mean(control))
            upper.axhline(mean, color="0.5", ls="--", label="levels drawn at random")
        upper.set_ylabel("Mean validation accuracy (%)")
        lower.set_ylabel("Mean level (nats)")
        lower.set_ylim(bottom=0)
        legend_below(figure, [upper, lower], 2)
    return figure


def _aligned(record: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Give the measured points of a curve, with epochs since the level came into force."""
    curve, levels = record.curves[name], record.curves["level"]
    epochs = np.flatnonzero(np.isfinite(curve))
    return epochs - int(np.isfinite(levels).argmax()), curve[epochs]


def _mean_line(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Average lines over the epochs that all of them span, interpolated between their points."""
    first = max(epochs[0] for epochs, _ in lines)
    last = min(epochs[-1] for epochs, _ in lines)
    common = np.arange(first, last + 1)
    values = [np.interp(common, *line) for line in lines]
    return common, np.mean(values, axis=0)


def hide_rise(panels: Sequence[Axes]) -> None:
    """Start the axis at the lowest accuracy after a twentieth of the epochs.

    The first rise would leave no room for the lines.

    Args:
        panels: Panels that share their vertical axis.
    """
    lowest: list[float] = []
    highest: list[float] = []
    for axes in panels:
        for line in axes.get_lines():
            values = np.asarray(line.get_ydata(), float)
            lowest.append(values[len(values) // 20 :].min())
            highest.append(values.max())
    panels[0].set_ylim(min(lowest) - 1, max(highest) + 1)


def _draw_levels(axes: Axes, search: Search, curve: _Curve, colours: ScalarMappable) -> None:
    """Draw the mean over seeds of each level, raw and smoothed; plain training is dashed."""
    for level, records in search.items():
        curves = [record.curves[curve.name] for record in records]
        mean = curve.scale * np.mean(curves, axis=0, dtype=float)
        epochs = np.flatnonzero(np.isfinite(mean))
        colour = colours.to_rgba(level)  # type: ignore[arg-type]
        label, dashes = "no flooding", "--"
        if level:
            label, dashes = "flooded", "-"
        # Faint as measured, and above that smoothed.
        axes.plot(epochs, mean[epochs], color=colour, alpha=0.25, lw=0.7)
        smooth = smooth_curve(epochs, mean[epochs])
        axes.plot(epochs, smooth, color=colour, lw=1.5, ls=dashes, label=label)


def smooth_curve(epochs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average a curve over the epochs around, as many on either side, so that slopes stay.

    Args:
        epochs: Epochs, ``[points]``, ascending.
        values: Values, ``[points]``.

    Returns:
        The smoothed values.
    """
    # Near the ends fewer epochs are averaged, as many on either side.
    reach = np.minimum(_REACH, np.minimum(epochs - epochs[0], epochs[-1] - epochs))
    is_near = np.abs(epochs[:, None] - epochs) <= reach[:, None]
    return is_near @ values / is_near.sum(1)


def _add_colorbar(figure: Figure, panels: Sequence[Axes], search: Search) -> ScalarMappable:
    """Give each level its colour, and draw the colour bar."""
    from matplotlib.ticker import MaxNLocator

    colours = level_colours(0.0, max(search))
    # With more ticks the layout does not settle.
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10])
    figure.colorbar(
        colours, ax=list(panels), label=_LEVEL.label, ticks=ticks, location="top", aspect=40
    )
    return colours
