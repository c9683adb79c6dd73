"""The figures of loss curves: a panel per task and loss, in each a line per method with the band of its reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lutbench.errors import listed
from lutbench.losses import DEVIATIONS, LEAST, LossCurve, band_of, departures, smoothed
from lutbench.record import Record
from lutbench.reference_curves import reference_curves
from lutbench.report.charts import Chart, ChartLine, ChartPanel
from lutbench.report.entries import outdated
from lutbench.report.figures import PALETTE, Point, label_figure, new_figure, plain_axes
from lutbench.report.sections import Drawing, Section, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 3
"""Panels beside each other."""

LEGEND = (
    "Training loss at each step of the optimiser: at most 200 points, each the mean since the point before, smoothed by a running median; "
    "mean over seeds. Bands show where the loss of another run of the same recipe is expected, around {whose}. On either side they are "
    f"{DEVIATIONS:g} robust standard deviations wide, of the points around the smoothed curve or, if that is more, of the seeds around each "
    f"other; and at least {LEAST:.0%} of the loss."
)

LOSSES = {"total": "total loss", "mim": "loss on masked patches", "context": "context loss"}
"""What the losses of a pre-training are, by their names in records."""


REFERENCE_DOTTED = "Dotted: the reference."


@dataclass(frozen=True)
class _Line:
    """A loss of one task with one method."""

    panel: str
    label: str
    colour: str
    loss: str
    own: Sequence[LossCurve]
    """One per seed."""
    reference: Sequence[LossCurve]
    """The reference's, of the same recipe; none where there are none."""
    runs: Sequence[str]
    """The names of the runs behind it."""


def loss_sections(view: View) -> list[Section]:
    """Return the loss curves of a suite's records that count, a figure for each stage; nothing of records that have none.

    Their bands are around the reference's records of the same recipe, or around these where there are none; and runs whose losses ended
    outside the reference's band are named.
    """
    counting = _counting(view)
    lines: dict[str, list[_Line]] = {}
    for group in _groups(view, counting):
        known = reference_curves(view.reference_dir, group[0].suite, group[0].run, group[0].identity_inputs)
        lines.setdefault(group[0].stage, []).extend(_lines(view, group, known))
    figures = [
        Drawing(
            f"losses-{stage}.png",
            f"Losses, {stage}",
            partial(_figure, f"{view.suite.config.title}: losses", of_stage),
            partial(_chart, of_stage),
        )
        for stage, of_stage in lines.items()
        if of_stage
    ]
    if not figures:
        return []
    has_reference = any(line.reference for of_stage in lines.values() for line in of_stage)
    legend = LEGEND.format(whose="the reference records of the same recipe" if has_reference else "these records")
    left = [f"`{name}` ({told})" for name, told in _left(view, counting).items()]
    outside = f" Runs that ended outside the reference band: {listed(left)}." if left else ""
    return [Section("Losses", legend=f"{legend}{outside}", figures=figures)]


def _counting(view: View) -> dict[str, Record]:
    """Return the records that count and have curves, in the suite's order, without the draws of a task but the first."""
    return {
        run.name: record
        for run in view.suite.runs
        if (record := view.records.get(run.name)) is not None
        and record.curve is not None
        and not run.draw
        and not outdated(view.suite, run, view.records)
    }


def _groups(view: View, counting: Mapping[str, Record]) -> list[list[Record]]:
    """Return the seeds of every task and method together; without what is there for a study alone."""
    studied, groups = view.suite.runs_of_studies(), dict[tuple[str, str, str], list[Record]]()
    for name, record in counting.items():
        if name not in studied:
            groups.setdefault((record.stage, record.task, record.method), []).append(record)
    return list(groups.values())


def _left(view: View, counting: Mapping[str, Record]) -> dict[str, str]:
    """Return by name of the run where its losses ended outside the reference's band."""
    found = {
        name: departures(record.curve, reference_curves(view.reference_dir, record.suite, name, record.identity_inputs))
        for name, record in counting.items()
        if record.curve is not None
    }
    return {name: "; ".join(map(str, left)) for name, left in found.items() if left}


