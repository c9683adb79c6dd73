"""Curves of robustness datasets: accuracy over the severity of corruptions, and over the amount of occlusion."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lutbench.evaluate.statistics import mean_intervals, wilson
from lutbench.report.charts import Chart, ChartLine, ChartPanel
from lutbench.report.figures import (
    PALETTE,
    Point,
    draw_lines,
    label_figure,
    new_figure,
    over_seeds_point,
    seeds_label,
)
from robustness.condition_outcomes import RobustnessOutcomes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Methods = Sequence[tuple[str, Sequence[RobustnessOutcomes]]]
"""Every method's name, and its outcomes, one per seed."""

Runs = Sequence[Sequence[str]]
"""Of every method the names of the runs behind it."""

MEAN = "mean"

COLUMNS = 5
"""Of small panels."""

CHARACTERS = 130
"""In a line below a figure."""

ABOUT = "Bands: 95 % intervals, over images for one seed ({}), over seeds (Student's t) for several."
OF_SEVERITY = ABOUT.format("Wilson; bootstrap for the mean over corruptions")
OF_OCCLUSION = ABOUT.format("Wilson's")


Curve = dict[int, Point]
"""Top-1, mean over seeds, by severity, tenths of the patches, or tiles on a side."""


def severity_curves(seeds: Sequence[RobustnessOutcomes]) -> dict[str, Curve]:
    """Return top-1 by severity: ``mean`` over the corruptions that are not extra, if there are any, then every corruption.

    The mean's interval comes from a bootstrap over images, each of which counts in all corruptions at once.
    """
    each = [one.by_amount() for one in seeds]
    extra = seeds[0].extra
    names = sorted(each[0], key=lambda name: name in extra)  # the extra ones last, else in the set's order
    main = [name for name in names if name not in extra]
    mean = {MEAN: _over_seeds([_mean_curve([one[name] for name in main]) for one in each])} if main else {}
    return mean | {name: _over_seeds([_curve(one.get(name, {})) for one in each]) for name in names}


def occlusion_curves(seeds: Sequence[RobustnessOutcomes]) -> dict[str, Curve]:
    """Return top-1 of ``drop`` by tenths of the patches, and of ``shuffle`` by tiles on a side."""
    each = [one.by_amount() for one in seeds]
    return {kind: _over_seeds([_curve(one.get(kind, {})) for one in each]) for kind in ("drop", "shuffle")}


def severity_figure(title: str, methods: Methods, note: str = "", colours: Sequence[str] = PALETTE) -> "Figure":
    """Draw the mean over corruptions against severity, a line per method, and a small panel for every corruption."""
    curves, extra = _by_name(methods, severity_curves), methods[0][1][0].extra
    mean = curves.pop(MEAN, {label: {} for of in curves.values() for label in of})
    rows = -(-len(curves) // COLUMNS)
    figure = new_figure(8.5, 4.4 + 1.45 * rows)
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.2, 0.5 + 1.45 * rows])
    above, below = parts
    large = above.subplots()
    draw_lines(large, mean, colours)
    large.set_title(_panel_title(MEAN, curves, extra), fontsize="small")
    large.set_ylabel("top-1, %")
    large.set_xlabel("severity")
    grid = below.subplots(rows, min(COLUMNS, len(curves)), sharex=True, sharey=True, squeeze=False).ravel()
    panels, spare = grid[: len(curves)], grid[len(curves) :]
    for axes, (name, of) in zip(panels, curves.items(), strict=True):
        draw_lines(axes, of, colours, small=True)
        axes.set_title(_panel_title(name, curves, extra), fontsize="x-small", pad=3)
    for axes in spare:
        axes.remove()
    severities = sorted({severity for of in (mean, *curves.values()) for curve in of.values() for severity in curve})
    for axes in (large, *panels):
        axes.set_xticks(severities)
    for axes in panels[-COLUMNS:]:
        axes.tick_params(labelbottom=True)  # also of a panel with nothing below it
    large.set_ylim(0, _top([mean]))
    panels[0].set_ylim(0, _top([mean, *curves.values()]))
    below.supxlabel("severity", fontsize="small")
    below.supylabel("top-1, %", fontsize="small")
    _label(figure, large, title, OF_SEVERITY, note)
    return figure


def occlusion_figure(title: str, methods: Methods, note: str = "", colours: Sequence[str] = PALETTE) -> "Figure":
    """Draw top-1 against the share of dropped patches, and beside it against the number of shuffled tiles."""
    curves = {kind: of for kind, of in _by_name(methods, occlusion_curves).items() if any(of.values())}
    figure = new_figure(8.5, 4.2)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (kind, of) in zip(panels, curves.items(), strict=True):
        placed, ticks = _placed(kind, of)
        draw_lines(axes, placed, colours)
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel("patches dropped, %" if kind == "drop" else "number of shuffled tiles")
    panels[0].set_ylabel("top-1, %")
    panels[0].set_ylim(0, _top(curves.values()))
    _label(figure, panels[-1], title, OF_OCCLUSION, note)
    return figure


