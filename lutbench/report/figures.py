"""Figures from records: the IoU of every class, method beside method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from downstream.segmentation.confusions import IOU_OF
from lutbench.evaluate.statistics import over_seeds
from lutbench.files import whole_file
from lutbench.record import Record

MOST_CLASSES = 30
"""More would not be read."""

ABOUT = "Lines are 95 % intervals: bootstrap over images for one seed, Student's t over seeds for more."


Methods = Sequence[tuple[str, Sequence[Record]]]
"""Every method's name, and its records, one per seed."""


class Bar(NamedTuple):
    """One class of one method, in percent, mean over seeds."""

    value: float
    low: float
    high: float


NOTHING = Bar(0, 0, 0)
"""Of a method that leaves a class alone that is in no label."""


def write_class_figure(path: Path, title: str, methods: Methods, note: str = "") -> None:
    """RngStream :func:`class_figure` as a PNG.

    Raises:
        UserError: on a full disk.
    """
    write_figure(path, class_figure(title, methods, note))


def write_figure(path: Path, figure: Figure) -> None:
    """Write a PNG.

    Raises:
        UserError: on a full disk.
    """
    with whole_file(path) as partial:
        # No version of matplotlib in the file: the same records make the same bytes as long as the drawing is the same.
        figure.savefig(partial, format="png", metadata={"Software": None})


def class_figure(title: str, methods: Methods, note: str = "") -> Figure:
    """A bar for every class and method, the first method's best classes on top.

    Of more than :data:`MOST_CLASSES` classes those are shown in which the first two methods differ most, and the title
    says so.
    """
    bars = [class_bars(records) for _, records in methods]
    classes = list(dict.fromkeys(name for of in bars for name in of))
    shown = most_different(bars, classes) if len(classes) > MOST_CLASSES else classes
    if len(shown) < len(classes):
        told = (
            f"in which {methods[0][0]} and {methods[1][0]} differ most" if len(methods) > 1 else "with the highest IoU"
        )
        title = f"{title}\nThe {len(shown)} of {len(classes)} classes {told}"
    shown = sorted(shown, key=lambda name: -bars[0].get(name, NOTHING).value)

    thickness = 0.8 / len(methods)
    figure = Figure(figsize=(7.5, 1.8 + 0.13 * len(shown) * (len(methods) + 0.8)), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, ((label, records), of) in enumerate(zip(methods, bars, strict=True)):
        there = [place for place, name in enumerate(shown) if name in of]
        drawn = [of[shown[place]] for place in there]
        values = np.array([bar.value for bar in drawn])
        ends = np.clip([[bar.value - bar.low, bar.high - bar.value] for bar in drawn], 0, None).reshape(-1, 2).T
        axes.barh(
            np.array(there) + thickness * (number - (len(methods) - 1) / 2),
            values,
            thickness,
            xerr=ends,
            label=_legend_of(label, records),
            error_kw={"elinewidth": 0.8, "ecolor": "0.25"},
        )
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, min(100.0, 1.05 * max(bar.high for of in bars for bar in of.values()) or 1))
    axes.set_xlabel("IoU, %")
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize="medium")
    wide = sum(len(_legend_of(*method)) for method in methods) > 80
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=1 if wide else len(methods), fontsize="small", frameon=False
    )
    figure.supxlabel("\n".join(part for part in (ABOUT, note) if part), fontsize="x-small")
    return figure


def class_bars(records: Sequence[Record]) -> dict[str, Bar]:
    """Every class that has an IoU, by name: of one seed with its interval over images, else with that over seeds."""
    measured: dict[str, list[Bar]] = {}
    for record in records:
        for m in record.measurements:
            if m.metric.startswith(IOU_OF):
                low, high = (m.value if end is None else end for end in (m.low, m.high))
                measured.setdefault(m.metric.removeprefix(IOU_OF), []).append(Bar(m.value, low, high))
    return {name: _over_seeds(bars) for name, bars in measured.items()}


def most_different(bars: Sequence[Mapping[str, Bar]], classes: Sequence[str]) -> list[str]:
    """Of ``classes`` the :data:`MOST_CLASSES` in which the first two methods differ most; of one method its best."""
    first, second = (*bars[:2], {})[:2]
    differences = {name: abs(first.get(name, NOTHING).value - second.get(name, NOTHING).value) for name in classes}
    return sorted(classes, key=lambda name: -differences[name])[:MOST_CLASSES]


def _over_seeds(bars: Sequence[Bar]) -> Bar:
    if len(bars) == 1:
        return bars[0]
    values = [bar.value for bar in bars]
    low, high = over_seeds(values)
    return Bar(float(np.mean(values)), max(0.0, low), min(100.0, high))


def _legend_of(label: str, records: Sequence[Record]) -> str:
    first = records[0].measurements[0].metric
    mean = np.mean([record.measurements[0].value for record in records])
    seeds = f", {len(records)} seeds" if len(records) > 1 else ""
    return f"{label}: {first} {mean:.1f} %{seeds}"