def _lines(view: View, group: Sequence[Record], reference: Sequence[LossCurve]) -> list[_Line]:
    """Return the losses of the seeds of one run. Those of a pre-training are drawn in a panel per loss, others' in one per task."""
    first, own = group[0], [record.curve for record in group if record.curve is not None]
    if first.method:
        table = getattr(view.suite.config, first.stage).get(first.task)
        panel, label, colour = (
            getattr(table, "title", "") or first.task,
            view.method_label(first.method),
            view.colour(first.method),
        )
    else:
        methods = [name for name, method in view.suite.config.method.items() if method.pretrain == first.task]
        panel, label = "Pre-training", view.method_label(methods[0]) if methods else first.task
        colour = view.colour(methods[0]) if methods else _spare_colour(view, first.task)
    runs = [record.run for record in group]
    return [
        _Line(
            f"{panel}: {LOSSES.get(loss, loss)}" if loss != "loss" else panel, label, colour, loss, own, reference, runs
        )
        for loss in own[0].losses
    ]


def _spare_colour(view: View, task: str) -> str:
    """Return a colour of the palette for a pre-training that is no method's."""
    others = [run.task for run in view.suite.runs if run.stage == "pretrain"]
    return PALETTE[(len(view.suite.config.method) + others.index(task)) % len(PALETTE)]


def _by_panel(lines: Sequence[_Line]) -> dict[str, list[_Line]]:
    panels: dict[str, list[_Line]] = {}
    for line in lines:
        panels.setdefault(line.panel, []).append(line)
    return panels


def _chart(lines: Sequence[_Line]) -> Chart:
    """Return the lines and bands of the figure for a page that draws them."""
    panels = [
        ChartPanel(name, "step", "loss", [drawn for line in of_panel for drawn in _chart_lines(line)])
        for name, of_panel in _by_panel(lines).items()
    ]
    return Chart(panels, REFERENCE_DOTTED if any(line.reference for line in lines) else "")


def _chart_lines(line: _Line) -> list[ChartLine]:
    """Return a line, and the band of its reference, or of its own, around a dotted middle."""
    alike, mean = _mean(line)
    values = {
        float(step): Point(value, value, value) for step, value in zip(alike[0].steps, mean.tolist(), strict=True)
    }
    drawn = [ChartLine(line.label, line.colour, values, has_band=False, runs=line.runs)]
    if (band := band_of(line.reference or alike, line.loss)) is not None:
        ends = zip(band.steps, band.middle.tolist(), band.half_width.tolist(), strict=True)
        around = {float(step): Point(middle, middle - half, middle + half) for step, middle, half in ends}
        note = "reference" if line.reference else "band"
        drawn.insert(0, ChartLine(line.label, line.colour, around, "dotted", note, runs=line.runs))
    return drawn


def _figure(title: str, lines: Sequence[_Line]) -> "Figure":
    panels = _by_panel(lines)
    across = min(ACROSS, len(panels))
    figure = new_figure(max(5.2, 4.2 * across), 2.8 * ceil(len(panels) / across) + 0.6)
    grid = figure.subplots(ceil(len(panels) / across), across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, of_panel) in zip(grid.flat[: len(panels)], panels.items(), strict=True):
        for line in of_panel:
            _draw(axes, line)
        plain_axes(axes)
        axes.tick_params(labelsize="small")
        axes.set_title(name, fontsize="small")
        axes.set_xlabel("step", fontsize="small")
        axes.legend(fontsize="x-small", frameon=False)
    dotted = REFERENCE_DOTTED if any(line.reference for line in lines) else ""
    label_figure(figure, title, dotted)
    return figure


def _draw(axes: "Axes", line: _Line) -> None:
    """Draw a line with the band of its reference, whose middle is dotted; without one with its own."""
    alike, mean = _mean(line)
    if (band := band_of(line.reference or alike, line.loss)) is not None:
        low, high = band.middle - band.half_width, band.middle + band.half_width
        axes.fill_between(band.steps, low, high, color=line.colour, alpha=0.2, linewidth=0)
        if line.reference:
            axes.plot(band.steps, band.middle, color=line.colour, linestyle=":", linewidth=1.0)
    axes.plot(alike[0].steps, mean, color=line.colour, linewidth=1.2, label=line.label)


def _mean(line: _Line) -> tuple[list[LossCurve], NDArray[np.float64]]:
    """Return the seeds' curves that have the same steps, and the mean of them, smoothed."""
    alike = [curve for curve in line.own if curve.steps == line.own[0].steps and line.loss in curve.losses]
    return alike, np.mean([smoothed(curve.losses[line.loss]) for curve in alike], axis=0)
