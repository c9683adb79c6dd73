"""Figures of an analysis: attention and features over depth, spectra of the output, CKA between blocks, and pictures.

Different architectures are drawn one below the other; a method has the same colour in all figures of the suite.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.block_outcomes import ATTENTION, FEATURES, BlockOutcomes
from analysis.depth_charts import cka_chart, panels_chart, spectra_chart
from analysis.depth_curves import Group, Values, depth_curves, spectrum_curve
from analysis.depth_panels import (
    ATTENTION_PANELS,
    BANDS,
    FALL,
    FEATURE_PANELS,
    OF_ATTENTION,
    OF_CKA,
    OF_FEATURES,
    OF_SPECTRA,
    SHARE,
    SPECTRA,
    Panel,
    alike_blocks,
    block_ticks,
    groups_of,
    has_array,
    keeping_grams,
    of_uniform,
    points_of,
)
from analysis.pictures import PictureRow, attention_picture, component_picture, reconstruction_picture
from lutbench.report.charts import Chart
from lutbench.report.entries import TableEntry
from lutbench.report.figures import Point, draw_lines, label_figure, new_figure, plain_axes
from lutbench.report.sections import Drawing, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

UNIFORM: Mapping[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.1, "label": "uniform attention"}
HEADS = "Small dots: single heads, for the solid line."


def drawings(view: View, entries: Sequence[TableEntry]) -> list[Drawing]:
    """Return the figures of one table, from its entries: of what was measured, for all rows that have records."""
    measured = list({entry.method: entry for entry in entries if entry.runs}.values())
    return [*_of_numbers(view, measured), *_of_pictures(view, measured)] if measured else []


def _drawing(
    view: View,
    measured: Sequence[TableEntry],
    name: str,
    about: str,
    draw: "Callable[[str], Figure]",
    chart: Callable[[], Chart] | None = None,
) -> Drawing:
    """Return a figure of a table: its name, what it shows, what draws it under a title, and the chart of the same points."""
    title = view.figure_title(measured[0], about)
    return Drawing(f"{measured[0].task}-{name}.png", title, partial(draw, title), chart)


def _of_numbers(view: View, measured: Sequence[TableEntry]) -> list[Drawing]:
    groups, note, drawing = groups_of(view, measured), _note(view, measured), partial(_drawing, view, measured)
    has = {name for group in groups for row in group.rows for one in row.outcomes for name in one.measured}
    made = []
    if "distance" in has:
        draw = partial(_panels_figure, groups, ATTENTION_PANELS, 2, (f"{OF_ATTENTION} {HEADS}", BANDS, note))
        chart = partial(panels_chart, groups, ATTENTION_PANELS, OF_ATTENTION)
        made.append(drawing("attention", "attention by depth", draw, chart))
    if has & {*FEATURES, "amplitude", "spectrum_pooled", "right_pooled"}:
        draw = partial(_panels_figure, groups, FEATURE_PANELS, 3, (OF_FEATURES, BANDS, note))
        chart = partial(panels_chart, groups, FEATURE_PANELS, OF_FEATURES)
        made.append(drawing("features", "features by depth", draw, chart))
    if "spectrum_pooled" in has:
        draw, chart = partial(_spectra_figure, groups, note), partial(spectra_chart, groups)
        made.append(drawing("spectra", "spectra of the output", draw, chart))
    if keeping_grams(measured):
        draw, chart = partial(_cka_figure, view, measured, note), partial(cka_chart, view, measured)
        made.append(drawing("cka", "CKA between blocks", draw, chart))
    return made


def _note(view: View, measured: Sequence[TableEntry], *before: str) -> str:
    """Return what must stand below every figure."""
    return "\n".join([*before, *view.notes_of(measured[0])])


def _of_pictures(view: View, measured: Sequence[TableEntry]) -> list[Drawing]:
    several = any(len(entry.runs) > 1 for entry in measured)
    note = _note(view, measured, *["The first of several seeds."] * several)
    names, drawing = view.method_names(measured), partial(_drawing, view, measured)
    records = {names[entry.method]: entry.runs[0] for entry in measured}

    def rows(array: str) -> list[PictureRow]:
        return [
            PictureRow(label, record.picture("images"), {array: record.array(array)}, record.extra)
            for label, record in records.items()
            if has_array(record, array)
        ]

    def maps(title: str, place: int) -> "Figure":
        return attention_picture(title, rows("maps"), [place], note)

    made = []
    drawn: list[Any] = [record.extra["drawn blocks"] for record in records.values() if has_array(record, "maps")]
    for place in range(min(map(len, drawn), default=0)):
        blocks = " or ".join(str(block) for block in dict.fromkeys(of[place] for of in drawn))
        made.append(drawing(f"maps-{place + 1}", f"attention in block {blocks}", partial(maps, place=place)))
    if any(has_array(record, "colours") for record in records.values()):
        about = "principal components of the output"
        made.append(drawing("components", about, lambda title: component_picture(title, rows("colours"), note)))
    if any(has_array(record, "reconstructions") for record in records.values()):
        name = "reconstructions"
        made.append(drawing(name, name, lambda title: reconstruction_picture(title, rows(name), note)))
    return made


def _spectra_figure(groups: Sequence[Group], note: str, title: str) -> "Figure":
    """Draw how fast the singular values of the output fall, of pooled features and of tokens."""
    shown = [group for group in groups if any(row.outcomes[0].has("spectrum_pooled") for row in group.rows)]
    figure, parts = _grid(shown, len(SPECTRA), len(SPECTRA))
    for group, (part, panels) in zip(shown, parts, strict=True):
        for (rows, about), axes in zip(SPECTRA.items(), panels, strict=True):
            for row in group.rows:
                if row.outcomes[0].has(f"spectrum_{rows}"):
                    share, (mean, low, high) = spectrum_curve(row.outcomes, rows)
                    axes.fill_between(share, low, high, color=row.colour, alpha=0.2, linewidth=0)
                    axes.plot(share, mean, color=row.colour, linewidth=1.2, label=row.label)
            plain_axes(axes)
            axes.tick_params(labelsize="small")
            axes.set_title(about, fontsize="small")
            axes.set_xlabel(SHARE, fontsize="small")
            axes.set_ylabel(FALL, fontsize="small")
        _legend(part, panels[0])
    label_figure(figure, title, OF_SPECTRA, note)
    return figure


def _cka_figure(view: View, measured: Sequence[TableEntry], note: str, title: str) -> "Figure":
    """Draw how alike all blocks are: of every encoder among themselves, and of the suite's pairs on the same images."""
    shown = list(alike_blocks(view, measured))
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(1.2 + 3 * columns, 1.2 + 3.05 * rows)
    figure.set_layout_engine("compressed")  # for axes whose shape is given
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for alike, axes in zip(shown, panels[: len(shown)], strict=True):
        image = axes.imshow(alike.values, origin="lower", vmin=0, vmax=1, cmap="viridis")
        axes.set_title(alike.title, fontsize="small")
        for axis, size, name in zip((axes.yaxis, axes.xaxis), alike.values.shape, (alike.y, alike.x), strict=True):
            ticks = block_ticks(size - 1, out=True, first=0)
            axis.set_ticks(list(ticks), list(ticks.values()), fontsize="x-small")
            axis.set_label_text(name, fontsize="x-small")
    for axes in panels[len(shown) :]:
        axes.remove()
    bar = figure.colorbar(image, ax=list(panels[: len(shown)]), shrink=min(1.0, 2.4 / (3.05 * rows)), aspect=25)
    bar.set_label("linear CKA", fontsize="small")
    label_figure(figure, title, OF_CKA, note)
    return figure


