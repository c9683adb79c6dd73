"""Curves of shifted sets: accuracy against the severity of corruptions, and against how much of the image is missing."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lutbench.evaluate.statistics import bootstrap, over_seeds, percentiles, wilson
from robustness.condition_outcomes import ConditionOutcomes, RobustnessOutcomes

Methods = Sequence[tuple[str, Sequence[RobustnessOutcomes]]]
"""Every method's name, and its outcomes, one per seed."""

MEAN = "mean"

COLUMNS = 5
"""Of small panels."""

ABOUT = "Bands are 95 % intervals: over images for one seed ({}), Student's t over seeds for more."
OF_SEVERITY = ABOUT.format("Wilson's; of the mean over corruptions a bootstrap")
OF_OCCLUSION = ABOUT.format("Wilson's")


class Point(NamedTuple):
    """Top-1 in percent at one place of a curve, mean over seeds."""

    value: float
    low: float
    high: float


Curve = dict[int, Point]
"""By severity, tenths of the patches, or tiles on a side."""


def severity_curves(seeds: Sequence[RobustnessOutcomes]) -> dict[str, Curve]:
    """Top-1 by severity: ``mean`` over the corruptions that are not extra, if there are any, then every corruption.

    The mean's interval comes from a bootstrap over images, each of which counts in all corruptions at once.
    """
    each = [_by_corruption(one) for one in seeds]
    extra = seeds[0].extra
    names = sorted(each[0], key=lambda name: name in extra)  # the extra ones last, else in the set's order
    main = [name for name in names if name not in extra]
    mean = {MEAN: _over_seeds([_mean_curve([one[name] for name in main]) for one in each])} if main else {}
    return mean | {name: _over_seeds([_curve(one.get(name, {})) for one in each]) for name in names}


def occlusion_curves(seeds: Sequence[RobustnessOutcomes]) -> dict[str, Curve]:
    """Top-1 of ``drop`` by tenths of the patches, and of ``shuffle`` by tiles on a side."""
    each = [_by_occlusion(one) for one in seeds]
    return {kind: _over_seeds([_curve(one[kind]) for one in each]) for kind in ("drop", "shuffle")}


