"""Pictures of Records and Splits: pure functions that return a matplotlib ``Figure`` and touch no
global state.

``plain`` Records were trained without flooding (level None or 0), ``flooded`` ones with it; each
group is one experiment over several seeds. Curves are means over the seeds with a band of one
standard deviation (n - 1) to either side, which a single seed does not have. Training curves hold
the labels the network saw, noisy where labels are noisy; test curves hold clean labels. Epoch 0 is
before training; a point that not every seed measured is not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from flooding.atomic import write_atomic
from flooding.data import Split, Splits
from flooding.report.stats import pluralize
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = [
    "NEAR_ZERO",
    "PALETTE",
    "accuracy_curves",
    "concept",
    "decision_boundary",
    "drawn",
    "level_colours",
    "loss_curves",
    "reliability",
    "save",
    "scatter",
    "stages",
    "unique",
]

# Okabe and Ito's colours, which stay apart for colour-blind readers. Markers and dashes tell the
# lines apart too.
PALETTE = {
    "plain": "#D55E00",
    "flooded": "#0072B2",
    "class 0": "#56B4E9",
    "class 1": "#E69F00",
    "A": "#009E73",
    "B": "#F0E442",
    "C": "#CC79A7",
}
NEAR_ZERO = (
    0.05  # share of its start value below which a loss, or a change of a loss, counts as zero
)

_DPI = 150
_STYLE: dict[Any, Any] = {
    "font.size": 11.0,
    "axes.titlesize": 11.0,
    "legend.fontsize": 10.0,
    "legend.frameon": False,
}
_LOSS = "Loss (nats per example)"
_GROUPS = {"plain": ("without flooding", "o"), "flooded": ("with flooding", "s")}
_CLASSES = {0: ("class 0", "o"), 1: ("class 1", "^")}
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
    measured = np.flatnonzero(np.isfinite(test_loss))
    if len(measured) == 0:
        raise ValueError(
            "test_loss must be measured at some epoch, got none. Give the Problem a test_curve."
        )
    last = len(train_loss) - 1
    lowest = int(measured[test_loss[measured].argmin()])
    above = np.flatnonzero(~(np.abs(train_loss) < NEAR_ZERO * np.abs(train_loss[0])))
    tail = int(above.max()) + 1  # never empty: the start value is not below a share of itself
    found = {"A": (0, min(lowest, tail))} if lowest > 0 else {}
    epochs = np.arange(len(test_loss))
    carried = test_loss[measured[np.searchsorted(measured, epochs, side="right") - 1]]
    risen = carried > test_loss[lowest] + NEAR_ZERO * abs(test_loss[measured[0]])
    if (risen := risen & (lowest < epochs) & (epochs <= tail)).any():
        found["B"] = (lowest, int(epochs[risen].max()))
    return found | ({"C": (tail, last)} if tail <= last else {})


def loss_curves(plain: Sequence[Record], flooded: Sequence[Record], *, title: str) -> Figure:
    """Draw training and test loss against epoch, without and with flooding, and the flood level.

    The level is drawn as its mean over the seeds that have one; the legend gives their range where
    they differ.

    Args:
        plain: Records without flooding, one per seed.
        flooded: Records with flooding, one per seed.
        title: Title of the figure.

    Returns:
        A figure of 7 x 5 inches.
    """
    return _curves(plain, flooded, "loss", _LOSS, title)


def accuracy_curves(plain: Sequence[Record], flooded: Sequence[Record], *, title: str) -> Figure:
    """Draw training and test accuracy against epoch, without and with flooding.

    Args:
        plain: Records without flooding, one per seed.
        flooded: Records with flooding, one per seed.
        title: Title of the figure.

    Returns:
        A figure of 7 x 5 inches.
    """
    return _curves(plain, flooded, "accuracy", "Accuracy (1 − Error)", title)


def concept(plain: Sequence[Record], flooded: Sequence[Record]) -> Figure:
    """Draw what flooding does: training and test loss (a) without and (b) with it, over the
    :func:`stages` found.

    A stage that the mean curves do not show is not shaded, and the legend says so. In (b) the band
    from 0 to the level is filled.

    Args:
        plain: Records without flooding, one per seed.
        flooded: Records with flooding, one per seed.

    Returns:
        A figure of 7 x 5.5 inches.
    """
    with drawn(7.0, 5.5) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, letter, group, records in zip(
            panels, "ab", _GROUPS, (plain, flooded), strict=True
        ):
            _shade(
                axes,
                stages(
                    _mean(records, "train_loss")[0], _mean(records, _test_name(records, "loss"))[0]
                ),
            )
            _lines(axes, records, group, "loss", "")
            if group == "flooded":
                level, label = _level(records)
                label = f"0 to the {label}" if len(level) else label
                axes.fill_between(
                    np.arange(len(level)), 0, level, color="0.6", alpha=0.5, lw=0, label=label
                )
            axes.set(
                title=f"({letter}) {_GROUPS[group][0]}\n{_spread_of(records)}",
                xlabel="Epoch",
                xmargin=0.0,
            )
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.16), handlelength=1.6, borderaxespad=0.0
            )
        panels[0].set(ylabel=_LOSS, ylim=(_bottom(panels), None))
    return figure


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
    with drawn(max(2.35 * len(splits_by_name), 3.5), 3.3) as figure:
        panels = figure.subplots(1, len(splits_by_name), squeeze=False)[0]
        for axes, (name, splits) in zip(panels, splits_by_name.items(), strict=True):
            points, labels = _two_dimensions(splits.train)
            flipped = _points(axes, splits.train, points)
            axes.set(
                title=f"{name}\n{flipped} of {len(points)} flipped",
                xlabel=labels[0],
                ylabel=labels[1],
            )
            axes.margins(0.1)
            axes.set_aspect("equal", adjustable="datalim")
        figure.legend(*unique(panels), loc="outside lower center", ncols=3)
    return figure


def decision_boundary(
    plain: Record,
    flooded: Record,
    splits: Splits,
    probe: Tensor,
    truth: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Figure:
    """Draw the probability of class 1 over the plane after the last epoch, without and with
    flooding.

    Args:
        plain: Record without flooding, with probabilities on the probe.
        flooded: Record with flooding.
        splits: The data of their seed; the training split is drawn over the plane.
        probe: The inputs of the probe, a square grid ``[points * points, 2]`` with the first
            coordinate changing fastest, as from :func:`flooding.tasks.grid_2d`.
        truth: Function ``(x1, x2)`` that is positive in class 1 and 0 on the true boundary, or
            None.

    Returns:
        A figure of 7 x 4.3 inches.
    """
    side = round(len(probe) ** 0.5)
    x1, x2 = (probe[:, axis].numpy().reshape(side, side) for axis in (0, 1))
    points, labels = _two_dimensions(splits.train)
    with drawn(7.0, 4.3) as figure:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, to_rgb

        # Paler than the points that lie on it.
        low, high = (0.4 + 0.6 * np.array(to_rgb(PALETTE[f"class {number}"])) for number in (0, 1))
        colours = LinearSegmentedColormap.from_list("classes", [tuple(low), "white", tuple(high)])
        panels = figure.subplots(1, 2, sharey=True)
        for axes, group, record in zip(panels, _GROUPS, (plain, flooded), strict=True):
            found = _array(record, "last.probe", (side * side, 2))[:, 1].reshape(side, side)
            axes.pcolormesh(x1, x2, found, cmap=colours, vmin=0, vmax=1)
            _zero_line(axes, x1, x2, found - 0.5, "-", "predicted boundary")
            if truth is not None:
                _zero_line(axes, x1, x2, truth(x1, x2), "--", "true boundary")
            flipped = _points(axes, splits.train, points)
            name = f"{_GROUPS[group][0]}\n{flipped} of {len(points)} labels flipped"
            axes.set(title=name, xlabel=labels[0], aspect="equal")
        panels[0].set_ylabel(labels[1])
        figure.colorbar(
            ScalarMappable(cmap=colours), ax=list(panels), label="P(class 1)", shrink=0.8
        )
        figure.legend(*unique(panels), loc="outside lower center", ncols=3)
    return figure


def reliability(plain: Sequence[Record], flooded: Sequence[Record]) -> Figure:
    """Draw accuracy against confidence on the test split after the last epoch, and how often each
    confidence occurs.

    The bins of all seeds are pooled: counts are added, confidence and accuracy averaged with the
    counts as weights. Empty bins are not drawn. The legend gives the calibration error, mean and
    standard deviation over the seeds.

    Args:
        plain: Records of a classifier without flooding, one per seed.
        flooded: Records with flooding, one per seed.

    Returns:
        A figure of 6 x 6.8 inches.
    """
    with drawn(6.0, 6.8) as figure:
        diagram, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        diagram.plot([0, 1], [0, 1], color="0.5", ls=":", label="perfectly calibrated")
        for side, group, records in zip((0, 1), _GROUPS, (plain, flooded), strict=True):
            confidence, accuracy, count = _pooled(records)
            name, marker = _GROUPS[group]
            errors = np.array([record.metrics["last.test_ece"] for record in records])
            label = f"{name}: ECE {_spread(errors)}, {_seeds(records)}"
            full = count > 0
            look = {"color": PALETTE[group], "marker": marker, "clip_on": False}
            diagram.plot(confidence[full], accuracy[full], label=label, **look)
            width = 1 / len(count)
            left = width * (np.arange(len(count)) + (side + 0.1) / 2)
            histogram.bar(
                left,
                count / count.sum(),
                0.45 * width,
                align="edge",
                color=PALETTE[group],
                label=name,
            )
        diagram.set(
            ylabel="Accuracy",
            xlim=(0, 1),
            ylim=(0, 1),
            title="Reliability on the test split, seeds pooled",
        )
        histogram.set(xlabel="Confidence (highest probability)", ylabel="Share of examples")
        figure.legend(*unique([diagram]), loc="outside lower center")
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG of 150 dots per inch, whole or not at all, with the same bytes for
    the same figure.

    Args:
        figure: The figure.
        path: Where to; the folder is made if it is missing.

    Returns:
        The path.

    Raises:
        ValueError: If the path does not end in ``.png``.
        NotADirectoryError: If a part of the path above the file is a regular file.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {path}. Pictures are written as PNG only.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(
            f"path must lie in a folder, got {path} below a regular file. Name another."
        ) from None
    with _style():
        return write_atomic(
            path,
            lambda file: figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None}),
        )


@contextmanager
def _style() -> Generator[None]:
    """Work with our style alone, whatever the user's is, and give theirs back."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is missing. Run: pip install 'flooding[plot]'"
        ) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@contextmanager