def _panels_figure(
    groups: Sequence[Group], panels: Sequence[Panel], columns: int, below: Sequence[str], title: str
) -> "Figure":
    """Draw the panels of which something was measured, for every group."""
    curves = [[depth_curves(row.outcomes) for row in group.rows] for group in groups]
    drawn = [panel for panel in panels if any(panel.solid in of for group in curves for of in group)]
    figure, parts = _grid(groups, len(drawn), min(columns, len(drawn)))
    for group, of_group, (part, plots) in zip(groups, curves, parts, strict=True):
        for panel, axes in zip(drawn, plots, strict=True):
            _draw_panel(axes, group, of_group, panel)
        _legend(part, plots[0])
    label_figure(figure, title, *below)
    return figure


def _draw_panel(axes: "Axes", group: Group, curves: Sequence[Mapping[str, Values]], panel: Panel) -> None:
    colours, first = [row.colour for row in group.rows], group.first
    for name, linestyle in ((panel.solid, "-"), (panel.dotted, ":")):
        lines = {}
        for row, of in zip(group.rows, curves, strict=True):
            points = points_of(of, name, first)
            if name.startswith("rank_") and len(row.outcomes) == 1 and points:  # the output alone has an interval
                x, output = list(points.items())[-1]
                axes.vlines(x, output.low, output.high, colors=row.colour, linewidth=2.5)
                points = {x: Point(value, value, value) for x, (value, *_) in points.items()}
            lines[row.label] = points
        draw_lines(axes, lines, colours, linestyle=linestyle)
    if panel.solid in ATTENTION:
        _draw_heads(axes, group, ATTENTION.index(panel.solid))
        _draw_uniform(axes, first, panel.solid)
    axes.set_title(panel.title, fontsize="small")
    axes.set_ylabel(panel.unit, fontsize="small")
    axes.set_xlabel(panel.x, fontsize="small")
    if ticks := panel.ticks(curves, first):
        axes.set_xticks(list(ticks), list(ticks.values()))


