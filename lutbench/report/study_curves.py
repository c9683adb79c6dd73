"""The figure of a study: a panel per task and metric, a curve with its intervals over the values that were tried."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, log10
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lutbench.evaluate.outcomes import Measurement
from lutbench.report.charts import Chart, ChartLine, ChartPanel, Style, point_of
from lutbench.report.entries import OF_DRAWS, STUDENT
from lutbench.report.figures import draw_lines, label_figure, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Key = float | str
"""A value that was tried: a number, or the name of a category."""

ACROSS = 3
"""Panels beside each other."""
CLOSEST = 0.06
"""Two values closer than this share of the axis are not told apart: then all have the same distance."""
DECADE = 10
"""Where the largest is so many times the smallest, an axis is logarithmic."""


SPACINGS = {"log": " (logarithmic)", "even": " (evenly spaced)"}
"""What the name of an axis says of its kind."""


class Curve(NamedTuple):
    """A line of a panel."""

    label: str
    """Empty if there is one alone."""
    points: dict[Key, Measurement]
    texts: dict[Key, str]
    """How the values are written."""
    base: Key | None
    """The value that differences are to."""
    colour: str
    runs: dict[Key, list[str]]
    """The names of the runs behind the values."""


class Panel(NamedTuple):
    """The curves of a task by one metric."""

    title: str
    metric: str
    """With its unit."""
    keys: Sequence[Key]
    """The values of the first axis, in the order of the study."""
    curves: Sequence[Curve]

    @property
    def texts(self) -> dict[Key, str]:
        """How the values are written that any curve has."""
        return {key: text for curve in self.curves for key, text in curve.texts.items()}


class Axis(NamedTuple):
    """Where values lie on a horizontal axis."""

    kind: Literal["linear", "log", "even", "categories"]
    positions: dict[Key, float]
    zero_apart: bool = False
    """Whether 0, which has no logarithm, has a place of its own at the left."""

    def titled(self, name: str) -> str:
        """Return the name of the axis, with what it says of its kind."""
        return f"{name}{SPACINGS.get(self.kind, '')}"


def study_figure(title: str, panels: Sequence[Panel], axis: str, note: str = "") -> "Figure":
    """Draw the panels of a study, whose first axis is named ``axis``. Titles of panels are left out if ``title`` has them all."""
    across = min(ACROSS, len(panels))
    down = ceil(len(panels) / across)
    figure = new_figure(max(5.2, 3.6 * across), 2.9 * down + 0.9)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    is_titled = any(panel.title not in title for panel in panels)
    for axes, panel in zip(grid.flat[: len(panels)], panels, strict=True):
        _draw(axes, panel, axis)
        axes.set_title(panel.title if is_titled else "", fontsize="small")
    if any(curve.label for panel in panels for curve in panel.curves):
        handles = {
            name: handle for axes in grid.flat for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        grid[0, -1].legend([*handles.values()], [*handles], fontsize="small", frameon=False, **place)
    ring = "The ring is the base." if any(c.base is not None for panel in panels for c in panel.curves) else ""
    label_figure(figure, title, " ".join(filter(None, (_about_bands(panels), ring))), note)
    return figure


def study_chart(panels: Sequence[Panel], axis: str) -> Chart:
    """Return the panels of :func:`study_figure` for a page that draws them."""
    shown = []
    for panel in panels:
        placed, texts = axis_of(panel.keys), panel.texts
        style: Style = "dots" if placed.kind == "categories" else "solid"
        lines = [
            ChartLine(
                curve.label or panel.metric,
                curve.colour,
                {placed.positions[key]: point_of(measured) for key, measured in curve.points.items()},
                style,
                runs_at={placed.positions[key]: runs for key, runs in curve.runs.items()},
            )
            for curve in panel.curves
        ]
        ticks = {x: texts[key] for key, x in placed.positions.items() if key in texts}
        shown.append(ChartPanel(panel.title, placed.titled(axis), panel.metric, lines, ticks))
    return Chart(shown, _about_bands(panels))


def _about_bands(panels: Sequence[Panel]) -> str:
    """Return what the intervals of the values are over; empty where none has one."""
    measured = [m for panel in panels for curve in panel.curves for m in curve.points.values()]
    named = {STUDENT: "Student's t over seeds", OF_DRAWS: "Student's t over draws of the training images"}
    over = {named.get(m.interval, "over images, of one seed") for m in measured if m.interval}
    return f"Bands and bars are 95 % intervals: {' or '.join(sorted(over, reverse=True))}." if over else ""


def axis_of(keys: Sequence[Key]) -> Axis:
    """Return where values lie: as numbers or, where these span a decade, their logarithms; categories in their order.

    Numbers of which two would lie on top of each other, as momenta near 1 do, have the same distance instead.
    """
    numbers = sorted({key for key in keys if not isinstance(key, str)})
    if len(numbers) < len(set(keys)):
        return Axis("categories", {key: float(place) for place, key in enumerate(dict.fromkeys(keys))})
    positive = [number for number in numbers if number > 0]
    plain = Axis("linear", {number: float(number) for number in numbers})
    found = [plain]
    if numbers[0] >= 0 and len(positive) > 1 and positive[-1] >= DECADE * positive[0]:
        logs: dict[Key, float] = {number: log10(number) for number in positive}
        has_zero = len(positive) < len(numbers)
        if has_zero:
            steps = sorted(b - a for a, b in pairwise(logs.values()))
            logs = {numbers[0]: log10(positive[0]) - max(steps[len(steps) // 2], 0.3), **logs}
        found.insert(0, Axis("log", logs, has_zero))
    even = Axis("even", {number: float(place) for place, number in enumerate(numbers)})
    return next((one for one in found if _are_apart(list(one.positions.values()))), even)


def _are_apart(positions: Sequence[float]) -> bool:
    return all(b - a >= CLOSEST * (positions[-1] - positions[0]) for a, b in pairwise(positions))


def _draw(axes: "Axes", panel: Panel, name: str) -> None:
    axis = axis_of(panel.keys)
    for number, curve in enumerate(panel.curves):
        if axis.kind == "categories":
            shift = 0.0 if len(panel.curves) == 1 else 0.5 * (number / (len(panel.curves) - 1) - 0.5)
            _draw_bars(axes, curve, {key: x + shift for key, x in axis.positions.items()})
        else:
            _draw_curve(axes, curve, axis)
    texts = panel.texts
    shown = [key for key in axis.positions if key in texts]
    axes.set_xticks([axis.positions[key] for key in shown], [texts[key] for key in shown], fontsize="small")
    if sum(len(texts[key]) for key in shown) > 34:
        axes.tick_params(axis="x", labelrotation=35)
    axes.set_xlabel(axis.titled(name), fontsize="small")
    axes.set_ylabel(panel.metric, fontsize="small")
    axes.margins(x=0.06)


def _draw_curve(axes: "Axes", curve: Curve, axis: Axis) -> None:
    """Draw a line with a band; to a 0 that has a place of its own it is dashed."""
    keys = [key for key in axis.positions if key in curve.points]
    apart = axis.zero_apart and keys[0] == 0
    line = {axis.positions[key]: point_of(curve.points[key]) for key in keys[apart:]}
    draw_lines(axes, {curve.label: line}, [curve.colour])
    if apart:
        zero = axis.positions[keys[0]]
        if len(keys) > 1:
            ends = [curve.points[key].value for key in keys[:2]]
            axes.plot([zero, axis.positions[keys[1]]], ends, color=curve.colour, linestyle=":", linewidth=1.0)
        _draw_bar(axes, zero, curve.points[keys[0]], curve.colour)
    _draw_ring(axes, curve, axis.positions)


def _draw_bars(axes: "Axes", curve: Curve, positions: dict[Key, float]) -> None:
    """Draw a dot with a bar for each category."""
    for place, (key, measured) in enumerate(curve.points.items()):
        _draw_bar(axes, positions[key], measured, curve.colour, label=curve.label if place == 0 else None)
    _draw_ring(axes, curve, positions)
    plain_axes(axes, "y")
    axes.tick_params(labelsize="small")
    axes.margins(x=0.15)


def _draw_bar(axes: "Axes", x: float, measured: Measurement, colour: str, label: str | None = None) -> None:
    value, low, high = point_of(measured)
    axes.plot([x, x], [low, high], color=colour, linewidth=2.5, alpha=0.35, solid_capstyle="butt")
    axes.plot([x], [value], color=colour, marker="o", markersize=3.5, linewidth=0, label=label)


def _draw_ring(axes: "Axes", curve: Curve, positions: dict[Key, float]) -> None:
    if curve.base is not None and curve.base in curve.points:
        ring: dict[str, Any] = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "linewidth": 0}
        axes.plot([positions[curve.base]], [curve.points[curve.base].value], color=curve.colour, **ring)
