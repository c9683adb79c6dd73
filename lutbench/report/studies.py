"""Studies: rows that differ in a setting, in a table with differences to the base, and as curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import pandas as pd

from lutbench.recipes.suite import Study, StudyPoint
from lutbench.recipes.sweeps import in_words, value_text
from lutbench.report.comparisons import (
    WHOLE,
    Pair,
    compare,
    counted_numbers,
    difference_numbers,
    on_same_images,
    pair_sections,
)
from lutbench.report.entries import TableEntry, run_ids
from lutbench.report.figures import PALETTE
from lutbench.report.sections import Drawing, Section, View, directed
from lutbench.report.study_curves import Curve, Panel, study_chart, study_figure
from lutbench.report.values import interval_legend, ranks, row_numbers, seeds_text

AXES = {"at": "share of the training"}
"""How tables and figures name an axis that is no setting of a recipe."""

MARKED = "In each column, the best value of a method is bold and its second best underlined; this does not mean that the difference is significant."

Column = tuple[str, str]
"""A task, as the study names it, and a metric."""

Cell = tuple[int, str, str, str]
"""Place of a point, series, task and metric."""


@dataclass(frozen=True)
class _Measured:
    """A study with the table entries of its rows."""

    view: View
    study: Study

    @cached_property
    def entries(self) -> Mapping[Cell, TableEntry]:
        """The entries with a value, and those of stale records."""
        by_row: dict[tuple[str, str, str], list[TableEntry]] = {}
        for entry in self.view.entries:
            by_row.setdefault(entry.row, []).append(entry)
        return {
            (place, series, task, entry.metric): entry
            for place, point in enumerate(self.study.points)
            for (task, series), row in point.rows.items()
            for entry in by_row.get(row, [])
            if entry.measured or entry.stale
        }

    @cached_property
    def columns(self) -> list[Column]:
        """The columns that have a value, in the order of the study's tasks."""
        tasks = list(dict.fromkeys(task for point in self.study.points for task, _ in point.rows))
        found = dict.fromkeys((task, metric) for _, _, task, metric in self.entries)
        return sorted(found, key=lambda column: tasks.index(column[0]))

    @cached_property
    def series(self) -> list[str]:
        """The methods that are varied."""
        return list(dict.fromkeys(series for point in self.study.points for _, series in point.rows))

    @cached_property
    def names(self) -> Mapping[str, str]:
        """How the series are called."""
        labels = {series: self.view.method_label(series) for series in self.series}
        return labels if len(set(labels.values())) == len(labels) else {series: series for series in self.series}

    def named(self, series: str) -> list[str]:
        """Return the name of a series if there are several, else nothing."""
        return [self.names[series]] if len(self.series) > 1 else []

    def heading(self, column: Column) -> tuple[str, str]:
        """Return a column's heading: the task's title and the metric."""
        entry = next(e for (_, _, task, metric), e in self.entries.items() if (task, metric) == column)
        return self.title(column[0], entry.kind.stage), directed(entry)

    def title(self, task: str, stage: str) -> str:
        """Return the title of a task as the suite file has it, which a sweep of it gives to every point's with the value."""
        table = getattr(self.view.suite.config, stage).get(task.removeprefix(f"{stage}."))
        return getattr(table, "title", "") or task

    def value(self, axis: str, value: Any) -> str:
        """Return a value of an axis as tables have it; of an architecture or a dataset its label."""
        named = getattr(self.view.suite.config, axis, {}) if axis in ("encoder", "data") else {}
        table = named.get(value) if isinstance(value, str) else None
        label = table.get("label") if isinstance(table, dict) else getattr(table, "label", "")
        return label or value_text(value)

    def values(self, point: StudyPoint) -> list[str]:
        """Return the values of a point, axis by axis."""
        return [self.value(axis, _given(point, axis)) for axis in self.study.axes]

    def colour(self, series: str, number: int, palette: bool) -> str:
        """Return the colour of a curve: that of the method that is varied or, where it has several, the next of the palette."""
        return (
            PALETTE[number % len(PALETTE)]
            if palette or series not in self.view.suite.config.method
            else self.view.colour(series)
        )

    @property
    def base(self) -> str:
        """The values of the base; empty if there is none."""
        return "" if self.study.base is None else ", ".join(self.values(self.study.points[self.study.base]))


