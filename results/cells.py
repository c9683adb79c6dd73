"""Cells: one method on one task, measured and published.

A value counts only while its record's settings and revision, and those of the run that its encoder comes from, are
those of the suite file and of the code; else the cell is stale, and says why.
Published values come from ``published.toml``, for the method's own report under the encoder of the same name.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutbench.errors import UserError, nearest
from lutbench.recipes import DownstreamRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import Record, changes, read_records
from lutbench.statistics import over_seeds
from results.published import Published, PublishedValue, load_published


@dataclass(frozen=True)
class Cell:
    """One method on one task."""

    task: str
    method: str
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


def cells(suite: LoadedSuite, results_dir: Path) -> list[Cell]:
    """Every cell of the suite, tasks and in them methods in the suite file's order.

    Raises:
        UserError: if a record is damaged, or a ``published`` name in the suite file is not in published.toml, or is that
            of another metric.
    """
    records = read_records(results_dir, suite.name)
    published = load_published()
    made = []
    for task in suite.suite.downstream:
        for method in suite.suite.method:
            planned = [run for run in suite.runs if (run.task, run.method) == (task, method)]
            if planned:
                made.append(_cell(suite, task, method, planned, records, published))
    return made


def _cell(
    suite: LoadedSuite,
    task: str,
    method: str,
    planned: list[PlannedRun],
    records: dict[str, Record],
    published: Published,
) -> Cell:
    recipe = planned[0].recipe
    assert isinstance(recipe, DownstreamRecipe)
    encoder = recipe.encoder.architecture.label or recipe.encoder.architecture.model
    known = _published(suite, task, method, encoder, published)
    reasons = {run.name: _outdated(suite, run, records) for run in planned if run.name in records}
    current = [records[name] for name, reason in reasons.items() if not reason]
    stale = tuple(f"`{name}` stale: {reason}" for name, reason in reasons.items() if reason)
    if not current:
        return Cell(task, method, encoder, len(planned), stale=stale, published=known)
    first = [record.measurements[0] for record in current]
    metric = first[0].metric
    told = suite.suite.downstream[task].published
    if known and published.task[told].metric != metric:
        raise UserError(
            f"{suite.name}: downstream.{task}.published: {told} is in {published.task[told].metric}, and the task is "
            f"measured in {metric}. Name a published task in {metric}, or none."
        )
    values = [measurement.value for measurement in first]
    low, high = over_seeds(values) if len(values) > 1 else (first[0].low, first[0].high)
    return Cell(
        task, method, encoder, len(planned), metric, float(np.mean(values)), low, high, tuple(current), stale,
        known,
    )  # fmt: skip


def _outdated(suite: LoadedSuite, run: PlannedRun, records: dict[str, Record]) -> str:
    """Why the record of a run is not that of the suite file's settings, performed by this code; empty if it is."""
    record = records[run.name]
    changed = changes(
        {"revision": record.document["revision"], **record.document["recipe"]},
        {"revision": run.recipe.revision, **run.recipe.affecting_results()},
    )
    if changed or run.needs is None:
        return changed[0] if changed else ""
    if run.needs not in records:
        return f"its encoder's run, {run.needs}, has no record"
    if record.document["encoder"]["run"] != records[run.needs].identity:
        return f"its encoder is not that of the record of {run.needs}"
    needed = next(other for other in suite.runs if other.name == run.needs)
    reason = _outdated(suite, needed, records)
    return f"{run.needs}: {reason}" if reason else ""


def _published(suite: LoadedSuite, task: str, method: str, encoder: str, published: Published) -> PublishedValue | None:
    names = suite.suite.downstream[task].published, suite.suite.method[method].published
    methods = {entry.method for entry in published.reported}
    for where, name, known in (
        (f"downstream.{task}", names[0], set(published.task)),
        (f"method.{method}", names[1], methods),
    ):
        if name and name not in known:
            raise UserError(
                f"{suite.name}: {where}.published: results/published.toml has no {name!r}.{nearest(name, known)}"
            )
    return published.value(names[1], names[0], encoder) if all(names) else None


def task_title(suite: LoadedSuite, task: str) -> str:
    """How tables name a task."""
    return suite.suite.downstream[task].title or task


def method_label(suite: LoadedSuite, method: str) -> str:
    """How tables name a method."""
    return suite.suite.method[method].label or method