def _draw_heads(axes: "Axes", group: Group, quantity: int) -> None:
    """Draw a dot for every head, those of different encoders beside each other."""
    for number, row in enumerate(group.rows):
        for heads in row.heads:
            blocks, count = heads.shape[1:]
            at = np.arange(1, blocks + 1) + 0.4 * ((number + 1) / (len(group.rows) + 1) - 0.5)
            axes.scatter(np.repeat(at, count), heads[quantity], s=7, color=row.colour, alpha=0.4, linewidths=0)


def _draw_uniform(axes: "Axes", first: BlockOutcomes, quantity: str) -> None:
    """Draw what attention would give that is the same for all tokens, and distances beside it as shares of that."""
    values = of_uniform(first)
    distance = values["distance"]
    axes.axhline(values[quantity], **UNIFORM)
    if quantity == "distance" and distance:
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * distance))
        shares = axes.secondary_yaxis(
            "right", functions=(lambda px: np.divide(px, distance), lambda share: np.multiply(share, distance))
        )
        shares.set_ylabel("share of uniform", fontsize="small")
        shares.tick_params(labelsize="small")


def _grid(groups: Sequence[Group], count: int, columns: int) -> "tuple[Figure, list[tuple[SubFigure, list[Axes]]]]":
    """Return a figure with ``count`` small plots for every group, and those of each group."""
    rows = -(-count // columns)
    figure = new_figure(1 + (4.2 if columns < 3 else 3.4) * columns, 0.9 + len(groups) * (0.7 + 2.5 * rows))
    parts = []
    for group, part in zip(groups, figure.subfigures(len(groups), 1, squeeze=False).ravel(), strict=True):
        side = group.first.grid
        part.suptitle(f"{group.encoder}: {side} x {side} patches of {group.first.patch_size} px", fontsize="small")
        panels = list(part.subplots(rows, columns, squeeze=False).ravel())
        for spare in panels[count:]:
            spare.remove()
        parts.append((part, panels[:count]))
    return figure, parts


def _legend(part: "SubFigure", axes: "Axes") -> None:
    """Write the legend of a group below it."""
    handles = {str(label): handle for handle, label in reversed([*zip(*axes.get_legend_handles_labels(), strict=True)])}
    longest = max(map(len, handles), default=0)
    columns = max(1, min(len(handles), round(13 * part.get_figure().get_figwidth() / (longest + 8))))  # type: ignore[union-attr]
    labels = list(reversed(handles))
    part.legend(
        [handles[label] for label in labels], labels, loc="outside lower center", ncols=columns, fontsize="small",
        frameon=False,
    )  # fmt: skip
