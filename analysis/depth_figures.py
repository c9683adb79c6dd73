"""Figures of an analysis: attention and features over depth, spectra of the output, CKA between blocks, and pictures.

Different architectures are drawn one below the other; a method has the same colour in all figures of the suite.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analysis.block_outcomes import ATTENTION, FEATURES, TOKENS, BlockOutcomes
from analysis.depth_curves import Group, Row, Values, depth_curves, spectrum_curve
from analysis.pictures import PictureRow, attention_picture, component_picture, reconstruction_picture
from analysis.uniform import uniform_distance, uniform_entropy
from lutbench.record import Record
from lutbench.report.charts import Chart, ChartLine, ChartPanel, MapPanel, Style
from lutbench.report.comparisons import on_same_images
from lutbench.report.entries import TableEntry
from lutbench.report.figures import Point, draw_lines, label_figure, new_figure, plain_axes, seeds_label
from lutbench.report.sections import Drawing, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

UNIFORM: Mapping[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.1, "label": "uniform attention"}
BANDS = "Bands: 95 % intervals, by a bootstrap over images for one seed, over seeds (Student's t) for several."
OF_ATTENTION = "Attention that reaches as far as uniform attention, with NMI near 0, selects nothing. Small dots: single heads, for the solid line."
OF_FEATURES = "out: the output after the final norm. The bar at its effective rank is a basic bootstrap over images, for one seed."
OF_SPECTRA = (
    "s: singular values of the centred features of all images, in descending order; D: the width. n images have at most n - 1 pooled\n"
    "values; values below 1e-6 of the first are rounding errors. Bands: 95 % intervals over seeds, if there are several."
)
OF_CKA = (
    "Linear CKA of the mean over patches, unbiased, over minibatches (Nguyen et al. 2021); mean over seeds.\n"
    "1: equal up to rotation and scale; 0: nothing in common. out: the output after the final norm."
)


class Panel(NamedTuple):
    """One of the small plots of a figure, drawn for every group."""

    title: str
    unit: str
    needs: str
    """The curve without which there is none."""
    solid: str
    dotted: str = ""
    """Names of its curves, see :func:`depth_curves`."""


ATTENTION_PANELS = (
    Panel("mean attention distance", "px", "distance", "distance"),
    Panel("NMI of query and key", "NMI", "nmi", "nmi"),
    Panel("entropy", "nats", "entropy", "entropy"),
    Panel("to itself (solid), to the class token (dotted)", "share of attention", "to_itself", "to_itself", "to_class"),
)
FEATURE_PANELS = (
    Panel("amplitude of the highest frequency", "ln (amplitude / that at 0)", "highest", "highest"),
    Panel("amplitudes in the last block", "ln (amplitude / that at 0)", "radial", "radial"),
    Panel("effective rank, pooled (solid), tokens (dotted)", "effective rank", "rank_pooled", "rank_pooled", "rank_tokens"),
    Panel("similarity of the tokens of an image", "mean cosine", "similarity", "similarity"),
    Panel("rank of the tokens of an image", "participation ratio", "token_rank", "token_rank"),
    Panel("k-NN, mean of patches (solid), class (dotted)", "top-1, %", "right_pooled", "right_pooled", "right_class"),
)  # fmt: skip


def drawings(view: View, entries: Sequence[TableEntry]) -> list[Drawing]:
    """Return the figures of one table, from its entries: of what was measured, for all rows that have records."""
    measured = list({entry.method: entry for entry in entries if entry.runs}.values())
    if not measured:
        return []
    task, title = measured[0].task, f"{view.suite.config.title}, {view.task_title(measured[0])}"
    figures = _of_numbers(view, measured) | _of_pictures(view, measured)
    charts = _charts(view, measured)
    return [
        Drawing(f"{task}-{name}.png", f"{title}: {about}", partial(draw, f"{title}: {about}"), charts.get(name))
        for name, (about, draw) in figures.items()
    ]


Figures = dict[str, tuple[str, "Callable[[str], Figure]"]]
"""By name what a figure shows, and what draws it under a title."""


def _of_numbers(view: View, measured: Sequence[TableEntry]) -> Figures:
    note = "\n".join(view.notes_of(measured[0]))
    groups = groups_of(view, measured)
    has = {name for group in groups for row in group.rows for one in row.outcomes for name in one.measured}
    made: Figures = {}
    if "distance" in has:
        made["attention"] = "attention by depth", lambda title: attention_figure(title, groups, note)
    if has & {*FEATURES, "amplitude", "spectrum_pooled", "right_pooled"}:
        made["features"] = "features by depth", lambda title: features_figure(title, groups, note)
    if "spectrum_pooled" in has:
        made["spectra"] = "spectra of the output", lambda title: spectra_figure(title, groups, note)
    if compared := _with_grams(measured):
        names, pairs = view.method_names(measured), view.suite.config.compare
        made["cka"] = "CKA between blocks", lambda title: cka_figure(title, compared, names, pairs, note)
    return made


def _charts(view: View, measured: Sequence[TableEntry]) -> "dict[str, Callable[[], Chart]]":
    """Return by name the figures that a page can draw itself, as :func:`_of_numbers` has them; heads are in analysis.csv."""
    groups = groups_of(view, measured)
    note = "Small dots: single heads, for the solid line."
    return {
        "attention": lambda: _panels_chart(groups, ATTENTION_PANELS, OF_ATTENTION.replace(note, "").strip()),
        "features": lambda: _panels_chart(groups, FEATURE_PANELS, OF_FEATURES),
        "spectra": lambda: spectra_chart(groups),
        "cka": lambda: cka_chart(view, measured),
    }


def _panels_chart(groups: Sequence[Group], panels: Sequence[Panel], about: str) -> Chart:
    """Return the panels of which something was measured, for every group."""
    shown = []
    for group in groups:
        curves, first = [depth_curves(row.outcomes) for row in group.rows], group.first
        for panel in panels:
            if not any(panel.needs in of for of in curves):
                continue
            styles: dict[str, Style] = {panel.solid: "solid", panel.dotted: "dotted"}
            styles.pop("", None)  # of a panel with one line
            lines = [
                ChartLine(row.label, row.colour, points, style, _curve_note(name) if len(styles) > 1 else "")
                for name, style in styles.items()
                for row, of in zip(group.rows, curves, strict=True)
                if (points := _points(of, name, first))
            ]
            is_radial = panel.solid == "radial"
            furthest = max((int(x) for line in lines for x in line.points), default=0)
            at, labels = _ticks(first.blocks, furthest > first.blocks)
            uniform = of_uniform(first).get(panel.solid)
            shown.append(
                ChartPanel(
                    _sentence(panel.title) + (f", {group.encoder}" if len(groups) > 1 else ""),
                    "frequency, cycles per patch" if is_radial else "block",
                    panel.unit,
                    lines,
                    {} if is_radial else dict(zip(map(float, at), labels, strict=True)),
                    uniform,
                    "" if uniform is None else "uniform attention",
                    panel.solid in ("distance", "nmi"),
                )
            )
    return Chart(shown, f"{about} {BANDS}")


def _points(of: Mapping[str, Values], name: str, first: BlockOutcomes) -> dict[float, Point]:
    """Return a curve by block or, of amplitudes, by frequency; the output stands behind the last block."""
    points = of.get(name, np.empty((3, 0)))
    at = np.arange(1, points.shape[1] + 1) / (first.grid if name == "radial" else 1)
    return {float(x): Point(*point) for x, point in zip(at, points.T.tolist(), strict=True)}


def _sentence(title: str) -> str:
    """Return a title with a capital; k-NN keeps its own letter."""
    return title if title.startswith("k-NN") else f"{title[0].upper()}{title[1:]}"


def _curve_note(name: str) -> str:
    """Return what tells the two curves of a panel apart."""
    return {
        "to_itself": "to itself", "to_class": "to the class token", "rank_pooled": "pooled", "rank_tokens": "tokens",
        "right_pooled": "mean of patches", "right_class": "class token",
    }.get(name, "")  # fmt: skip


def spectra_chart(groups: Sequence[Group]) -> Chart:
    """Return how fast the singular values of the output fall, of pooled features and of tokens."""
    shown = []
    for group in groups:
        for rows in TOKENS:
            lines = []
            for row in group.rows:
                if row.outcomes[0].has(f"spectrum_{rows}"):
                    share, values = spectrum_curve(row.outcomes, rows)
                    points = zip(share.tolist(), values.T.tolist(), strict=True)
                    lines.append(ChartLine(row.label, row.colour, {x: Point(*point) for x, point in points}))
            title = "Pooled: mean over patches" if rows == "pooled" else "Tokens: every patch"
            title += f", {group.encoder}" if len(groups) > 1 else ""
            shown += [ChartPanel(title, "i / D", "log10 (s_i / s_1)", lines)] if lines else []
    return Chart(shown, OF_SPECTRA.replace("\n", " "))


def cka_chart(view: View, measured: Sequence[TableEntry]) -> Chart:
    """Return how alike all blocks are, as :func:`cka_figure` draws it."""
    names = view.method_names(measured)
    panels = []
    for one, other, alike in cka_of_pairs(_with_grams(measured), view.suite.config.compare):
        first, second = names[one.method], names[other.method]
        title = first if one is other else f"{first} and {second}"
        x, y = ("block", "block") if one is other else (f"{second}, block", f"{first}, block")
        rows, columns = ([*map(str, range(1, size)), "out"] for size in alike.shape)
        panels.append(MapPanel(title, x, y, "linear CKA", columns, rows, alike.tolist()))
    return Chart(panels, OF_CKA.replace("\n", " "))


def _with_grams(measured: Sequence[TableEntry]) -> list[TableEntry]:
    """Return the entries all of whose runs kept what CKA is computed from."""
    return [entry for entry in measured if all(_has(record, "grams") for record in entry.runs)]


def _of_pictures(view: View, measured: Sequence[TableEntry]) -> Figures:
    several = any(len(entry.runs) > 1 for entry in measured)
    note = "\n".join(["The first of several seeds."] * several + view.notes_of(measured[0]))
    names = view.method_names(measured)
    records = {names[entry.method]: entry.runs[0] for entry in measured}

    def rows(array: str) -> list[PictureRow]:
        return [
            PictureRow(label, record.picture("images"), {array: record.array(array)}, record.extra)
            for label, record in records.items()
            if _has(record, array)
        ]

    made: Figures = {}
    drawn: list[Any] = [record.extra["drawn blocks"] for record in records.values() if _has(record, "maps")]
    for place in range(min(map(len, drawn), default=0)):
        blocks = " or ".join(str(block) for block in dict.fromkeys(of[place] for of in drawn))
        made[f"maps-{place + 1}"] = (
            f"attention in block {blocks}",
            lambda title, place=place: attention_picture(title, rows("maps"), [place], note),  # type: ignore[misc]
        )
    if any(_has(record, "colours") for record in records.values()):
        about = "principal components of the output"
        made["components"] = about, lambda title: component_picture(title, rows("colours"), note)
    if any(_has(record, "reconstructions") for record in records.values()):
        about = "reconstructions"
        made["reconstructions"] = about, lambda title: reconstruction_picture(title, rows("reconstructions"), note)
    return made


def _has(record: Record, array: str) -> bool:
    return any(one.name == array for one in record.attachments)


def groups_of(view: View, measured: Sequence[TableEntry]) -> list[Group]:
    """Return the rows of a table, those of encoders with the same name, grid and blocks together."""

    def architecture(entry: TableEntry) -> tuple[str, int, int, int]:
        first: BlockOutcomes = entry.runs[0].outcomes
        return entry.encoder, first.grid, first.patch_size, first.blocks

    order = list(dict.fromkeys(map(architecture, measured)))
    groups = []
    for (encoder, *_), of_group in groupby(sorted(measured, key=lambda e: order.index(architecture(e))), architecture):
        shown = list(of_group)
        names = view.method_names(shown)
        rows = []
        for entry in shown:
            runs = _distinct(entry.runs)
            heads = [record.array("heads") for record in runs if _has(record, "heads")]
            label = seeds_label(names[entry.method], len(runs))
            rows.append(Row(label, view.colour(entry.method), [record.outcomes for record in runs], heads))
        groups.append(Group(encoder, rows))
    return groups


def _distinct(runs: Sequence[Record]) -> Sequence[Record]:
    """Return the runs of all seeds; the first alone where all found the same, as of weights that no seed has made."""
    first, *others = (record.outcomes.measured for record in runs)
    alike = all(
        of.keys() == first.keys() and all(np.array_equal(of[name], first[name]) for name in of) for of in others
    )
    return runs[:1] if alike else runs


def attention_figure(title: str, groups: Sequence[Group], note: str = "") -> "Figure":
    """Draw where each block looks: distance, NMI, entropy, and the shares for the class token and for the patch itself."""
    return _panels_figure(title, groups, ATTENTION_PANELS, 2, OF_ATTENTION, BANDS, note)


def features_figure(title: str, groups: Sequence[Group], note: str = "") -> "Figure":
    """Draw frequencies, ranks, similarity, and nearest neighbours against depth."""
    return _panels_figure(title, groups, FEATURE_PANELS, 3, OF_FEATURES, BANDS, note)


def spectra_figure(title: str, groups: Sequence[Group], note: str = "") -> "Figure":
    """Draw how fast the singular values of the output fall, of pooled features and of tokens."""
    shown = [group for group in groups if any(row.outcomes[0].has("spectrum_pooled") for row in group.rows)]
    figure, parts = _grid(shown, len(TOKENS), len(TOKENS))
    for group, (part, panels) in zip(shown, parts, strict=True):
        for rows, axes in zip(TOKENS, panels, strict=True):
            for row in group.rows:
                if row.outcomes[0].has(f"spectrum_{rows}"):
                    share, (mean, low, high) = spectrum_curve(row.outcomes, rows)
                    axes.fill_between(share, low, high, color=row.colour, alpha=0.2, linewidth=0)
                    axes.plot(share, mean, color=row.colour, linewidth=1.2, label=row.label)
            plain_axes(axes)
            axes.tick_params(labelsize="small")
            axes.set_title("pooled: mean over patches" if rows == "pooled" else "tokens: every patch", fontsize="small")
            axes.set_xlabel("i / D", fontsize="small")
            axes.set_ylabel("log10 (s_i / s_1)", fontsize="small")
        _legend(part, panels[0])
    label_figure(figure, title, OF_SPECTRA, note)
    return figure


def cka_figure(
    title: str, measured: Sequence[TableEntry], names: Mapping[str, str], pairs: Sequence[Sequence[str]], note: str = ""
) -> "Figure":
    """Draw how alike all blocks are: of every encoder among themselves, and of the suite's pairs on the same images."""
    shown = list(cka_of_pairs(measured, pairs))
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(1.2 + 3 * columns, 1.2 + 3.05 * rows)
    figure.set_layout_engine("compressed")  # for axes whose shape is given
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for (one, other, alike), axes in zip(shown, panels[: len(shown)], strict=True):
        image = axes.imshow(alike, origin="lower", vmin=0, vmax=1, cmap="viridis")
        first, second = names[one.method], names[other.method]
        axes.set_title(first if one is other else f"{first} and {second}", fontsize="small")
        for axis, size, name in zip((axes.yaxis, axes.xaxis), alike.shape, (first, second), strict=True):
            axis.set_ticks(*_ticks(size - 1, out=True, first=0), fontsize="x-small")
            axis.set_label_text("block" if one is other else f"{name}, block", fontsize="x-small")
    for axes in panels[len(shown) :]:
        axes.remove()
    bar = figure.colorbar(image, ax=list(panels[: len(shown)]), shrink=min(1.0, 2.4 / (3.05 * rows)), aspect=25)
    bar.set_label("linear CKA", fontsize="small")
    label_figure(figure, title, OF_CKA, note)
    return figure


