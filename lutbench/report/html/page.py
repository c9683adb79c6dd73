"""A suite's report: the sections that ``lutbench tables`` prints, on a page with charts, pictures, and the runs behind every number."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup
from PIL import Image

from lutbench.recipes.suite import Row
from lutbench.report.alone_right import alone_section
from lutbench.report.charts import CategoryPanel, Chart, ChartPanel, Forest
from lutbench.report.figures import draw_png
from lutbench.report.galleries import AtHand, Gallery, GallerySection, packed_picture
from lutbench.report.html.grids import Grid, grid_of
from lutbench.report.html.panel_specs import chart_specs
from lutbench.report.html.prose import prose
from lutbench.report.html.rendering import render, write_page
from lutbench.report.html.run_details import row_anchors, row_details, run_anchors
from lutbench.report.html.vega_specs import Spec, forest_specs, shapes
from lutbench.report.sections import PIPELINE_ONLY, Drawing, Section, View
from lutbench.report.values import letters, row_numbers, sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

FOLDER = "reports"
"""Where reports lie in the folder of the results."""

QUALITIES = (84, 60, 35)
"""Of pictures, as WebP (our choice): at the first a quarter of the bytes of the PNGs, and nothing to see of it; the others for those that
are larger than :data:`PICTURE_BYTES`."""

PICTURE_BYTES = 500_000
"""Bytes of a picture on the page (our choice: small has about ten)."""

NOTHING_AT_HAND = AtHand()

LEFT_OUT = ("Runs", "Sources")
"""Sections that the page has in another form."""

KINDS = {
    "pipeline": ("Pipeline check", PIPELINE_ONLY),
    "exploration": (
        "Exploration",
        "Nothing was decided before these numbers were seen. They suggest hypotheses but are no evidence for them.",
    ),
    "evidence": ("Evidence", "The question, the comparisons and the decision rule were fixed before the first run."),
    "smoke": (
        "Smoke run",
        "A test of every run with few images and few steps. These numbers are no evidence.",
    ),
    "unknown": (
        "Unknown kind",
        "The file of this suite, which says whether its numbers are evidence, was not found. Take them for none.",
    ),
}
"""Label and sentence at the top of the page, by kind of suite."""


@dataclass(frozen=True)
class Plot:
    """A plot that the page draws."""

    title: str
    spec: str
    """The key of its specification."""


@dataclass(frozen=True)
class Figure:
    """Plots with a legend in common, or a picture."""

    title: str
    plots: Sequence[Plot] = ()
    legend: Sequence[tuple[str, str, str]] = ()
    """Label, colour and mark."""
    note: str = ""
    picture: str = ""
    """A WebP, as base64."""
    size: tuple[int, int] = (0, 0)
    alt: str = ""
    """What the picture shows, for those who cannot see it."""
    is_forest: bool = False
    is_tall: bool = False
    """Whether it has many rows, and takes the width of a text."""


@dataclass(frozen=True)
class Block:
    """A section as the page shows it."""

    anchor: str
    title: str
    level: int
    grid: Grid | None = None
    legend: Markup = field(default_factory=Markup)
    figures: Sequence[Figure] = ()
    mark: str = ""
    """What stands beside the title of numbers that are no evidence."""
    galleries: Sequence[Gallery] = ()


@dataclass
class Page:
    """What a page holds besides its blocks; specifications are added as figures are made."""

    title: str
    specs: dict[str, Spec] = field(default_factory=dict)

    def plot(self, title: str, spec: Spec) -> Plot:
        """Keep a specification and return its plot."""
        key = f"plot-{len(self.specs) + 1}"
        self.specs[key] = spec
        return Plot(title, key)


def mark_of(kind: str) -> str:
    """Return what stands beside the numbers of a kind of suite; empty for evidence."""
    return "" if kind == "evidence" else KINDS[kind][0]


def report_path(results_dir: Path, suite: str) -> Path:
    """Return where the report of a suite lies if no other file is named."""
    return results_dir / FOLDER / f"{suite}.html"


def write_report(
    view: View, sections: Sequence[Section], results_dir: Path, path: Path, at_hand: AtHand, options: str
) -> None:
    """Write the report of a suite, see :func:`suite_page`.

    Raises:
        UserError: on a full disk.
    """
    write_page(path, suite_page(view, sections, results_dir, at_hand, options))


def suite_page(
    view: View, sections: Sequence[Section], results_dir: Path, at_hand: AtHand = NOTHING_AT_HAND, options: str = ""
) -> str:
    """Return the page of a suite, with images from the folders ``at_hand``.

    ``options`` are those with which commands name the folders of the results, see :attr:`lutbench.workspace.Workspace.options`.
    """
    config, page = view.suite.config, Page(view.suite.config.title)
    kind = "smoke" if view.suite.smoke else config.kind
    mark = mark_of(kind)
    footnotes = {f"[{number}]": f"row-{number}" for number in row_numbers(view).values()}
    footnotes |= {f"[{letter}]": f"source-{letter}" for letter in letters(view).values()}
    methods = {view.method_label(entry.method): view.colour(entry.method) for entry in view.entries}
    names = Names(row_anchors(view), {**run_anchors(view), **footnotes}, footnotes, methods, _pair_colours(view))
    blocks = [
        block_of(number, section, page, mark, names)
        for number, section in enumerate(_wide_first(sections[1:]), 1)
        if section.title not in LEFT_OUT and section.legend.strip() != config.about.strip()
    ]
    of_runs = (place for place, block in enumerate(blocks) if block.grid and block.grid.name == "compute")
    place = next(of_runs, len(blocks))
    blocks[place:place] = [
        Block(f"gallery-{number}", one.title, 2, None, prose(one.legend, names.links), (), mark, one.galleries)
        for number, one in enumerate(_galleries(view, at_hand), 1)
    ]  # before the sections about the runs themselves
    return render(
        "suite.html.j2",
        title=config.title,
        kind=kind,
        kind_label=KINDS[kind][0],
        kind_sentence=KINDS[kind][1],
        about=prose(_unwrapped(config.about.strip()), {}),
        has_records=view.has_records,
        given=view.suite.given,
        blocks=blocks,
        contents=contents_of(blocks),
        rows=row_details(view, results_dir, options),
        sources=sources(view),
        specs=page.specs,
        anchors=names.links,
    )


def _galleries(view: View, at_hand: AtHand) -> Iterator[GallerySection]:
    """Yield the sections with galleries: those of the suite's kinds of run, then the images that only one method classifies correctly."""
    for report in dict.fromkeys(run.kind.report for run in view.suite.runs):
        if (galleries := getattr(report, "galleries", None)) and (made := galleries(view, at_hand)):
            yield made
    if alone := alone_section(view, at_hand):
        yield alone