def drawn(width: float, height: float) -> Generator[Figure]:
    """Lend a figure of this many inches to draw on, in the style of all pictures here, and lay it
    out.

    Args:
        width: Inches.
        height: Inches.

    Yields:
        The figure.
    """
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
        yield figure  # ruff: ignore[fallible-context-manager]: after an error there is nothing to lay out
        # The layout settles over two draws. Frozen after that: saving twice must give the same
        # bytes.
        figure.draw_without_rendering()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def level_colours(low: float, high: float) -> ScalarMappable:
    """Give each flood level its colour.

    Args:
        low: Lowest level.
        high: Highest level.

    Returns:
        What ``figure.colorbar`` takes, and whose ``to_rgba(level)`` is the colour.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    # Without its palest end, which would be lost on white.
    shades = LinearSegmentedColormap.from_list(
        "levels", matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, 256))
    )
    return ScalarMappable(Normalize(low, high), shades)


def _curves(
    plain: Sequence[Record], flooded: Sequence[Record], what: str, label: str, title: str
) -> Figure:
    with drawn(7.0, 5.0) as figure:
        axes = figure.subplots()
        _lines(axes, plain, "plain", what, ", without flooding")
        if what == "loss":
            # Between the groups, so that each has a column of the legend.
            level, name = _level(flooded)
            axes.plot(
                np.arange(len(level)), level, color="black", ls=":", lw=1.5, zorder=3, label=name
            )
        _lines(axes, flooded, "flooded", what, ", with flooding")
        axes.set(title=title, xlabel="Epoch", ylabel=label, xmargin=0.0)
        if what == "loss":
            axes.set_ylim(bottom=_bottom([axes]))
        note = [_spread_of(plain), _spread_of(flooded)]
        note = note[0] if note[0] == note[1] else f"without flooding: {note[0]}; with: {note[1]}"
        figure.legend(*unique([axes]), loc="outside lower center", ncols=2, title=note)
    return figure


def _lines(axes: Axes, records: Sequence[Record], group: str, what: str, end: str) -> None:
    """Draw the training and the test curve of a group, with their bands."""
    noisy = any(f"train_{what}_clean" in record.curves for record in records)
    labels = ("training (noisy labels)", "test (clean labels)") if noisy else ("training", "test")
    for name, dashes, label in zip(
        (f"train_{what}", _test_name(records, what)), ("--", "-"), labels, strict=True
    ):
        mean, deviation = _mean(records, name)
        at = np.flatnonzero(np.isfinite(mean))
        look = {"color": PALETTE[group], "ls": dashes, "marker": _GROUPS[group][1], "ms": 5.0}
        axes.plot(at, mean[at], label=label + end, markevery=max(len(at) // 8, 1), **look)
        if len(records) > 1:
            low, high = mean[at] - deviation[at], mean[at] + deviation[at]
            axes.fill_between(at, low, high, color=PALETTE[group], alpha=0.2, lw=0)


def _mean(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the Records per epoch, NaN where one of them was not
    measured.
    """
    if not records or any(name not in record.curves for record in records):
        have = (
            sorted(set.intersection(*(set(record.curves) for record in records)))
            if records
            else "no Record"
        )
        raise ValueError(
            f"every Record must hold the curve {name!r}, got {have}. Test curves need a test_curve."
        )
    lengths = {len(record.curves[name]) for record in records}
    if len(lengths) > 1:
        raise ValueError(
            f"Records of one group must have equally many epochs, got {sorted(lengths)}. Draw them apart."
        )
    values = np.stack([record.curves[name] for record in records]).astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def _level(flooded: Sequence[Record]) -> tuple[np.ndarray, str]:
    """Mean level per epoch over the Records that have one, and what to call it."""
    have = [record for record in flooded if np.isfinite(record.curves["level"][-1])]
    if not have:
        return np.empty(0), "no flood level"
    level, _ = _mean(have, "level")
    ends = [float(record.curves["level"][-1]) for record in have]
    label = (
        f"{ends[0]:.3g}"
        if min(ends) == max(ends)
        else f"{np.mean(ends):.3g} ({min(ends):.3g} to {max(ends):.3g})"
    )
    label += "" if np.nanmin(level) == np.nanmax(level) else " in the end"
    label += "" if len(have) == len(flooded) else f" in {len(have)} of {len(flooded)} seeds"
    return level, f"flood level {label}"


