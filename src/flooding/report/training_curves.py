"""Figures of losses and accuracies over the epochs, without and with flooding.

``plain`` Records were trained without flooding (level None or 0), ``flooded`` ones with it; each
group is one experiment over several seeds. Curves are means over the seeds with a band of one
standard deviation (n - 1) to either side, which a single seed does not have. Training curves hold
the labels the network saw, noisy where labels are noisy; test curves hold clean labels. Epoch 0 is
before training; a point that not every seed measured is not drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flooding.report.figures import PALETTE, draw_band, legend_entries, new_figure
from flooding.report.stats import pluralize
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GROUPS", "NEAR_ZERO", "accuracy_curves", "concept", "loss_curves", "stages"]

# Share of its start value below which a loss, or a change of a loss, counts as zero.
NEAR_ZERO = 0.05
# Name and marker of each group of Records; its colour is in the palette.
GROUPS = {"plain": ("without flooding", "o"), "flooded": ("with flooding", "s")}
_LOSS = "Loss (nats per example)"
_LABEL = 30  # characters in a line of a legend below one of two panels
_STAGES = {
    "A": "before the lowest test loss",
    "B": "test loss up again, before C",
    "C": f"training loss < {100 * NEAR_ZERO:g} % of its start",
}


def stages(train_loss: np.ndarray, test_loss: np.ndarray) -> dict[str, tuple[int, int]]:
    """Find the stages of overfitting in two curves.

    With ``m`` the epoch of the lowest measured test loss (the first of equals) and ``z`` the first
    epoch from which on the training loss stays within :data:`NEAR_ZERO` times its start value, the
    end included:

    - A, [0, min(m, z)]: before the test loss is lowest.
    - B, [m, p]: the test loss has risen again while the training loss is not near zero yet; ``p``
      is the last epoch up to ``z`` whose test loss lies above the lowest by more than ``NEAR_ZERO``
      times the first test loss.
    - C, [z, last]: the near-zero training tail.

    A stage that the curves do not show is left out. Between its measurements the test loss stays
    what it was. A NaN training loss is not near zero.

    Args:
        train_loss: Training loss per epoch from 0 on, ``[epochs + 1]``.
        test_loss: Test loss per epoch, ``[epochs + 1]``; NaN where it was not measured.

    Returns:
        First and last epoch of each stage that exists, by its letter.

    Raises:
        ValueError: If no epoch has a test loss.

    Example:
        >>> stages(np.array([1.0, 0.5, 0.3, 0.01, 0.0]), np.array([1.0, 0.6, 0.8, 0.9, 1.0]))
        {'A': (0, 1), 'B': (1, 3), 'C': (3, 4)}

    References:
        Ishida et al., ICML 2020, figure 1.
    """
    epochs_measured = np.flatnonzero(np.isfinite(test_loss))
    if len(epochs_measured) == 0:
        raise ValueError(
            "test_loss must be measured at some epoch, got none. Give the Problem a test_curve."
        )
    last = len(train_loss) - 1
    lowest = int(epochs_measured[test_loss[epochs_measured].argmin()])
    above = np.flatnonzero(~(np.abs(train_loss) < NEAR_ZERO * np.abs(train_loss[0])))
    # Never empty: the start value is not below a share of itself.
    tail = int(above.max()) + 1
    # A stage that the curves do not show is left out.
    result = {}
    if lowest > 0:
        result["A"] = (0, min(lowest, tail))
    epochs = np.arange(len(test_loss))
    # Between its measurements the test loss stays what it was.
    steps = test_loss[epochs_measured[np.searchsorted(epochs_measured, epochs, side="right") - 1]]
    risen = steps > test_loss[lowest] + NEAR_ZERO * abs(test_loss[epochs_measured[0]])
    risen = risen & (lowest < epochs) & (epochs <= tail)
    if risen.any():
        result["B"] = (lowest, int(epochs[risen].max()))
    if tail <= last:
        result["C"] = (tail, last)
    return result


def loss_curves(plain: Sequence[Record], flooded: Sequence[Record], *, title: str) -> Figure:
    """Draw training and test loss against epoch, without and with flooding, and the flood level.

    The level is drawn as its mean over the seeds that have one; the legend gives their range where
    they differ.

    Args:
        plain: Records without flooding, one per seed.
        flooded: Records with flooding, one per seed.
        title: Title of the figure.

    Returns:
        The figure.
    """
    return _draw_groups(plain, flooded, "loss", _LOSS, title)


def accuracy_curves(plain: Sequence[Record], flooded: Sequence[Record], *, title: str) -> Figure:
    """Draw training and test accuracy against epoch, without and with flooding.

    Args:
        plain: Records without flooding, one per seed.
        flooded: Records with flooding, one per seed.
        title: Title of the figure.

    Returns:
        The figure.
    """
    return _draw_groups(plain, flooded, "accuracy", "Accuracy (1 − Error)", title)


def concept(plain: Sequence[Record], flooded: Sequence[Record]) -> Figure:
    """Draw training and test loss (a) without and (b) with flooding, over their :func:`stages`.

    A stage that the mean curves do not show is not shaded, and the legend says so. In (b) the band
    from 0 to the level is filled.

    Args:
        plain: Records without flooding, one per seed.
        flooded: Records with flooding, one per seed.

    Returns:
        The figure.
    """
    with new_figure(5.8) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, letter, group, records in zip(
            panels, "ab", GROUPS, (plain, flooded), strict=True
        ):
            # The stages are those of the mean curves.
            train_loss = _curves(records, "train_loss").mean(0)
            test_loss = _curves(records, _test_name(records, "loss")).mean(0)
            _shade(axes, stages(train_loss, test_loss))
            _draw_lines(axes, records, group, "loss", "")
            if group == "flooded":
                level, label = _mean_level(records)
                if len(level):
                    label = textwrap.fill(f"0 to the {label}", _LABEL)
                epochs = np.arange(len(level))
                axes.fill_between(epochs, 0, level, color="0.6", alpha=0.5, lw=0, label=label)
            title = f"({letter}) {GROUPS[group][0]}\n{_describe_band(records)}"
            axes.set(title=title, xlabel="Epoch", xmargin=0.0)
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
            axes.legend(**below, handlelength=1.6, borderaxespad=0.0)
        panels[0].set(ylabel=_LOSS, ylim=(_bottom(panels), None))
    return figure


def _draw_groups(
    plain: Sequence[Record], flooded: Sequence[Record], what: str, label: str, title: str
) -> Figure:
    """Draw "loss" or "accuracy" of both groups in one panel."""
    with new_figure(5.6) as figure:
        axes = figure.subplots()
        _draw_lines(axes, plain, "plain", what, ", without flooding")
        if what == "loss":
            level, name = _mean_level(flooded)
            look = {"color": "black", "ls": ":", "lw": 1.5, "zorder": 3}
            axes.plot(np.arange(len(level)), level, label=name, **look)
        _draw_lines(axes, flooded, "flooded", what, ", with flooding")
        axes.set(title=title, xlabel="Epoch", ylabel=label, xmargin=0.0)
        if what == "loss":
            axes.set_ylim(bottom=_bottom([axes]))
        note, other = _describe_band(plain), _describe_band(flooded)
        if note != other:
            note = f"without flooding: {note};\nwith: {other}"
        entries = legend_entries([axes])
        figure.legend(*entries, loc="outside lower center", title=note)
    return figure


def _draw_lines(axes: Axes, records: Sequence[Record], group: str, what: str, suffix: str) -> None:
    """Draw the training and the test curve of a group, with their bands."""
    is_noisy = any(f"train_{what}_clean" in record.curves for record in records)
    labels = ("training", "test")
    if is_noisy:
        labels = ("training (noisy labels)", "test (clean labels)")
    names = (f"train_{what}", _test_name(records, what))
    for name, dashes, label in zip(names, ("--", "-"), labels, strict=True):
        curves = _curves(records, name)
        epochs_measured = np.flatnonzero(np.isfinite(curves).all(0))
        look = {"ls": dashes, "marker": GROUPS[group][1], "ms": 5.0}
        look |= {"label": label + suffix, "markevery": max(len(epochs_measured) // 8, 1)}
        draw_band(axes, epochs_measured, curves[:, epochs_measured], color=PALETTE[group], **look)


def _curves(records: Sequence[Record], name: str) -> np.ndarray:
    """Stack a curve of several Records, ``[seeds, epochs]``; NaN where it was not measured."""
    if not records or any(name not in record.curves for record in records):
        common: object = "no Record"
        if records:
            names = [set(record.curves) for record in records]
            common = sorted(set.intersection(*names))
        raise ValueError(
            f"every Record must hold the curve {name!r}, got {common}. Test curves need a "
            "test_curve."
        )
    lengths = {len(record.curves[name]) for record in records}
    if len(lengths) > 1:
        raise ValueError(
            f"Records of one group must have equally many epochs, got {sorted(lengths)}. Draw them "
            "apart."
        )
    values = np.stack([record.curves[name] for record in records]).astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _mean_level(flooded: Sequence[Record]) -> tuple[np.ndarray, str]:
    """Mean level per epoch over the Records that have one, and its label."""
    # A controller may have no level to the end, and plain training has none at all.
    have_level = [record for record in flooded if np.isfinite(record.curves["level"][-1])]
    if not have_level:
        return np.empty(0), "no flood level"
    level = _curves(have_level, "level").mean(0)
    last = [float(record.curves["level"][-1]) for record in have_level]
    label = f"flood level {last[0]:.3g}"
    if min(last) < max(last):
        label = f"flood level {np.mean(last):.3g} ({min(last):.3g} to {max(last):.3g})"
    if np.nanmin(level) != np.nanmax(level):
        label += " in the end"
    if len(have_level) < len(flooded):
        label += f" in {len(have_level)} of {len(flooded)} seeds"
    return level, label


def _test_name(records: Sequence[Record], what: str) -> str:
    """Name the test curve on clean labels; a test split without noise has only one kind."""
    has_clean = all(f"test_{what}_clean" in record.curves for record in records)
    if has_clean:
        return f"test_{what}_clean"
    return f"test_{what}"


def _shade(axes: Axes, spans: Mapping[str, tuple[int, int]]) -> None:
    """Shade the stages, and name the absent ones in the legend."""
    for letter, what in _STAGES.items():
        if letter not in spans:
            axes.plot([], [], " ", label=f"{letter} is absent:\n{textwrap.fill(what, _LABEL)}")
            continue
        first, last = spans[letter]
        label = f"{textwrap.fill(f'{letter}: {what}', _LABEL)}\n(epochs {first} to {last})"
        axes.axvspan(first, last, color=PALETTE[letter], alpha=0.25, lw=0, label=label)
        look = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text((first + last) / 2, 0.97, letter, **look)


def _describe_band(records: Sequence[Record]) -> str:
    seeds = pluralize(len(records), "seed")
    if len(records) <= 1:
        return seeds
    return f"mean ± s.d. of {seeds}"


def _bottom(panels: Sequence[Axes]) -> float:
    """Lowest value of any line, or 0 if that is positive: no band of a loss goes below it."""
    lowest = 0.0
    for axes in panels:
        for line in axes.get_lines():
            values = np.asarray(line.get_ydata(), float)
            if np.isfinite(values).any():
                lowest = min(lowest, float(np.nanmin(values)))
    return lowest