def study_sections(view: View) -> list[Section]:
    """Return a section for every study of which something was measured: its points, and their differences to the base."""
    found = [_Measured(view, study) for study in view.suite.studies]
    return [section for measured in found if measured.entries for section in _sections(measured)]


def file_name(study: Study) -> str:
    """Return the name of a study's files, ``sweep-weight``."""
    return study.name.replace(".", "-", 1)


def _sections(of: _Measured) -> list[Section]:
    study, name = of.study, file_name(of.study)
    pairs = list(_pairs(of))
    table, marks = _table(of)
    shown = list(of.entries.values())
    intervals = interval_legend(entry.measured for entry in shown)
    notation = [*([f"In brackets: 95 % interval, {intervals}."] if intervals else []), *([MARKED] if marks else [])]
    of_base = [f"The base is {of.base}."] if of.base else []
    legend = " ".join([*of_base, *_not_run(of), *of.view.dataset_notes(shown)])
    title = f"{of.view.suite.config.title}, {study.title}"
    panels = _panels(of)
    draw = partial(study_figure, title, panels, _words(study.axes[0]), "\n".join(of.view.notes_of(shown[0])))
    chart = partial(study_chart, panels, _words(study.axes[0]))
    figures = [Drawing(f"{name}.png", title, draw, chart)] if panels else []
    data = _data(of, pairs)
    sections = [
        Section(study.title, 2, table, marks, legend, " ".join(notation), figures=figures, name=name, data=data)
    ]
    for way, differences in enumerate(pair_sections(of.view, [pair for _, pair in pairs])):
        resampled = "" if way == 0 else ", by resampling"
        heading = f"{study.title}, differences to {of.base}{resampled}"
        sections.append(replace(differences, title=heading, level=3, name=name))
    return sections


def _words(axis: str) -> str:
    return AXES.get(axis, in_words(axis))


def _table(of: _Measured) -> tuple[pd.DataFrame, dict[tuple[int, int], int]]:
    """Return a row per series and point, and the best of every column."""
    numbers = row_numbers(of.view)
    planned = max(entry.planned for entry in of.entries.values())
    rows, places = [], []
    for series in of.series:
        for place, point in enumerate(of.study.points):
            entries = [of.entries.get((place, series, *column)) for column in of.columns]
            cells = ["" if e is None else e.measured.text() if e.measured else "stale" for e in entries]
            found = [entry for entry in entries if entry]
            if not found:
                continue  # see _not_run
            counted = " or ".join(dict.fromkeys(seeds_text(entry) for entry in found)) if planned > 1 else ""
            runs = " ".join(f"[{number}]" for number in dict.fromkeys(numbers[entry.row] for entry in found))
            rows.append([*of.named(series), *of.values(point), *cells, counted, runs])
            places.append((place, series))
    left = [("method", "")] * (len(of.series) > 1) + [(_words(axis), "") for axis in of.study.axes]
    headings = [*left, *map(of.heading, of.columns), ("seeds", ""), ("runs", "")]
    frame = pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(headings))
    marks: dict[tuple[int, int], int] = {}
    for column, key in enumerate(of.columns):
        competing = {row: e for row, place in enumerate(places) if (e := of.entries.get((*place, *key))) and e.measured}
        groups = {row: places[row][1] for row in competing}
        marks |= {(row, len(left) + column): rank for row, rank in ranks(competing, groups).items()}
    return frame.loc[:, (frame != "").any()], marks


def _not_run(of: _Measured) -> list[str]:
    """Return what of a study has no record, a sentence for each task; empty if all has one."""
    missing: dict[str, dict[str, None]] = {}
    known = {(place, series, task) for place, series, task, _ in of.entries}
    for place, point in enumerate(of.study.points):
        for (task, series), (stage, *_) in point.rows.items():
            if (place, series, task) not in known:
                name = " ".join([*of.named(series), ", ".join(of.values(point))])
                missing.setdefault(of.title(task, stage), {})[name] = None
    return [f"Not run: {task} with {'; '.join(points)}." for task, points in missing.items()]


