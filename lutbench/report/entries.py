"""Table entries: one method on one task in one metric, measured and published.

A value counts only if the settings and revision of its record, and of the runs that its encoder or classifier comes from, match the
suite file and the code; else the entry is stale, with the reason.
Published values come from ``published.toml``, for the encoder of the same name.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lutbench.changes import changes
from lutbench.errors import UserError, nearest
from lutbench.evaluate.outcomes import Measurement
from lutbench.evaluate.statistics import over_seeds
from lutbench.kinds import KINDS, Kind
from lutbench.lineage import other_weights, started_from
from lutbench.recipes.base import RunRecipe
from lutbench.recipes.robustness import ClassifierTable
from lutbench.recipes.suite import LoadedSuite, MethodRecipe, PlannedRun
from lutbench.record import Record
from lutbench.report.published import Published, PublishedValue, load_published

STUDENT = "Student's t"
"""Name of the interval of a mean over seeds."""

OF_DRAWS = "Student's t, draws"
"""Name of the interval of a mean over draws of the training images, of one seed."""


@dataclass(frozen=True)
class TableEntry:
    """One method on one task, in one metric."""

    kind: Kind
    task: str
    """Its name in the suite file, or ``TABLE/SET`` of a robustness dataset."""
    method: str
    """Its name in the suite file, or that of a classifier."""
    encoder: str
    planned: int
    """Number of runs in the suite file: one per seed and draw."""
    metric: str = ""
    """Empty if it is unknown: without a record or a published value."""
    measured: Measurement | None = None
    """The mean over seeds; with several draws, the mean over seeds of the means over draws."""
    runs: tuple[Record, ...] = ()
    """The records that it is the mean of, one per seed and draw."""
    stale: tuple[str, ...] = ()
    """The runs whose records exist but do not count, each with the reason."""
    published: PublishedValue | None = None
    draws: int = 1
    """Draws of the training images that the suite file asks for, with each seed."""

    @property
    def row(self) -> tuple[str, str, str]:
        """Stage, task and method: the entries of a row come from the same runs, in several metrics."""
        return self.kind.stage, self.task, self.method

    @property
    def seeds(self) -> int:
        """Number of seeds that were run."""
        return len({record.seed for record in self.runs})

    @property
    def unit(self) -> str:
        """The unit of what was measured; percent if nothing was."""
        return self.measured.unit if self.measured else "%"

    @property
    def is_printed(self) -> bool:
        """Whether tables print it: it has a measured or published value, or a stale record."""
        return bool(self.measured or self.stale or self.published)

    @property
    def difference(self) -> float | None:
        """Measured minus published; None where one is missing, or they are not by the same recipe."""
        if self.measured is None or self.published is None or self.published.other_recipe:
            return None
        return self.measured.value - self.published.value

    @property
    def is_lower_better(self) -> bool:
        """Whether the lower of two values is the better one, as the outcomes of its kind say."""
        outcomes = self.kind.outcomes
        return outcomes is not None and self.metric.split(", ")[0] in outcomes.LOWER

    @property
    def column(self) -> tuple[str, str, str]:
        """Stage, task and metric: the entries of a column are compared with each other."""
        return self.kind.stage, self.task, self.metric


def entries(suite: LoadedSuite, records: Mapping[str, Record]) -> list[TableEntry]:
    """Return every entry of the suite except those of pre-training: task by task, metric by metric, method by method.

    A task has the metrics that its records print; without records, those in its settings or published values.

    Raises:
        UserError: if a ``published`` name in the suite file is not in published.toml, or is that of another metric.
    """
    tasks: dict[tuple[str, str], dict[str, list[PlannedRun]]] = {}
    for run in suite.runs:
        if run.kind is not KINDS["pretrain"]:
            tasks.setdefault((run.stage, run.task), {}).setdefault(run.method, []).append(run)
    published = load_published()
    return [entry for rows in tasks.values() for entry in _of_task(suite, rows, records, published)]


def row_of(suite: LoadedSuite, method: str) -> MethodRecipe | ClassifierTable | None:
    """Return the suite file's table of a method or a classifier; None for runs that are of neither."""
    return suite.config.method.get(method) or suite.config.classifier.get(method)


