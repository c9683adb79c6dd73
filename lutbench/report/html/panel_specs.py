"""Charts as specifications of Vega-Lite, panel by panel: lines, values by category, and maps of pairs."""

import math
from collections.abc import Mapping

from lutbench.report.charts import CategoryPanel, Chart, ChartPanel, MapPanel
from lutbench.report.html.vega_specs import (
    AXIS,
    INTERVAL,
    Spec,
    by_label,
    dot,
    ids,
    lines_spec,
    mark,
    plot,
    point_text,
    shapes,
    short,
    tooltip,
)

PER_DOT, BETWEEN = 8, 7
"""Pixels for each dot of a category, and between categories."""

MAP_HEIGHT = 270
"""Of a map with its axes and its scale of colours, in pixels: about as high as panels are wide."""


def chart_specs(chart: Chart, anchors: Mapping[str, str]) -> list[Spec]:
    """Return a specification for every panel, which share the colours and marks of labels; ``anchors`` are ids by the name of a run."""
    return [_spec(panel, chart.colours, anchors) for panel in chart.panels]


def _spec(panel: ChartPanel | CategoryPanel | MapPanel, colours: Mapping[str, str], anchors: Mapping[str, str]) -> Spec:
    if isinstance(panel, MapPanel):
        return map_spec(panel, anchors)
    if isinstance(panel, CategoryPanel):
        return categories_spec(panel, colours, anchors)
    return lines_spec(panel, colours, anchors)


def categories_spec(panel: CategoryPanel, colours: Mapping[str, str], anchors: Mapping[str, str]) -> Spec:
    """Return the specification of dots with their intervals, category by category."""
    values = [
        {
            "s": line.label,
            "n": "",
            "p": panel.categories[int(place)],
            "x": short(point.value),
            "lo": short(point.low),
            "hi": short(point.high),
            "t": point_text(point),
            "k": ids(line.runs, anchors),
        }
        for line in panel.lines
        for place, point in line.points.items()
    ]
    labels = [line.label for line in panel.lines]
    of_row: Spec = {
        "y": {
            "field": "p",
            "type": "nominal",
            "scale": {"domain": list(panel.categories), "paddingInner": 0.3},
            "axis": {"title": None, "ticks": False, "domain": False, "labelLimit": 130, "labelOverlap": False},
        },
        "yOffset": {"field": "s", "type": "nominal", "scale": {"domain": labels}},
        "color": by_label(colours),
    }
    ends = {"zero": True} if panel.top is None else {"domain": [0, panel.top], "nice": False}
    x = {"type": "quantitative", "title": panel.x, "scale": ends, "axis": {"tickCount": 5}}
    layers: list[Spec] = [
        {
            "mark": INTERVAL,
            "encoding": {**of_row, "x": {**x, "field": "lo"}, "x2": {"field": "hi"}},
        },
        {
            "mark": dot(34),
            "encoding": {
                **of_row,
                "x": {**x, "field": "x"},
                "shape": by_label(shapes(colours)),
                "tooltip": tooltip({"s": "row", "p": "class", "t": panel.x}),
            },
        },
    ]
    height = AXIS + len(panel.categories) * (BETWEEN + PER_DOT * len(labels))
    return plot(f"{panel.title}: {panel.x} by category", values, layers, height, "class", panel.x)


def map_spec(panel: MapPanel, anchors: Mapping[str, str]) -> Spec:
    """Return the specification of a field of colours: a square for every pair of a row and a column."""
    behind = ids(panel.runs, anchors)
    values = [
        {"s": panel.title, "n": "", "x": column, "y": row, "v": short(value), "p": f"{panel.y} {row}; {panel.x} {column}", "t": f"{value:.3f}", "k": behind}
        for row, of_row in zip(panel.rows, panel.values, strict=True)
        for column, value in zip(panel.columns, of_row, strict=True)
        if not math.isnan(value)
    ]  # fmt: skip
    axis = {"ticks": False, "domain": False, "labelAngle": 0}
    legend = {
        "title": panel.value, "orient": "bottom", "gradientThickness": 8, "gradientLength": 120, "tickCount": 3,
        "titleOrient": "left", "titleFontWeight": "normal", "titleFontSize": 11, "labelFontSize": 11, "offset": 6,
    }  # fmt: skip
    layer: Spec = {
        "mark": mark("rect"),
        "encoding": {
            "x": _axis("x", panel.x, list(panel.columns), axis),
            "y": _axis("y", panel.y, list(reversed(panel.rows)), axis),
            "color": {
                "field": "v",
                "type": "quantitative",
                "scale": {"scheme": "viridis", "domain": list(panel.ends), "clamp": True},
                "legend": legend,
            },
            "tooltip": tooltip({"y": panel.y, "x": panel.x, "t": panel.value}),
        },
    }
    return plot(
        f"{panel.title}: {panel.value} of {panel.y} and {panel.x}",
        values,
        [layer],
        MAP_HEIGHT,
        "",
        panel.value,
    )


def _axis(field: str, title: str, names: list[str], axis: Spec) -> Spec:
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": names, "padding": 0},
        "axis": {"title": title, **axis},
    }
