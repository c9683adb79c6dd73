"""Charts as specifications of Vega-Lite, which ``vega.min.js`` draws as SVG.

No text of a record stands in an expression but as a JSON string. Colours of axes and texts are the page's own (``currentColor``), so
that light, dark and print need no other drawing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lutbench.report.charts import ChartLine, ChartPanel, Difference, Forest, reach
from lutbench.report.figures import Point

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
"""Says which version it is; nothing is fetched from there."""

SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-left", "triangle-right")
"""Marks of the labels in their order, beside their colours."""

HEIGHT = 190
"""Of a plot with its axes, in pixels."""

ROW = 26
"""Of a row of a forest plot, in pixels."""

AXIS = 34
"""Of an axis with its name, in pixels."""

DENSE = 40
"""Points of a line beyond which it has no marks."""

DODGE = 0.14
"""How far the dots of two methods at one category stand apart, of the distance between categories."""

HIDDEN = "hidden"
"""The parameter that holds the labels which a reader has switched off."""

PAIR_IN_LINES = "length(datum.label) > 20 ? split(replace(datum.label, ' - ', ' -|'), '|') : datum.label"
"""A long name of a pair on two lines."""

SHOWN = f"indexof({HIDDEN}, datum.s) < 0"

Spec = dict[str, Any]


def shapes(labels: Iterable[str]) -> dict[str, str]:
    """Return the mark of every label."""
    return {label: SHAPES[place % len(SHAPES)] for place, label in enumerate(labels)}


def lines_spec(panel: ChartPanel, colours: Mapping[str, str]) -> Spec:
    """Return the specification of lines."""
    dotted = [line for line in panel.lines if line.style == "dots"]
    values = [
        _value(line, x + DODGE * (dotted.index(line) - (len(dotted) - 1) / 2) if line in dotted else x, x, point, panel)
        for line in panel.lines
        for x, point in line.points.items()
    ]
    axis: Spec = {"title": panel.x, "grid": False}
    if panel.ticks:
        places, texts = json.dumps([*panel.ticks]), json.dumps([*panel.ticks.values()])
        axis |= {"values": list(panel.ticks), "labelExpr": f"({texts})[indexof({places}, datum.value)]"}
    else:
        axis |= {"tickCount": 5}
    x = {
        "field": "x",
        "type": "quantitative",
        "axis": axis,
        "scale": {"zero": False, "nice": not panel.ticks, "padding": 8},
    }
    vertical = {"zero": panel.from_zero} if panel.top is None else {"domain": [0, panel.top], "nice": False}
    y = {"type": "quantitative", "title": panel.y, "scale": vertical, "axis": {"tickCount": 5}}
    ends = {"y": {**y, "field": "lo"}, "y2": {"field": "hi"}}
    of_line = {"x": x, "color": colour_of(colours), "detail": {"field": "n"}}
    middle = {**of_line, "y": {**y, "field": "y"}}
    layers: list[Spec] = []
    if any(line.has_band and line.style != "dots" for line in panel.lines):
        band = {"mark": {"type": "area", "opacity": 0.16, "aria": False}, "encoding": {**of_line, **ends}}
        layers.append({"transform": [{"filter": "datum.b"}], **band})
    if dotted:
        bars = {
            "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.4, "aria": False},
            "encoding": {**of_line, **ends},
        }
        layers.append({"transform": [{"filter": "datum.d == 'dots'"}], **bars})
    dash = {
        "field": "d",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": ["solid", "dotted"], "range": [[1, 0], [2, 3]]},
    }
    layers.append(
        {
            "transform": [{"filter": "datum.d != 'dots'"}],
            "mark": {"type": "line", "strokeWidth": 1.6, "aria": False},
            "encoding": {**middle, "strokeDash": dash},
        }
    )
    is_dense = any(len(line.points) > DENSE for line in panel.lines)
    layers.append(
        {
            "mark": {"type": "point", "filled": True, "size": 34, "opacity": 0 if is_dense else 1, "aria": False},
            "encoding": {
                **middle,
                "shape": {"field": "s", "type": "nominal", "legend": None, "scale": scale_of(shapes(colours))},
                "tooltip": [
                    {"field": "s", "title": "row"},
                    *([{"field": "n", "title": "line"}] if any(line.note for line in panel.lines) else []),
                    {"field": "p", "title": panel.x},
                    {"field": "t", "title": panel.y},
                ],
            },
        }
    )
    if panel.level is not None:
        level = {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 1.2, "color": "currentColor", "aria": False}
        layers.append(
            {"data": {"values": [{"level": panel.level}]}, "mark": level, "encoding": {"y": {**y, "field": "level"}}}
        )
    return plot(f"{panel.title}: {panel.y} against {panel.x}", values, layers, HEIGHT)


def forest_specs(forest: Forest, colours: Mapping[str, str]) -> list[tuple[str, Spec]]:
    """Return a title and a specification for every task and unit; those of one unit have the same axis. ``colours`` are by label."""
    tasks: dict[tuple[str, str], list[Difference]] = {}
    for row in forest.rows:
        tasks.setdefault((row.task, row.unit), []).append(row)
    ends = {
        unit: reach(
            end for row in forest.rows if row.unit == unit for end in (*row.over_images, *(row.over_runs or ()))
        )
        for unit in {row.unit for row in forest.rows if row.unit == "%"}
    }
    return [(task, _forest_spec(task, rows, colours, ends.get(unit))) for (task, unit), rows in tasks.items()]


def _forest_spec(task: str, rows: Sequence[Difference], colours: Mapping[str, str], end: float | None) -> Spec:
    several = len({row.metric for row in rows}) > 1
    values = [
        {
            "s": row.label,
            "r": f"{row.metric}: {row.label}" if several else row.label,
            "x": row.value,
            "lo": row.over_images[0],
            "hi": row.over_images[1],
            **({"slo": row.over_runs[0], "shi": row.over_runs[1]} if row.over_runs else {}),
            "t": with_ends(row.value, *row.over_images),
            "u": with_ends(None, *row.over_runs) if row.over_runs else "one run each",
        }
        for row in rows
    ]
    unit = "points" if rows[0].unit == "%" else rows[0].unit
    title = f"{rows[0].metric}, difference" if not several else "difference"
    shown_end = end or reach(x for row in rows for x in (*row.over_images, *(row.over_runs or ())))
    x = {
        "type": "quantitative",
        "title": ", ".join(filter(None, (title, unit))),
        "scale": {"domain": [-shown_end, shown_end], "nice": False},
        "axis": {"tickCount": 5, "format": "+.4~g"},
    }
    y = {
        "field": "r",
        "type": "nominal",
        "sort": None,
        "axis": {
            "title": None,
            "labelLimit": 170,
            "labelExpr": PAIR_IN_LINES,
            "labelLineHeight": 11,
            "ticks": False,
            "domain": False,
        },
    }
    of_row = {"y": y, "color": colour_of(colours)}
    layers: list[Spec] = [
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "color": "currentColor", "strokeOpacity": 0.6, "aria": False},
            "encoding": {"x": {**x, "field": "zero"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 7, "opacity": 0.35, "aria": False},
            "encoding": {**of_row, "x": {**x, "field": "lo"}, "x2": {"field": "hi"}},
        },
    ]
    if any(row.over_runs for row in rows):
        layers.append(
            {
                "transform": [{"filter": "isValid(datum.slo)"}],
                "mark": {"type": "rule", "strokeWidth": 1.4, "aria": False},
                "encoding": {**of_row, "x": {**x, "field": "slo"}, "x2": {"field": "shi"}},
            }
        )
    tooltip = [("r", "pair"), ("t", "difference, interval over images"), ("u", "interval over seeds or draws")]
    layers.append(
        {
            "mark": {"type": "point", "filled": True, "size": 52, "opacity": 1, "aria": False},
            "encoding": {
                **of_row,
                "x": {**x, "field": "x"},
                "tooltip": [{"field": field, "title": name} for field, name in tooltip],
            },
        }
    )
    return plot(
        f"{task}: differences with their intervals", values, layers, AXIS + ROW * len({value["r"] for value in values})
    )


def plot(description: str, values: Sequence[Spec], layers: Sequence[Spec], height: int) -> Spec:
    """Return the specification of layers over the same ``values``, those left out whose label ``s`` is switched off."""
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "height": height,
        "params": [{"name": HIDDEN, "value": []}],
        "data": {"values": list(values)},
        "transform": [{"filter": SHOWN}],
        "layer": list(layers),
    }


def _value(line: ChartLine, at: float, x: float, point: Point, panel: ChartPanel) -> Spec:
    has_interval = line.has_band and point.low < point.high
    return {
        "s": line.label,
        "n": line.note,
        "d": line.style,
        "b": int(line.has_band),
        "x": short(at),
        "y": short(point.value),
        "lo": short(point.low),
        "hi": short(point.high),
        "p": panel.ticks.get(x, f"{x:g}"),
        "t": with_ends(point.value, point.low, point.high) if has_interval else f"{point.value:.4g}",
    }


def short(value: float) -> float:
    """Return a value with the digits that a screen can show."""
    return float(f"{value:.6g}")


def with_ends(value: float | None, low: float, high: float) -> str:
    """Return ``79.5 [77.7, 81.3]``."""
    ends = f"[{low:.4g}, {high:.4g}]"
    return ends if value is None else f"{value:.4g} {ends}"


def colour_of(colours: Mapping[str, str]) -> Spec:
    """Return how marks have the colours of their labels."""
    return {"field": "s", "type": "nominal", "legend": None, "scale": scale_of(colours)}


def scale_of(by_label: Mapping[str, str]) -> Spec:
    """Return the scale that gives every label its own."""
    return {"domain": list(by_label), "range": list(by_label.values())}