def severity_chart(methods: Methods, colours: Sequence[str], runs: Runs) -> Chart:
    """Return the panels of :func:`severity_figure` for a page that draws them, the mean over corruptions first."""
    curves, extra = _by_name(methods, severity_curves), methods[0][1][0].extra
    panels, top = [], _top(curves.values())
    for name, of in curves.items():
        title, lines = _panel_title(name, curves, extra), _lines(of, colours, runs)
        severities = {x: f"{x:g}" for line in lines for x in line.points}
        panels.append(ChartPanel(title, "severity", "top-1, %", lines, severities, from_zero=True, top=top))
    return Chart(panels, OF_SEVERITY)


def occlusion_chart(methods: Methods, colours: Sequence[str], runs: Runs) -> Chart:
    """Return the panels of :func:`occlusion_figure` for a page that draws them."""
    curves = {kind: of for kind, of in _by_name(methods, occlusion_curves).items() if any(of.values())}
    panels, top = [], _top(curves.values())
    for kind, of in curves.items():
        placed, ticks = _placed(kind, of)
        title = "Patches dropped" if kind == "drop" else "Tiles shuffled"
        axis = "patches dropped, %" if kind == "drop" else "number of tiles"
        labels = {float(x): text for x, text in ticks.items()}
        panels.append(
            ChartPanel(title, axis, "top-1, %", _lines(placed, colours, runs), labels, from_zero=True, top=top)
        )
    return Chart(panels, OF_OCCLUSION)


def _by_name(
    methods: Methods, curves: Callable[[Sequence[RobustnessOutcomes]], dict[str, Curve]]
) -> dict[str, dict[str, Curve]]:
    """Return by name the curves of all methods, by what the legend says of these; empty ones where a method has none."""
    each = {seeds_label(label, len(seeds)): curves(seeds) for label, seeds in methods}
    names = dict.fromkeys(name for of in each.values() for name in of)
    return {name: {label: of.get(name, {}) for label, of in each.items()} for name in names}


def _panel_title(name: str, names: Iterable[str], extra: Container[str]) -> str:
    """Return what stands above the panel of a corruption, or of the mean over those of ``names`` that are not extra."""
    if name == MEAN:
        count = sum(other not in extra for other in names if other != MEAN)
        return f"Mean over {count} corruption{'s' if count > 1 else ''}"
    label = name.replace("_", " ")
    return f"{label}, extra" if name in extra else label


def _placed(kind: str, curves: Mapping[str, Curve]) -> tuple[dict[str, Curve], dict[int, str]]:
    """Return the curves of a kind of occlusion by their places on an axis, and what is written at each place.

    Tiles are at even steps: 14 x 14 and 16 x 16 would lie on each other, and 2 x 2 at the edge.
    """
    amounts = sorted({amount for curve in curves.values() for amount in curve})
    at = {amount: 10 * amount if kind == "drop" else number for number, amount in enumerate(amounts)}
    ticks = {at[amount]: f"{10 * amount}" if kind == "drop" else f"{amount**2}" for amount in amounts}
    return {label: {at[amount]: point for amount, point in of.items()} for label, of in curves.items()}, ticks


def _lines(curves: Mapping[str, Curve], colours: Sequence[str], runs: Runs) -> list[ChartLine]:
    """Return a line for every label that has points."""
    return [
        ChartLine(label, colours[place % len(colours)], {float(x): point for x, point in curve.items()}, runs=of)
        for place, ((label, curve), of) in enumerate(zip(curves.items(), runs, strict=True))
        if curve
    ]


def _curve(right: Mapping[int, NDArray[np.bool_]]) -> Curve:
    """Return the share that is right, with Wilson's interval."""
    curve = {}
    for x, hits in sorted(right.items()):
        low, high = wilson(int(hits.sum()), len(hits))
        curve[x] = Point(100 * float(hits.mean()), 100 * low, 100 * high)
    return curve


def _mean_curve(corruptions: Sequence[Mapping[int, NDArray[np.bool_]]]) -> Curve:
    """Return the mean over those corruptions that have a severity."""
    severities = sorted({severity for one in corruptions for severity in one})
    values = np.stack([np.mean([one[s] for one in corruptions if s in one], axis=0) for s in severities], 1)
    low, high = 100 * mean_intervals(values)
    return {s: Point(100 * float(values[:, k].mean()), low[k], high[k]) for k, s in enumerate(severities)}


def _over_seeds(curves: Sequence[Curve]) -> Curve:
    """Return the mean over seeds where all have a point."""
    shared = [x for x in curves[0] if all(x in curve for curve in curves)]
    return {x: over_seeds_point([curve[x] for curve in curves]) for x in shared}


def _top(panels: Iterable[Mapping[str, Curve]]) -> float:
    """Return where an axis from 0 ends that shows the whole band of every curve."""
    highest = max((point.high for of in panels for curve in of.values() for point in curve.values()), default=0.0)
    return min(100.0, 1.03 * highest) or 1.0


def _label(figure: "Figure", beside: "Axes", title: str, about: str, note: str) -> None:
    """Write title, what the bands are, and the legend, right of a panel: nine methods' would hide lines in it."""
    beside.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
    label_figure(figure, title, about, fill(note, CHARACTERS))
