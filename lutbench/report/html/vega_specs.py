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


def lines_spec(panel: ChartPanel, colours: Mapping[str, str], anchors: Mapping[str, str]) -> Spec:
    """Return the specification of lines."""
    dotted = [line for line in panel.lines if line.style == "dots"]
    values = [
        _value(line, x + DODGE * (dotted.index(line) - (len(dotted) - 1) / 2) if line in dotted else x, x, point, panel)
        | {"k": ids(line.runs_at.get(x, line.runs), anchors)}
        for line in panel.lines
        for x, point in line.points.items()
    ]
    vertical = {"zero": panel.from_zero} if panel.top is None else {"domain": [0, panel.top], "nice": False}
    y = {"type": "quantitative", "title": panel.y, "scale": vertical, "axis": {"tickCount": 5}}
    of_line = {"x": _positions(panel), "color": by_label(colours), "detail": {"field": "n"}}
    ends = {**of_line, "y": {**y, "field": "lo"}, "y2": {"field": "hi"}}
    middle = {**of_line, "y": {**y, "field": "y"}}
    layers: list[Spec] = []
    if any(line.has_band and line.style != "dots" for line in panel.lines):
        layers.append({"transform": [{"filter": "datum.b"}], "mark": mark("area", opacity=0.16), "encoding": ends})
    if dotted:
        layers.append({"transform": [{"filter": "datum.d == 'dots'"}], "mark": INTERVAL, "encoding": ends})
    dash = {
        "field": "d",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": ["solid", "dotted"], "range": [[1, 0], [2, 3]]},
    }
    layers.append(
        {
            "transform": [{"filter": "datum.d != 'dots'"}],
            "mark": mark("line", strokeWidth=1.6),
            "encoding": {**middle, "strokeDash": dash},
        }
    )
    is_dense = any(len(line.points) > DENSE for line in panel.lines)
    told = {"s": "row", "n": "line", "p": panel.x, "t": panel.y}
    if not any(line.note for line in panel.lines):
        del told["n"]
    shown = {"shape": by_label(shapes(colours)), "tooltip": tooltip(told)}
    layers.append({"mark": dot(34, opacity=0 if is_dense else 1), "encoding": {**middle, **shown}})
    if panel.level is not None:
        level = mark("rule", strokeDash=[5, 4], strokeWidth=1.2, color="currentColor")
        layers.append(
            {"data": {"values": [{"level": panel.level}]}, "mark": level, "encoding": {"y": {**y, "field": "level"}}}
        )
    return plot(f"{panel.title}: {panel.y} against {panel.x}", values, layers, HEIGHT, panel.x, panel.y)


def _positions(panel: ChartPanel) -> Spec:
    """Return the horizontal axis of a panel, with its own ticks if it has any."""
    axis: Spec = {"title": panel.x, "grid": False}
    if panel.ticks:
        places, texts = json.dumps([*panel.ticks]), json.dumps([*panel.ticks.values()])
        axis |= {"values": list(panel.ticks), "labelExpr": f"({texts})[indexof({places}, datum.value)]"}
    else:
        axis |= {"tickCount": 5}
    scale = {"zero": False, "nice": not panel.ticks, "padding": 8}
    return {"field": "x", "type": "quantitative", "axis": axis, "scale": scale}


def forest_specs(forest: Forest, colours: Mapping[str, str], anchors: Mapping[str, str]) -> list[tuple[str, Spec]]:
    """Return a title and a specification for every task and unit; those in points have the same axis. ``colours`` are by label, and
    ``anchors`` are ids by the name of a run."""
    tasks: dict[tuple[str, str], list[Difference]] = {}
    for row in forest.rows:
        tasks.setdefault((row.task, row.unit), []).append(row)
    in_points = [row for row in forest.rows if row.unit == "%"]
    found = []
    for (task, unit), rows in tasks.items():
        end = reach(end for row in (in_points if unit == "%" else rows) for end in row.ends)
        found.append((task, _forest_spec(task, rows, colours, anchors, end)))
    return found