def _test_name(records: Sequence[Record], what: str) -> str:
    """Name the test curve on clean labels; a test split without noise has only one kind."""
    return f"test_{what}" + (
        "_clean" if all(f"test_{what}_clean" in record.curves for record in records) else ""
    )


def _shade(axes: Axes, found: Mapping[str, tuple[int, int]]) -> None:
    for letter, what in _STAGES.items():
        if letter in found:
            first, last = found[letter]
            label = f"{letter}: {what}\n(epochs {first} to {last})"
            axes.axvspan(first, last, color=PALETTE[letter], alpha=0.25, lw=0, label=label)
            axes.text(
                (first + last) / 2,
                0.97,
                letter,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top",
            )
        else:
            axes.plot([], [], " ", label=f"{letter} is absent:\n{what}")


def _two_dimensions(split: Split) -> tuple[np.ndarray, tuple[str, str]]:
    """Coordinates to draw, ``[n, 2]``, and the names of the two axes."""
    if split.x.ndim != 2 or split.x.shape[1] < 2 or not set(split.y.tolist()) <= set(_CLASSES):
        got = f"{list(split.x.shape)} and {sorted(set(split.y.tolist()))}"
        raise ValueError(
            f"inputs must be [n, 2 or more] and labels 0 or 1, got {got}. Draw two-class tasks only."
        )
    x, y = split.x.double().numpy(), (split.y if split.clean is None else split.clean).numpy()
    if x.shape[1] == 2:
        return x, ("$x_1$", "$x_2$")
    line = x[y == 1].mean(0) - x[y == 0].mean(0)
    return np.stack([x[:, 0], x @ line / np.linalg.norm(line)], 1), (
        "$x_1$",
        r"projection on $\mu_1 - \mu_0$",
    )