def _pairs(of: _Measured) -> Iterator[tuple[Cell, Pair]]:
    """Yield every entry that can be compared with the base's of the same series, by its cell, column by column."""
    if of.study.base is None:
        return
    for task, metric in of.columns:
        for series in of.series:
            base = of.entries.get((of.study.base, series, task, metric))
            for place, point in enumerate(of.study.points):
                cell = (place, series, task, metric)
                entry = of.entries.get(cell)
                if entry is None or base is None or entry.row == base.row or not on_same_images(entry, base):
                    continue
                title, direction = of.heading((task, metric))
                labels = {"task": title, "metric": direction}
                labels |= {"method": of.names[series]} if len(of.series) > 1 else {}
                labels |= dict(zip(map(_words, of.study.axes), of.values(point), strict=True))
                yield cell, Pair(entry, base, compare(entry, base, metric), labels)


def _data(of: _Measured, pairs: Sequence[tuple[Cell, Pair]]) -> pd.DataFrame:
    """Return a row per value for programs, with its difference to the base."""
    compared = {
        cell: difference_numbers(pair.compared, pair.first.unit) | counted_numbers(pair.compared)
        for cell, pair in pairs
    }
    rows = []
    for cell, entry in of.entries.items():
        place, series, task, metric = cell
        if entry.measured is None:
            continue
        numbers = {
            f"difference: {name}" if name != "difference" else name: n for name, n in compared.get(cell, {}).items()
        }
        rows.append(
            {
                "suite": of.view.suite.name, "study": of.study.name,
                **{axis: _plain(_given(of.study.points[place], axis)) for axis in of.study.axes},
                "base": place == of.study.base, "series": series, "column": task, "task": entry.task,
                "method": entry.method, "encoder": entry.encoder, "metric": metric,
                **entry.measured.model_dump(include={"value", "low", "high", "unit"}), "seeds": entry.seeds,
                **numbers, "runs": run_ids(entry.runs),
                "note": " ".join(of.view.notes_of(entry)),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    return (
        table.astype({f"difference: {name}": "Int64" for name in (*WHOLE, "images")}) if pairs else table
    )  # the base has none, and no floats for that


def _plain(value: Any) -> Any:
    return value_text(value) if isinstance(value, list | Mapping) else value


def _panels(of: _Measured) -> list[Panel]:
    """Return a panel for every column with two values or more: a curve for each series and each combination of the further axes."""
    first, *further = of.study.axes
    panels = []
    for column in of.columns:
        curves: dict[tuple[str, tuple[str, ...]], Curve] = {}
        for series in of.series:
            for place, point in enumerate(of.study.points):
                entry = of.entries.get((place, series, *column))
                if entry is None or entry.measured is None:
                    continue
                rest = tuple(f"{_words(axis)} {of.value(axis, _given(point, axis))}" for axis in further)
                label = ", ".join([*of.named(series), *rest])
                curve = curves.setdefault(
                    (series, rest), Curve(label, {}, {}, None, of.colour(series, len(curves), bool(further)), {})
                )
                value = _given(point, first)
                curve.points[_key(value)] = entry.measured
                curve.texts[_key(value)] = of.value(first, value)
                curve.runs[_key(value)] = [record.run for record in entry.runs]
                if place == of.study.base:
                    curves[series, rest] = curve._replace(base=_key(value))
        if any(len(curve.points) > 1 for curve in curves.values()):
            entry = next(e for (*_, task, metric), e in of.entries.items() if (task, metric) == column and e.measured)
            metric = ", ".join(filter(None, (entry.metric, entry.unit)))
            panels.append(
                Panel(
                    of.heading(column)[0],
                    metric,
                    [_key(_given(p, first)) for p in of.study.points],
                    list(curves.values()),
                )
            )
    return panels


def _given(point: StudyPoint, axis: str) -> Any:
    return point.values[axis]  # noqa: PD011 - of a point, and no frame


def _key(value: Any) -> Any:
    """Return a value that can be a key: a number as it is, anything else as text."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else value_text(value)