class Names(NamedTuple):
    """What texts of a table stand for."""

    anchors: Mapping[Row, str] = {}
    """The id of what is behind each row of runs."""
    links: Mapping[str, str] = {}
    """The id of names in backticks."""
    footnotes: Mapping[str, str] = {}
    """The id of ``[3]`` and ``[b]``."""
    methods: Mapping[str, str] = {}
    """The colour of a method, by its label."""
    pairs: Mapping[str, str] = {}
    """The colour of a pair of methods, by its label."""


def _wide_first(sections: Sequence[Section]) -> list[Section]:
    """Return sections with the wide table of the tasks before the long one, under the title of both."""
    found = list(sections)
    for place in range(len(found) - 1):
        long, wide = found[place : place + 2]
        if (long.name, wide.name) == ("main", "wide"):
            title = long.title or "All tasks"
            found[place : place + 2] = [
                replace(wide, title=title, level=2),
                replace(long, title="One row per value", level=3),
            ]
    return found


def _unwrapped(text: str) -> str:
    """Return a text with one line for every paragraph; lists, and lines that are indented, stay as they are."""
    found: list[str] = []
    for line in text.splitlines():
        goes_on = found and found[-1] and not found[-1].startswith(" ") and line and not line.startswith((" ", "- "))
        found[-1:] = [f"{found[-1]} {line}"] if goes_on else [*found[-1:], line]
    return "\n".join(found)