def cka_of_pairs(
    measured: Sequence[TableEntry], pairs: Sequence[Sequence[str]]
) -> Iterator[tuple[TableEntry, TableEntry, Values]]:
    """Yield the mean CKA over seeds (L1 + 1, L2 + 1) of every encoder with itself, then of the suite's pairs on the same images."""
    from analysis.cka import cka

    entries = {entry.method: entry for entry in measured}
    shown = [(entry, entry) for entry in measured]
    shown += [
        (entries[one], entries[other])
        for one, other in pairs
        if one in entries and other in entries and on_same_images(entries[one], entries[other])
    ]
    grams = {method: [record.array("grams") for record in entry.runs] for method, entry in entries.items()}
    for one, other in shown:
        seeds = zip(grams[one.method], grams[other.method], strict=True)
        yield one, other, np.mean([cka(first, second) for first, second in seeds], 0)


def _panels_figure(title: str, groups: Sequence[Group], panels: Sequence[Panel], columns: int, *below: str) -> "Figure":
    """Draw the panels of which something was measured, for every group."""
    curves = [[depth_curves(row.outcomes) for row in group.rows] for group in groups]
    drawn = [panel for panel in panels if any(panel.needs in of for group in curves for of in group)]
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
            points = of.get(name, np.empty((3, 0)))
            at = np.arange(1, points.shape[1] + 1) / (first.grid if name == "radial" else 1)
            if name.startswith("rank_") and len(row.outcomes) == 1 and len(at):  # the output alone has an interval
                axes.vlines(at[-1], points[1, -1], points[2, -1], colors=row.colour, linewidth=2.5)
                points = points[[0, 0, 0]]
            lines[row.label] = {float(x): Point(*point) for x, point in zip(at, points.T.tolist(), strict=True)}
        draw_lines(axes, lines, colours, linestyle=linestyle)
    if panel.solid in ATTENTION:
        _draw_heads(axes, group, ATTENTION.index(panel.solid))
        _draw_uniform(axes, first, panel.solid)
    axes.set_title(panel.title, fontsize="small")
    axes.set_ylabel(panel.unit, fontsize="small")
    axes.set_xlabel("frequency, cycles per patch" if panel.solid == "radial" else "block", fontsize="small")
    if panel.solid != "radial":
        has_output = any(of.get(panel.solid, np.empty((3, 0))).shape[1] > first.blocks for of in curves)
        axes.set_xticks(*_ticks(first.blocks, has_output))


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


def of_uniform(first: BlockOutcomes) -> dict[str, float]:
    """Return by quantity what attention gives that is the same for all tokens."""
    tokens = first.grid**2 + first.has("to_class")
    return {
        "distance": uniform_distance(first.grid, first.patch_size),
        "nmi": 0.0,
        "entropy": uniform_entropy(first.grid),
        "to_itself": 1 / tokens,
    }


def _ticks(blocks: int, out: bool, first: int = 1) -> tuple[list[int], list[str]]:
    """Return where blocks have ticks and what is written there, the first block at ``first``, and the output behind the last."""
    step = -(-blocks // 6)
    labelled = [block for block in range(step, blocks + 1, step) if not out or blocks + 1 - block >= step]
    labels = [*map(str, labelled), *(["out"] * out)]
    return [block - 1 + first for block in [*labelled, *([blocks + 1] * out)]], labels


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