def method_order(suite: LoadedSuite, methods: Iterable[str]) -> list[str]:
    """Return ``methods`` in the suite file's order, and behind them classifiers."""
    known = [*suite.config.method, *suite.config.classifier]
    return sorted(methods, key=lambda method: known.index(method) if method in known else len(known))


def run_ids(records: Iterable[Record]) -> str:
    """Return how tables for programs name runs: ``downstream/knn/lut/seed0@0123456789ab``, with the beginning of the identity."""
    return " ".join(f"{record.run}@{record.identity[:12]}" for record in records)


def six_digits(value: float | None) -> float | None:
    """Return a number for programs with six significant digits: of more, every version of SciPy has its own."""
    return None if value is None else float(f"{value:.6g}")


def over_runs(measured: Sequence[Measurement], seeds: Sequence[int] | None = None) -> Measurement:
    """Return the mean of one metric over seeds, with Student's t interval; for one seed, its own value with the interval over images.

    If every seed gave the same number, as for weights that do not depend on the seed, the interval is the one over images too.
    ``seeds`` are the seeds of the measurements (default: all different); measurements with the same seed are draws of the training
    images, and their mean counts as one value. If these means are the same for all seeds, or there is one seed, the interval is over
    draws.
    """
    values, over = spread([m.value for m in measured], seeds or range(len(measured)))
    if len(values) == 1:
        return measured[0]
    low, high = over_seeds(values)
    mean = {
        "value": float(np.mean(values)), "low": low, "high": high, "interval": STUDENT if over == "seeds" else OF_DRAWS,
    }  # fmt: skip
    return measured[0].model_copy(update=mean)


def spread(values: Sequence[float], seeds: Sequence[int]) -> tuple[list[float], Literal["seeds", "draws"]]:
    """Return the mean of the ``values`` of each seed; if these are all the same number, the values of the first seed's draws.

    If those are the same too, return one value only. Sums of the same counts differ in their last bits: they are the same number.
    """
    of_seed: dict[int, list[float]] = {}
    for value, seed in zip(values, seeds, strict=True):
        of_seed.setdefault(seed, []).append(value)
    means, draws = [float(np.mean(of)) for of in of_seed.values()], next(iter(of_seed.values()))
    if _differ(means):
        return means, "seeds"
    return (draws, "draws") if _differ(draws) else (draws[:1], "seeds")


def _differ(values: Sequence[float]) -> bool:
    return len({round(value, 12) for value in values}) > 1


def _of_task(
    suite: LoadedSuite, rows: Mapping[str, Sequence[PlannedRun]], records: Mapping[str, Record], published: Published
) -> Iterator[TableEntry]:
    """Yield the entries of one task from its runs by method, one per seed and draw."""
    rows = {method: rows[method] for method in method_order(suite, rows)}
    first = next(iter(rows.values()))[0]
    reasons = {run.name: outdated(suite, run, records) for runs in rows.values() for run in runs if run.name in records}
    current = {method: [run for run in runs if reasons.get(run.name) == ""] for method, runs in rows.items()}
    printed = {method: _printed(records[runs[0].name], first.recipe) for method, runs in current.items() if runs}
    metrics = list(dict.fromkeys(metric for of_method in printed.values() for metric in of_method))
    if not metrics and first.recipe.metric:
        metrics = [first.recipe.metric]
    published_tasks = _published_tasks(suite, first, metrics, published)
    metrics = metrics or list(published_tasks) or [""]
    for metric in metrics:
        for method, runs in rows.items():
            if metric not in printed.get(method, metrics):
                continue
            found = [
                (records[run.name], measured)
                for run in current[method]
                if (measured := _measured(records[run.name], metric, run.recipe))
            ]
            yield TableEntry(
                kind=first.kind,
                task=first.task,
                method=method,
                encoder=runs[0].recipe.encoder_label,
                planned=len(runs),
                metric=metric,
                measured=over_runs([m for _, m in found], [record.seed for record, _ in found]) if found else None,
                runs=tuple(record for record, _ in found),
                stale=tuple(f"`{run.name}` stale: {reasons[run.name]}" for run in runs if reasons.get(run.name)),
                published=_published_value(suite, method, published_tasks.get(metric, ""), runs[0], published),
                draws=len({run.draw for run in runs}),
            )