def block_of(number: int, section: Section, page: Page, mark: str, names: Names) -> Block:
    """Return a section as the page shows it; ``mark`` is what stands beside the title of its numbers."""
    grid = grid_of(section, names.anchors, names.footnotes, names.methods)
    figures = [*_forest(section.forest, page, names), *(_figure(drawing, page, names) for drawing in section.figures)]
    has_numbers = bool((grid and grid.rows) or figures)
    legend = prose(section.whole_legend, names.links)
    return Block(
        f"section-{number}", section.title, max(2, section.level), grid, legend, figures, mark if has_numbers else ""
    )


def _figure(drawing: Drawing, page: Page, names: Names) -> Figure:
    """Return a figure as plots, or as a picture where there are no points to plot."""
    title = drawing.title.removeprefix(f"{page.title}, ").removeprefix(f"{page.title}: ")
    title = f"{title[:1].upper()}{title[1:]}"
    if drawing.chart is not None and (chart := drawing.chart()).panels:
        return _charted(title, chart, page, names)
    return _pictured(title, drawing.draw(), has_lines=drawing.chart is None)


def _pictured(title: str, drawn: "MatplotlibFigure", has_lines: bool) -> Figure:
    """Return a picture, without the title and the text below it, which the page has as text; so have those who cannot see it.

    ``has_lines``: it is one of images in lines and columns, see :mod:`analysis.pictures`.
    """
    lines = [label.get_text().replace("\n", ", ") for label in drawn.axes[0].get_yticklabels() if has_lines]
    columns = "Each column is one image." if lines else ""
    shown = f"Lines, from the top: {'; '.join(lines)}." if lines else ""
    scales = [f"Colours: {axes.get_xlabel()}." for axes in drawn.axes[1:] if axes.get_xlabel()]
    note = " ".join(filter(None, [columns, shown, *scales, drawn.get_supxlabel().replace("\n", " ")]))
    drawn.suptitle("")
    drawn.supxlabel("")
    content = io.BytesIO()
    draw_png(drawn, content)
    image = Image.open(content)
    for quality in QUALITIES:
        picture = packed_picture(image, quality)
        if len(picture) <= PICTURE_BYTES:
            break
    if quality != QUALITIES[0]:
        note += " Shown with less detail, to keep the page small; the file in the folder figures/ has all of it."
    alt = " ".join(filter(None, [f"{title}.", columns, shown]))
    return Figure(title, note=note, picture=picture, size=image.size, alt=alt)


def _charted(title: str, chart: Chart, page: Page, names: Names) -> Figure:
    specs = chart_specs(chart, names.links)
    plots = [page.plot(panel.title, spec) for panel, spec in zip(chart.panels, specs, strict=True)]
    marks = shapes(chart.colours)
    legend = [(label, colour, marks[label]) for label, colour in chart.colours.items()]
    levels = dict.fromkeys(
        panel.level_label for panel in chart.panels if isinstance(panel, ChartPanel) and panel.level is not None
    )
    dashed = [f"Dashed: {', '.join(levels)}."] if levels else []
    is_tall = any(isinstance(panel, CategoryPanel) for panel in chart.panels)
    return Figure(title, plots, legend, " ".join([*dashed, chart.note]).strip(), is_tall=is_tall)


def _forest(forest: Forest | None, page: Page, names: Names) -> Iterator[Figure]:
    if forest is not None:
        labels = list(dict.fromkeys(row.label for row in forest.rows))
        shades = {label: names.pairs.get(label, "#0072b2") for label in labels}
        plots = [page.plot(task, spec) for task, spec in forest_specs(forest, shades, names.links)]
        legend = [(label, colour, "circle") for label, colour in shades.items()] if len(labels) > 1 else []
        yield Figure("Differences by task", plots, legend, forest.note, is_forest=True)


def _pair_colours(view: View) -> dict[str, str]:
    """Return the colour of a pair of methods, by its label: that of the first."""
    return {
        f"{view.method_label(first)} - {view.method_label(second)}": view.colour(first)
        for first, second in view.suite.config.compare
    }


def contents_of(blocks: Sequence[Block]) -> list[tuple[str, str]]:
    """Return id and title of the blocks that the list of contents names."""
    return [(block.anchor, block.title) for block in blocks if block.title and block.level == 2]
