"""Curves of robustness datasets: accuracy over the severity of corruptions, and over the amount of occlusion."""

from collections.abc import Mapping, Sequence
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

MEAN = "mean"

COLUMNS = 5
"""Of small panels."""

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
    curves = {seeds_label(label, len(seeds)): severity_curves(seeds) for label, seeds in methods}
    names = list(dict.fromkeys(name for of in curves.values() for name in of if name != MEAN))
    extra = methods[0][1][0].extra
    count = sum(name not in extra for name in names)
    rows = -(-len(names) // COLUMNS)
    figure = new_figure(8.5, 4.4 + 1.45 * rows)
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.2, 0.5 + 1.45 * rows])
    above, below = parts
    large = above.subplots()
    draw_lines(large, {label: of.get(MEAN, {}) for label, of in curves.items()}, colours)
    large.set_title(f"Mean over {count} corruption{'s' if count > 1 else ''}", fontsize="small")
    large.set_ylabel("top-1, %")
    large.set_xlabel("severity")
    grid = below.subplots(rows, min(COLUMNS, len(names)), sharex=True, sharey=True, squeeze=False).ravel()
    panels, spare = grid[: len(names)], grid[len(names) :]
    for axes, name in zip(panels, names, strict=True):
        draw_lines(axes, {label: of.get(name, {}) for label, of in curves.items()}, colours, small=True)
        label = name.replace("_", " ")
        axes.set_title(f"{label}, extra" if name in extra else label, fontsize="x-small", pad=3)
    for axes in spare:
        axes.remove()
    severities = sorted({severity for of in curves.values() for curve in of.values() for severity in curve})
    for axes in (large, *panels):
        axes.set_xticks(severities)
    for axes in panels[-COLUMNS:]:
        axes.tick_params(labelbottom=True)  # also of a panel with nothing below it
    _from_zero([large], [of.get(MEAN, {}) for of in curves.values()])
    _from_zero(panels[:1], [curve for of in curves.values() for curve in of.values()])
    below.supxlabel("severity", fontsize="small")
    below.supylabel("top-1, %", fontsize="small")
    _label(figure, large, title, OF_SEVERITY, note)
    return figure


def occlusion_figure(title: str, methods: Methods, note: str = "", colours: Sequence[str] = PALETTE) -> "Figure":
    """Draw top-1 against the share of dropped patches, and beside it against the number of shuffled tiles."""
    curves = {seeds_label(label, len(seeds)): occlusion_curves(seeds) for label, seeds in methods}
    kinds = [kind for kind in ("drop", "shuffle") if any(of[kind] for of in curves.values())]
    figure = new_figure(8.5, 4.2)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        amounts = sorted({amount for of in curves.values() for amount in of[kind]})
        # Tiles are at even steps: 14 x 14 and 16 x 16 would lie on each other, and 2 x 2 at the edge.
        at = {amount: 10 * amount if kind == "drop" else number for number, amount in enumerate(amounts)}
        moved = {label: {at[amount]: point for amount, point in of[kind].items()} for label, of in curves.items()}
        draw_lines(axes, moved, colours)
        ticks = [f"{10 * amount}" if kind == "drop" else f"{amount**2}" for amount in amounts]
        axes.set_xticks(list(at.values()), ticks)
        axes.set_xlabel("patches dropped, %" if kind == "drop" else "number of shuffled tiles")
    panels[0].set_ylabel("top-1, %")
    _from_zero(panels[:1], [of[kind] for of in curves.values() for kind in kinds])
    _label(figure, panels[-1], title, OF_OCCLUSION, note)
    return figure


def severity_chart(methods: Methods, colours: Sequence[str] = PALETTE) -> Chart:
    """Return the panels of :func:`severity_figure` for a page that draws them, the mean over corruptions first."""
    curves = {seeds_label(label, len(seeds)): severity_curves(seeds) for label, seeds in methods}
    names = dict.fromkeys(name for of in curves.values() for name in of)
    extra = methods[0][1][0].extra
    count = sum(name not in extra and name != MEAN for name in names)
    panels, top = [], _top([curve for of in curves.values() for curve in of.values()])
    for name in names:
        label = name.replace("_", " ")
        title = f"Mean over {count} corruptions" if name == MEAN else f"{label}, extra" if name in extra else label
        lines = _lines({label: of.get(name, {}) for label, of in curves.items()}, colours)
        severities = {x: f"{x:g}" for line in lines for x in line.points}
        panels.append(ChartPanel(title, "severity", "top-1, %", lines, severities, from_zero=True, top=top))
    return Chart(panels, OF_SEVERITY)


def occlusion_chart(methods: Methods, colours: Sequence[str] = PALETTE) -> Chart:
    """Return the panels of :func:`occlusion_figure` for a page that draws them."""
    curves = {seeds_label(label, len(seeds)): occlusion_curves(seeds) for label, seeds in methods}
    panels, top = [], _top([curve for of in curves.values() for curve in of.values()])
    for kind in ("drop", "shuffle"):
        amounts = sorted({amount for of in curves.values() for amount in of[kind]})
        if amounts:
            at = {amount: 10 * amount if kind == "drop" else number for number, amount in enumerate(amounts)}
            moved = {label: {at[x]: point for x, point in of[kind].items()} for label, of in curves.items()}
            ticks = {float(at[x]): f"{10 * x}" if kind == "drop" else f"{x**2}" for x in amounts}
            title = "Patches dropped" if kind == "drop" else "Tiles shuffled"
            axis = "patches dropped, %" if kind == "drop" else "number of tiles"
            panels.append(ChartPanel(title, axis, "top-1, %", _lines(moved, colours), ticks, from_zero=True, top=top))
    return Chart(panels, OF_OCCLUSION)


def _lines(curves: Mapping[str, Mapping[int, Point]], colours: Sequence[str]) -> list[ChartLine]:
    """Return a line for every label that has points."""
    return [
        ChartLine(label, colours[place % len(colours)], {float(x): point for x, point in curve.items()})
        for place, (label, curve) in enumerate(curves.items())
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


def _from_zero(panels: Sequence["Axes"], curves: Sequence[Curve]) -> None:
    """Scale panels to show the whole band of every curve, and zero."""
    for axes in panels:
        axes.set_ylim(0, _top(curves))


def _top(curves: Sequence[Curve]) -> float:
    """Return where an axis ends that shows the whole band of every curve."""
    highest = max((point.high for curve in curves for point in curve.values()), default=0.0)
    return min(100.0, 1.03 * highest) or 1.0


def _label(figure: "Figure", beside: "Axes", title: str, about: str, note: str) -> None:
    """Write title, what the bands are, and the legend, right of a panel: nine methods' would hide lines in it."""
    beside.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
    label_figure(figure, title, about, note)
