"""Figure and interactive chart for segmentation tasks: the IoU of every class, for all methods."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from downstream.segmentation.confusions import IOU_OF
from lutbench.record import Record
from lutbench.report.charts import CategoryPanel, Chart, ChartLine, point_of
from lutbench.report.figures import PALETTE, Point, label_figure, new_figure, over_seeds_point, plain_axes, seeds_label
from lutbench.report.galleries import AtHand, GallerySection
from lutbench.report.sections import Drawing, Section, View, by_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 30
"""More would not be read."""

ABOUT = "Lines: 95 % intervals, by a bootstrap over images for one seed, over seeds (Student's t) for several."

KINDS = ("segmentation", "segmentation-linear", "segmentation-knn")
"""The kinds of run whose outcomes are the confusions of pixels."""

Methods = Sequence[tuple[str, Sequence[Record]]]
"""Every method's name, and its records, one per seed."""

NOTHING = Point(0, 0, 0)
"""Of a method that leaves a class alone that is in no label."""


def sections(view: View) -> list[Section]:
    """Return a section with a figure for every task that was measured."""
    drawings = []
    for of_task in by_task(entry for kind in KINDS for entry in view.of_kind(kind)):
        title = view.figure_title(of_task[0], "IoU per class")
        names = view.method_names(of_task)
        measured = [entry for entry in of_task if entry.runs]
        methods = [(names[entry.method], entry.runs) for entry in measured]
        if methods:
            colours = [view.colour(entry.method) for entry in measured]
            draw = partial(class_figure, title, methods, view.note, colours)
            drawings.append(Drawing(f"{of_task[0].task}-iou.png", title, draw, partial(class_chart, methods, colours)))
    return [Section("Classes", figures=drawings, files_only=True)]


def galleries(view: View, at_hand: AtHand) -> GallerySection | None:
    """Return the predictions of all methods beside the ground truth, for every task with results."""
    from downstream.segmentation.predicted_gallery import predicted_section  # only the report needs it

    return predicted_section(view, by_task(entry for kind in KINDS for entry in view.of_kind(kind)), at_hand)


def class_figure(title: str, methods: Methods, note: str = "", colours: Sequence[str] = PALETTE) -> "Figure":
    """Draw a bar for every class and method, in the order of :func:`chosen_classes`; where not all are shown, the title says so."""
    bars = [class_bars(records) for _, records in methods]
    shown, choice = chosen_classes(methods, bars)
    title = "\n".join(filter(None, (title, choice)))

    thickness = 0.8 / len(methods)
    labels = [_label(*method) for method in methods]
    figure = new_figure(7.5, 1.8 + 0.13 * len(shown) * (len(methods) + 0.8))
    axes = figure.subplots()
    for number, (label, of) in enumerate(zip(labels, bars, strict=True)):
        rows = [row for row, name in enumerate(shown) if name in of]
        values, low, high = np.array([of[shown[row]] for row in rows]).reshape(-1, 3).T
        axes.barh(
            np.array(rows) + thickness * (number - (len(methods) - 1) / 2),
            values,
            thickness,
            xerr=np.clip([values - low, high - values], 0, None),
            label=label,
            color=colours[number % len(colours)],
            error_kw={"elinewidth": 0.8, "ecolor": "0.25"},
        )
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, _top(bars))
    axes.set_xlabel("IoU, %")
    plain_axes(axes, "x")
    columns = 1 if sum(map(len, labels)) > 80 else len(methods)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize="small", frameon=False)
    label_figure(figure, title, ABOUT, note)
    return figure


def class_chart(methods: Methods, colours: Sequence[str]) -> Chart:
    """Return the same as :func:`class_figure` for a page that draws it."""
    bars = [class_bars(records) for _, records in methods]
    shown, choice = chosen_classes(methods, bars)
    lines = [
        ChartLine(
            seeds_label(name, len(records)),
            colour,
            {float(place): of[cls] for place, cls in enumerate(shown) if cls in of},
            "dots",
            runs=[record.run for record in records],
        )
        for (name, records), of, colour in zip(methods, bars, colours, strict=True)
    ]
    panel = CategoryPanel(choice or f"{len(shown)} classes", "IoU, %", shown, lines, _top(bars))
    return Chart([panel], ABOUT.replace("Lines", "Bars"))


def _top(bars: Sequence[Mapping[str, Point]]) -> float:
    """Return where an axis from 0 ends that shows the whole interval of every bar."""
    return min(100.0, 1.05 * max(bar.high for of in bars for bar in of.values()) or 1)


def chosen_classes(methods: Methods, bars: Sequence[Mapping[str, Point]]) -> tuple[list[str], str]:
    """Return the classes that are shown, the first method's best before others, and which of them these are.

    Of more than :data:`MOST_CLASSES` classes those in which the first two methods differ most; empty text where all are shown.
    """
    classes, choice = list(dict.fromkeys(name for of in bars for name in of)), ""
    shown = most_different(bars, classes) if len(classes) > MOST_CLASSES else classes
    if len(shown) < len(classes):
        differ = (
            f"in which {methods[0][0]} and {methods[1][0]} differ most" if len(methods) > 1 else "with the highest IoU"
        )
        choice = f"The {len(shown)} of {len(classes)} classes {differ}"
    return sorted(shown, key=lambda name: -bars[0].get(name, NOTHING).value), choice


def class_bars(records: Sequence[Record]) -> dict[str, Point]:
    """Return every class that has an IoU, by name: of one seed with its interval over images, else with that over seeds."""
    measured: dict[str, list[Point]] = {}
    for record in records:
        for m in record.measurements:
            if m.metric.startswith(IOU_OF):
                measured.setdefault(m.metric.removeprefix(IOU_OF), []).append(point_of(m))
    return {name: over_seeds_point(points) for name, points in measured.items()}


def most_different(bars: Sequence[Mapping[str, Point]], classes: Sequence[str]) -> list[str]:
    """Return of ``classes`` the :data:`MOST_CLASSES` in which the first two methods differ most; of one method its best."""
    first, second = (*bars[:2], {})[:2]
    differences = {name: abs(first.get(name, NOTHING).value - second.get(name, NOTHING).value) for name in classes}
    return sorted(classes, key=lambda name: -differences[name])[:MOST_CLASSES]


def _label(method: str, records: Sequence[Record]) -> str:
    first = records[0].measurements[0].metric
    mean = np.mean([record.measurements[0].value for record in records])
    return seeds_label(f"{method}: {first} {mean:.1f} %", len(records))