def severity_figure(title: str, methods: Methods, note: str = "") -> Figure:
    """The mean over corruptions against severity, a line per method, and a small panel for every corruption."""
    curves = {_told(label, seeds): severity_curves(seeds) for label, seeds in methods}
    names = list(dict.fromkeys(name for of in curves.values() for name in of if name != MEAN))
    extra = methods[0][1][0].extra
    count = sum(name not in extra for name in names)
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(8.5, 4.4 + 1.45 * rows), dpi=120, layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.2, 0.5 + 1.45 * rows])
    above, below = parts
    large = above.subplots()
    _draw(large, {label: of.get(MEAN, {}) for label, of in curves.items()})
    large.set_title(f"Mean over {count} corruption{'s' if count > 1 else ''}", fontsize="small")
    large.set_ylabel("top-1, %")
    large.set_xlabel("severity")
    panels = below.subplots(rows, min(COLUMNS, len(names)), sharex=True, sharey=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _draw(axes, {label: of.get(name, {}) for label, of in curves.items()}, small=True)
        told = name.replace("_", " ")
        axes.set_title(f"{told}, extra" if name in extra else told, fontsize="x-small", pad=3)
    for axes in panels[len(names) :]:
        axes.remove()
    severities = sorted({severity for of in curves.values() for curve in of.values() for severity in curve})
    for axes in (large, *panels[: len(names)]):
        axes.set_xticks(severities)
    for axes in panels[max(0, len(names) - COLUMNS) : len(names)]:
        axes.tick_params(labelbottom=True)  # also of a panel with nothing below it
    _from_zero([large], [of.get(MEAN, {}) for of in curves.values()])
    _from_zero(panels[:1], [curve for of in curves.values() for curve in of.values()])
    below.supxlabel("severity", fontsize="small")
    below.supylabel("top-1, %", fontsize="small")
    _around(figure, large, title, OF_SEVERITY, note)
    return figure


def occlusion_figure(title: str, methods: Methods, note: str = "") -> Figure:
    """Top-1 against the share of dropped patches, and beside it against the number of shuffled tiles."""
    curves = {_told(label, seeds): occlusion_curves(seeds) for label, seeds in methods}
    kinds = [kind for kind in ("drop", "shuffle") if any(of[kind] for of in curves.values())]
    figure = Figure(figsize=(8.5, 4.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        places = sorted({place for of in curves.values() for place in of[kind]})
        # Tiles are at even steps: 14 x 14 and 16 x 16 would lie on each other, and 2 x 2 at the edge.
        at = {place: 10 * place if kind == "drop" else number for number, place in enumerate(places)}
        moved = {label: {at[place]: point for place, point in of[kind].items()} for label, of in curves.items()}
        _draw(axes, moved)
        told = [f"{10 * place}" if kind == "drop" else f"{place**2}" for place in places]
        axes.set_xticks(list(at.values()), told)
        axes.set_xlabel("patches dropped, %" if kind == "drop" else "tiles, in random order")
    panels[0].set_ylabel("top-1, %")
    _from_zero(panels[:1], [of[kind] for of in curves.values() for kind in kinds])
    _around(figure, panels[-1], title, OF_OCCLUSION, note)
    return figure


def _by_corruption(outcomes: RobustnessOutcomes) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """(n,) Whether each image is right, by corruption and severity."""
    right: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for one in outcomes.cells:
        corruption, severity = one.cell.rsplit("/", 1)
        right.setdefault(corruption, {})[int(severity)] = one.right()
    return right


def _by_occlusion(outcomes: RobustnessOutcomes) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """The same for ``drop`` by tenths and ``shuffle`` by tiles on a side, seen in the way that tables print."""
    right: dict[str, dict[int, NDArray[np.bool_]]] = {"drop": {}, "shuffle": {}}
    for one in outcomes.cells:
        if one.seen == outcomes.cells[0].seen:
            kind, place = _occlusion(one)
            right[kind][place] = one.right()
    return right


def _occlusion(cell: ConditionOutcomes) -> tuple[str, int]:
    """``drop 3/10`` is ("drop", 3), ``shuffle 4x4`` is ("shuffle", 4)."""
    kind, told = cell.cell.split()
    return kind, int(told.replace("x", "/").split("/")[0])


def _curve(right: Mapping[int, NDArray[np.bool_]]) -> Curve:
    """With Wilson's intervals."""
    ends = {place: wilson(int(hits.sum()), len(hits)) for place, hits in right.items()}
    return {
        place: Point(100 * float(hits.mean()), 100 * ends[place].low, 100 * ends[place].high)
        for place, hits in sorted(right.items())
    }


def _mean_curve(corruptions: Sequence[Mapping[int, NDArray[np.bool_]]]) -> Curve:
    """The mean over those corruptions that have a severity."""
    severities = sorted({severity for one in corruptions for severity in one})
    values = np.stack([np.mean([one[s] for one in corruptions if s in one], axis=0) for s in severities], 1)
    low, high = 100 * percentiles(bootstrap(values, lambda sums: sums / len(values)))
    return {s: Point(100 * float(values[:, k].mean()), low[k], high[k]) for k, s in enumerate(severities)}


def _over_seeds(curves: Sequence[Curve]) -> Curve:
    """One seed's as it is, else the mean over seeds at the places that all have."""
    if len(curves) == 1:
        return curves[0]
    made = {}
    for place in curves[0]:
        if all(place in curve for curve in curves):
            values = [curve[place].value for curve in curves]
            low, high = over_seeds(values)
            made[place] = Point(float(np.mean(values)), max(0.0, low), min(100.0, high))
    return made


def _draw(axes: Axes, curves: Mapping[str, Curve], small: bool = False) -> None:
    """A line and a band per method; the colour is that of the method's place, also where it has no line."""
    for number, (label, curve) in enumerate(curves.items()):
        places, values = list(curve), np.array(list(curve.values())).reshape(-1, 3)
        style: dict[str, Any] = {"color": f"C{number % 10}"}
        axes.fill_between(places, values[:, 1], values[:, 2], alpha=0.2, linewidth=0, **style)
        marks: dict[str, Any] = {"marker": "o", "markersize": 1.5 if small else 3.5, "linewidth": 0.9 if small else 1.4}
        axes.plot(places, values[:, 0], label=label, **marks, **style)
    axes.grid(linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize="x-small" if small else "small")


def _from_zero(panels: Sequence[Axes], curves: Sequence[Curve]) -> None:
    """The whole band of every curve, and zero."""
    highest = max((point.high for curve in curves for point in curve.values()), default=0.0)
    for axes in panels:
        axes.set_ylim(0, min(100.0, 1.03 * highest) or 1)


def _around(figure: Figure, beside: Axes, title: str, about: str, note: str) -> None:
    """Title, what the bands are, and the legend, right of a panel: nine methods' would hide lines in it."""
    figure.suptitle(title, fontsize="medium")
    beside.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
    figure.supxlabel("\n".join(part for part in (about, note) if part), fontsize="x-small")


def _told(label: str, seeds: Sequence[RobustnessOutcomes]) -> str:
    return f"{label}, {len(seeds)} seeds" if len(seeds) > 1 else label
