"""Cells: one method on one task by one metric, measured and published.

A value counts only while its record's settings and revision, and those of the runs that its encoder or its classifier
comes from, are those of the suite file and of the code; else the cell is stale, and says why.
Published values come from ``published.toml``, for the method's own report under the encoder of the same name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from lutbench.errors import UserError, nearest
from lutbench.evaluate.outcomes import Measurement, Outcomes
from lutbench.evaluate.statistics import over_seeds
from lutbench.recipes import ClassificationRecipe, DownstreamRecipe
from lutbench.recipes.base import RunRecipe
from lutbench.recipes.robustness import RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import Record, changes, read_records
from lutbench.report.names import row_of
from lutbench.report.published import Published, PublishedValue, load_published
from robustness.condition_outcomes import RobustnessOutcomes


@dataclass(frozen=True)
class TableEntry:
    """One method on one task, by one metric."""

    task: str
    """Its name in the suite file, or ``TABLE/SET`` of a shifted set."""
    method: str
    """Its name in the suite file, or that of a classifier."""
    encoder: str
    planned: int
    """Seeds in the suite file."""
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    runs: tuple[Record, ...] = ()
    """The records that the value is the mean of, one per seed."""
    stale: tuple[str, ...] = ()
    """The runs whose records are there and do not count, each with the reason."""
    published: PublishedValue | None = None
    stage: Literal["downstream", "robustness"] = "downstream"

    @property
    def row(self) -> tuple[str, str]:
        """Task and method: cells of one row are of the same runs, by several metrics."""
        return self.task, self.method


def entries(suite: LoadedSuite, results_dir: Path) -> list[TableEntry]:
    """Every cell of the suite: tasks and in them methods in the suite file's order, then the shifted sets.

    A method on a task has one cell; on a shifted set one for each metric that tables print, set by set and metric by
    metric, so that methods stand beside each other. Where a set was not measured, the metrics are those in which there
    are published values, or nothing.

    Raises:
        UserError: if a record is damaged, or a ``published`` name in the suite file is not in published.toml, or is that
            of another metric.
    """
    records = read_records(results_dir, suite.name)
    published = load_published()
    made = []
    for (task, method), planned in planned_rows(suite, "downstream").items():
        known = _published(suite, task, method, _encoder(planned[0]), published)
        made.append(_cell(suite, planned, records, None, known, results_dir))
        told = suite.config.downstream[task].published
        if known and made[-1].metric and published.task[told].metric != made[-1].metric:
            raise UserError(
                f"{suite.name}: downstream.{task}.published: {told} is in {published.task[told].metric}, and the task is "
                f"measured in {made[-1].metric}. Name a published task in {made[-1].metric}, or none."
            )
    rows = planned_rows(suite, "robustness")
    for task in dict.fromkeys(task for task, _ in rows):
        of_task = {method: planned for (other, method), planned in rows.items() if other == task}
        made += _robust_cells(suite, of_task, records, published, results_dir)
    return made


def planned_rows(suite: LoadedSuite, stage: str) -> dict[tuple[str, str], list[PlannedRun]]:
    """The runs of a stage, one per seed, by task and method: tasks as in the suite file, in them methods likewise."""
    methods = [*suite.config.method, *suite.config.classifier]
    planned = [run for run in suite.runs if run.stage == stage]
    tasks = list(dict.fromkeys(run.task for run in planned))
    rows: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in sorted(planned, key=lambda run: (tasks.index(run.task), methods.index(run.method))):
        rows.setdefault((run.task, run.method), []).append(run)
    return rows


def _robust_cells(
    suite: LoadedSuite,
    rows: Mapping[str, list[PlannedRun]],
    records: Mapping[str, Record],
    published: Published,
    results_dir: Path,
) -> Iterator[TableEntry]:
    """Of one shifted set, metric by metric."""
    metrics: dict[str, list[str]] = {}
    for method, planned in rows.items():
        for run in planned:
            if run.name in records and not _outdated(suite, run, records):
                metrics[method] = _printed(records[run.name], results_dir)
                break
    every = list(dict.fromkeys(metric for printed in metrics.values() for metric in printed))
    first = next(iter(rows.values()))[0]
    told = _published_metrics(suite, first, every, published)
    every = every or list(told) or [""]
    for metric in every:
        for method, planned in rows.items():
            if metric in metrics.get(method, every):
                known = _published_row(suite, method, told.get(metric, ""), _encoder(planned[0]), published)
                yield _cell(suite, planned, records, metric, known, results_dir)


def _published_metrics(
    suite: LoadedSuite, run: PlannedRun, metrics: Sequence[str], published: Published
) -> dict[str, str]:
    """The published task of each metric of a shifted set that has one; of all that are named where none is measured."""
    assert isinstance(run.recipe, RobustnessRecipe)
    found: dict[str, str] = {}
    for part, task in run.recipe.set.published.items():
        where = f"{suite.name}: shifted.{run.task.split('/')[-1]}.published"
        _check_name(where, task, published.task)
        kind = published.task[task].metric
        naming = [metric for metric in metrics if part in metric.split(", ")]
        fitting = [metric for metric in naming if metric.split(", ")[0] == kind]
        if naming and not fitting:
            raise UserError(
                f"{where}: {task} is in {kind}, and {part!r} is measured in {naming[0].split(', ')[0]}. "
                "Name a published task in that, or none."
            )
        for metric in fitting if metrics else [kind if part == kind else f"{kind}, {part}"]:
            found.setdefault(metric, task)
    return found


def _cell(
    suite: LoadedSuite,
    planned: Sequence[PlannedRun],
    records: Mapping[str, Record],
    metric: str | None,
    known: PublishedValue | None,
    results_dir: Path,
) -> TableEntry:
    """The cell of a row by ``metric``, by the one that tables print if that is None."""
    first = planned[0]
    stage: Literal["downstream", "robustness"] = "robustness" if first.stage == "robustness" else "downstream"
    cell = TableEntry(
        first.task, first.method, _encoder(first), len(planned), metric or "", published=known, stage=stage
    )
    reasons = {run.name: _outdated(suite, run, records) for run in planned if run.name in records}
    current = [records[name] for name, reason in reasons.items() if not reason]
    stale = tuple(f"`{name}` stale: {reason}" for name, reason in reasons.items() if reason)
    measured = [
        (r, m)
        for r in current
        if (m := _of_task(r, first.recipe, results_dir) if metric is None else r.measured(metric))
    ]
    if not measured:
        return replace(cell, stale=stale)
    value, low, high = over_runs([m for _, m in measured])
    runs = tuple(r for r, _ in measured)
    return replace(cell, metric=measured[0][1].metric, value=value, low=low, high=high, runs=runs, stale=stale)


def _of_task(record: Record, recipe: RunRecipe, results_dir: Path) -> Measurement:
    """What tables print of a task: of a classification in the metric that its set has now, whichever it had then."""
    if not isinstance(recipe, ClassificationRecipe):
        return record.measurements[0]
    measured = record.measured(recipe.data.metric)
    if measured is not None:
        return measured
    outcomes = record.outcomes
    assert isinstance(outcomes, Outcomes)
    return replace(outcomes, metric=recipe.data.metric).measurements()[0]


def over_runs(measured: Sequence[Measurement]) -> tuple[float, float | None, float | None]:
    """The mean of one metric over seeds and its interval: over images for one seed, Student's t for more."""
    values = [m.value for m in measured]
    low, high = over_seeds(values) if len(values) > 1 else (measured[0].low, measured[0].high)
    return float(np.mean(values)), low, high