def _forest_spec(
    task: str, rows: Sequence[Difference], colours: Mapping[str, str], anchors: Mapping[str, str], end: float
) -> Spec:
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
            "k": ids(row.runs, anchors),
        }
        for row in rows
    ]
    unit = "points" if rows[0].unit == "%" else rows[0].unit
    title = f"{rows[0].metric}, difference" if not several else "difference"
    x = {
        "type": "quantitative",
        "title": ", ".join(filter(None, (title, unit))),
        "scale": {"domain": [-end, end], "nice": False},
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
    of_row = {"y": y, "color": by_label(colours)}
    layers: list[Spec] = [
        {
            "data": {"values": [{"zero": 0}]},
            "mark": mark("rule", color="currentColor", strokeOpacity=0.6),
            "encoding": {"x": {**x, "field": "zero"}},
        },
        {
            "mark": mark("rule", strokeWidth=7, opacity=0.35),
            "encoding": {**of_row, "x": {**x, "field": "lo"}, "x2": {"field": "hi"}},
        },
    ]
    if any(row.over_runs for row in rows):
        layers.append(
            {
                "transform": [{"filter": "isValid(datum.slo)"}],
                "mark": mark("rule", strokeWidth=1.4),
                "encoding": {**of_row, "x": {**x, "field": "slo"}, "x2": {"field": "shi"}},
            }
        )
    told = {"r": "pair", "t": "difference, interval over images", "u": "interval over seeds or draws"}
    layers.append({"mark": dot(52), "encoding": {**of_row, "x": {**x, "field": "x"}, "tooltip": tooltip(told)}})
    height = AXIS + ROW * len({value["r"] for value in values})
    return plot(f"{task}: differences with their intervals", values, layers, height, "pair", str(x["title"]))


def plot(
    description: str, values: Sequence[Spec], layers: Sequence[Spec], height: int, place: str, quantity: str
) -> Spec:
    """Return the specification of layers over the same ``values``, those left out whose label ``s`` is switched off.

    ``place`` and ``quantity`` are what the table of the numbers calls their places and the values.
    """
    return {
        "$schema": SCHEMA,
        "description": description,
        "usermeta": {"place": place, "quantity": quantity},
        "width": "container",
        "height": height,
        "params": [{"name": HIDDEN, "value": []}],
        "data": {"values": list(values)},
        "transform": [{"filter": SHOWN}],
        "layer": list(layers),
    }


def _value(line: ChartLine, at: float, x: float, point: Point, panel: ChartPanel) -> Spec:
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
        "t": point_text(point) if line.has_band else f"{point.value:.4g}",
    }


def mark(kind: str, **style: Any) -> Spec:
    """Return a mark that is no text for screen readers: the page has all numbers of a chart in a table."""
    return {"type": kind, **style, "aria": False}


def dot(size: int, opacity: int = 1) -> Spec:
    """Return the mark of a value, of an area in square pixels."""
    return mark("point", filled=True, size=size, opacity=opacity)


INTERVAL = mark("rule", strokeWidth=3, opacity=0.4)
"""The mark of an interval behind a dot."""


def tooltip(told: Mapping[str, str]) -> list[Spec]:
    """Return what stands beside a mark at the pointer: the names of fields, each with the title of its text."""
    return [{"field": field, "title": title} for field, title in told.items()]


def ids(runs: Sequence[str], anchors: Mapping[str, str]) -> str:
    """Return the ids of what is behind a value, with spaces between them; ``anchors`` are by the name of a run."""
    return " ".join(dict.fromkeys(anchors[run] for run in runs if run in anchors))


def short(value: float) -> float:
    """Return a value with the digits that a screen can show."""
    return float(f"{value:.6g}")


def with_ends(value: float | None, low: float, high: float) -> str:
    """Return ``79.5 [77.7, 81.3]``."""
    ends = f"[{low:.4g}, {high:.4g}]"
    return ends if value is None else f"{value:.4g} {ends}"


def point_text(point: Point) -> str:
    """Return a value with its interval, if that is one: ``79.5 [77.7, 81.3]``."""
    return with_ends(point.value, point.low, point.high) if point.low < point.high else f"{point.value:.4g}"


def by_label(own: Mapping[str, str]) -> Spec:
    """Return how marks get the colour, or the shape, of their label."""
    scale = {"domain": list(own), "range": list(own.values())}
    return {"field": "s", "type": "nominal", "legend": None, "scale": scale}
