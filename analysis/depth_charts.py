"""The charts of an analysis that the report draws itself, with the panels of the figures; heads are in analysis.csv."""

from collections.abc import Iterator, Mapping, Sequence

from analysis.depth_curves import Group, Values, depth_curves, spectrum_curve
from analysis.depth_panels import (
    BANDS,
    FALL,
    OF_CKA,
    OF_SPECTRA,
    SHARE,
    SPECTRA,
    Panel,
    alike_blocks,
    of_uniform,
    points_of,
)
from lutbench.report.charts import Chart, ChartLine, ChartPanel, MapPanel, Style
from lutbench.report.entries import TableEntry
from lutbench.report.figures import Point
from lutbench.report.sections import View


def panels_chart(groups: Sequence[Group], panels: Sequence[Panel], about: str) -> Chart:
    """Return the panels of which something was measured, for every group."""
    shown = []
    for group in groups:
        curves = [depth_curves(row.outcomes) for row in group.rows]
        ending = f", {group.encoder}" if len(groups) > 1 else ""
        for panel in panels:
            if not any(panel.solid in of for of in curves):
                continue
            uniform = of_uniform(group.first).get(panel.solid)
            shown.append(
                ChartPanel(
                    _sentence(panel.title) + ending,
                    panel.x,
                    panel.unit,
                    list(_lines(group, curves, panel)),
                    {float(x): text for x, text in panel.ticks(curves, group.first).items()},
                    uniform,
                    "" if uniform is None else "uniform attention",
                    panel.solid in ("distance", "nmi"),
                )
            )
    return Chart(shown, f"{about} {BANDS}")


def _lines(group: Group, curves: Sequence[Mapping[str, Values]], panel: Panel) -> Iterator[ChartLine]:
    styles: tuple[Style, Style] = ("solid", "dotted")
    for name, style, note in zip((panel.solid, panel.dotted), styles, panel.notes, strict=True):
        for row, of in zip(group.rows, curves, strict=True):
            if points := points_of(of, name, group.first):
                yield ChartLine(row.label, row.colour, points, style, note, runs=row.runs)


def _sentence(title: str) -> str:
    """Return a title with a capital; k-NN keeps its own letter."""
    return title if title.startswith("k-NN") else f"{title[0].upper()}{title[1:]}"


def spectra_chart(groups: Sequence[Group]) -> Chart:
    """Return how fast the singular values of the output fall, of pooled features and of tokens."""
    shown = []
    for group in groups:
        for rows, title in SPECTRA.items():
            lines = []
            for row in group.rows:
                if row.outcomes[0].has(f"spectrum_{rows}"):
                    share, values = spectrum_curve(row.outcomes, rows)
                    points = zip(share.tolist(), values.T.tolist(), strict=True)
                    by_share = {x: Point(*point) for x, point in points}
                    lines.append(ChartLine(row.label, row.colour, by_share, runs=row.runs))
            ending = f", {group.encoder}" if len(groups) > 1 else ""
            shown += [ChartPanel(_sentence(title) + ending, SHARE, FALL, lines)] if lines else []
    return Chart(shown, OF_SPECTRA.replace("\n", " "))


def cka_chart(view: View, measured: Sequence[TableEntry]) -> Chart:
    """Return how alike all blocks are, of every encoder and of the suite's pairs."""
    panels = []
    for title, x, y, values, runs in alike_blocks(view, measured):
        rows, columns = ([*map(str, range(1, size)), "out"] for size in values.shape)
        panels.append(MapPanel(title, x, y, "linear CKA", columns, rows, values.tolist(), runs=runs))
    return Chart(panels, OF_CKA.replace("\n", " "))