def _encoder(run: PlannedRun) -> str:
    if isinstance(run.recipe, RobustnessRecipe):
        return run.recipe.classifier.encoder
    assert isinstance(run.recipe, DownstreamRecipe)
    return run.recipe.encoder.architecture.label or run.recipe.encoder.architecture.model


def _printed(record: Record, results_dir: Path) -> list[str]:
    outcomes = record.outcomes
    assert isinstance(outcomes, RobustnessOutcomes)
    return outcomes.printed()


def _outdated(suite: LoadedSuite, run: PlannedRun, records: Mapping[str, Record]) -> str:
    """Why the record of a run is not that of the suite file's settings, performed by this code; empty if it is."""
    record = records[run.name]
    changed = changes(
        {"revision": record.identity_inputs["revision"], **record.identity_inputs["recipe"]},
        {"revision": run.recipe.revision, **run.recipe.affecting_results()},
    )
    if changed or run.needs is None:
        return changed[0] if changed else ""
    part = "classifier" if run.stage == "robustness" else "encoder"
    if run.needs not in records:
        return f"its {part}'s run, {run.needs}, has no record"
    if record.identity_inputs[part]["run"] != records[run.needs].identity:
        return f"its {part} is not that of the record of {run.needs}"
    needed = next(other for other in suite.runs if other.name == run.needs)
    reason = _outdated(suite, needed, records)
    return f"{run.needs}: {reason}" if reason else ""


def _published(suite: LoadedSuite, task: str, method: str, encoder: str, published: Published) -> PublishedValue | None:
    told = suite.config.downstream[task].published
    if told:
        _check_name(f"{suite.name}: downstream.{task}.published", told, published.task)
    return _published_row(suite, method, told, encoder, published)


def _published_row(
    suite: LoadedSuite, method: str, task: str, encoder: str, published: Published
) -> PublishedValue | None:
    """Of a method or classifier on a published task, empty if there is none."""
    kind = "method" if method in suite.config.method else "classifier"
    name = row_of(suite, method).published
    if name:
        known = {entry.method for entry in published.reported}
        _check_name(f"{suite.name}: {kind}.{method}.published", name, known)
    return published.value(name, task, encoder) if name and task else None


def _check_name(where: str, name: str, known: Mapping[str, object] | set[str]) -> None:
    if name not in known:
        raise UserError(f"{where}: lutbench/report/published.toml has no {name!r}.{nearest(name, known)}")