def _printed(record: Record, recipe: RunRecipe) -> list[str]:
    """Return the metrics that tables print: the one in the current settings, those of the outcomes, or the first."""
    if record.outcomes_file is None:
        return [record.measurements[0].metric]
    metrics: list[str] = [recipe.metric] if recipe.metric else record.outcomes.printed()
    return metrics


def _measured(record: Record, metric: str, recipe: RunRecipe) -> Measurement | None:
    """Return the measurement in a metric; if the metric was chosen after the run, compute it from the outcomes."""
    found = record.measured(metric)
    if found is None and metric == recipe.metric:
        found = record.outcomes.measurement(metric)
    return found


def outdated(suite: LoadedSuite, run: PlannedRun, records: Mapping[str, Record]) -> str:
    """Return why the record of a run does not match the suite file's settings and the revision of this code; empty if it does."""
    record, part = records[run.name], run.kind.starts_from
    changed = changes(
        {"revision": record.identity_inputs["revision"], **record.identity_inputs["recipe"]},
        {"revision": run.recipe.revision, **run.recipe.affecting_results()},
    )
    if changed or run.needs is None:
        return changed[0] if changed else ""
    if run.needs not in records:
        return f"the run of its {part}, {run.needs}, has no record in these results; `--only {run.needs}` restores or makes it"
    if started_from(record).get("run") != records[run.needs].identity:
        return f"its {part} is not the one in the record of {run.needs}"
    if other_weights(record, records[run.needs]):
        return f"its {part} has other weights than the record of {run.needs}, which was repeated since then"
    reason = outdated(suite, suite.run(run.needs), records)
    return f"{run.needs}: {reason}" if reason else ""


def _published_tasks(
    suite: LoadedSuite, run: PlannedRun, metrics: Sequence[str], published: Published
) -> dict[str, str]:
    """Return the published task of each metric that has one; if no metric is known, of all published tasks that are named."""
    table = getattr(suite.config, run.stage).get(run.task)
    if table is None:  # the task is a dataset of a table, and the dataset names what was published of its parts
        where, named = f"shifted.{run.task.split('/')[1]}", run.recipe.dataset.published  # type: ignore[attr-defined]
        # a probe's protocol differs from that of the fine-tuned classifiers, which the dataset names
        if run.task.count("/") > 1:
            probed = {part: task.replace("/finetune/", "/linear/") for part, task in named.items()}
            named = {part: task for part, task in probed.items() if task in published.task and "/linear/" in task}
    else:
        where, named = f"{run.stage}.{run.task}", {"": getattr(table, "published", "")}
    found: dict[str, str] = {}
    for part, task in named.items():
        if not task:
            continue
        _check_name(f"{suite.name}: {where}.published", task, published.task)
        kind = published.task[task].metric
        of_part = [metric for metric in metrics if not part or part in metric.split(", ")]
        fitting = [metric for metric in of_part if metric.split(", ")[0] == kind]
        if of_part and not fitting:
            raise UserError(
                f"{suite.name}: {where}.published: the metric of {task} is {kind}, but {repr(part) if part else 'the task'} is "
                f"measured in {of_part[0].split(', ')[0]}. Name a published task with that metric, or none."
            )
        for metric in fitting if metrics else [kind if part in ("", kind) else f"{kind}, {part}"]:
            found.setdefault(metric, task)
    return found


def _published_value(
    suite: LoadedSuite, method: str, task: str, run: PlannedRun, published: Published
) -> PublishedValue | None:
    """Return the value of a method or classifier on a published task, if there is one; ``run`` is one of its runs."""
    row = row_of(suite, method)
    if row is None or not row.published:
        return None
    kind = "method" if method in suite.config.method else "classifier"
    _check_name(f"{suite.name}: {kind}.{method}.published", row.published, {one.method for one in published.reported})
    runs = [run]
    while runs[-1].needs:
        runs.append(suite.run(runs[-1].needs))
    return published.value(row.published, task, run.recipe.encoder_label, runs)


def _check_name(where: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UserError(f"{where}: lutbench/report/published.toml has no {name!r}.{nearest(name, known)}")
