"""Drawing that figures of several kinds share. matplotlib is imported when a figure is made: it takes a second."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lutbench.evaluate.statistics import over_seeds
from lutbench.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9",  # Okabe and Ito 2008, all but black and yellow
    "#332288", "#882255", "#999933",  # Tol 2021, "muted": indigo, wine and olive
    "#aa00ff",  # our own, a violet that stands out on white and on black; Okabe and Ito's yellow is pale on white
)  # fmt: skip
"""Colours of methods, in their order in the suite: readers who see two of the three primary colours tell them apart."""

GREYS = ("#666666", "#999999", "#bbbbbb")
"""Colours of encoders that nothing was trained of."""


class Point(NamedTuple):
    """A share in percent with its 95 % interval."""

    value: float
    low: float
    high: float


def over_seeds_point(points: Sequence[Point]) -> Point:
    """Return the mean over seeds with Student's interval, between 0 and 100; of one seed its own point."""
    if len(points) == 1:
        return points[0]
    values = [point.value for point in points]
    low, high = over_seeds(values)
    return Point(float(np.mean(values)), max(0.0, low), min(100.0, high))


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches. A dollar in its texts is a dollar, and begins no formula."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a PNG.

    Raises:
        UserError: on a full disk.
    """
    with whole_file(path) as partial:
        draw_png(figure, partial)


def draw_png(figure: "Figure", file: "Path | IO[bytes]") -> None:
    """Draw a figure as a PNG, once: ``savefig`` would draw it twice, first for its layout.

    The file does not name the version of matplotlib: the same records make the same bytes as long as the drawing is the same.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(file, metadata={"Software": None})


def draw_lines(
    axes: "Axes",
    curves: Mapping[str, Mapping[int, Point] | Mapping[float, Point]],
    colours: Sequence[str] = PALETTE,
    *,
    small: bool = False,
    linestyle: str = "-",
) -> None:
    """Draw a line and a band per label; a label that has no line leaves its colour alone."""
    for number, (label, curve) in enumerate(curves.items()):
        positions, values = list(curve), np.array(list(curve.values())).reshape(-1, 3)
        style: dict[str, Any] = {"color": colours[number % len(colours)]}
        axes.fill_between(positions, values[:, 1], values[:, 2], alpha=0.2, linewidth=0, **style)
        marks: dict[str, Any] = {"marker": "o", "markersize": 1.5 if small else 3.5, "linewidth": 0.9 if small else 1.4}
        axes.plot(positions, values[:, 0], label=label, linestyle=linestyle, **marks, **style)
    plain_axes(axes)
    axes.tick_params(labelsize="x-small" if small else "small")


def plain_axes(axes: "Axes", grid: Literal["both", "x", "y"] = "both") -> None:
    """Draw a thin grid below everything, and no frame above and on the right."""
    axes.grid(axis=grid, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def label_figure(figure: "Figure", title: str, *below: str) -> None:
    """Write the title above a figure, and below it a line for each text that is not empty."""
    figure.suptitle(title, fontsize="medium")
    figure.supxlabel("\n".join(text for text in below if text), fontsize="x-small")


def seeds_label(label: str, seeds: int) -> str:
    """Return ``LUT``, or ``LUT, 3 seeds``."""
    return f"{label}, {seeds} seeds" if seeds > 1 else label
