"""What all figures share: colours, style, bands over seeds, legends, and saving as PNG."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flooding.atomic import write_atomic
from flooding.extras import install_command

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = [
    "PALETTE",
    "WIDTH",
    "draw_band",
    "legend_below",
    "legend_entries",
    "level_colours",
    "new_figure",
    "save",
    "to_png",
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
# Inches. As wide as a phone (360 pixels, of which a page leaves 330), the smallest texts are 8
# pixels high: every figure is of this width, and grows downwards.
WIDTH = 5.6
_DPI = 150
_STYLE: dict[Any, Any] = {
    "font.size": 11.0,
    "axes.titlesize": 11.0,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "legend.fontsize": 10.0,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
}


@contextmanager
def new_figure(height: float) -> Generator[Figure]:
    """Open a figure to draw on, in the style of all figures, and lay it out at the end.

    Args:
        height: Inches; the width is :data:`WIDTH`.

    Yields:
        The figure.
    """
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, height), dpi=_DPI, layout="constrained")
        # After an error there is nothing to lay out.
        yield figure  # ruff: ignore[fallible-context-manager]
        # The layout settles in two passes. It is frozen after that: saving twice must give the
        # same bytes. (A draw would lay out as well, and take half as long again.)
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.execute(figure)
        engine.execute(figure)
        figure.set_layout_engine("none")


@contextmanager
def _style() -> Generator[None]:
    """Apply this library's style alone, and restore the user's after it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            f"plots need matplotlib, which is missing. Run: {install_command('plot')}"
        ) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG of 150 dots per inch, whole or not at all.

    The same figure always gives the same bytes.

    Args:
        figure: The figure.
        path: The file; its folder is made if it is missing.

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
    return write_atomic(path, to_png(figure))


def to_png(figure: Figure, dpi: int = _DPI) -> bytes:
    """Draw a figure as a PNG, without pyplot.

    The same figure always gives the same bytes.

    Args:
        figure: The figure.
        dpi: Dots per inch.

    Returns:
        The content of a PNG file.
    """
    with _style(), io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
        return file.getvalue()


def draw_band(
    axes: Axes,
    x: np.ndarray,
    values: np.ndarray,
    *,
    color: Any,
    alpha: float = 0.2,
    log: bool = False,
    **line: Any,
) -> None:
    """Draw the mean over seeds as a line, with a band of one standard deviation (n - 1).

    A single seed has no band.

    Args:
        axes: The panel.
        x: Positions, ``[points]``.
        values: Values, ``[seeds, points]``.
        color: Colour of line and band.
        alpha: Opacity of the band.
        log: Keep the band above a tenth of the mean, for a logarithmic axis.
        line: Further properties of the line, such as its label.
    """
    mean = values.mean(0)
    axes.plot(x, mean, color=color, **line)
    if len(values) > 1:
        sd = values.std(0, ddof=1)
        low = np.maximum(mean - sd, mean / 10) if log else mean - sd
        axes.fill_between(x, low, mean + sd, color=color, alpha=alpha, lw=0)


def legend_entries(panels: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    """Collect the handles and labels of a legend that several panels share.

    Args:
        panels: The panels.

    Returns:
        The arguments of ``figure.legend``; of equal labels the last counts.
    """
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    return list(handles.values()), list(handles)


def legend_below(figure: Figure, panels: Iterable[Axes], columns: int = 1) -> None:
    """Draw one legend for several panels, below them.

    Args:
        figure: The figure.
        panels: Its panels.
        columns: Columns of the legend.
    """
    figure.legend(*legend_entries(panels), loc="outside lower center", ncols=columns)


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
