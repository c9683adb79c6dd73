"""Tables of shifted test sets: every method on every set, every corruption, and all that was measured.

Sets are in rows, and in each set and metric a row per method, published value beside measured one. The paper's sets have
some thirty printed metrics, tiny's have ten: as columns of a row per method they would be read nowhere, so both suites
have the rows of the main table, which grow down the page and fit into a terminal.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lutbench.evaluate.statistics import RESAMPLES
from lutbench.recipes.robustness import RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import Record
from lutbench.report.comparisons import compared, points, same_images
from lutbench.report.entries import TableEntry, over_runs
from lutbench.report.names import directed, method_names, pair_name, task_title
from lutbench.report.rows import value_table
from robustness.condition_outcomes import RobustnessOutcomes

LEGEND = (
    "Measured values in percent, higher (↑) or lower (↓) is better, each with its 95 % interval: for one seed over "
    f"images (Wilson's of an accuracy, Newcombe's of a gap, else percentiles of {RESAMPLES} resamples of the images), "
    "Student's t over seeds for more. What follows a metric's name is the part of the set and the protocol: which of the "
    "classifier's outputs compete, and how images were resized. Other protocols and severities are in robustness.csv. "
    "Published values are those of the method's own report; a difference is measured minus published."
)
CORRUPTIONS_LEGEND = (
    "Top-1 error in percent, lower is better, mean over severities, with its 95 % interval: percentiles of "
    f"{RESAMPLES} resamples of the images for one seed, Student's t over seeds for more. Extra corruptions are in no mean "
    "but those that count them. Differences are in points, with the percentiles of the same resamples for both methods."
)


def robust_cells(made: Iterable[TableEntry]) -> list[TableEntry]:
    """Those of shifted sets."""
    return [cell for cell in made if cell.stage == "robustness"]


def robust_table(suite: LoadedSuite, made: Sequence[TableEntry]) -> pd.DataFrame:
    """A row per set, metric and method. A method that was not run on a set has an empty value.

    Sets that no method was run on, and that nothing was published of, are left to :func:`not_run`.
    """
    robust = robust_cells(made)
    there = {cell.task for cell in robust if cell.runs or cell.stale or cell.published}
    table = value_table(suite, [cell for cell in robust if cell.task in there], made)
    return table if table.empty else table.assign(metric=table["metric"].map(directed))


def not_run(suite: LoadedSuite, made: Iterable[TableEntry]) -> str:
    """``Not run: ImageNet-A; ImageNet-R with MAE.``; empty if every method was run on every set."""
    robust = robust_cells(made)
    told = []
    for task in dict.fromkeys(cell.task for cell in robust):
        of_task = [cell for cell in robust if cell.task == task]
        names = method_names(suite, {cell.method: cell.encoder for cell in of_task})
        ran = {cell.method for cell in of_task if cell.runs or cell.stale}
        missing = [name for method, name in names.items() if method not in ran]
        if missing:
            told.append(task_title(suite, task) + (f" with {', '.join(missing)}" if ran else ""))
    return f"Not run: {'; '.join(told)}." if told else ""


class CorruptionTable(NamedTuple):
    """One corrupted set, and the methods of one encoder."""

    task: str
    title: str
    table: pd.DataFrame


def corruption_tables(suite: LoadedSuite, made: Iterable[TableEntry], results_dir: Path) -> list[CorruptionTable]:
    """For every corrupted set that was measured: a row per corruption, then their mean, then the extra ones apart.

    A column per method, and the difference of the suite's first pair that was measured on the same images. Methods of
    other encoders have a table of their own: the paper's together would be too wide.
    """
    made = list(made)
    tables = []
    for task in measured_sets(suite, made, "corruptions"):
        of_task = [cell for cell in robust_cells(made) if cell.task == task and cell.runs]
        encoders = list(dict.fromkeys(cell.encoder for cell in of_task))
        for encoder in encoders:
            cells = {cell.method: cell for cell in of_task if cell.encoder == encoder}
            title = ", ".join([task_title(suite, task), *([encoder] if len(encoders) > 1 else [])])
            tables.append(CorruptionTable(task, title, _corruption_table(suite, cells, results_dir)))
    return tables


def _corruption_table(suite: LoadedSuite, cells: Mapping[str, TableEntry], results_dir: Path) -> pd.DataFrame:
    encoders = {method: cell.encoder for method, cell in cells.items()}
    names = method_names(suite, encoders)
    pairs = ((pair, same_images(cells, pair[0], pair[1], results_dir)) for pair in suite.config.compare)
    pair, both = next(((pair, both) for pair, both in pairs if both), ([], None))
    rows = []
    for label, metric in _corruption_rows([cell.runs[0] for cell in cells.values()], results_dir):
        row = {"corruption": label} | {names[method]: _value(cell.runs, metric) for method, cell in cells.items()}
        if both and all(cells[method].runs[0].measured(metric) for method in pair):
            told = compared(*both, metric)
            row[pair_name(suite, encoders, pair[0], pair[1])] = points(told.difference, told.interval)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def measured_sets(suite: LoadedSuite, made: Iterable[TableEntry], kind: str) -> list[str]:
    """The shifted sets of one kind, as ``TABLE/SET``, that have a record."""
    of_kind = {
        run.task for run in suite.runs if isinstance(run.recipe, RobustnessRecipe) and run.recipe.set.kind == kind
    }
    return list(dict.fromkeys(cell.task for cell in robust_cells(made) if cell.task in of_kind and cell.runs))


def every_measurement(suite: LoadedSuite, made: Iterable[TableEntry], note: str) -> pd.DataFrame:
    """All protocols, parts and severities of the records that count, unrounded: a row per measurement, for programs."""
    records = {r.run: (cell, r) for cell in robust_cells(made) for r in cell.runs}
    rows = []
    for cell, r in records.values():
        table, shifted = cell.task.split("/", 1)
        labels = {
            "suite": suite.name, "table": table, "set": shifted, "method": cell.method, "encoder": cell.encoder,
            "seed": r.seed,
        }  # fmt: skip
        run = f"{r.run}@{r.identity[:12]}"
        rows += [
            labels
            | m.model_dump(include={"metric", "value", "low", "high", "n", "interval"})
            | {"run": run, "note": note}
            for m in r.measurements
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = [
    "suite", "table", "set", "method", "encoder", "seed", "metric", "value", "low", "high", "n", "interval", "run", "note",
]  # fmt: skip
"""Of robustness.csv, also where nothing was measured."""


def _corruption_rows(records: Sequence[Record], results_dir: Path) -> list[tuple[str, str]]:
    """Label and metric of every row, of all that any of the records has."""
    main, extra, means = dict[str, str](), dict[str, str](), dict[str, str]()
    for record in records:
        outcomes = record.outcomes
        assert isinstance(outcomes, RobustnessOutcomes)
        for cell in outcomes.cells:
            corruption = cell.cell.rsplit("/", 1)[0]
            told = corruption.replace("_", " ")
            apart = corruption in outcomes.extra
            (extra if apart else main)[f"{told}, extra" if apart else told] = f"error, {corruption}"
        named = (m.metric for m in record.measurements if m.metric.startswith("mean error, "))
        means |= {name.replace("mean error", "mean"): name for name in named}
    ahead = dict(list(means.items())[: 1 if main else 0])  # of the corruptions that are not extra
    return list((main | ahead | extra | means).items())


def _value(records: Sequence[Record], metric: str) -> str:
    measured = [m for record in records if (m := record.measured(metric))]
    if not measured:
        return ""
    value, low, high = over_runs(measured)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