def _points(axes: Axes, split: Split, points: np.ndarray) -> int:
    """Draw labelled points and a ring around each flipped one; return how many there are."""
    labels = split.y.numpy()
    for number, (name, marker) in _CLASSES.items():
        x, y = points[labels == number].T
        axes.plot(x, y, marker, color=PALETTE[name], mec="black", mew=0.6, ms=5, label=name)
    flipped = (
        np.zeros(len(labels), bool) if split.clean is None else (split.y != split.clean).numpy()
    )
    axes.plot(
        *points[flipped].T, "o", color="none", mec="black", mew=1.4, ms=11, label="flipped label"
    )
    return int(flipped.sum())


def _array(record: Record, name: str, shape: tuple[int, int]) -> np.ndarray:
    found = record.arrays.get(name)
    if found is None or found.shape != shape:
        got = "none" if found is None else list(found.shape)
        raise ValueError(
            f"a Record must hold {name!r} of shape {list(shape)}, got {got}. Was it made by this probe?"
        )
    return found


def _pooled(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, accuracy and count of each bin over all Records; NaN in empty bins."""
    if any("last.reliability" not in record.arrays for record in records):
        raise ValueError(
            "every Record must hold 'last.reliability', got one without. Only classifiers have it."
        )
    bins = np.stack([record.arrays["last.reliability"] for record in records]).astype(np.float64)
    count = bins[:, 2].sum(0)
    sums = np.where(bins[:, 2:] > 0, bins[:, :2] * bins[:, 2:], 0.0).sum(0)
    confidence, accuracy = np.divide(sums, count, out=np.full_like(sums, np.nan), where=count > 0)
    return confidence, accuracy, count


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def _seeds(records: Sequence[Record]) -> str:
    return pluralize(len(records), "seed")


def _spread_of(records: Sequence[Record]) -> str:
    return f"mean ± s.d. of {_seeds(records)}" if len(records) > 1 else _seeds(records)


def _bottom(panels: Sequence[Axes]) -> float:
    """Lowest value of any line, or 0 if that is positive: a band below it says nothing about a
    loss.
    """
    lines = [np.asarray(line.get_ydata(), float) for axes in panels for line in axes.get_lines()]
    return min([0.0, *(float(np.nanmin(values)) for values in lines if np.isfinite(values).any())])


def _zero_line(
    axes: Axes, x1: np.ndarray, x2: np.ndarray, height: np.ndarray, dashes: str, label: str
) -> None:
    axes.contour(x1, x2, height, levels=[0.0], colors="black", linestyles=dashes, linewidths=1.5)
    axes.plot(
        [], [], color="black", ls=dashes, lw=1.5, label=label
    )  # a contour has no legend entry


def unique(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Give handles and labels of a legend shared by several panels.

    Args:
        panels: The panels.

    Returns:
        What ``figure.legend`` takes; of equal labels the last counts.
    """
    known = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    return list(known.values()), list(known)
